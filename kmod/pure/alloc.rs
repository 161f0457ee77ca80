// SPDX-License-Identifier: GPL-2.0

//! Which bytes of a region are taken, and which to hand out next.
//!
//! The driver keeps one list of claims per region, sorted by start, and changes it under the
//! region's lock. These functions read that list and decide; the driver inserts and removes. A
//! claim stays until the last mapping, attachment and page pin on its bytes is gone, which can be
//! long after the buffer was revoked.
//!
//! All offsets are in bytes, in the region.

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
        Range, //
    },
};

/// One stretch of a region that a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The bytes.
    pub range: Range,
    /// The buffer that holds them: any number that no other buffer of the region has.
    pub owner: u64,
    /// Whether others that say the same may hold them too.
    pub shared: bool,
    /// How they are mapped.
    pub cache: Cache,
    /// What stands behind their mappings.
    pub backing: Backing,
}

impl Claim {
    /// Whether the two can be held at the same time.
    ///
    /// Bytes that both want need the consent of both, and have one cache mode and one backing at a
    /// time.
    pub fn compatible(&self, other: &Claim) -> bool {
        !self.range.overlaps(other.range)
            || (self.shared
                && other.shared
                && self.cache == other.cache
                && self.backing == other.backing)
    }
}

/// Whether `wanted` can be added to the region.
///
/// `claims` is sorted by start. `reserved` holds what may never be exported, in any order.
///
/// # Errors
///
/// `EBUSY` when somebody holds some of the bytes in a way that excludes `wanted`, or some of them
/// are reserved.
pub fn check_fixed(claims: &[Claim], reserved: &[Range], wanted: &Claim) -> Result {
    if reserved.iter().any(|range| range.overlaps(wanted.range)) {
        return Err(Errno::EBUSY);
    }
    if !in_reach(claims, wanted.range).all(|claim| claim.compatible(wanted)) {
        return Err(Errno::EBUSY);
    }
    Ok(())
}

/// Whether nobody holds a byte of `range`. `claims` is sorted by start.
///
/// Memory that is to be filled with zero must be free even if all its holders share it: they would
/// lose their data.
pub fn is_free(claims: &[Claim], range: Range) -> bool {
    !in_reach(claims, range).any(|claim| claim.range.overlaps(range))
}

/// The claims that can overlap `range`: those that start behind it can't. Of those in front any
/// can, since shared claims nest.
fn in_reach(claims: &[Claim], range: Range) -> impl Iterator<Item = &Claim> {
    claims
        .iter()
        .take_while(move |claim| claim.range.start() < range.end())
}

/// Where to insert `claim` so that `claims` stays sorted by start: behind those with the same
/// start.
///
/// At most `claims.len()`.
pub fn insertion_point(claims: &[Claim], claim: &Claim) -> usize {
    claims.partition_point(|other| other.range.start() <= claim.range.start())
}

/// The index of the claim that `owner` holds from byte `start` on, `None` when there is none.
///
/// `claims` is sorted by start. An owner's ranges do not overlap, so that there is at most one.
pub fn index_of(claims: &[Claim], start: u64, owner: u64) -> Option<usize> {
    let first = claims.partition_point(|claim| claim.range.start() < start);
    let among = claims
        .get(first..)?
        .iter()
        .take_while(|claim| claim.range.start() == start)
        .position(|claim| claim.owner == owner)?;
    first.checked_add(among)
}

/// Where a search can begin. Without it, handing out a full region piece by piece would look at all
/// pieces for each.
///
/// # Invariants
///
/// Every byte in front of it is held, and no claim that starts in front of it reaches behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor(u64);

impl Floor {
    /// The start of the region, which is always right.
    pub const fn new() -> Self {
        // INVARIANT: Nothing is in front of it.
        Floor(0)
    }

    /// Moves on to the first byte that nobody holds. `claims` is sorted by start.
    pub fn rise(&mut self, claims: &[Claim]) {
        let behind = claims.get(self.index(claims)..).unwrap_or_default();
        // INVARIANT: Each claim begins at or in front of the end of those before it.
        for claim in behind {
            if claim.range.start() > self.0 {
                break;
            }
            self.0 = self.0.max(claim.range.end());
        }
    }

    /// A claim on `range` has been added.
    pub fn added(&mut self, range: Range) {
        // Only shared claims can begin where somebody holds the bytes already.
        if range.start() < self.0 && range.end() > self.0 {
            *self = Floor::new();
        }
    }

    /// `claim` has been removed.
    pub fn removed(&mut self, claim: &Claim) {
        if claim.range.start() >= self.0 {
            return;
        }
        // INVARIANT: Nobody else held a byte of an exclusive claim, so that those in front of it end
        // there. Shared claims nest, and it is not worth while to look which do.
        self.0 = if claim.shared { 0 } else { claim.range.start() };
    }

    /// Those of `claims` that can overlap a range that starts at `start`. `claims` is sorted by
    /// start.
    pub fn in_reach<'a>(&self, claims: &'a [Claim], start: u64) -> &'a [Claim] {
        if start < self.0 {
            return claims;
        }
        claims.get(self.index(claims)..).unwrap_or_default()
    }

    /// The index of the first claim that starts at or behind it.
    fn index(&self, claims: &[Claim]) -> usize {
        claims.partition_point(|claim| claim.range.start() < self.0)
    }
}

/// Everything that is not free, sorted by start: claims and reserved ranges merged.
struct Taken<'a> {
    claims: &'a [Claim],
    reserved: &'a [Range],
}

impl Iterator for Taken<'_> {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        let claim = self.claims.split_first();
        let reserved = self.reserved.split_first();
        match (claim, reserved) {
            (Some((claim, rest)), Some((range, _))) if claim.range.start() <= range.start() => {
                self.claims = rest;
                Some(claim.range)
            }
            (_, Some((range, rest))) => {
                self.reserved = rest;
                Some(*range)
            }
            (Some((claim, rest)), None) => {
                self.claims = rest;
                Some(claim.range)
            }
            (None, None) => None,
        }
    }
}

/// The alignments worth trying for a buffer of `len` bytes, the best first.
///
/// An alignment above the length gains nothing, since no page that large can stand in the buffer,
/// and it would use up the places that larger buffers need.
pub fn preferences(len: u64) -> &'static [PageOrder] {
    const ALL: &[PageOrder] = &PageOrder::LARGEST_FIRST;
    const UP_TO_PMD: &[PageOrder] = &[PageOrder::Pmd, PageOrder::Page4K];
    const SMALLEST: &[PageOrder] = &[PageOrder::Page4K];

    if len >= PageOrder::Pud.size() {
        ALL
    } else if len >= PageOrder::Pmd.size() {
        UP_TO_PMD
    } else {
        SMALLEST
    }
}

/// The memory that [`find`] searches.
#[derive(Clone, Copy, Debug)]
pub struct Space<'a> {
    /// What is held, sorted by start.
    pub claims: &'a [Claim],
    /// What may never be exported, sorted by start.
    pub reserved: &'a [Range],
    /// The length of the region.
    pub len: u64,
    /// The physical address of the region's first byte, a multiple of 4 KiB.
    pub phys_base: u64,
    /// A floor of `claims`.
    pub floor: Floor,
}

impl Space<'_> {
    fn taken(&self) -> Taken<'_> {
        Taken {
            claims: self.claims,
            reserved: self.reserved,
        }
    }

    /// The first offset at or after `floor` whose physical address is aligned for `order`.
    fn align_up(&self, floor: u64, order: PageOrder) -> Option<u64> {
        order
            .align_up(self.phys_base.checked_add(floor)?)?
            .checked_sub(self.phys_base)
    }

    /// The lowest free place for `len` bytes at exactly this alignment.
    fn find_aligned(&self, len: u64, order: PageOrder) -> Option<u64> {
        let mut candidate = self.align_up(self.floor.0, order)?;
        let taken = Taken {
            claims: self.floor.in_reach(self.claims, self.floor.0),
            reserved: self.reserved,
        };
        for taken in taken {
            // All that is left starts at or behind this one, so that the gap in front of it is
            // free.
            if candidate.checked_add(len)? <= taken.start() {
                break;
            }
            if taken.end() > candidate {
                candidate = self.align_up(taken.end(), order)?;
            }
        }
        (candidate.checked_add(len)? <= self.len).then_some(candidate)
    }

    /// The bytes that an exclusive export can still take, in pieces perhaps.
    pub fn free_bytes(&self) -> u64 {
        // `cursor` is the end of all that has been seen, so that nested claims count once.
        let mut cursor = 0u64;
        let mut free = 0u64;
        for taken in self.taken() {
            let gap = taken.start().min(self.len).saturating_sub(cursor);
            free = free.saturating_add(gap);
            cursor = cursor.max(taken.end());
        }
        free.saturating_add(self.len.saturating_sub(cursor))
    }
}

/// Picks a free range of `len` bytes and returns its start.
///
/// The alignments of the *physical* address are tried in the order of `preference` (see
/// [`preferences`]); for the first of them that has room anywhere, the lowest place is taken. So a
/// worse alignment is used only when a better one is not to be had in the whole region.
///
/// # Errors
///
/// `EINVAL` when `len` is 0 or no multiple of 4 KiB, `ENOSPC` when there is no room.
pub fn find(space: &Space<'_>, len: u64, preference: &[PageOrder]) -> Result<u64> {
    if len == 0 || !page_aligned(len) {
        return Err(Errno::EINVAL);
    }
    preference
        .iter()
        .find_map(|order| space.find_aligned(len, *order))
        .ok_or(Errno::ENOSPC)
}
