// SPDX-License-Identifier: GPL-2.0

//! How a buffer's bytes are mapped: the cache mode and the backing.
//!
//! The values are those of `uapi/linux/barbuf.h`; a host test compares the two.

use super::errno::{
    Errno,
    Result, //
};

/// The cache mode of CPU mappings. All exports that share a byte have the same one.
///
/// x86 refuses or silently changes a second mapping of a page with another mode, so it is a
/// property of the bytes and not of the mapping. Write-back does not exist here: it is never right
/// for memory behind PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cache {
    /// Uncached: each access reaches the device, in order. Right for every BAR.
    Uncached = 0,
    /// Write-combining: stores are gathered before they leave. For prefetchable BARs only.
    WriteCombining = 1,
}

impl Cache {
    /// The mode that user space calls `value`; `EINVAL` for any other value.
    pub const fn from_uapi(value: u32) -> Result<Self> {
        match value {
            0 => Ok(Cache::Uncached),
            1 => Ok(Cache::WriteCombining),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The number that user space knows.
    pub const fn to_uapi(self) -> u32 {
        // CAST: The enum is `repr(u32)`, so the cast keeps the value.
        self as u32
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Cache::Uncached => "uc",
            Cache::WriteCombining => "wc",
        }
    }
}

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Backing {
    /// Page frame numbers without `struct page`: costs nothing, O_DIRECT gets `EFAULT`.
    Pfn = 0,
    /// Compound P2PDMA pages: O_DIRECT works.
    Page = 1,
}

impl Backing {
    /// The backing that user space calls `value`; `EINVAL` for any other value.
    pub const fn from_uapi(value: u32) -> Result<Self> {
        match value {
            0 => Ok(Backing::Pfn),
            1 => Ok(Backing::Page),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The number that user space knows.
    pub const fn to_uapi(self) -> u32 {
        // CAST: The enum is `repr(u32)`, so the cast keeps the value.
        self as u32
    }
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Backing::Pfn => "pfn",
            Backing::Page => "page",
        }
    }
}
