// SPDX-License-Identifier: GPL-2.0

//! Buffers: one export, one dma-buf, of one or more ranges of one region.
//!
//! A buffer's memory sits behind a [`Gate`]. Whoever uses it, a fault for example, enters; who
//! revokes closes. Closing waits for those inside, so that afterwards no new page table entry can
//! appear, and what is there is zapped. Only then [`Live`] is dropped, which gives the bytes back,
//! in the order of its fields.
//!
//! A reset of the device suspends the gate and zaps what is mapped, but drops nothing: see
//! [`Buffer::suspend`].

use crate::{
    ext::{
        attach::{
            Attachment,
            Direction,
            Mapped, //
        },
        dmabuf::{
            self,
            DmaBuf, //
        },
        eventfd::EventFd,
        fault::Leaves,
        gate::Gate,
        memtype::{
            IoMapping,
            WriteCombining, //
        },
        pagemap::Hold,
        pool::{
            PoolPages,
            PoolRange, //
        },
        trace,
        vma::NewVma, //
    },
    few::Few,
    import::{
        Importer,
        Importers, //
    },
    map::Mapping,
    node::Ticket,
    provider::{
        Provider,
        Reservation,
        Use, //
    },
    pure::{
        export::Export,
        order::PageOrder,
        range::Range,
        state::{
            Event,
            Life, //
        }, //
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        ArcBorrow,
        Mutex,
        UniqueArc, //
    },
};

/// What stands behind a buffer's bytes.
pub(crate) enum Memory {
    /// Nothing but addresses, and their cache mode.
    Frames(#[expect(dead_code, reason = "held until dropped")] Few<WriteCombining>),
    /// Folios, for each range.
    Folios(Few<Hold>),
    /// Bytes from a pool, used without their pages.
    Pool(#[expect(dead_code, reason = "held until dropped")] PoolRange),
    /// Pages from a pool.
    PoolPages(PoolPages),
}

impl Memory {
    /// What mappings show of `count` pages from `physical` on, which lie in one range; `None` where that is not there.
    pub(crate) fn leaves(&self, physical: u64, count: u64) -> Option<Leaves<'_>> {
        match self {
            Memory::Frames(_) | Memory::Pool(_) => Some(Leaves::Frames(physical)),
            Memory::Folios(holds) => {
                let folios = holds.iter().find_map(|hold| hold.folios(physical, count));
                folios.map(Leaves::Folios)
            }
            Memory::PoolPages(pages) => pages.folios(physical, count).map(Leaves::Folios),
        }
    }

    /// Whether mappings consist of folios.
    pub(crate) fn has_folios(&self) -> bool {
        matches!(self, Memory::Folios(_) | Memory::PoolPages(_))
    }
}

/// What a buffer owns until it is revoked. Dropped from top to bottom: first the references to
/// pages or the cache mode, then the claim that keeps others away; last, its driver is told.
pub(crate) struct Live {
    /// What stands behind the bytes.
    pub(crate) memory: Memory,
    /// The claim on the bytes.
    pub(crate) reservation: Reservation,
    /// What the function's own driver knows of.
    pub(crate) _used: Use,
}

/// What has happened to a buffer, for QUERY and debugfs.
#[derive(Default)]
pub(crate) struct Counters {
    /// Leaves that faults have inserted, by order: 4 KiB, 2 MiB, 1 GiB.
    leaves: [Counter; 3],
    /// Faults that were served.
    pub(crate) faults: Counter,
    /// VMAs.
    pub(crate) mappings: Counter,
    /// The address space that they take, in bytes.
    pub(crate) mapped_bytes: Counter,
}

impl Counters {
    /// The counter of one order.
    pub(crate) fn leaves(&self, order: PageOrder) -> &Counter {
        let [small, medium, large] = &self.leaves;
        match order {
            PageOrder::Page4K => small,
            PageOrder::Pmd => medium,
            PageOrder::Pud => large,
        }
    }
}

/// A number that several CPUs change.
pub(crate) struct Counter(Atomic<i64>);

impl Default for Counter {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Counter {
    /// Adds `n`, which may be negative.
    pub(crate) fn add(&self, n: i64) {
        self.0.add(n, Relaxed);
    }

    /// The value; 0 if it is negative for a moment.
    pub(crate) fn get(&self) -> u64 {
        u64::try_from(self.0.load(Relaxed)).unwrap_or(0)
    }
}

/// One export.
#[pin_data]
pub(crate) struct Buffer {
    /// Whose memory it is.
    pub(crate) provider: Arc<Provider>,
    /// The region's index.
    pub(crate) region: u32,
    /// The physical address of the region's first byte.
    pub(crate) base: u64,
    /// Its bytes, in the region.
    pub(crate) ranges: Few<Range>,
    /// How many bytes those are.
    pub(crate) size: u64,
    /// What was asked for.
    pub(crate) terms: Export,
    /// The largest leaf of its mappings; with folios, the only one.
    pub(crate) order: PageOrder,
    /// Whether mappings consist of folios.
    pub(crate) folios: bool,
    /// Where the provider's node maps it.
    pub(crate) cookie: u64,
    /// What has happened to it.
    pub(crate) counters: Counters,
    /// Its memory.
    #[pin]
    pub(crate) gate: Gate<Live>,
    /// Who imports it.
    #[pin]
    pub(crate) importers: Importers,
    eventfd: Option<EventFd>,
    /// Counts against the limits.
    pub(crate) ticket: Ticket,
    /// [`Life`] as bits; written under `changing`.
    life: Atomic<u64>,
    /// `st_ino` of the dma-buf, 0 until there is one.
    id: Atomic<u64>,
    #[pin]
    weak: dmabuf::Weak,
    /// Held while `life` changes, and until that is true of all mappings and of all importers that can be
    /// told: for a time that has a bound.
    #[pin]
    changing: Mutex<()>,
    /// Held by who ends the buffer, until its memory is back. Outside of `changing`, because importers that
    /// cannot be told are waited for under it, and a reset must not have to wait for those.
    #[pin]
    ending: Mutex<()>,
}

/// Memory for a buffer, and where it lies.
pub(crate) struct Obtained {
    pub(crate) live: Live,
    pub(crate) ranges: Few<Range>,
}

/// The other parts of a [`Buffer`] that its maker chooses.
pub(crate) struct Plan {
    pub(crate) provider: Arc<Provider>,
    pub(crate) region: u32,
    pub(crate) base: u64,
    pub(crate) size: u64,
    pub(crate) terms: Export,
    pub(crate) order: PageOrder,
    pub(crate) cookie: u64,
    pub(crate) eventfd: Option<EventFd>,
    pub(crate) ticket: Ticket,
}

impl Buffer {
    /// Makes a buffer and its dma-buf. Nobody can see either yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENFILE`
    pub(crate) fn new(plan: Plan, obtained: Obtained) -> Result<DmaBuf<Self>> {
        let folios = obtained.live.memory.has_folios();
        let access = plan.terms.open.access_bits();
        let size = plan.size;
        // First the room, so that the parts move right to their places.
        let buffer: Arc<Self> = UniqueArc::new_uninit(GFP_KERNEL_ACCOUNT)?
            .pin_init_with(pin_init!(Self {
                provider: plan.provider,
                region: plan.region,
                base: plan.base,
                ranges: obtained.ranges,
                size,
                terms: plan.terms,
                order: plan.order,
                folios,
                cookie: plan.cookie,
                counters: Counters::default(),
                gate <- Gate::new(obtained.live),
                importers <- Importers::new(),
                eventfd: plan.eventfd,
                ticket: plan.ticket,
                life: Atomic::new(Life::new().to_bits()),
                id: Atomic::new(0),
                weak <- dmabuf::Weak::new(),
                changing <- new_mutex!(()),
                ending <- new_mutex!(()),
            }))?
            .into();
        let vmap = buffer.can_be_vmapped();
        let dmabuf = DmaBuf::export(buffer.clone(), size, access, folios, vmap)?;
        buffer.id.store(dmabuf.id(), Relaxed);
        Ok(dmabuf)
    }

    /// `st_ino` of the dma-buf.
    pub(crate) fn id(&self) -> u64 {
        self.id.load(Relaxed)
    }

    /// Where in its life it is.
    pub(crate) fn life(&self) -> Life {
        Life::from_bits(self.life.load(Acquire)).unwrap_or_default()
    }

    /// The last offset of its window on the node.
    pub(crate) fn last_offset(&self) -> u64 {
        self.cookie.saturating_add(self.size.saturating_sub(1))
    }

    /// The physical address of its first byte.
    pub(crate) fn first_physical(&self) -> u64 {
        let first = self.ranges.first().map_or(0, |range| range.start());
        self.base.wrapping_add(first)
    }

    /// The dma-buf, unless nobody uses it any more.
    pub(crate) fn dmabuf(&self) -> Option<DmaBuf<Self>> {
        self.weak.upgrade()
    }

    /// Takes the memory away until [`Buffer::resume`]: the device is about to be reset.
    ///
    /// When this returns, no CPU reaches the memory through this buffer, nor does an importer that can
    /// be told to stop. Faults wait from here on, importers that map hear `EAGAIN`.
    /// Does nothing to a buffer that is suspended or revoked.
    pub(crate) fn suspend(&self) {
        let _changing = self.changing.lock();
        let Some(life) = self.life().apply(Event::Suspend) else {
            return;
        };
        // The same order as for a revocation, and for the same reasons.
        self.life.store(life.to_bits(), Release);
        self.gate.suspend();
        if let Some(dmabuf) = self.weak.upgrade::<Self>() {
            dmabuf.zap(0, 0);
        }
        self.recall_importers();
        trace::state(self.id(), life.state().to_uapi(), life.generation());
    }

    /// The memory is there again, in a new generation: what the device remembers may be lost.
    /// Importers are told to map again.
    ///
    /// Does nothing to a buffer that is not suspended.
    pub(crate) fn resume(&self) {
        let _changing = self.changing.lock();
        let Some(life) = self.life().apply(Event::Resume) else {
            return;
        };
        self.life.store(life.to_bits(), Release);
        trace::state(self.id(), life.state().to_uapi(), life.generation());
        self.gate.resume();
        self.invite_importers();
    }

    /// Takes the memory away for good.
    ///
    /// When this returns, also with an error, no CPU and no device reaches it through this buffer any
    /// more. Waits for importers; see [`Buffer::recall_importers`] and [`Buffer::outlast_importers`].
    ///
    /// # Errors
    ///
    /// `EBADFD` when somebody has done it before.
    pub(crate) fn revoke(&self) -> Result {
        let _ending = self.ending.lock();
        let live = self.shut()?;
        // Whoever holds an importer that cannot be told may wait for this to let go of it.
        if let Some(eventfd) = &self.eventfd {
            eventfd.signal();
        }
        self.outlast_importers();
        // Last the memory itself.
        drop(live);
        Ok(())
    }

    /// The part of [`Buffer::revoke`] that has a bound: afterwards nobody reaches the memory but
    /// importers that cannot be told.
    fn shut(&self) -> Result<Option<Live>> {
        let _changing = self.changing.lock();
        let life = self.life().apply(Event::Revoke).ok_or(EBADFD)?;
        // The core warns when vmap() fails, so it must not get to us any more.
        if let Some(dmabuf) = self.weak.upgrade::<Self>() {
            dmabuf.forbid_vmap();
        }
        // First the flag: who asks from here on hears that it is revoked.
        self.life.store(life.to_bits(), Release);
        // Then no new page table entry: waits for the faults that are running.
        let live = self.gate.close();
        // Then the entries that exist. (Without a dma-buf there are no mappings.)
        if let Some(dmabuf) = self.weak.upgrade::<Self>() {
            dmabuf.zap(0, 0);
        }
        // Then the devices.
        self.recall_importers();
        trace::state(self.id(), life.state().to_uapi(), life.generation());
        Ok(live)
    }
}

impl dmabuf::Exporter for Buffer {
    const NAME: &'static CStr = c"barbuf";

    fn weak(&self) -> &dmabuf::Weak {
        &self.weak
    }

    type Importer = Importer;

    fn attach(this: ArcBorrow<'_, Self>, device: &Attachment<'_>) -> Result<Importer> {
        this.admit(device)
    }

    fn detached(this: ArcBorrow<'_, Self>, device: &Attachment<'_>) {
        this.dismissed(device);
    }

    fn pin(this: ArcBorrow<'_, Self>, importer: &mut Importer) -> Result {
        Self::pin(&this, importer)
    }

    fn unpinned(this: ArcBorrow<'_, Self>, importer: &mut Importer) {
        this.unpin(importer);
    }

    fn map(
        this: ArcBorrow<'_, Self>,
        device: &Attachment<'_>,
        importer: &mut Importer,
        direction: Direction,
    ) -> Result<Mapped> {
        this.map_for(device, importer, direction)
    }

    fn is_linked(importer: &Importer) -> bool {
        importer.is_linked()
    }

    fn unmapped(this: ArcBorrow<'_, Self>, device: &Attachment<'_>, importer: &mut Importer) {
        this.unmapped_by(device, importer);
    }

    fn begin_access(this: ArcBorrow<'_, Self>) -> Result {
        this.begin_cpu_access()
    }

    fn end_access(this: ArcBorrow<'_, Self>, wrote: bool) -> Result {
        this.end_cpu_access(wrote)
    }

    fn vmap(this: ArcBorrow<'_, Self>) -> Result<IoMapping> {
        Self::vmap(&this)
    }

    fn vunmapped(this: ArcBorrow<'_, Self>) {
        Self::vunmapped(&this);
    }

    fn mmap(this: ArcBorrow<'_, Self>, vma: NewVma<'_>) -> Result {
        Mapping::create(this, vma)
    }

    fn released(this: Arc<Self>) {
        // A provider that retires finds the buffer in its list until the memory is back.
        let ending = this.ending.lock();
        let live = {
            let _changing = this.changing.lock();
            this.gate.close()
        };
        drop(live);
        drop(ending);
        trace::release(this.id());
        this.provider.remove(&this);
    }
}
