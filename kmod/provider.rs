// SPDX-License-Identifier: GPL-2.0

//! Providers: PCI functions whose memory is exported.
//!
//! `region.rs` has the stretches of a provider that can be exported, `claims.rs` what is taken of
//! them, `pool.rs` the same of adopted providers, `buffers.rs` who has it, `frames.rs` how struct pages
//! come under mappings that have none.
//!
//! Lock order, for the whole module, outermost first:
//!
//! 1. the device lock of a PCI function (the driver core takes it around bind and unbind),
//! 2. `mmap_lock` of a process,
//! 3. `Adoptions::list`,
//! 4. `Buffer::ending`,
//! 5. [`Provider::uses`], and inside of it what the callbacks of a registered provider take; so its
//!    driver may hold those while it suspends and resumes, which takes 6 and later ones,
//! 6. [`Provider::power`],
//! 7. `Buffer::changing`,
//! 8. `Registry::inner`,
//! 9. `Provider::pages`,
//! 10. [`Provider::inner`],
//! 11. the reservation lock of a dma-buf; the core takes it around an importer's map and unmap,
//!     without any of the above,
//! 12. the lock in `dmabuf::Weak`, `PageMap::handing_out`, `Importers::counts` and `Routes::known`.
//!
//! No user memory is touched under 3 to 12, because a page fault takes 2. A [`Gate`] is entered
//! before 9, or inside 11, and never waited for under those, but for `Provider::frames` under 9.
//! Suspending and revoking wait under 7 for importers that can be told, revoking under 4 for the
//! others, and both without 11.
//!
//! Nor is user memory touched inside a [`Gate`]: who suspends or closes one waits for those inside,
//! and the fault could be one on a mapping whose device is being reset, or on memory that somebody
//! else serves as slowly as he likes.

mod buffers;
mod claims;
mod frames;
mod pool;
mod region;
mod uses;

use self::{
    buffers::Buffers,
    claims::Taken,
    region::largest, //
};
pub(crate) use self::{
    claims::{
        Place,
        Reservation,
        Terms, //
    },
    region::{
        exclusions,
        Region, //
    },
    uses::Use, //
};
use crate::{
    buffer::Buffer,
    ext::{
        gate::Gate,
        p2pdma,
        pci::{
            Claimed,
            Enabled,
            Function, //
        },
        vendor::Callbacks, //
    },
    pure::{
        exclude,
        export,
        order::PageOrder,
        pagemap::Layout,
        range::Range,
        vendor::{
            self,
            Wish, //
        }, //
    },
    route::Routes,
    Settings,
};
use kernel::{
    new_mutex,
    prelude::*,
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
    /// Its own driver stays and registers regions.
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

struct Inner {
    taken: KVec<Taken>,
    buffers: Buffers,
    next_cookie: u64,
    next_owner: u64,
}

/// What is held of the hardware. Dropped, in this order, when the provider retires.
pub(crate) struct Hardware {
    _claimed: KVec<Claimed>,
    _enabled: Option<Enabled>,
}

impl Hardware {
    /// For an adopted or registered provider, whose driver holds everything.
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
    /// What is known of the devices around it.
    #[pin]
    pub(crate) routes: Routes,
    /// Open while there is a provider: who is inside may rely on what it holds of the hardware.
    #[pin]
    pub(crate) gate: Gate<Hardware>,
    /// Open while the memory may be accessed, that is, no reset is in flight. Buffers come into
    /// being inside, so that a suspension sees either all of a buffer or nothing.
    #[pin]
    pub(crate) access: Gate<()>,
    /// Held while that changes.
    #[pin]
    power: Mutex<()>,
    /// What the function's own driver wants to be asked and told.
    callbacks: Option<Callbacks>,
    /// How many buffers there are, for those.
    #[pin]
    uses: Mutex<u64>,
    /// Open while bare frames may be mapped: see `frames.rs`. Never closed.
    #[pin]
    pub(crate) frames: Gate<()>,
    /// Held while the struct pages of a region change.
    #[pin]
    pages: Mutex<()>,
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
        callbacks: Option<Callbacks>,
    ) -> Result<Arc<Self>> {
        let name = function.name()?;
        let mut taken = KVec::with_capacity(regions.len(), GFP_KERNEL)?;
        for _ in regions.iter() {
            taken.push(Taken::nothing(), GFP_KERNEL)?;
        }
        Arc::pin_init(
            try_pin_init!(Self {
                function,
                name,
                kind,
                regions,
                settings,
                layout,
                routes <- Routes::new(),
                gate <- Gate::new(hardware),
                access <- Gate::new(()),
                power <- new_mutex!(()),
                callbacks,
                uses <- new_mutex!(0),
                frames <- Gate::new(()),
                pages <- new_mutex!(()),
                inner <- new_mutex!(Inner {
                    taken,
                    buffers: Buffers::new(),
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
        // Without it the rest still works, but neither struct pages nor importing devices.
        let p2pdma = p2pdma::init(&function);
        let layout = layout.filter(|_| p2pdma.is_ok());

        let facts = exclusions(&function)?;
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
            None,
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
            None,
        )
    }

    /// A provider for the `ranges` that the function's own driver offers with these `wishes`, of
    /// which there are as many.
    ///
    /// # Errors
    ///
    /// `ENODEV`, `ENOMEM`
    pub(crate) fn registered(
        function: Function,
        callbacks: Callbacks,
        wishes: &[Wish],
        ranges: &[Range],
        settings: Settings,
        layout: Option<Layout>,
    ) -> Result<Arc<Self>> {
        let pages = wishes.iter().any(|wish| wish.flags & vendor::PAGES != 0);
        // Without it the rest still works, but neither struct pages nor importing devices.
        let p2pdma = p2pdma::init(&function);
        let layout = layout.filter(|_| pages && p2pdma.is_ok());
        let mut regions = KVec::with_capacity(wishes.len(), GFP_KERNEL)?;
        for (wish, range) in wishes.iter().zip(ranges) {
            let bar = function.bar(wish.bar).ok_or(ENODEV)?;
            let region = Region::registered(&bar, wish, *range, layout.is_some())?;
            regions.push(region, GFP_KERNEL)?;
        }
        Self::new(
            function,
            Kind::Registered,
            regions,
            Hardware::none(),
            settings,
            layout,
            Some(callbacks),
        )
    }

    /// Whether page backing is possible in this kernel.
    pub(crate) fn has_pages(&self) -> bool {
        self.kind == Kind::Adopted || self.layout.is_some()
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
        self.inner.lock().buffers.insert(buffer.clone())
    }

    /// Forgets the buffer.
    pub(crate) fn remove(&self, buffer: &Buffer) {
        let removed = self.inner.lock().buffers.remove(buffer.last_offset());
        // Outside of the lock: this may be the last reference.
        drop(removed);
    }

    /// The buffer whose window of the node's offsets `offset` lies in.
    pub(crate) fn find(&self, offset: u64) -> Option<Arc<Buffer>> {
        self.inner.lock().buffers.at(offset).cloned()
    }

    /// Calls `f` for the first buffer behind offset `after`, and returns that buffer's last offset,
    /// to go on with. No lock is held during the call.
    pub(crate) fn next_buffer(&self, after: Option<u64>) -> Option<(u64, Arc<Buffer>)> {
        let from = match after {
            None => 0,
            Some(after) => after.checked_add(1)?,
        };
        let inner = self.inner.lock();
        let (last, buffer) = inner.buffers.first_from(from)?;
        Some((last, buffer.clone()))
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

    /// A reset begins: until [`Provider::resume`] nobody reaches the memory. Faults and exports wait.
    ///
    /// When this returns, nothing is mapped any more. Does nothing when it is suspended or retired.
    /// Sleeps.
    pub(crate) fn suspend(&self) {
        let _power = self.power.lock();
        // Waits for exports that are about to write zeros; they start over afterwards.
        if self.access.suspend() {
            for buffer in self.buffers() {
                buffer.suspend();
            }
        }
    }

    /// The reset is over. Does nothing when it was not suspended.
    ///
    /// # Errors
    ///
    /// `EIO` when the function does not answer; everything stays suspended. `ENODEV` when it has
    /// retired.
    pub(crate) fn resume(&self) -> Result {
        let _power = self.power.lock();
        if self.access.is_closed() {
            return Err(ENODEV);
        }
        if !self.function.decodes_memory() {
            pr_err!(
                "{}: does not answer after a reset; its buffers stay suspended until it does after another one, or until they are revoked\n",
                self.function.address()
            );
            return Err(EIO);
        }
        for buffer in self.buffers() {
            buffer.resume();
        }
        self.access.resume();
        Ok(())
    }

    /// The end: everything is revoked, and the hardware given back.
    ///
    /// Waits for exports in progress, for importers, and for I/O that holds pins on pages. Does
    /// nothing when called again.
    pub(crate) fn retire(&self) {
        // Exports that wait for the end of a reset, or that write zeros, give up.
        self.access.close();
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
                Some(taken) => taken.take_map(),
                None => None,
            };
            drop(map);
        }
        drop(hardware);
    }
}
