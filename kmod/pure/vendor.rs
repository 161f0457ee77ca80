// SPDX-License-Identifier: GPL-2.0

//! Whether what a driver wants to register makes sense.
//!
//! All offsets are in bytes, in the BAR.

use super::{
    errno::Errno,
    exclude::{
        self,
        Bar,
        Function, //
    },
    mode::Cache,
    range::{
        page_aligned,
        Range, //
    },
};

/// The most regions that one function can register: `BARBUF_PROVIDER_MAX_REGIONS`.
pub const MAX_REGIONS: usize = 24;
/// `BARBUF_PROVIDER_MEMORY_ONLY`
pub const MEMORY_ONLY: u32 = 1 << 0;
/// `BARBUF_PROVIDER_PAGES`
pub const PAGES: u32 = 1 << 1;

const UC: u32 = 1 << Cache::Uncached.to_uapi();
const WC: u32 = 1 << Cache::WriteCombining.to_uapi();

/// A region as a driver describes it, `struct barbuf_provider_region`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The BAR.
    pub bar: u32,
    /// [`MEMORY_ONLY`], [`PAGES`]
    pub flags: u32,
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// A bit for each cache mode that is allowed.
    pub caches: u32,
    /// 0
    pub reserved: u32,
}

/// Why a region cannot be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// A flag that has no meaning, or a reserved member that is not 0.
    Flags,
    /// A cache mode that does not exist, or not the uncached one.
    Caches,
    /// Write combining in a BAR whose reads have side effects.
    NotPrefetchable,
    /// Offset or length is not on pages, or the length is 0.
    Unaligned,
    /// Bytes beyond the BAR.
    Outside,
    /// A page with the MSI-X table or its pending bits.
    Registers,
    /// Bytes of another region.
    Overlap,
    /// The BAR itself.
    Bar(exclude::WhyNot),
}

impl WhyNot {
    /// The reason in words, fit to stand behind the region's name and a colon.
    pub const fn text(self) -> &'static str {
        match self {
            WhyNot::Flags => "unknown flag, or the reserved member is not 0",
            WhyNot::Caches => "unknown cache mode, or BARBUF_CACHE_UC is missing",
            WhyNot::NotPrefetchable => "write combining needs a prefetchable BAR",
            WhyNot::Unaligned => {
                "offset and length must be multiples of 4 KiB, and the length not 0"
            }
            WhyNot::Outside => "reaches beyond the BAR",
            WhyNot::Registers => "a page of it holds the MSI-X table or its pending bits",
            WhyNot::Overlap => "overlaps another region",
            WhyNot::Bar(why) => why.text(),
        }
    }

    /// The errno that the driver gets.
    pub const fn errno(self) -> Errno {
        match self {
            WhyNot::Bar(exclude::WhyNot::OnlyRegisters) => Errno::EINVAL,
            WhyNot::Bar(_) => Errno::ENODEV,
            _ => Errno::EINVAL,
        }
    }
}

/// The bytes of `wish` in `bar`, which it names, if they can be registered next to `others`.
///
/// # Errors
///
/// The first reason not to.
pub fn check(
    function: &Function,
    bar: &Bar,
    prefetchable: bool,
    wish: &Wish,
    others: &[Wish],
) -> Result<Range, WhyNot> {
    if wish.flags & !(MEMORY_ONLY | PAGES) != 0 || wish.reserved != 0 {
        return Err(WhyNot::Flags);
    }
    if wish.caches & !(UC | WC) != 0 || wish.caches & UC == 0 {
        return Err(WhyNot::Caches);
    }
    let division = exclude::divide(function, bar).map_err(WhyNot::Bar)?;
    if wish.caches & WC != 0 && !prefetchable {
        return Err(WhyNot::NotPrefetchable);
    }
    if !page_aligned(wish.offset | wish.len) || wish.len == 0 {
        return Err(WhyNot::Unaligned);
    }
    let range = Range::new(wish.offset, wish.len).map_err(|_| WhyNot::Outside)?;
    if range.end() > bar.len {
        return Err(WhyNot::Outside);
    }
    let mut exportable = division.regions.as_slice().iter();
    if !exportable.any(|stretch| stretch.encloses(range)) {
        return Err(WhyNot::Registers);
    }
    let overlaps = |other: &Wish| {
        other.bar == wish.bar
            && Range::new(other.offset, other.len).is_ok_and(|other| other.overlaps(range))
    };
    if others.iter().any(overlaps) {
        return Err(WhyNot::Overlap);
    }
    Ok(range)
}

/// Whether write combining is among the modes that `wish` allows.
pub const fn allows_write_combining(wish: &Wish) -> bool {
    wish.caches & WC != 0
}
