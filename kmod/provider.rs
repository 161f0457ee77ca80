// SPDX-License-Identifier: GPL-2.0

//! Providers: PCI functions whose memory is exported, their regions, and what is taken of them.
//!
//! Lock order, for the whole module, outermost first:
//!
//! 1. the device lock of a PCI function (the driver core takes it around bind and unbind),
//! 2. `mmap_lock` of a process,
//! 3. [`Registry::inner`],
//! 4. [`Provider::inner`],
//! 5. `Buffer::teardown`,
//! 6. the lock in `dmabuf::Weak`, and those in `gate::Gate`.
//!
//! No user memory is touched under 3 to 6, because a page fault takes 2. A [`Gate`] is entered
//! before 4 and never waited for under it.

use crate::{
    buffer::Buffer,
    copy::errno,
    ext::{
        gate::Gate,
        pagemap::{
            self,
            PageMap, //
        },
        pci::{
            Claimed,
            Enabled,
            Function, //
        },
        vma, //
    },
    pure::{
        address::Address,
        alloc::{
            self,
            Claim,
            Space, //
        },
        exclude,
        export,
        mode::{
            Backing,
            Cache, //
        },
        order::{
            self,
            PageOrder, //
        },
        pagemap::Layout,
        range::Range, //
    },
    Settings,
};
use kernel::{
    new_mutex,
    prelude::*,
    rbtree::RBTree,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    },
};

/// How a function became a provider; the values are those of `enum barbuf_kind`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// barbuf is its driver.
    Bound = 0,
    /// Its own driver stays; memory comes from its p2pmem pool.
    Adopted = 1,
    /// Its own driver stays and registers regions. None can do that yet.
    Registered = 2,
}

impl Kind {
    /// The number that user space knows.
    pub(crate) fn to_uapi(self) -> u32 {
        // CAST: The enum is `repr(u32)`.
        self as u32
    }

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Bound => "bound",
            Kind::Adopted => "adopted",
            Kind::Registered => "registered",
        }
    }
}

/// One exportable stretch of a provider. Never changes.
pub(crate) struct Region {
    /// The BAR that it lies in.
    pub(crate) bar: u32,
    /// Its place in that BAR.
    pub(crate) offset: u64,
    /// Its physical addresses.
    pub(crate) physical: Range,
    /// What can be done with it.
    pub(crate) facts: export::Region,
}

/// What is taken of a region.
struct Taken {
    /// Sorted by start.
    claims: KVec<Claim>,
    /// Those of the claims whose owners are gone, but on whose pages somebody still holds a
    /// reference.
    draining: KVec<Claim>,
    /// Live buffers of the region.
    buffers: u32,
    /// Its struct pages, once there are any; the owner is [`Hardware`].
    map: Option<Arc<PageMap>>,
}

struct Inner {
    taken: KVec<Taken>,
    /// By the last offset of its window, see [`Provider::find`].
    buffers: RBTree<u64, Arc<Buffer>>,
    next_cookie: u64,
    next_owner: u64,
}

/// What is held of the hardware. Dropped, in this order, when the provider retires.
pub(crate) struct Hardware {
    _claimed: KVec<Claimed>,
    _enabled: Option<Enabled>,
}

impl Hardware {
    /// For an adopted provider, whose driver holds everything.
    pub(crate) fn none() -> Self {
        Self {
            _claimed: KVec::new(),
            _enabled: None,
        }
    }
}

/// A PCI function whose memory is exported.
#[pin_data]
pub(crate) struct Provider {
    /// The function.
    pub(crate) function: Function,
    /// Its name, `0000:03:00.0`.
    pub(crate) name: CString,
    /// How it became one.
    pub(crate) kind: Kind,
    /// What it offers.
    pub(crate) regions: KVec<Region>,
    /// The module's parameters.
    pub(crate) settings: Settings,
    layout: Option<Layout>,
    /// Open while the hardware may be touched.
    #[pin]
    pub(crate) gate: Gate<Hardware>,
    #[pin]
    inner: Mutex<Inner>,
}

/// The part of offsets that one buffer has to itself is a multiple of this.
const COOKIE_UNIT: PageOrder = PageOrder::Pud;

impl Provider {
    fn new(
        function: Function,
        kind: Kind,
        regions: KVec<Region>,
        hardware: Hardware,
        settings: Settings,
        layout: Option<Layout>,
    ) -> Result<Arc<Self>> {
        let name = function.name()?;
        let mut taken = KVec::with_capacity(regions.len(), GFP_KERNEL)?;
        for _ in regions.iter() {
            taken.push(
                Taken {
                    claims: KVec::new(),
                    draining: KVec::new(),
                    buffers: 0,
                    map: None,
                },
                GFP_KERNEL,
            )?;
        }
        Arc::pin_init(
            try_pin_init!(Self {
                function,
                name,
                kind,
                regions,
                settings,
                layout,
                gate <- Gate::new(hardware),
                inner <- new_mutex!(Inner {
                    taken,
                    buffers: RBTree::new(),
                    next_cookie: 0,
                    next_owner: 1,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// A provider for a function that barbuf has been bound to. Memory decoding gets enabled and
    /// the BARs claimed; bus mastering stays off.
    ///
    /// # Errors
    ///
    /// `ENODEV` when nothing of it can be exported, `EBUSY` when somebody holds a BAR.
    pub(crate) fn bound(
        function: Function,
        settings: Settings,
        layout: Option<Layout>,
    ) -> Result<Arc<Self>> {
        let enabled = function.enable_memory()?;
        let mut claimed = KVec::new();
        let mut regions = KVec::new();
        // Without struct pages the rest still works.
        let layout = layout.filter(|_| pagemap::init_p2pdma(&function).is_ok());

        let registers = function.msix()?;
        let facts = exclude::Function {
            header_type: function.header_type(),
            registers: [
                registers.first().copied().flatten(),
                registers.last().copied().flatten(),
                function
                    .is_nvme()
                    .then(|| exclude::nvme(15, 65536))
                    .flatten(),
            ],
        };
        for index in 0..6 {
            let Some(bar) = function.bar(index) else {
                continue;
            };
            let division = match exclude::divide(&facts, &bar.facts(index, &function)) {
                Ok(division) => division,
                Err(exclude::WhyNot::Absent) => continue,
                Err(why) => {
                    pr_info!("{}: BAR {index}: {}\n", function.address(), why.text());
                    continue;
                }
            };
            claimed.push(function.request(index)?, GFP_KERNEL)?;
            for stretch in division.regions.as_slice() {
                let region = Region::new(index, &bar, *stretch, layout.is_some())?;
                regions.push(region, GFP_KERNEL)?;
            }
        }
        if regions.is_empty() {
            pr_err!(
                "{}: nothing of this function can be exported\n",
                function.address()
            );
            return Err(ENODEV);
        }
        Self::new(
            function,
            Kind::Bound,
            regions,
            Hardware {
                _claimed: claimed,
                _enabled: Some(enabled),
            },
            settings,
            layout,
        )
    }

    /// A provider for the p2pmem pool at `pool` that the function's own driver has published.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the pool lies in none of its BARs, `ENOMEM`.
    pub(crate) fn adopted(
        function: Function,
        pool: Range,
        settings: Settings,
    ) -> Result<Arc<Self>> {
        let (index, bar) = (0..6)
            .filter_map(|index| Some((index, function.bar(index)?)))
            .find(|(_, bar)| bar.range().is_some_and(|range| range.encloses(pool)))
            .ok_or(ENODEV)?;
        let offset = pool.start().checked_sub(bar.start).ok_or(ENODEV)?;
        let mut regions = KVec::new();
        regions.push(
            Region {
                bar: index,
                offset,
                physical: pool,
                facts: export::Region {
                    memory_only: true,
                    // The pool's own pages are mapped uncached by the kernel.
                    prefetchable: false,
                    pool: true,
                    page_order: Some(PageOrder::Page4K),
                    max_order: largest(pool),
                },
            },
            GFP_KERNEL,
        )?;
        Self::new(
            function,
            Kind::Adopted,
            regions,
            Hardware::none(),
            settings,
            None,
        )
    }

    /// Whether page backing is possible in this kernel.
    pub(crate) fn has_pages(&self) -> bool {
        self.kind == Kind::Adopted || self.layout.is_some()
    }

    /// The struct pages of a region, made now if there are none of that size.
    ///
    /// # Errors
    ///
    /// `EBUSY` when page-backed buffers, or pins on their pages, of another size exist, or buffers
    /// with write combining: struct pages reserve the uncached mode for the whole region.
    fn map_for(
        &self,
        taken: &mut Taken,
        region: &Region,
        order: PageOrder,
    ) -> Result<Arc<PageMap>> {
        if let Some(map) = &taken.map {
            if map.order() == order {
                return Ok(map.clone());
            }
            if taken.any(Backing::Page) {
                return Err(EBUSY);
            }
        }
        if taken
            .claims
            .iter()
            .any(|claim| claim.cache == Cache::WriteCombining)
        {
            return Err(EBUSY);
        }
        // The old map goes first: two at the same addresses are not possible.
        taken.map = None;
        let layout = self.layout.ok_or(EOPNOTSUPP)?;
        let map = PageMap::new(layout, &self.function, region.bar, region.physical, order)?;
        taken.map = Some(map.clone());
        Ok(map)
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
        place: Place<'_>,
        terms: Terms,
    ) -> Result<(Reservation, KVec<Range>, Option<Arc<PageMap>>)> {
        let region = self.regions.get(index as usize).ok_or(EINVAL)?;
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let owner = inner.next_owner;
        let taken = inner.taken.get_mut(index as usize).ok_or(EINVAL)?;
        taken.purge(region);

        let mut ranges = KVec::new();
        match place {
            Place::Fixed(wanted) => ranges.extend_from_slice(wanted, GFP_KERNEL_ACCOUNT)?,
            Place::Any(len) => {
                let space = Space {
                    claims: &taken.claims,
                    reserved: &[],
                    len: region.physical.len(),
                    phys_base: region.physical.start(),
                };
                // Whole pages of that size have to fit, or the largest that do.
                let exact = [terms.pages.unwrap_or(PageOrder::Page4K)];
                let preference = match terms.pages {
                    Some(_) => &exact[..],
                    None => alloc::preferences(len),
                };
                let start = alloc::find(&space, len, preference).map_err(errno)?;
                ranges.push(Range::new(start, len).map_err(errno)?, GFP_KERNEL_ACCOUNT)?;
            }
        }
        if let Some(pages) = terms.pages {
            let whole = |range: &Range| {
                let start = region.physical.start().wrapping_add(range.start());
                pages.is_aligned(start | range.len())
            };
            if !ranges.iter().all(whole) {
                return Err(EINVAL);
            }
        }

        let mut starts = KVec::with_capacity(ranges.len(), GFP_KERNEL_ACCOUNT)?;
        for range in ranges.iter() {
            starts.push(range.start(), GFP_KERNEL_ACCOUNT)?;
        }
        taken.claims.reserve(ranges.len(), GFP_KERNEL_ACCOUNT)?;
        // Room for the way out, which must not fail: at most one entry for each claim.
        let most = taken.claims.len().saturating_add(ranges.len());
        let spare = most.saturating_sub(taken.draining.len());
        taken.draining.reserve(spare, GFP_KERNEL_ACCOUNT)?;
        for range in ranges.iter() {
            alloc::check_fixed(&taken.claims, &[], &terms.claim(*range, owner)).map_err(errno)?;
            if terms.fresh && !alloc::is_free(&taken.claims, *range) {
                return Err(EBUSY);
            }
        }
        if terms.cache == Cache::WriteCombining && !taken.any(Backing::Page) {
            // Struct pages reserve the uncached mode for the whole region.
            taken.map = None;
        }
        let map = match terms.pages {
            Some(order) => Some(self.map_for(taken, region, order)?),
            None => None,
        };
        for range in ranges.iter() {
            let claim = terms.claim(*range, owner);
            let at = alloc::insertion_point(&taken.claims, &claim);
            taken
                .claims
                .insert_within_capacity(at, claim)
                .map_err(|_| ENOMEM)?;
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
            starts: KVec::new(),
        }
    }

    /// Bytes of region `index` that an exclusive export can still take.
    pub(crate) fn free_bytes(&self, index: usize) -> u64 {
        let Some(region) = self.regions.get(index) else {
            return 0;
        };
        if region.facts.pool {
            return self.function.free_p2pmem();
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

    /// Chooses the offsets of the node at which a buffer of `size` bytes is mapped.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when 2^63 bytes have been used up.
    pub(crate) fn next_cookie(&self, size: u64) -> Result<u64> {
        let mut inner = self.inner.lock();
        let cookie = inner.next_cookie;
        let end = cookie
            .checked_add(size)
            .and_then(|end| COOKIE_UNIT.align_up(end))
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or(ENOSPC)?;
        inner.next_cookie = end;
        Ok(cookie)
    }

    /// Makes the buffer known.
    ///
    /// # Errors
    ///
    /// `ENOMEM`
    pub(crate) fn insert(&self, buffer: &Arc<Buffer>) -> Result {
        let node = kernel::rbtree::RBTreeNode::new(
            buffer.last_offset(),
            buffer.clone(),
            GFP_KERNEL_ACCOUNT,
        )?;
        self.inner.lock().buffers.insert(node);
        Ok(())
    }

    /// Forgets the buffer.
    pub(crate) fn remove(&self, buffer: &Buffer) {
        let removed = self.inner.lock().buffers.remove(&buffer.last_offset());
        // Outside of the lock: this may be the last reference.
        drop(removed);
    }

    /// The buffer whose window of the node's offsets `offset` lies in.
    pub(crate) fn find(&self, offset: u64) -> Option<Arc<Buffer>> {
        let inner = self.inner.lock();
        let cursor = inner.buffers.cursor_lower_bound(&offset)?;
        let (_, buffer) = cursor.current();
        (buffer.cookie <= offset).then(|| buffer.clone())
    }

    /// Calls `f` for the first buffer behind offset `after`, and returns that buffer's last offset,
    /// to go on with. No lock is held during the call.
    pub(crate) fn next_buffer(&self, after: Option<u64>) -> Option<(u64, Arc<Buffer>)> {
        let from = match after {
            None => 0,
            Some(after) => after.checked_add(1)?,
        };
        let inner = self.inner.lock();
        let cursor = inner.buffers.cursor_lower_bound(&from)?;
        let (last, buffer) = cursor.current();
        Some((*last, buffer.clone()))
    }

    /// All buffers, in the order of their export, while others come and go.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = Arc<Buffer>> + '_ {
        let mut after = None;
        core::iter::from_fn(move || {
            let (last, buffer) = self.next_buffer(after)?;
            after = Some(last);
            Some(buffer)
        })
    }

    /// The end: everything is revoked, and the hardware given back.
    ///
    /// Waits for exports in progress, for importers, and for I/O that holds pins on pages. Does
    /// nothing when called again.
    pub(crate) fn retire(&self) {
        // From here on, every request fails with ENODEV.
        let Some(hardware) = self.gate.close() else {
            return;
        };
        for buffer in self.buffers() {
            // Revoked before is fine; then this has waited for it.
            let _ = buffer.revoke();
        }
        // Struct pages go before the BARs that they describe.
        for index in 0..self.regions.len() {
            let map = match self.inner.lock().taken.get_mut(index) {
                Some(taken) => taken.map.take(),
                None => None,
            };
            drop(map);
        }
        drop(hardware);
    }
}

impl Region {
    fn new(
        index: u32,
        bar: &crate::ext::pci::BarFacts,
        stretch: Range,
        pages: bool,
    ) -> Result<Self> {
        let start = bar.start.checked_add(stretch.start()).ok_or(EINVAL)?;
        let physical = Range::new(start, stretch.len()).map_err(errno)?;
        // The kernel adds memory in units of 2 MiB.
        let page_order = order::backing_order(start, stretch.len())
            .filter(|order| pages && *order >= PageOrder::Pmd && vma::has_leaf(PageOrder::Pmd))
            .map(|order| {
                if vma::has_leaf(order) {
                    order
                } else {
                    PageOrder::Pmd
                }
            });
        Ok(Self {
            bar: index,
            offset: stretch.start(),
            physical,
            facts: export::Region {
                memory_only: false,
                prefetchable: bar.prefetchable,
                pool: false,
                page_order,
                max_order: largest(physical),
            },
        })
    }
}

/// The largest leaf that fits into memory and that this machine has.
fn largest(physical: Range) -> PageOrder {
    let mut order =
        order::region_max_order(physical.start(), physical.len()).unwrap_or(PageOrder::Page4K);
    while !vma::has_leaf(order) {
        match order.smaller() {
            Some(smaller) => order = smaller,
            None => break,
        }
    }
    order
}

impl Taken {
    /// Whether a claim has this backing.
    fn any(&self, backing: Backing) -> bool {
        self.claims.iter().any(|claim| claim.backing == backing)
    }

    /// Drops the claims of owners that are gone and whose pages nobody holds any more.
    fn purge(&mut self, region: &Region) {
        let (claims, map) = (&mut self.claims, &self.map);
        self.draining.retain(|claim| {
            let busy = in_use(map, region, claim.range);
            if !busy {
                forget(claims, claim);
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
            forget(&mut self.claims, &claim);
        }
    }
}

fn forget(claims: &mut KVec<Claim>, claim: &Claim) {
    if let Some(index) = alloc::index_of(claims, claim.range.start(), claim.owner) {
        let _ = claims.remove(index);
    }
}

fn in_use(map: &Option<Arc<PageMap>>, region: &Region, range: Range) -> bool {
    let start = region.physical.start().wrapping_add(range.start());
    map.as_ref().is_some_and(|map| {
        Range::new(start, range.len()).is_ok_and(|physical| map.in_use(physical))
    })
}

/// Where a new buffer should lie.
pub(crate) enum Place<'a> {
    /// Exactly there.
    Fixed(&'a [Range]),
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
            shared: self.shared,
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
    starts: KVec<u64>,
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

/// All providers.
#[pin_data]
pub(crate) struct Registry {
    #[pin]
    inner: Mutex<KVec<Arc<Provider>>>,
}

impl Registry {
    /// An empty one.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(KVec::new()),
        })
    }

    /// Adds a provider.
    ///
    /// # Errors
    ///
    /// `EEXIST` when its function is one already, `ENOMEM`.
    pub(crate) fn add(&self, provider: &Arc<Provider>) -> Result {
        let mut list = self.inner.lock();
        if list
            .iter()
            .any(|other| other.function.is(&provider.function))
        {
            return Err(EEXIST);
        }
        Ok(list.push(provider.clone(), GFP_KERNEL)?)
    }

    /// Removes a provider.
    pub(crate) fn remove(&self, provider: &Provider) {
        self.inner
            .lock()
            .retain(|other| !core::ptr::eq(&**other, provider));
    }

    /// Whether the function at `address` is a provider.
    pub(crate) fn has(&self, address: Address) -> bool {
        self.inner
            .lock()
            .iter()
            .any(|provider| provider.function.address() == address)
    }

    /// The provider number `index`.
    pub(crate) fn get(&self, index: usize) -> Option<Arc<Provider>> {
        self.inner.lock().get(index).cloned()
    }
}
