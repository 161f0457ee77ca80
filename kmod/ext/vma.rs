// SPDX-License-Identifier: GPL-2.0

//! VMAs over device memory: setting them up, and what mm does to them in their life.
//!
//! C header: `include/linux/mm.h`.
//!
//! A VMA of ours owns one reference to an [`Area`] object in `vm_private_data`. The same C struct is seen as three
//! types, after what may be done with it: [`NewVma`] inside the mmap hook, [`Fault`] inside a fault handler, and
//! [`LockedVma`] while the mmap lock is held for writing.

use super::{
    fault::{
        Fault,
        Outcome, //
    },
    shim, //
};
use crate::pure::{
    order::PageOrder,
    range::Range, //
};
use core::{
    marker::PhantomData,
    ops::Deref, //
};
use kernel::{
    bindings,
    ffi::{
        c_int,
        c_uint,
        c_ulong, //
    },
    mm::virt::{
        flags,
        VmaNew,
        VmaRef, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
};

/// Something that a fault can wait for.
pub(crate) trait Obstacle: Send + Sync + 'static {
    /// Sleeps until it is gone. A `freezable` caller holds no lock.
    ///
    /// # Errors
    ///
    /// Any, when the calling task is killed.
    fn wait(&self, freezable: bool) -> Result;
}

/// What a fault handler wants to happen.
pub(crate) enum Verdict<O> {
    /// This is the answer.
    Done(Outcome),
    /// The fault is to be tried again when this is gone.
    Blocked(Arc<O>),
}

/// What stands behind the VMAs of one `mmap` call, and of those that fork and splitting make of them.
pub(crate) trait Area: Send + Sync + Sized + 'static {
    /// What can be in a fault's way.
    type Obstacle: Obstacle;

    /// Puts an entry of exactly the order of `fault` in place.
    ///
    /// Called with the mmap lock or the VMA lock held for reading; may sleep. Long waits belong into
    /// the [`Obstacle`], because the lock is given up for that where the kernel allows it.
    fn fault(&self, fault: &Fault<'_>) -> Verdict<Self::Obstacle>;

    /// Whether the VMA may be split at address `at`, which lies inside and on a page.
    ///
    /// Called with the mmap lock held for writing. An entry larger than 2 MiB that straddles `at` must be gone when
    /// this returns `Ok`: the kernel cannot split one.
    fn may_split(&self, vma: &LockedVma<'_>, at: u64) -> Result;

    /// mprotect is about to take every access from `range`, which lies in the VMA.
    ///
    /// Called with the mmap lock held for writing. An entry of 1 GiB must be gone when this returns: without access
    /// the kernel takes it for one that is not there.
    fn access_taken(&self, vma: &LockedVma<'_>, range: Range);

    /// A copy of the VMA has come into being: by fork, by a split, or because mremap is about to move page tables.
    ///
    /// Called with the mmap lock of `vma`'s address space held for writing.
    fn opened(&self, vma: &LockedVma<'_>);

    /// mremap has moved the VMA here. Returns what stands behind it from now on; an error moves it
    /// back.
    fn moved(&self, vma: &LockedVma<'_>) -> Result<Arc<Self>>;

    /// The VMA goes away.
    fn closed(&self, vma: &LockedVma<'_>);

    /// The size of its pages, for those who ask about the mapping.
    fn page_order(&self) -> PageOrder;
}

pub(super) fn range_of(vma: &VmaRef) -> Option<Range> {
    Range::between(vma.start() as u64, vma.end() as u64)
}

pub(super) fn offset_of(vma: &VmaRef) -> Option<u64> {
    // SAFETY: By the invariants of `VmaRef` the VMA is locked at least for reading, and `vm_pgoff` changes only
    // under the write lock.
    let pages = unsafe { (*vma.as_ptr()).vm_pgoff };
    (pages as u64).checked_mul(crate::pure::range::PAGE_SIZE)
}

/// A VMA whose mmap lock is held for writing.
pub(crate) struct LockedVma<'a>(&'a VmaRef);

impl LockedVma<'_> {
    /// The addresses that it covers.
    pub(crate) fn range(&self) -> Option<Range> {
        range_of(self.0)
    }

    /// The offset in the file of its first byte.
    pub(crate) fn offset(&self) -> Option<u64> {
        offset_of(self.0)
    }

    /// Whether it belongs to the calling task's own address space. It does not while fork copies it.
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: `current` is valid, and its `mm` does not change under it. `vm_mm` never changes.
        unsafe { (*self.0.as_ptr()).vm_mm == (*bindings::get_current()).mm }
    }

    /// Keeps faults out until the mmap lock is released.
    ///
    /// Faults take the VMA's own lock, which the mmap lock does not exclude: this waits for those that run.
    pub(crate) fn exclude_faults(&self) {
        // SAFETY: The mmap lock is held for writing, by the type's meaning.
        unsafe { shim::barbuf_helper_vma_start_write(self.0.as_ptr()) };
    }

    /// Removes all entries for the VMA's part of its file, from this and every other mapping of the file.
    pub(crate) fn zap_file_part(&self) {
        if let (Some(range), Some(offset)) = (self.range(), self.offset()) {
            // SAFETY: A VMA of ours has a file, which it keeps alive. CAST: File offsets fit.
            unsafe {
                bindings::unmap_mapping_range(
                    (*(*self.0.as_ptr()).vm_file).f_mapping,
                    offset as i64,
                    range.len() as i64,
                    1,
                )
            };
        }
    }

    /// Removes the page table entries of `range`, as far as it lies in the VMA.
    pub(crate) fn zap(&self, range: Range) {
        if let Some(range) = self.range().and_then(|own| own.intersection(range)) {
            self.0
                .zap_vma_range(range.start() as usize, range.len() as usize);
        }
    }
}

/// How the bytes of a VMA are mapped.
pub(crate) struct Mode {
    /// Write combining instead of uncached.
    pub(crate) write_combining: bool,
    /// The file offers no write access.
    pub(crate) read_only: bool,
    /// Entries are folios and not bare page frame numbers.
    pub(crate) folios: bool,
}

/// A VMA in the mmap hook of its file.
pub(crate) struct NewVma<'a>(&'a VmaNew);

impl<'a> NewVma<'a> {
    /// # Safety
    ///
    /// `vma` must be undergoing setup in an mmap hook for all of `'a`, and its `vm_private_data` must be unused.
    pub(super) unsafe fn from_raw(vma: *mut bindings::vm_area_struct) -> Self {
        // SAFETY: Promised by the caller.
        Self(unsafe { VmaNew::from_raw(vma) })
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::vm_area_struct {
        self.0.as_ptr()
    }

    /// The addresses that it will cover.
    pub(crate) fn range(&self) -> Option<Range> {
        range_of(self.0)
    }

    /// The offset in the file of its first byte.
    pub(crate) fn offset(&self) -> Option<u64> {
        offset_of(self.0)
    }

    /// Whether the kernel asks for leaves larger than 4 KiB here: not in a process that has them
    /// switched off (`PR_SET_THP_DISABLE`).
    pub(crate) fn has_huge_faults(&self) -> bool {
        // SAFETY: The VMA is valid, and belongs to the address space of the caller.
        unsafe { shim::barbuf_helper_vma_huge_faults(self.as_ptr()) }
    }

    /// Hands the VMA over to `area`.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless the mapping is shared. (A private one would have to copy pages that have no copy.) `EACCES` when
    /// it asks for write access to a read-only file or for execution.
    pub(crate) fn attach<T: Area>(self, area: Arc<T>, mode: &Mode) -> Result {
        let vma = self.0.as_ptr();
        let now = self.0.flags();

        // A read-only file descriptor loses VM_SHARED on the way here, but never VM_MAYSHARE.
        if now & flags::MAYSHARE == 0 {
            return Err(EINVAL);
        }
        if now & flags::EXEC != 0 || (mode.read_only && now & flags::WRITE != 0) {
            return Err(EACCES);
        }

        // DONTEXPAND keeps the VMA from merging with its neighbours, so that every copy of it is announced to
        // `Area::opened`.
        let mut set = flags::DONTEXPAND | flags::DONTDUMP;
        let mut clear = flags::MAYEXEC;
        if mode.folios {
            set |= flags::HUGEPAGE;
        } else {
            set |= flags::PFNMAP | flags::IO;
        }
        if mode.read_only {
            clear |= flags::MAYWRITE;
        }

        // SAFETY: The VMA is being set up and visible to nobody else. PFNMAP is set on a shared mapping only and
        // never together with MIXEDMAP, as the insertion functions demand.
        unsafe {
            (*vma).__bindgen_anon_2.vm_flags = (now | set) & !clear;
            shim::barbuf_helper_vma_set_cache(vma, mode.write_combining);
            (*vma).vm_ops = &Ops::<T>::TABLE;
            // The reference is given back in `Ops::close`.
            (*vma).vm_private_data = Arc::into_raw(area).cast_mut().cast();
        }
        Ok(())
    }
}

/// The `vm_operations_struct` of an [`Area`].
struct Ops<T>(PhantomData<T>);

impl<T: Area> Ops<T> {
    const TABLE: bindings::vm_operations_struct = bindings::vm_operations_struct {
        open: Some(Self::open),
        close: Some(Self::close),
        may_split: Some(Self::may_split),
        mremap: Some(Self::mremap),
        mprotect: Some(Self::mprotect),
        fault: Some(Self::fault),
        huge_fault: Some(Self::huge_fault),
        pagesize: Some(Self::pagesize),
        // No `access`: neither ptrace nor /proc/pid/mem reads device memory.
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `vma` must be a VMA of ours that has not been closed, for all of `'a`.
    unsafe fn area<'a>(vma: *mut bindings::vm_area_struct) -> ArcBorrow<'a, T> {
        // SAFETY: `NewVma::attach` has stored a reference, and `open` has taken one for each copy.
        unsafe { ArcBorrow::from_raw((*vma).vm_private_data.cast::<T>()) }
    }

    /// # Safety
    ///
    /// For mm alone, which passes a VMA, or a fault on one, that [`NewVma::attach`] has set up, and
    /// holds the locks that [`Area`] names.
    unsafe extern "C" fn open(vma: *mut bindings::vm_area_struct) {
        // SAFETY: `vma` is a copy of one of ours, whose reference is alive while this runs.
        let area = unsafe { Self::area(vma) };
        let own: Arc<T> = area.into();
        // The copy's own reference, given back in `close`.
        let _ = Arc::into_raw(own);
        // SAFETY: `open` is called with the mmap lock of the VMA's address space held for writing.
        area.opened(&LockedVma(unsafe { VmaRef::from_raw(vma) }));
    }

    /// # Safety
    ///
    /// For mm alone, which passes a VMA, or a fault on one, that [`NewVma::attach`] has set up, and
    /// holds the locks that [`Area`] names.
    unsafe extern "C" fn close(vma: *mut bindings::vm_area_struct) {
        // SAFETY: Called once for each VMA, and nothing uses its private data afterwards.
        let area = unsafe { Arc::from_raw((*vma).vm_private_data.cast::<T>()) };
        // SAFETY: The VMA is not reachable for anybody else any more.
        area.closed(&LockedVma(unsafe { VmaRef::from_raw(vma) }));
    }

    /// # Safety
    ///
    /// For mm alone, which passes a VMA, or a fault on one, that [`NewVma::attach`] has set up, and
    /// holds the locks that [`Area`] names.
    unsafe extern "C" fn may_split(vma: *mut bindings::vm_area_struct, at: c_ulong) -> c_int {
        // SAFETY: A live VMA of ours; its mmap lock is held for writing.
        let (area, locked) = unsafe { (Self::area(vma), LockedVma(VmaRef::from_raw(vma))) };
        match area.may_split(&locked, at as u64) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For mm alone, which passes a VMA, or a fault on one, that [`NewVma::attach`] has set up, and
    /// holds the locks that [`Area`] names.
    unsafe extern "C" fn mremap(vma: *mut bindings::vm_area_struct) -> c_int {
        // SAFETY: As in `may_split`.
        let (area, locked) = unsafe { (Self::area(vma), LockedVma(VmaRef::from_raw(vma))) };
        match area.moved(&locked) {
            Ok(area) => {
                // SAFETY: The VMA is write-locked, so no fault uses its private data; the old reference is ours.
                drop(unsafe { Arc::from_raw((*vma).vm_private_data.cast::<T>()) });
                // SAFETY: As above. The new reference is given back in `close`.
                unsafe { (*vma).vm_private_data = Arc::into_raw(area).cast_mut().cast() };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// Refuses nothing: VM_MAYEXEC and VM_MAYWRITE are cleared at setup, which is what the kernel checks.
    ///
    /// # Safety
    ///
    /// For mm alone, which passes a VMA, or a fault on one, that [`NewVma::attach`] has set up, and
    /// holds the locks that [`Area`] names.
    unsafe extern "C" fn mprotect(
        vma: *mut bindings::vm_area_struct,
        start: c_ulong,
        end: c_ulong,
        new_flags: c_ulong,
    ) -> c_int {
        let access = flags::READ | flags::WRITE | flags::EXEC;
        if let (0, Some(range)) = (
            new_flags as bindings::vm_flags_t & access,
            Range::between(start as u64, end as u64),
        ) {
            // SAFETY: As in `may_split`.
            let (area, locked) = unsafe { (Self::area(vma), LockedVma(VmaRef::from_raw(vma))) };
            area.access_taken(&locked, range);
        }
        0
    }

    /// # Safety
    ///
    /// For mm alone, which passes a VMA, or a fault on one, that [`NewVma::attach`] has set up, and
    /// holds the locks that [`Area`] names.
    unsafe extern "C" fn huge_fault(
        vmf: *mut bindings::vm_fault,
        order: c_uint,
    ) -> bindings::vm_fault_t {
        match PageOrder::from_order(order) {
            // SAFETY: `vmf` is the fault that the kernel is handling.
            Some(order) => unsafe { Self::handle(vmf, order) },
            None => Outcome::FALLBACK.0,
        }
    }

    /// # Safety
    ///
    /// For mm alone, which passes a VMA, or a fault on one, that [`NewVma::attach`] has set up, and
    /// holds the locks that [`Area`] names.
    unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: As in `huge_fault`.
        let outcome = unsafe { Self::handle(vmf, PageOrder::Page4K) };
        // Nothing is smaller, and the architecture's code has a BUG() for this answer.
        if outcome == Outcome::FALLBACK.0 {
            Outcome::SIGBUS.0
        } else {
            outcome
        }
    }

    /// # Safety
    ///
    /// `vmf` must be a fault on a VMA of ours that is being handled, at this order.
    unsafe fn handle(vmf: *mut bindings::vm_fault, order: PageOrder) -> bindings::vm_fault_t {
        loop {
            // SAFETY: As the caller promises; the lock is held until `fault` was used.
            let fault = unsafe { Fault::from_raw(vmf, order) };
            // SAFETY: The VMA is one of ours and stays open while a fault on it is handled.
            let area = unsafe { Self::area((*vmf).__bindgen_anon_1.vma) };
            let obstacle = match area.deref().fault(&fault) {
                Verdict::Done(outcome) => return outcome.0,
                Verdict::Blocked(obstacle) => obstacle,
            };
            // SAFETY: The fault is valid.
            let flags = unsafe { (*vmf).flags };
            let has = |flag: bindings::fault_flag| flags & flag != 0;
            if has(bindings::fault_flag_FAULT_FLAG_ALLOW_RETRY) {
                if !has(bindings::fault_flag_FAULT_FLAG_RETRY_NOWAIT) {
                    // SAFETY: The handler was called with this lock held, and the answer below tells
                    // the kernel that it is not any more. From here on the VMA may be gone: neither
                    // it nor `area` is used again, and the obstacle is a reference of our own.
                    unsafe { shim::barbuf_helper_release_fault_lock(vmf) };
                    // A fault of user code holds no lock now. The kernel itself looks whether the
                    // task was killed before it tries again.
                    let _ = obstacle.wait(has(bindings::fault_flag_FAULT_FLAG_USER));
                }
                return bindings::vm_fault_reason_VM_FAULT_RETRY;
            }
            // The caller keeps its lock, so this has to wait with it.
            if obstacle.wait(false).is_err() {
                return Outcome::SIGBUS.0;
            }
        }
    }

    /// # Safety
    ///
    /// For mm alone, which passes a VMA, or a fault on one, that [`NewVma::attach`] has set up, and
    /// holds the locks that [`Area`] names.
    unsafe extern "C" fn pagesize(vma: *mut bindings::vm_area_struct) -> c_ulong {
        // SAFETY: A live VMA of ours.
        let area = unsafe { Self::area(vma) };
        area.page_order().size() as c_ulong
    }
}
