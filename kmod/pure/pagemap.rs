// SPDX-License-Identifier: GPL-2.0

//! The layout of the kernel's private `struct pci_p2pdma_pagemap`.
//!
//! The kernel finds the provider of a P2PDMA page through `container_of()` from the page's `struct
//! dev_pagemap` to this struct, which only `drivers/pci/p2pdma.c` defines:
//!
//! ```c
//! struct pci_p2pdma_pagemap {
//!         struct dev_pagemap pgmap;
//!         struct p2pdma_provider *mem;
//! };
//! ```
//!
//! Page backing hands the kernel such a struct, made by us, so that it must be laid out as the
//! running kernel believes.

use super::btf::{
    self,
    Btf, //
};

/// Where the members lie, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The size of the whole struct.
    pub size: u64,
    /// The offset of `pgmap`.
    pub pgmap: u64,
    /// The size of `struct dev_pagemap`.
    pub pgmap_size: u64,
    /// The offset of `mem`, a pointer.
    pub mem: u64,
}

impl Layout {
    /// Reads the layout from the kernel's type information.
    ///
    /// # Errors
    ///
    /// [`btf::Error::NotFound`] also when the struct has other members than these two, or `mem` is
    /// no longer the size of a pointer: whatever a new member means, we would not fill it.
    pub fn read(data: &[u8]) -> Result<Self, btf::Error> {
        let whole = Btf::parse(data)?.find_struct("pci_p2pdma_pagemap")?;
        let pgmap = whole.member("pgmap")?;
        let mem = whole.member("mem")?;
        if whole.members() != 2 || mem.size != Some(8) {
            return Err(btf::Error::NotFound);
        }
        Ok(Layout {
            size: u64::from(whole.size()),
            pgmap: u64::from(pgmap.offset),
            pgmap_size: pgmap.size.ok_or(btf::Error::NotFound)?,
            mem: u64::from(mem.offset),
        })
    }
}
