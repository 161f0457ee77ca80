// SPDX-License-Identifier: GPL-2.0

//! Importers of a buffer: devices that read and write it by DMA, and CPUs in the kernel.
//!
//! An importer that can be told to stop does so in bounded time; revoking tells it and waits. One
//! that cannot is let in only if the export said so, and then revoking waits for as long as it
//! likes.
//!
//! Locks: the dma-buf core holds the buffer's reservation lock around everything here but
//! attaching, detaching and the ends of a CPU access. [`Buffer::recall_importers`] takes it, inside
//! `Buffer::changing`. `Importers::counts` is inside both and holds none.

use crate::{
    buffer::Buffer,
    copy::errno,
    ext::{
        attach::{
            Attachment,
            Direction,
            Mapped,
            Piece, //
        },
        memtype::{
            self,
            IoMapping, //
        },
        p2pdma::Memory, //
    },
    pure::{
        export::Flags,
        mode::Cache,
        order::PageOrder,
        range::Range,
        route::{
            self,
            Kind,
            Reason,
            Route, //
        },
    }, //
};
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    },
};

/// What is kept of a device that is attached to a buffer: no more than a word, which needs no
/// allocation. Changes under the reservation lock.
#[derive(Clone, Copy)]
pub(crate) struct Importer {
    /// How it reaches the memory.
    kind: Kind,
    /// An IOMMU translates for it.
    translated: bool,
    /// Mappings that it has.
    maps: u32,
    /// Pins that it has.
    pins: u16,
}

impl Importer {
    /// How it reaches the memory.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it gets one range of addresses, whatever the buffer's ranges. The kernel's helper is
    /// meant to do that, and fails at the second one.
    pub(crate) fn is_linked(&self) -> bool {
        self.kind == Kind::HostBridge && self.translated
    }

    /// Mappings that it has.
    pub(crate) fn maps(&self) -> u32 {
        self.maps
    }

    /// Pins that it has.
    pub(crate) fn pins(&self) -> u32 {
        u32::from(self.pins)
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    /// Attachments.
    attached: u32,
    /// Mappings of importers that can be told to stop.
    revocable_maps: u32,
    /// Attachments that cannot.
    fixed: u32,
    /// `vmap()`, 1 or 0: the core counts how many use it.
    vmaps: u32,
}

/// All importers of a buffer.
#[pin_data]
pub(crate) struct Importers {
    #[pin]
    counts: Mutex<Counts>,
    /// One of those that somebody waits for has gone.
    #[pin]
    left: CondVar,
}

impl Importers {
    /// None yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            counts <- new_mutex!(Counts::default()),
            left <- new_condvar!(),
        })
    }

    /// Somebody comes.
    fn more(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock());
    }

    /// Somebody goes, for whom somebody else may wait.
    fn fewer(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.lock();
        change(&mut counts);
        if counts.revocable_maps == 0 || counts.fixed == 0 || counts.vmaps == 0 {
            self.left.notify_all();
        }
    }

    fn wait(&self, until: impl Fn(&Counts) -> bool) {
        let mut counts = self.counts.lock();
        while !until(&counts) {
            self.left.wait(&mut counts);
        }
    }

    fn look(&self) -> Counts {
        *self.counts.lock()
    }

    /// Attachments.
    pub(crate) fn attached(&self) -> u32 {
        self.look().attached
    }

    /// Whether the kernel's CPU mapping is in use.
    pub(crate) fn is_vmapped(&self) -> bool {
        self.look().vmaps != 0
    }

    /// Whether revoking would wait for somebody who cannot be told to stop.
    pub(crate) fn is_held(&self) -> bool {
        let counts = self.look();
        counts.fixed != 0 || counts.vmaps != 0
    }
}

fn plus(count: &mut u32) {
    *count = count.saturating_add(1);
}

fn minus(count: &mut u32) {
    *count = count.saturating_sub(1);
}

impl Buffer {
    fn is_write_combining(&self) -> bool {
        self.terms.cache == Cache::WriteCombining
    }

    fn has_consent(&self) -> bool {
        self.terms.flags.contains(Flags::STATIC_IMPORT)
    }

    /// A device wants to import the buffer.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it is revoked, `EAGAIN` while it is suspended, `EOPNOTSUPP` when the device
    /// cannot be told to stop and the export did not allow that, `EREMOTEIO` when it has no route,
    /// `ERANGE` when it cannot form the addresses.
    pub(crate) fn admit(&self, device: &Attachment<'_>) -> Result<Importer> {
        let _live = self.gate.enter_now()?;
        let revocable = device.is_revocable();
        if !revocable && !self.has_consent() {
            return Err(EOPNOTSUPP);
        }
        let reach = device.reach();
        let route = match device.function() {
            Some(client) => self.provider.route(self.memory(), &client, reach),
            // Not on a PCI bus: good for reading with the CPU (vgem), never for DMA.
            None if !revocable => Route::none(Reason::None),
            None => Route::none(Reason::NoDevice),
        };
        if route.reason != Reason::None {
            self.provider.complain(device, route.reason);
            return Err(match route.reason {
                Reason::DmaMask => ERANGE,
                _ => EREMOTEIO,
            });
        }
        // Inside the gate: who closes it sees this, or nobody comes in any more.
        self.importers.more(|counts| {
            plus(&mut counts.attached);
            if !revocable {
                plus(&mut counts.fixed);
            }
        });
        Ok(Importer {
            kind: route.kind,
            translated: reach.translated,
            maps: 0,
            pins: 0,
        })
    }

    /// The importer has detached.
    pub(crate) fn dismissed(&self, device: &Attachment<'_>) {
        self.importers.fewer(|counts| {
            minus(&mut counts.attached);
            if !device.is_revocable() {
                minus(&mut counts.fixed);
            }
        });
    }

    /// The importer pins. The memory never moves, so that this only counts; a pin does not keep the
    /// buffer from being revoked.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it is revoked, `EAGAIN` while it is suspended.
    pub(crate) fn pin(&self, importer: &mut Importer) -> Result {
        let _live = self.gate.enter_now()?;
        importer.pins = importer.pins.saturating_add(1);
        Ok(())
    }

    /// The importer unpins.
    pub(crate) fn unpin(&self, importer: &mut Importer) {
        importer.pins = importer.pins.saturating_sub(1);
    }

    /// The memory of the buffer as DMA sees it: the BAR, the last byte, and how many there are.
    pub(crate) fn memory(&self) -> route::Memory {
        let last = self.ranges.iter().map(|range| range.end()).max();
        route::Memory {
            bar: self.bar(),
            last: self
                .base
                .saturating_add(last.unwrap_or(0))
                .saturating_sub(1),
            size: self.size,
        }
    }

    fn bar(&self) -> u32 {
        let region = self.provider.regions.get(self.region as usize);
        region.map_or(u32::MAX, |region| region.bar)
    }

    /// Makes DMA addresses for an importer.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the buffer is revoked, `EAGAIN` while it is suspended, `EACCES` when it is
    /// read-only and the device would write, `ERANGE` when the device's DMA mask has shrunk since it
    /// attached, `EREMOTEIO` when it has no route, `ENOMEM`.
    pub(crate) fn map_for(
        &self,
        device: &Attachment<'_>,
        importer: &mut Importer,
        direction: Direction,
    ) -> Result<Mapped> {
        let _live = self.gate.enter_now()?;
        if !direction.is_valid() {
            return Err(EINVAL);
        }
        if direction.writes() && !self.terms.open.writable {
            return Err(EACCES);
        }
        if importer.kind == Kind::None {
            // Let in for reading with the CPU.
            return Err(EREMOTEIO);
        }
        let function = &self.provider.function;
        let memory = Memory::of(function, self.bar()).ok_or(EREMOTEIO)?;
        // The kernel warns about an address beyond the mask, and over a switch it does not look.
        let (kind, whole) = (importer.kind, self.memory());
        let last = route::last_address(kind, importer.translated, &whole, memory.bus(whole.last));
        if last > device.mask() {
            return Err(ERANGE);
        }
        let limit = route::piece_limit(kind, importer.translated);
        let map = |pieces: &[Piece]| {
            if importer.is_linked() {
                device.link(pieces, self.size, direction)
            } else {
                device.map(&memory, pieces, self.size, direction)
            }
        };
        let mapped = match &*self.ranges {
            [range] if range.len() <= limit => map(&[self.piece(*range)?])?,
            _ => map(&self.pieces(limit)?)?,
        };
        importer.maps = importer.maps.saturating_add(1);
        if device.is_revocable() {
            self.importers
                .more(|counts| plus(&mut counts.revocable_maps));
        }
        Ok(mapped)
    }

    fn piece(&self, range: Range) -> Result<Piece> {
        let start = self.base.checked_add(range.start()).ok_or(EINVAL)?;
        Ok(Range::new(start, range.len()).map_err(errno)?.into())
    }

    /// The buffer's bytes as physical addresses, no piece longer than `limit`.
    fn pieces(&self, limit: u64) -> Result<KVec<Piece>> {
        let mut pieces = KVec::new();
        for range in self.ranges.iter() {
            let mut at = range.start();
            while let Some(rest) = Range::between(at, range.end()) {
                let part = Range::new(at, rest.len().min(limit)).map_err(errno)?;
                pieces.push(self.piece(part)?, GFP_KERNEL)?;
                at = part.end();
            }
        }
        Ok(pieces)
    }

    /// An importer has given its DMA addresses back.
    pub(crate) fn unmapped_by(&self, device: &Attachment<'_>, importer: &mut Importer) {
        importer.maps = importer.maps.saturating_sub(1);
        if device.is_revocable() {
            self.importers
                .fewer(|counts| minus(&mut counts.revocable_maps));
        }
    }

    /// A CPU begins to access the memory. There is nothing to bring: no mapping is cached.
    ///
    /// Does not wait for the end of a reset: the caller may be a driver in the kernel, with a lock that
    /// its `invalidate_mappings` takes.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the buffer is revoked, `EAGAIN` while it is suspended.
    pub(crate) fn begin_cpu_access(&self) -> Result {
        self.gate.enter_now().map(drop)
    }

    /// A CPU has accessed the memory. What it has written is on its way, posted, or still in a
    /// write-combining buffer: afterwards it has arrived.
    ///
    /// # Errors
    ///
    /// `ENOMEM`
    pub(crate) fn end_cpu_access(&self, wrote: bool) -> Result {
        let live = self.gate.enter();
        if !wrote || live.is_none() || !self.provider.function.decodes_memory() {
            return Ok(());
        }
        memtype::drain();
        let region = self.provider.regions.get(self.region as usize);
        if region.is_some_and(|region| region.facts.memory_only || region.facts.prefetchable) {
            let page = Range::new(self.first_physical(), PageOrder::Page4K.size());
            memtype::read_back(page.map_err(errno)?, self.is_write_combining())
        } else {
            // Reading a register could do something. Configuration space is as far away.
            self.provider.function.ping();
            Ok(())
        }
    }

    /// Whether the kernel's CPUs can have a mapping: only if the export allowed importers that cannot
    /// be told to stop; as one piece; and for writing, because nobody says whether it is for reading
    /// only.
    pub(crate) fn can_be_vmapped(&self) -> bool {
        let mut pairs = self.ranges.iter().zip(self.ranges.iter().skip(1));
        let is_one_piece = pairs.all(|(range, next)| range.end() == next.start());
        self.has_consent() && self.terms.open.writable && is_one_piece
    }

    /// Maps all of the buffer into the kernel.
    ///
    /// The core warns about an error. So this is out of reach of those who could be refused: see
    /// [`Buffer::can_be_vmapped`], and `DmaBuf::forbid_vmap` for revoked buffers. A suspended one is
    /// mapped too, for which no byte of it is touched.
    ///
    /// Does without the gate: `forbid_vmap` takes the reservation lock before the gate is closed, so that
    /// whoever closes it sees the mapping counted.
    ///
    /// # Errors
    ///
    /// `ENOMEM`
    pub(crate) fn vmap(&self) -> Result<IoMapping> {
        let physical = Range::new(self.first_physical(), self.size).map_err(errno)?;
        let mapping = IoMapping::new(physical, self.is_write_combining())?;
        self.importers.more(|counts| plus(&mut counts.vmaps));
        Ok(mapping)
    }

    /// The mapping is gone.
    pub(crate) fn vunmapped(&self) {
        self.importers.fewer(|counts| minus(&mut counts.vmaps));
    }

    /// Takes the DMA addresses back from all importers that can be told, and waits until they have let go.
    ///
    /// When this returns, each of them has been told, the DMA that it had announced is over, and it has
    /// unmapped. Those that cannot be told go on; see [`Buffer::outlast_importers`].
    ///
    /// The gate must have been shut before: importers ask for new addresses at once, and hear
    /// `ENODEV` (closed) or `EAGAIN` (suspended). If it was suspended, the caller opens it when the memory
    /// is back, and calls [`Buffer::invite_importers`].
    ///
    /// Takes the reservation lock, which importers' `invalidate_mappings` run under. The caller
    /// holds `changing` and no lock inside of it, and not the buffer's gate. Sleeps, as long as those
    /// importers take: the kernel wants that to have a bound.
    pub(crate) fn recall_importers(&self) {
        let Some(dmabuf) = self.dmabuf() else {
            // An importer holds a reference to the dma-buf: there is none.
            return;
        };
        let reserved = dmabuf.reserve();
        reserved.invalidate();
        reserved.wait_for_fences();
        drop(reserved);
        self.importers.wait(|counts| counts.revocable_maps == 0);
    }

    /// Waits until importers that cannot be told have detached, and the kernel has unmapped its own
    /// mapping. Says in the log whom it waits for.
    ///
    /// The buffer must be revoked, so that nobody comes. The caller holds `ending` and no lock inside of
    /// it. Sleeps, without a time limit.
    pub(crate) fn outlast_importers(&self) {
        if !self.importers.is_held() {
            return;
        }
        if let Some(dmabuf) = self.dmabuf() {
            dmabuf.reserve().each(|device, _| {
                if !device.is_revocable() {
                    pr_warn!(
                        "{}: revoking buffer {} waits until {} detaches, which cannot be told to stop\n",
                        self.provider.function.address(),
                        self.id(),
                        device
                    );
                }
            });
        }
        if self.importers.is_vmapped() {
            pr_warn!(
                "{}: revoking buffer {} waits until the kernel unmaps it (vmap)\n",
                self.provider.function.address(),
                self.id()
            );
        }
        self.importers
            .wait(|counts| counts.fixed == 0 && counts.vmaps == 0);
    }

    /// Tells all importers to ask for DMA addresses again: the memory is back from a reset.
    ///
    /// The gate must be open already. Locks as for [`Buffer::recall_importers`]; does not wait.
    pub(crate) fn invite_importers(&self) {
        if let Some(dmabuf) = self.dmabuf() {
            dmabuf.reserve().invalidate();
        }
    }
}
