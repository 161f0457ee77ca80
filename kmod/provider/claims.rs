// SPDX-License-Identifier: GPL-2.0

//! Claims: which bytes of a region somebody has, and from when on somebody else can have them.

use super::{
    Provider,
    Region, //
};
use crate::{
    copy::errno,
    ext::pagemap::PageMap,
    few::Few,
    pure::{
        alloc::{
            self,
            Claim,
            Floor,
            Space, //
        },
        mode::{
            Backing,
            Cache, //
        },
        order::PageOrder,
        range::Range, //
    }, //
};
use core::mem;
use kernel::{
    prelude::*,
    sync::{
        Arc,
        MutexGuard, //
    }, //
};

/// What is taken of a region.
pub(super) struct Taken {
    /// Sorted by start.
    claims: KVec<Claim>,
    /// Where to begin to look for room.
    floor: Floor,
    /// Those of the claims whose owners are gone, but on whose pages somebody still holds a
    /// reference.
    draining: KVec<Claim>,
    /// Live buffers of the region.
    buffers: u32,
    /// Its struct pages, once there are any; held until the provider retires.
    map: Option<Arc<PageMap>>,
}

impl Provider {
    /// Makes the struct pages of a region those that a claim on these `terms` wants, if it wants others
    /// and there is room for it.
    ///
    /// Without `inner`: memory hotplug takes locks of its own for that, inside of which others wait for
    /// `mmap_lock`.
    ///
    /// # Errors
    ///
    /// Those of [`Taken::room`]; `EBUSY` when page-backed buffers, or pins on their pages, of another
    /// size exist, or buffers with write combining: struct pages reserve the uncached mode for the
    /// whole region.
    fn change_pages(
        &self,
        index: u32,
        region: &Region,
        place: &Place,
        terms: &Terms,
        changing: &MutexGuard<'_, ()>,
    ) -> Result {
        let exchange = |map: Option<Arc<PageMap>>| -> Result<Option<Arc<PageMap>>> {
            let mut inner = self.inner.lock();
            let taken = inner.taken.get_mut(index as usize).ok_or(EINVAL)?;
            Ok(mem::replace(&mut taken.map, map))
        };
        {
            let mut inner = self.inner.lock();
            let taken = inner.taken.get_mut(index as usize).ok_or(EINVAL)?;
            taken.room(region, place, terms)?;
            if !taken.wants_others(terms)? {
                return Ok(());
            }
        }
        let _out = self.keep_frames_out(index, changing);
        // The old ones go first: two at the same addresses are not possible.
        drop(exchange(None)?);
        if let Some(order) = terms.pages {
            let layout = self.layout.ok_or(EOPNOTSUPP)?;
            let map = PageMap::new(layout, &self.function, region.bar, region.physical, order)?;
            exchange(Some(map))?;
        }
        Ok(())
    }

    /// Claims bytes of region `index` for a new owner: `ranges`, or `len` bytes wherever there is
    /// room.
    ///
    /// With page backing of size `pages`, the region's struct pages come along.
    ///
    /// # Errors
    ///
    /// `EBUSY`, `ENOSPC`, `EINVAL`, `ENOMEM`
    pub(crate) fn claim(
        self: &Arc<Self>,
        index: u32,
        place: Place,
        terms: Terms,
    ) -> Result<(Reservation, Few<Range>, Option<Arc<PageMap>>)> {
        let region = self.regions.get(index as usize).ok_or(EINVAL)?;
        let pages = self.hold_pages(&terms);
        if let Some(pages) = &pages {
            self.change_pages(index, region, &place, &terms, pages)?;
        }
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let owner = inner.next_owner;
        let taken = inner.taken.get_mut(index as usize).ok_or(EINVAL)?;
        let found = taken.room(region, &place, &terms)?;
        let ranges = match (place, found) {
            (Place::Fixed(ranges), _) => ranges,
            (Place::Any(_), Some(range)) => Few::One(range),
            (Place::Any(_), None) => return Err(ENOSPC),
        };

        let mut starts = Few::None;
        for range in ranges.iter() {
            starts.push(range.start())?;
        }
        taken.claims.reserve(ranges.len(), GFP_KERNEL_ACCOUNT)?;
        // Room for the way out, which must not fail: at most one entry for each claim.
        let most = taken.claims.len().saturating_add(ranges.len());
        let spare = most.saturating_sub(taken.draining.len());
        taken.draining.reserve(spare, GFP_KERNEL_ACCOUNT)?;
        let map = match terms.pages {
            Some(_) => Some(taken.map.clone().ok_or(EBUSY)?),
            None => None,
        };
        for range in ranges.iter() {
            let claim = terms.claim(*range, owner);
            let at = alloc::insertion_point(&taken.claims, &claim);
            taken
                .claims
                .insert_within_capacity(at, claim)
                .map_err(|_| ENOMEM)?;
            taken.floor.added(*range);
        }
        taken.buffers = taken.buffers.saturating_add(1);
        inner.next_owner = owner.saturating_add(1);
        drop(guard);
        Ok((
            Reservation {
                provider: self.clone(),
                index,
                owner,
                starts,
            },
            ranges,
            map,
        ))
    }

    /// Counts a buffer of region `index` whose bytes come from a pool, which keeps its own books.
    pub(crate) fn count(self: &Arc<Self>, index: u32) -> Reservation {
        if let Some(taken) = self.inner.lock().taken.get_mut(index as usize) {
            taken.buffers = taken.buffers.saturating_add(1);
        }
        Reservation {
            provider: self.clone(),
            index,
            owner: 0,
            starts: Few::None,
        }
    }

    /// Bytes of region `index` that an exclusive export can still take.
    pub(crate) fn free_bytes(&self, index: usize) -> u64 {
        let Some(region) = self.regions.get(index) else {
            return 0;
        };
        if region.facts.pool {
            // Of all of its pieces, which may be more than this one.
            return self.function.free_p2pmem().min(region.physical.len());
        }
        let mut inner = self.inner.lock();
        let Some(taken) = inner.taken.get_mut(index) else {
            return 0;
        };
        taken.purge(region);
        Space {
            claims: &taken.claims,
            reserved: &[],
            len: region.physical.len(),
            phys_base: region.physical.start(),
            floor: Floor::new(),
        }
        .free_bytes()
    }

    /// Live buffers of region `index`.
    pub(crate) fn buffers_of(&self, index: usize) -> u32 {
        self.inner
            .lock()
            .taken
            .get(index)
            .map_or(0, |taken| taken.buffers)
    }
}

impl Taken {
    /// Nothing is taken yet.
    pub(super) fn nothing() -> Self {
        Self {
            claims: KVec::new(),
            floor: Floor::new(),
            draining: KVec::new(),
            buffers: 0,
            map: None,
        }
    }

    /// The struct pages, which go when this is dropped.
    pub(super) fn take_map(&mut self) -> Option<Arc<PageMap>> {
        self.map.take()
    }

    /// Sees whether there is room for a claim on these terms; for one of any place, says where.
    ///
    /// # Errors
    ///
    /// `EBUSY`, `ENOSPC`; `EINVAL` when the place is not made of whole struct pages
    fn room(&mut self, region: &Region, place: &Place, terms: &Terms) -> Result<Option<Range>> {
        self.purge(region);
        self.floor.rise(&self.claims);
        match place {
            Place::Fixed(ranges) => {
                for range in ranges.iter() {
                    self.check(region, *range, terms)?;
                }
                Ok(None)
            }
            Place::Any(len) => {
                let space = Space {
                    claims: &self.claims,
                    reserved: &[],
                    len: region.physical.len(),
                    phys_base: region.physical.start(),
                    floor: self.floor,
                };
                // Whole pages of that size have to fit, or the largest that do.
                let exact = [terms.pages.unwrap_or(PageOrder::Page4K)];
                let preference = match terms.pages {
                    Some(_) => &exact[..],
                    None => alloc::preferences(*len),
                };
                let start = alloc::find(&space, *len, preference).map_err(errno)?;
                let range = Range::new(start, *len).map_err(errno)?;
                self.check(region, range, terms)?;
                Ok(Some(range))
            }
        }
    }

    /// Whether a claim on these terms can have the range.
    fn check(&self, region: &Region, range: Range, terms: &Terms) -> Result {
        let start = region.physical.start().wrapping_add(range.start());
        if terms
            .pages
            .is_some_and(|pages| !pages.is_aligned(start | range.len()))
        {
            return Err(EINVAL);
        }
        let others = self.floor.in_reach(&self.claims, range.start());
        // Whose it is does not matter here.
        alloc::check_fixed(others, &[], &terms.claim(range, 0)).map_err(errno)?;
        if terms.fresh && !alloc::is_free(others, range) {
            return Err(EBUSY);
        }
        Ok(())
    }

    /// Whether a claim on these terms needs other struct pages, or none: see [`Provider::change_pages`].
    fn wants_others(&self, terms: &Terms) -> Result<bool> {
        let Some(order) = terms.pages else {
            let excluded = terms.cache == Cache::WriteCombining;
            return Ok(excluded && self.map.is_some() && !self.any(Backing::Page));
        };
        if self.map.as_ref().is_some_and(|map| map.order() == order) {
            return Ok(false);
        }
        let combined = |claim: &Claim| claim.cache == Cache::WriteCombining;
        if self.any(Backing::Page) || self.claims.iter().any(combined) {
            return Err(EBUSY);
        }
        Ok(true)
    }

    /// Whether a claim has this backing.
    fn any(&self, backing: Backing) -> bool {
        self.claims.iter().any(|claim| claim.backing == backing)
    }

    /// Drops the claims of owners that are gone and whose pages nobody holds any more.
    fn purge(&mut self, region: &Region) {
        let (claims, floor, map) = (&mut self.claims, &mut self.floor, &self.map);
        self.draining.retain(|claim| {
            let busy = in_use(map, region, claim.range);
            if !busy {
                forget(claims, floor, claim);
            }
            busy
        });
    }

    /// The owner of `claim` has gone.
    fn release(&mut self, region: &Region, claim: Claim) {
        // `Provider::claim` has made room.
        if !in_use(&self.map, region, claim.range)
            || self.draining.push_within_capacity(claim).is_err()
        {
            forget(&mut self.claims, &mut self.floor, &claim);
        }
    }
}

fn forget(claims: &mut KVec<Claim>, floor: &mut Floor, claim: &Claim) {
    if let Some(index) = alloc::index_of(claims, claim.range.start(), claim.owner) {
        let _ = claims.remove(index);
        floor.removed(claim);
    }
}

fn in_use(map: &Option<Arc<PageMap>>, region: &Region, range: Range) -> bool {
    let start = region.physical.start().wrapping_add(range.start());
    map.as_ref().is_some_and(|map| {
        Range::new(start, range.len()).is_ok_and(|physical| map.in_use(physical))
    })
}

/// Where a new buffer should lie.
pub(crate) enum Place {
    /// Exactly there.
    Fixed(Few<Range>),
    /// So many bytes, anywhere.
    Any(u64),
}

/// What a new buffer's claims say besides where.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// Others that say the same may have them too.
    pub(crate) shared: bool,
    /// Nobody may have them yet, because they are going to be overwritten.
    pub(crate) fresh: bool,
    /// The cache mode.
    pub(crate) cache: Cache,
    /// The size of struct pages; `None` without.
    pub(crate) pages: Option<PageOrder>,
}

impl Terms {
    fn claim(&self, range: Range, owner: u64) -> Claim {
        Claim {
            range,
            owner,
            // Nobody shares bytes that are about to be overwritten: `Reservation::share`.
            shared: self.shared && !self.fresh,
            cache: self.cache,
            backing: match self.pages {
                Some(_) => Backing::Page,
                None => Backing::Pfn,
            },
        }
    }
}

/// Bytes that nobody else gets while this exists, and until nobody holds their pages any more.
pub(crate) struct Reservation {
    provider: Arc<Provider>,
    index: u32,
    owner: u64,
    /// Where the claims begin; empty for pools.
    starts: Few<u64>,
}

impl Reservation {
    /// Lets others in that share, after the bytes were written.
    pub(crate) fn share(&self) {
        let mut inner = self.provider.inner.lock();
        let Some(taken) = inner.taken.get_mut(self.index as usize) else {
            return;
        };
        for start in self.starts.iter() {
            let index = alloc::index_of(&taken.claims, *start, self.owner);
            if let Some(claim) = index.and_then(|index| taken.claims.get_mut(index)) {
                claim.shared = true;
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(region) = self.provider.regions.get(self.index as usize) else {
            return;
        };
        let mut inner = self.provider.inner.lock();
        let Some(taken) = inner.taken.get_mut(self.index as usize) else {
            return;
        };
        taken.buffers = taken.buffers.saturating_sub(1);
        if self.provider.gate.is_closed() {
            // Nothing is exported any more, and the claims of many buffers take long to sort out.
            return;
        }
        for start in self.starts.iter() {
            let index = alloc::index_of(&taken.claims, *start, self.owner);
            if let Some(claim) = index.and_then(|index| taken.claims.get(index)).copied() {
                taken.release(region, claim);
            }
        }
    }
}
