// SPDX-License-Identifier: GPL-2.0

//! Page faults on a VMA over device memory, and the entries that answer them, at every order.
//!
//! C headers: `include/linux/mm.h`, `include/linux/huge_mm.h`.

use super::{
    shim,
    vma::{
        offset_of,
        range_of, //
    }, //
};
use crate::pure::{
    order::{
        Around,
        PageOrder,
        TABLE_ENTRIES, //
    },
    range::Range, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    ffi::c_ulong,
    mm::virt::VmaRef, //
};

/// What a fault handler answers.
#[derive(Clone, Copy)]
pub(crate) struct Outcome(pub(super) bindings::vm_fault_t);

impl Outcome {
    /// No page of this order can stand here; the kernel asks for a smaller one. Never for 4 KiB.
    pub(crate) const FALLBACK: Self = Self(bindings::vm_fault_reason_VM_FAULT_FALLBACK);
    /// There is nothing behind this address.
    pub(crate) const SIGBUS: Self = Self(bindings::vm_fault_reason_VM_FAULT_SIGBUS);

    /// Whether an entry is in place.
    pub(crate) fn is_done(self) -> bool {
        self.0 == bindings::vm_fault_reason_VM_FAULT_NOPAGE
    }

    /// The number for traces.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// What stands behind pages that lie one behind another.
#[derive(Clone, Copy)]
pub(crate) enum Leaves<'a> {
    /// Page frames without struct pages, the first of them at this physical address.
    Frames(u64),
    /// Folios.
    Folios(Folios<'a>),
}

/// Folios of device memory that lie one behind another.
///
/// # Invariants
///
/// `first` is the first of `count` folios of this order, all of one live pagemap and one behind another in memory.
/// Somebody holds a reference to each of them for all of `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Folios<'a> {
    first: *mut bindings::folio,
    count: u64,
    order: PageOrder,
    _held: PhantomData<&'a bindings::folio>,
}

impl Folios<'_> {
    /// # Safety
    ///
    /// The caller keeps the type's invariant.
    pub(super) unsafe fn from_raw(
        first: *mut bindings::folio,
        count: u64,
        order: PageOrder,
    ) -> Self {
        Self {
            first,
            count,
            order,
            _held: PhantomData,
        }
    }

    /// Folio `index`, which is less than `count`.
    ///
    /// Device memory has its struct pages in one array (`ZONE_DEVICE` needs `SPARSEMEM_VMEMMAP`), so that this is a step
    /// and no search.
    fn at(self, index: u64) -> *mut bindings::folio {
        let page = self.first.cast::<bindings::page>();
        // CAST: Struct pages fit into memory.
        page.wrapping_add((index << self.order.order()) as usize)
            .cast()
    }
}

/// A page fault on a VMA of ours, at one order.
pub(crate) struct Fault<'a> {
    vmf: *mut bindings::vm_fault,
    order: PageOrder,
    _lifetime: PhantomData<&'a bindings::vm_fault>,
}

impl Fault<'_> {
    /// # Safety
    ///
    /// `vmf` must be a fault on a VMA of ours that is being handled at this order, with the VMA's lock
    /// held, for as long as the result lives.
    pub(super) unsafe fn from_raw(vmf: *mut bindings::vm_fault, order: PageOrder) -> Self {
        Self {
            vmf,
            order,
            _lifetime: PhantomData,
        }
    }

    /// The order of the entry that is wanted.
    pub(crate) fn order(&self) -> PageOrder {
        self.order
    }

    /// The address of the fault.
    pub(crate) fn address(&self) -> u64 {
        // SAFETY: The fault is valid for the lifetime of `self`, and nobody changes it.
        unsafe { (*self.vmf).__bindgen_anon_1.address as u64 }
    }

    /// Whether it was a write.
    pub(crate) fn is_write(&self) -> bool {
        // SAFETY: As in `address`.
        unsafe { (*self.vmf).flags & bindings::fault_flag_FAULT_FLAG_WRITE != 0 }
    }

    fn vma(&self) -> &VmaRef {
        // SAFETY: A fault handler runs with the mmap or the VMA lock held for reading.
        unsafe { VmaRef::from_raw((*self.vmf).__bindgen_anon_1.vma) }
    }

    /// The addresses that the VMA covers.
    pub(crate) fn range(&self) -> Option<Range> {
        range_of(self.vma())
    }

    /// The offset in the file of the VMA's first byte.
    pub(crate) fn offset(&self) -> Option<u64> {
        offset_of(self.vma())
    }

    /// Puts the pages of `around` in place: the fault's own, and with `neighbours` all the others.
    ///
    /// `leaves` begins with what stands behind the first of them. Entries that are there already stay, except that a
    /// write fault makes its own page writable.
    ///
    /// Returns what became of the fault's own page, and how many entries were put in place.
    pub(crate) fn fill(
        &self,
        around: &Around,
        neighbours: bool,
        leaves: Leaves<'_>,
    ) -> (Outcome, u32) {
        let enough = match leaves {
            Leaves::Frames(_) => true,
            Leaves::Folios(folios) => folios.order == self.order && folios.count >= around.count,
        };
        if !enough {
            return (Outcome::SIGBUS, 0);
        }
        let shift = self.order.shift();
        let pfn = |first: u64, index: u64| {
            (first.wrapping_add(index << shift) >> PageOrder::Page4K.shift()) as c_ulong
        };
        // What all six calls below rely on: `each` passes a fault whose address and entry are those of page `index`, which
        // is less than the count, lies in the VMA, and has its entry in the table of the fault's own. PFNMAP is set exactly
        // when the driver inserts frames, and the mapping is shared: `NewVma::attach`. There are folios for all pages, of
        // their size, and they are alive by their invariant.
        match (self.order, leaves) {
            (PageOrder::Pud, Leaves::Frames(pa)) => {
                self.each(around, neighbours, |vmf, index, _| {
                    // SAFETY: As above.
                    unsafe { bindings::vmf_insert_pfn_pud(vmf, pfn(pa, index), false) }
                })
            }
            (PageOrder::Pud, Leaves::Folios(folios)) => {
                self.each(around, neighbours, |vmf, index, write| {
                    // SAFETY: As above.
                    unsafe { bindings::vmf_insert_folio_pud(vmf, folios.at(index), write) }
                })
            }
            (PageOrder::Pmd, Leaves::Frames(pa)) => {
                self.each(around, neighbours, |vmf, index, _| {
                    // SAFETY: As above.
                    unsafe { bindings::vmf_insert_pfn_pmd(vmf, pfn(pa, index), false) }
                })
            }
            (PageOrder::Pmd, Leaves::Folios(folios)) => {
                self.each(around, neighbours, |vmf, index, write| {
                    // SAFETY: As above.
                    unsafe { bindings::vmf_insert_folio_pmd(vmf, folios.at(index), write) }
                })
            }
            (PageOrder::Page4K, Leaves::Frames(pa)) => {
                self.each(around, neighbours, |vmf, index, _| {
                    let bindings::vm_fault__bindgen_ty_1 { vma, address, .. } =
                        vmf.__bindgen_anon_1;
                    // SAFETY: As above.
                    unsafe { bindings::vmf_insert_pfn(vma, address, pfn(pa, index)) }
                })
            }
            (PageOrder::Page4K, Leaves::Folios(folios)) => {
                self.each(around, neighbours, |vmf, index, write| {
                    let page = folios.at(index).cast();
                    // SAFETY: As above.
                    unsafe { bindings::vmf_insert_page_mkwrite(vmf, page, write) }
                })
            }
        }
    }

    /// Calls `put` for the fault's own page, and with `neighbours` for all others of `around` that are not there yet:
    /// with the fault as it would be for that page, with which page it is, and whether to make it writable.
    ///
    /// Calls it for nothing unless `around` is right.
    fn each(
        &self,
        around: &Around,
        neighbours: bool,
        put: impl Fn(&mut bindings::vm_fault, u64, bool) -> bindings::vm_fault_t,
    ) -> (Outcome, u32) {
        if !self.reaches(around) {
            return (Outcome::SIGBUS, 0);
        }
        // SAFETY: The fault is valid. A copy of it is what the C functions take for a neighbour.
        let mut vmf = unsafe { *self.vmf };
        let outcome = Outcome(put(&mut vmf, around.index, self.is_write()));
        if !outcome.is_done() || !neighbours {
            return (outcome, u32::from(outcome.is_done()));
        }
        // CAST: Less than 512.
        let before = around.index as usize;
        vmf.pud = vmf.pud.wrapping_sub(before);
        vmf.pmd = vmf.pmd.wrapping_sub(before);
        vmf.__bindgen_anon_1.address = around.first_va as c_ulong;
        let mut entries = 1u32;
        for index in 0..around.count {
            // Neighbours that are there already stay as they are. The look is racy, the insertion that follows is not.
            // None is made writable: the kernel would compare what may be a table with our page.
            let taken = match self.order {
                // SAFETY: Points into the table of the fault's own entry, by `reaches`.
                PageOrder::Pud => unsafe { (*vmf.pud).pud != 0 },
                // SAFETY: As above.
                PageOrder::Pmd => unsafe { (*vmf.pmd).pmd != 0 },
                PageOrder::Page4K => false,
            };
            if index != around.index && !taken {
                let done = Outcome(put(&mut vmf, index, false)).is_done();
                entries = entries.wrapping_add(u32::from(done));
            }
            vmf.pud = vmf.pud.wrapping_add(1);
            vmf.pmd = vmf.pmd.wrapping_add(1);
            let address = vmf.__bindgen_anon_1.address as u64;
            vmf.__bindgen_anon_1.address = address.wrapping_add(self.order.size()) as c_ulong;
        }
        (outcome, entries)
    }

    /// Whether `around` is the fault's own page and others that stand in the same page table, all of
    /// them whole and in the VMA.
    fn reaches(&self, around: &Around) -> bool {
        let shift = self.order.shift();
        let first = around.first_va >> shift;
        let Some(last) = first
            .checked_add(around.count)
            .and_then(|end| end.checked_sub(1))
        else {
            return false;
        };
        let own = self.address() >> shift;
        let pages = around
            .count
            .checked_mul(self.order.size())
            .and_then(|len| Range::new(around.first_va, len).ok());
        self.order.is_aligned(around.first_va)
            && first.checked_add(around.index) == Some(own)
            && around.index < around.count
            && first / TABLE_ENTRIES == last / TABLE_ENTRIES
            && self
                .range()
                .zip(pages)
                .is_some_and(|(range, pages)| range.encloses(pages))
    }
}

/// Whether page tables of this machine can hold entries of this order.
pub(crate) fn has_leaf(order: PageOrder) -> bool {
    match order {
        PageOrder::Page4K => true,
        // SAFETY: Only reads what the CPU and the configuration offer.
        PageOrder::Pmd => unsafe { shim::barbuf_helper_has_pmd_leaf() },
        // SAFETY: As above.
        PageOrder::Pud => unsafe { shim::barbuf_helper_has_pud_leaf() },
    }
}
