// SPDX-License-Identifier: GPL-2.0

//! Ranges of bytes, and the way from an offset in a buffer to an offset in its region.
//!
//! A buffer is a list of ranges of one region, laid end to end: byte 0 of the buffer is the first
//! byte of the first range. Ranges need not be sorted and need not touch, but they may not overlap
//! each other.

use super::errno::{
    Errno,
    Result, //
};

/// Bytes in the smallest page, the grain of everything that can be exported or mapped.
pub const PAGE_SIZE: u64 = 4096;

/// The most ranges that one buffer can have.
pub const MAX_RANGES: usize = 64;

/// Whether `bytes` is a multiple of [`PAGE_SIZE`].
pub const fn page_aligned(bytes: u64) -> bool {
    bytes & (PAGE_SIZE - 1) == 0
}

/// A stretch of bytes, never empty.
///
/// # Invariants
///
/// `len` is not zero, and `start + len` fits into a `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    start: u64,
    len: u64,
}

impl Range {
    /// The first page, for slots of an array that are not in use.
    pub(super) const PAGE_0: Range = Range {
        start: 0,
        len: PAGE_SIZE,
    };

    /// A range of `len` bytes from byte `start` on.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `len` is 0 or the end does not fit into 64 bits.
    pub const fn new(start: u64, len: u64) -> Result<Self> {
        if len == 0 || start.checked_add(len).is_none() {
            return Err(Errno::EINVAL);
        }
        // INVARIANT: Both conditions were just checked.
        Ok(Range { start, len })
    }

    /// The range from byte `start` up to, and without, byte `end`; nothing when that is empty.
    pub const fn between(start: u64, end: u64) -> Option<Self> {
        match end.checked_sub(start) {
            None | Some(0) => None,
            // INVARIANT: `len` is not zero, and `start + len` is `end`, which is a `u64`.
            Some(len) => Some(Range { start, len }),
        }
    }

    /// The first byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The number of bytes, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.len
    }

    /// The byte after the last one.
    pub const fn end(self) -> u64 {
        // By the type's invariant the sum fits, so that this neither wraps nor panics.
        self.start.wrapping_add(self.len)
    }

    /// Whether both the start and the length are multiples of [`PAGE_SIZE`].
    pub const fn is_page_aligned(self) -> bool {
        page_aligned(self.start | self.len)
    }

    /// Whether byte `at` lies inside.
    pub const fn contains(self, at: u64) -> bool {
        self.start <= at && at < self.end()
    }

    /// Whether all of `other` lies inside.
    pub const fn encloses(self, other: Range) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether the two have at least one byte in common.
    pub const fn overlaps(self, other: Range) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The bytes that the two have in common.
    pub fn intersection(self, other: Range) -> Option<Range> {
        Range::between(self.start.max(other.start), self.end().min(other.end()))
    }
}

/// The sum of the lengths, in bytes. 0 for an empty list.
///
/// # Errors
///
/// `EINVAL` when it does not fit into 64 bits.
pub fn total_len(ranges: &[Range]) -> Result<u64> {
    ranges.iter().try_fold(0u64, |sum, range| {
        sum.checked_add(range.len()).ok_or(Errno::EINVAL)
    })
}

/// Judges the list of ranges that a user wants exported from a region of `region_len` bytes.
///
/// Returns the length of the buffer, which is a multiple of [`PAGE_SIZE`], at least one page and at
/// most `region_len`. Whether the bytes are free is not looked at: that is
/// [`alloc::check_fixed`](super::alloc::check_fixed).
///
/// # Errors
///
/// `EINVAL` when the list is empty or has more than [`MAX_RANGES`] entries, when a start or a
/// length is not on a page, when a range reaches beyond the region, or when two of them overlap.
pub fn validate(ranges: &[Range], region_len: u64) -> Result<u64> {
    if ranges.is_empty() || ranges.len() > MAX_RANGES {
        return Err(Errno::EINVAL);
    }
    if ranges
        .iter()
        .any(|range| !range.is_page_aligned() || range.end() > region_len)
    {
        return Err(Errno::EINVAL);
    }
    // With at most 64 entries the square is small, and unlike sorting it needs no memory.
    let mut rest = ranges;
    while let Some((first, tail)) = rest.split_first() {
        if tail.iter().any(|other| first.overlaps(*other)) {
            return Err(Errno::EINVAL);
        }
        rest = tail;
    }
    total_len(ranges)
}

/// Where a byte of a buffer lies in its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of the buffer's ranges it is in.
    pub index: usize,
    /// Its offset in the region, in bytes.
    pub offset: u64,
    /// Bytes of the same range in front of it.
    pub before: u64,
    /// Bytes of the same range from it to the end, itself included: at least 1.
    pub left: u64,
}

/// Finds byte `at` of a buffer. `None` when the buffer ends before it.
pub fn locate(ranges: &[Range], at: u64) -> Option<Place> {
    let mut before = at;
    for (index, range) in ranges.iter().enumerate() {
        // A remainder exists only while `before` lies beyond this range.
        match before.checked_sub(range.len()) {
            Some(remainder) => before = remainder,
            None => {
                return Some(Place {
                    index,
                    offset: range.start().checked_add(before)?,
                    before,
                    left: range.len().checked_sub(before)?,
                })
            }
        }
    }
    None
}

/// What a fault needs to know about the address that it was called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The addresses around the fault that belong to the mapping and to the same range of the
    /// buffer: within them, address and region offset move together. A page that the fault inserts
    /// must lie inside.
    pub window: Range,
    /// The offset in the region, in bytes, that stands behind the fault's address.
    pub offset: u64,
}

/// Finds what stands behind address `va` of a mapping.
///
/// `vma` is what the mapping covers, and `first` is the offset in the buffer, in bytes, that its
/// first address shows (`vm_pgoff` in bytes).
///
/// `None` when `va` lies outside of the mapping or shows a byte behind the buffer's end. mmap has
/// checked both once, but mremap can have moved things since; the answer to the fault is then
/// SIGBUS.
pub fn site(ranges: &[Range], vma: Range, first: u64, va: u64) -> Option<Site> {
    if !vma.contains(va) {
        return None;
    }
    let place = locate(ranges, va.checked_sub(vma.start())?.checked_add(first)?)?;
    // A range may begin before address 0 or end behind the last one, where the mapping shows only
    // its middle.
    let range = Range::between(
        va.saturating_sub(place.before),
        va.saturating_add(place.left),
    )?;
    Some(Site {
        window: range.intersection(vma)?,
        offset: place.offset,
    })
}
