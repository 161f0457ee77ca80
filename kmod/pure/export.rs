// SPDX-License-Identifier: GPL-2.0

//! Which requests to export make sense, and which of those a region can serve.
//!
//! The numbers are those of `uapi/linux/barbuf.h`; a host test compares the two. What needs the
//! kernel is left to the driver: capabilities, file descriptors, and whether the bytes are free.

use super::{
    errno::{
        Errno,
        Result, //
    },
    mode::{
        Backing,
        Cache, //
    },
    order::PageOrder,
    range::{
        page_aligned,
        Range,
        MAX_RANGES, //
    },
};

/// The flags of an export, `BARBUF_EXPORT_*`. Bits that have no name can't exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// No flag.
    pub const NONE: Flags = Flags(0);
    /// The kernel chooses where.
    pub const ANY: Flags = Flags(1 << 0);
    /// Other buffers that say the same may cover the same bytes.
    pub const SHARED: Flags = Flags(1 << 1);
    /// Fill the bytes with zero before the file descriptor exists.
    pub const ZERO: Flags = Flags(1 << 2);
    /// Revoke when the node's file that exported it is closed.
    pub const REVOKE_ON_CLOSE: Flags = Flags(1 << 3);

    /// Let in importers that cannot be told to stop.
    pub const STATIC_IMPORT: Flags = Flags(1 << 4);

    const ALL: u32 = Self::ANY.0
        | Self::SHARED.0
        | Self::ZERO.0
        | Self::REVOKE_ON_CLOSE.0
        | Self::STATIC_IMPORT.0;

    /// The flags in `bits`; `EINVAL` when one of them has no meaning.
    pub const fn from_bits(bits: u32) -> Result<Self> {
        if bits & !Self::ALL != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Flags(bits))
    }

    /// The flags as user space writes them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// How the new file descriptor is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags {
    /// Whether CPUs and importing devices may write.
    pub writable: bool,
    /// Whether the descriptor is closed on exec.
    pub cloexec: bool,
}

impl OpenFlags {
    /// `O_RDWR`; `O_RDONLY` is 0, and `O_WRONLY` makes no sense for memory.
    const RDWR: u32 = 0o2;
    /// `O_CLOEXEC`, in the x86 and generic numbering.
    const CLOEXEC: u32 = 0o2_000_000;

    /// The meaning of `O_RDONLY` or `O_RDWR`, with `O_CLOEXEC` or without; `EINVAL` for anything
    /// else.
    pub const fn from_bits(bits: u32) -> Result<Self> {
        if bits & !(Self::RDWR | Self::CLOEXEC) != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(OpenFlags {
            writable: bits & Self::RDWR != 0,
            cloexec: bits & Self::CLOEXEC != 0,
        })
    }

    /// What `get_unused_fd_flags()` takes: `O_CLOEXEC` or nothing.
    pub const fn fd_flags(self) -> u32 {
        if self.cloexec {
            Self::CLOEXEC
        } else {
            0
        }
    }

    /// The access mode alone, as `fcntl(F_GETFL)` gives it: `O_RDONLY` or `O_RDWR`.
    pub const fn access_bits(self) -> u32 {
        if self.writable {
            Self::RDWR
        } else {
            0
        }
    }
}

/// What a region can do.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// No control registers lie in it.
    pub memory_only: bool,
    /// It lies in a prefetchable BAR, where reads have no side effects and stores may be combined.
    pub prefetchable: bool,
    /// Its ranges come from a pool that chooses by itself.
    pub pool: bool,
    /// The largest compound page that page backing can use here; `None` when there is no page
    /// backing.
    pub page_order: Option<PageOrder>,
    /// The largest page that a mapping can use here.
    pub max_order: PageOrder,
}

impl Region {
    /// Whether the caller needs `CAP_SYS_RAWIO` and a kernel that is not locked down.
    ///
    /// Who can write to control registers can make the device read and write all memory.
    pub const fn needs_rawio(&self) -> bool {
        !self.memory_only
    }

    /// The possible backings, a bit `1 << value` for each.
    pub const fn backings(&self) -> u32 {
        let page = if self.page_order.is_some() {
            1 << Backing::Page.to_uapi()
        } else {
            0
        };
        page | (1 << Backing::Pfn.to_uapi())
    }

    /// The possible cache modes, a bit `1 << value` for each.
    pub const fn caches(&self) -> u32 {
        let wc = if self.prefetchable {
            1 << Cache::WriteCombining.to_uapi()
        } else {
            0
        };
        wc | (1 << Cache::Uncached.to_uapi())
    }
}

/// The members of `struct barbuf_export` as user space wrote them, less the pointers.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// `flags`
    pub flags: u32,
    /// `backing`
    pub backing: u32,
    /// `cache`
    pub cache: u32,
    /// `open_flags`
    pub open_flags: u32,
    /// `eventfd`
    pub eventfd: i32,
    /// `page_shift`
    pub page_shift: u32,
    /// `nr_ranges`
    pub nr_ranges: u32,
    /// `reserved`
    pub reserved: u32,
}

/// A request whose every member makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// What was asked for besides.
    pub flags: Flags,
    /// What stands behind the bytes.
    pub backing: Backing,
    /// How CPUs access them.
    pub cache: Cache,
    /// How the descriptor is opened.
    pub open: OpenFlags,
    /// The eventfd to signal on revocation.
    pub eventfd: Option<i32>,
    /// The size of page that was asked for: a limit, and with page backing the exact size.
    pub page: Option<PageOrder>,
    /// How many ranges to read: 1 to [`MAX_RANGES`].
    pub nr_ranges: u32,
}

impl Request {
    /// Whether the request makes sense by itself, for any region.
    ///
    /// # Errors
    ///
    /// `EINVAL`.
    pub fn parse(&self) -> Result<Export> {
        let flags = Flags::from_bits(self.flags)?;
        let nr_ranges = self.nr_ranges;
        let most = if flags.contains(Flags::ANY) {
            1
        } else {
            // CAST: 64.
            MAX_RANGES as u32
        };
        if self.reserved != 0 || nr_ranges == 0 || nr_ranges > most || self.eventfd < -1 {
            return Err(Errno::EINVAL);
        }
        let page = match self.page_shift {
            0 => None,
            shift => Some(PageOrder::from_shift(shift).ok_or(Errno::EINVAL)?),
        };
        Ok(Export {
            flags,
            backing: Backing::from_uapi(self.backing)?,
            cache: Cache::from_uapi(self.cache)?,
            open: OpenFlags::from_bits(self.open_flags)?,
            eventfd: (self.eventfd >= 0).then_some(self.eventfd),
            page,
            nr_ranges,
        })
    }
}

impl Export {
    /// Whether `region` can serve the request, and with which page size at most.
    ///
    /// With page backing the answer is the size of the compound pages; without, the limit for
    /// mappings.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`.
    pub fn on(&self, region: &Region) -> Result<PageOrder> {
        let write_combining = self.cache == Cache::WriteCombining;
        let zero = self.flags.contains(Flags::ZERO);
        let any = self.flags.contains(Flags::ANY);
        if (write_combining && !region.prefetchable)
            || (zero && !region.memory_only)
            || (region.pool && !any)
        {
            return Err(Errno::EOPNOTSUPP);
        }
        let wanted = self.page.unwrap_or(PageOrder::Pud);
        match self.backing {
            Backing::Pfn => Ok(wanted.min(region.max_order)),
            Backing::Page => {
                let most = region.page_order.ok_or(Errno::EOPNOTSUPP)?;
                // A size that was named is what the caller builds on; without a name the largest
                // will do.
                if self.page.is_some_and(|page| page > most) {
                    return Err(Errno::EOPNOTSUPP);
                }
                Ok(wanted.min(most))
            }
        }
    }
}

/// The length that a request with [`Flags::ANY`] asks for, in bytes, out of its only range.
///
/// # Errors
///
/// `EINVAL` when the offset is not 0 or the length is 0 or no multiple of 4 KiB. A length beyond
/// the region is left to the search for a free place, which says `ENOSPC`.
pub fn any_len(offset: u64, len: u64) -> Result<u64> {
    if offset != 0 || len == 0 || !page_aligned(len) {
        return Err(Errno::EINVAL);
    }
    Range::new(offset, len).map(Range::len)
}
