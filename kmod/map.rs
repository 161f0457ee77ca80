// SPDX-License-Identifier: GPL-2.0

//! Mappings of a buffer: page faults of every size, and what mm does to a VMA in its life.
//!
//! A fault enters the buffer's gate. If the gate is closed, the answer is SIGBUS. Otherwise it puts
//! a leaf of exactly the size that the kernel asks for in place, or asks it to try a smaller one,
//! and then fills the neighbours in the same page table. A fault with bare frames also enters the provider's
//! gate for those, which is suspended while struct pages come or go: `provider/frames.rs`.
//!
//! If the gate is suspended, because the device is being reset, the fault waits. It waits outside of
//! the gate, which suspending and closing wait for, and, where the kernel lets faults be retried,
//! without the mmap lock or the VMA lock that it was called with: other threads go on mapping and
//! unmapping, and whoever has to end the suspension is held up by nothing of ours. A caller that
//! does not let go of the lock (`get_user_pages()` without retry) waits with it; neither resuming
//! nor revoking takes that lock. A fatal signal ends the wait in both cases, and so does a
//! revocation, if the device never comes back.
//!
//! Four things in the kernel go wrong with leaves of 1 GiB; this file stands in front of them:
//!
//! - Splitting a VMA inside of one oopses: `mm` only knows how to split 2 MiB. See
//!   [`Mapping::may_split`].
//! - mremap clears one without flushing the TLB. See [`Mapping::opened`].
//! - `pud_present()` does not know one that mprotect has taken all access from. See [`Mapping::access_taken`].
//! - Folios in a VMA with `VM_MIXEDMAP` leak. Ours are in plain ones, on an inode with `S_DAX`.

use crate::{
    buffer::{
        Buffer,
        Live, //
    },
    ext::{
        fault::{
            Fault,
            Outcome, //
        },
        gate::Shut,
        trace,
        vma::{
            Area,
            LockedVma,
            Mode,
            NewVma,
            Obstacle,
            Verdict, //
        }, //
    },
    pure::{
        mode::Cache,
        order::{
            self,
            Around,
            PageOrder, //
        },
        range::{
            self,
            Range, //
        }, //
    },
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
};

/// What stands behind the VMAs of one mmap call.
pub(crate) struct Mapping {
    buffer: Arc<Buffer>,
    /// The address at which byte 0 of the buffer would be. Equal for all parts of a mapping as long
    /// as none of them is moved.
    origin: u64,
    folios: bool,
}

impl Mapping {
    /// Sets up a new VMA.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the buffer is revoked. `EINVAL` for a private mapping, for one that reaches
    /// beyond the buffer, and for one of folios whose address or offset is not on whole folios, or in a
    /// process that has huge pages switched off.
    /// `EACCES` when a read-only buffer is to be written, and for execution.
    pub(crate) fn create(buffer: ArcBorrow<'_, Buffer>, vma: NewVma<'_>) -> Result {
        // A reset in flight does not matter: the first access comes with a fault.
        if buffer.gate.is_closed() {
            return Err(ENODEV);
        }
        let (range, offset) = (vma.range().ok_or(EINVAL)?, vma.offset().ok_or(EINVAL)?);
        let end = offset.checked_add(range.len()).ok_or(EINVAL)?;
        if end > buffer.size {
            return Err(EINVAL);
        }
        let mapping = Self {
            buffer: buffer.into(),
            origin: range.start().wrapping_sub(offset),
            folios: buffer.folios,
        };
        mapping.check_whole(range, offset)?;
        if mapping.folios && buffer.order != PageOrder::Page4K && !vma.has_huge_faults() {
            return Err(EINVAL);
        }
        let mode = Mode {
            write_combining: buffer.terms.cache == Cache::WriteCombining,
            read_only: !buffer.terms.open.writable,
            folios: mapping.folios,
        };
        vma.attach(Arc::new(mapping, GFP_KERNEL_ACCOUNT)?, &mode)?;
        buffer.counters.mappings.add(1);
        buffer.counters.mapped_bytes.add(range.len() as i64);
        Ok(())
    }

    /// Folios cannot be mapped in parts: both ends have to be on whole ones, and the address
    /// congruent.
    fn check_whole(&self, range: Range, offset: u64) -> Result {
        let order = self.buffer.order;
        if !self.folios || order == PageOrder::Page4K {
            return Ok(());
        }
        let place = range::locate(&self.buffer.ranges, offset).ok_or(EINVAL)?;
        let physical = self.buffer.base.wrapping_add(place.offset);
        if order.is_aligned(range.start() | range.len()) && order.is_aligned(physical) {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// What stands behind address `va` of a VMA: its physical address, and the addresses around for
    /// which the two move together.
    fn site(&self, vma: Range, offset: u64, va: u64) -> Option<(u64, Range)> {
        let site = range::site(&self.buffer.ranges, vma, offset, va)?;
        Some((self.buffer.base.checked_add(site.offset)?, site.window))
    }

    /// The leaves that `fault` can put in place; `None` when no leaf of its size can stand there.
    fn around(&self, fault: &Fault<'_>) -> Option<Around> {
        let order = fault.order();
        // Folios have one size. Frames have an upper limit.
        let possible = if self.folios {
            order == self.buffer.order
        } else {
            order <= self.buffer.order
        };
        if !possible {
            return None;
        }
        let (physical, window) = self.site(fault.range()?, fault.offset()?, fault.address())?;
        order::around(order, fault.address(), physical, window)
    }

    /// Serves a fault while the memory is there.
    fn serve(&self, fault: &Fault<'_>, live: &Live) -> Outcome {
        let buffer = &*self.buffer;
        if !buffer.provider.function.decodes_memory() {
            return Outcome::SIGBUS;
        }
        let Some(around) = self.around(fault) else {
            return Outcome::FALLBACK;
        };
        let Some(leaves) = live.memory.leaves(around.first_pa, around.count) else {
            return Outcome::SIGBUS;
        };
        let around_too = buffer.provider.settings.fault_around;
        let (outcome, entries) = fault.fill(&around, around_too, leaves);
        if !outcome.is_done() {
            return outcome;
        }
        buffer.counters.faults.add(1);
        buffer
            .counters
            .leaves(fault.order())
            .add(i64::from(entries));
        trace::fault(
            buffer.id(),
            fault.address().wrapping_sub(self.origin),
            fault.order(),
            entries,
            outcome.bits(),
        );
        outcome
    }
}

impl Obstacle for Buffer {
    fn wait(&self, freezable: bool) -> Result {
        self.gate.wait(freezable)?;
        self.provider.frames.wait(freezable)
    }
}

impl Area for Mapping {
    type Obstacle = Buffer;

    fn fault(&self, fault: &Fault<'_>) -> Verdict<Buffer> {
        match self.buffer.gate.admit() {
            Ok(live) if self.folios => Verdict::Done(self.serve(fault, &live)),
            Ok(live) => match self.buffer.provider.frames.admit() {
                Ok(_struct_pages_stay) => Verdict::Done(self.serve(fault, &live)),
                Err(_) => Verdict::Blocked(self.buffer.clone()),
            },
            Err(Shut::Suspended) => Verdict::Blocked(self.buffer.clone()),
            Err(Shut::Closed) => Verdict::Done(Outcome::SIGBUS),
        }
    }

    fn may_split(&self, vma: &LockedVma<'_>, at: u64) -> Result {
        let (range, offset) = (vma.range().ok_or(EINVAL)?, vma.offset().ok_or(EINVAL)?);
        if self.folios {
            // As device-dax: what cannot be mapped in parts cannot be unmapped in parts.
            return if self.buffer.order.is_aligned(at) {
                Ok(())
            } else {
                Err(EINVAL)
            };
        }
        let Some((physical, window)) = self.site(range, offset, at) else {
            return Ok(());
        };
        if PageOrder::Pud.is_aligned(at) || !order::fits(PageOrder::Pud, at, physical, window) {
            return Ok(());
        }
        // A leaf of 1 GiB may straddle the place. It must be gone before the kernel comes to split
        // it, and no fault may bring it back before then: afterwards it does not fit any more.
        vma.exclude_faults();
        let start = PageOrder::Pud.align_down(at);
        vma.zap(Range::new(start, PageOrder::Pud.size()).map_err(crate::copy::errno)?);
        Ok(())
    }

    fn access_taken(&self, vma: &LockedVma<'_>, range: Range) {
        let (first, end) = (
            PageOrder::Pud.align_down(range.start()),
            PageOrder::Pud.align_up(range.end()),
        );
        // What gets its access back refaults. A leaf lies in one VMA as a whole, so that `zap` cuts none.
        if let Some(leaves) = end.and_then(|end| Range::between(first, end)) {
            vma.exclude_faults();
            vma.zap(leaves);
        }
    }

    fn opened(&self, vma: &LockedVma<'_>) {
        let counters = &self.buffer.counters;
        counters.mappings.add(1);
        let (Some(range), Some(offset)) = (vma.range(), vma.offset()) else {
            return;
        };
        let moved = range.start().wrapping_sub(offset) != self.origin;
        if vma.is_current() && !moved {
            // A split: the address space stays the same.
            return;
        }
        counters.mapped_bytes.add(range.len() as i64);
        if vma.is_current() {
            // mremap is about to move page table entries here, and cannot do that with 1 GiB. So
            // there is nothing to move: the new place refaults.
            vma.exclude_faults();
            vma.zap_file_part();
        }
    }

    fn moved(&self, vma: &LockedVma<'_>) -> Result<Arc<Self>> {
        let (range, offset) = (vma.range().ok_or(EINVAL)?, vma.offset().ok_or(EINVAL)?);
        self.check_whole(range, offset)?;
        let here = Self {
            buffer: self.buffer.clone(),
            origin: range.start().wrapping_sub(offset),
            folios: self.folios,
        };
        Ok(Arc::new(here, GFP_KERNEL_ACCOUNT)?)
    }

    fn closed(&self, vma: &LockedVma<'_>) {
        let counters = &self.buffer.counters;
        counters.mappings.add(-1);
        if let Some(range) = vma.range() {
            counters
                .mapped_bytes
                .add((range.len() as i64).wrapping_neg());
        }
    }

    fn page_order(&self) -> PageOrder {
        if self.folios {
            self.buffer.order
        } else {
            PageOrder::Page4K
        }
    }
}
