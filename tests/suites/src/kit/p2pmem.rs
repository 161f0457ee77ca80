// SPDX-License-Identifier: MIT OR Apache-2.0

//! The other design: peer-to-peer memory that is mapped through `p2pmem/allocate` in sysfs. What
//! the variants are, and what an unpatched kernel has of them, is in compound-sysfs/README.md.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use barbuf_guest::protocol::Device;
use barbuf_guest::sysfs;
use nix::errno::Errno;

use super::map::{Mapping, Place, READ_WRITE, Window};
use super::pci::{Function, Lent};
use super::{GIB, MIB, PAGE};
use crate::support::Ctx;

/// The driver of the PCI function.
pub(crate) const DRIVER: &str = "p2pmem_npu";
/// Whether leaves of 1 GiB are repaired, on a kernel that has the repairs.
const REPAIRS: &str = "/sys/module/kernel/parameters/pud_repairs";

/// A way to map p2pmem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// As Linux does it, page by page.
    Base,
    /// As posted: pages of one size, all of them put in by mmap, without repairs in mm.
    Posted { page: u64 },
    /// As reviewers asked for: pages of this size at most, which refault.
    Reviewed { page: u64 },
}

#[allow(dead_code, reason = "the table of what there is")]
impl Variant {
    pub(crate) const S_2M: Variant = Variant::Posted { page: 2 * MIB };
    pub(crate) const S_1G: Variant = Variant::Posted { page: GIB };
    pub(crate) const R_2M: Variant = Variant::Reviewed { page: 2 * MIB };
    pub(crate) const R_1G: Variant = Variant::Reviewed { page: GIB };

    /// How tables and reports call it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Variant::Base => "base sysfs 4K",
            Variant::Posted { page: GIB } => "S 1G",
            Variant::Posted { .. } => "S 2M",
            Variant::Reviewed { page: GIB } => "R 1G",
            Variant::Reviewed { .. } => "R 2M",
        }
    }

    /// The largest page that a mapping can have.
    pub(crate) fn page(self) -> u64 {
        match self {
            Variant::Base => PAGE,
            Variant::Posted { page } | Variant::Reviewed { page } => page,
        }
    }

    /// Whether the repairs in mm belong to it. S is as it was posted, and base is what is there now.
    pub(crate) fn is_repaired(self) -> bool {
        matches!(self, Variant::Reviewed { .. })
    }

    /// What the memory is registered with.
    fn alignment(self) -> u64 {
        match self {
            Variant::Posted { page } => page,
            Variant::Base | Variant::Reviewed { .. } => PAGE,
        }
    }
}

/// The memory of an NPU, registered as p2pmem until this is dropped.
#[derive(Debug)]
pub(crate) struct P2pmem {
    /// Of `p2pmem/allocate`. Closed before the driver is unbound.
    file: File,
    lent: Lent,
    _repairs: Repairs,
}

#[allow(
    dead_code,
    reason = "what the present suites do not need, the next ones will"
)]
impl P2pmem {
    /// Binds the driver that makes all of BAR 2 p2pmem, in the way that a variant wants it.
    pub(crate) fn register(ctx: &Ctx, device: &Device, variant: Variant) -> Result<P2pmem> {
        P2pmem::register_part(ctx, device, variant, 0)
    }

    /// The same with the first `size` bytes of the BAR.
    pub(crate) fn register_part(
        ctx: &Ctx,
        device: &Device,
        variant: Variant,
        size: u64,
    ) -> Result<P2pmem> {
        ctx.modules().load(DRIVER, "")?;
        let set = |name: &str, value: u64| {
            sysfs::write(
                format!("/sys/module/{DRIVER}/parameters/{name}"),
                &value.to_string(),
            )
        };
        set("align", variant.alignment())?;
        set("size", size)?;
        let lent = Lent::to(Function::of(device)?, DRIVER)?;

        let dir = lent.function().dir().join("p2pmem");
        let limit = dir.join("max_page_size");
        match variant {
            // The alignment has said it.
            Variant::Posted { .. } => (),
            // Without the patches every mapping is one of 4 KiB pages.
            Variant::Base if !limit.exists() => (),
            _ => sysfs::write(&limit, &variant.page().to_string())?,
        }
        let repairs = Repairs::set(variant.is_repaired())?;
        let file = open(&dir)?;
        Ok(P2pmem {
            file,
            lent,
            _repairs: repairs,
        })
    }

    /// Sets the largest page of further mappings (of R, and base with 4 KiB).
    pub(crate) fn limit(&mut self, page: u64) -> Result<()> {
        let dir = self.function().dir().join("p2pmem");
        sysfs::write(dir.join("max_page_size"), &page.to_string())?;
        // The mappings of one open file have to be of one kind.
        self.file = open(&dir)?;
        Ok(())
    }

    pub(crate) fn function(&self) -> &Function {
        self.lent.function()
    }

    /// Bytes that are not allocated.
    pub(crate) fn available(&self) -> Result<u64> {
        let text = sysfs::read(self.function().dir().join("p2pmem/available"))?;
        text.parse().with_context(|| format!("available: {text:?}"))
    }

    /// Allocates memory and maps it at an address that suits pages of any size.
    pub(crate) fn map(&self, len: u64) -> Result<Mapping, Errno> {
        // The pool begins with the BAR, and what is allocated from it is as aligned as its pages.
        Mapping::of(self, 0, Window::new(0, len), READ_WRITE, Place::Congruent)
    }
}

impl AsFd for P2pmem {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(dir: &Path) -> Result<File> {
    let path = dir.join("allocate");
    let file = OpenOptions::new().read(true).write(true).open(&path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// The machine-wide switch of the repairs, which is on again when this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Repairs;

impl Repairs {
    /// Only while nothing is mapped.
    pub(crate) fn set(on: bool) -> Result<Repairs> {
        let repairs = Repairs;
        repair(on)?;
        Ok(repairs)
    }
}

impl Drop for Repairs {
    fn drop(&mut self) {
        if let Err(error) = repair(true) {
            eprintln!("cannot undo {REPAIRS}: {error:#}");
        }
    }
}

/// Switches the repairs of leaves of 1 GiB on or off, if this kernel has any.
fn repair(on: bool) -> Result<()> {
    if Path::new(REPAIRS).exists() {
        sysfs::write(REPAIRS, if on { "1" } else { "0" })?;
    }
    Ok(())
}
