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
    mm::virt::VmaRef,
    types::Opaque, //
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

/// What is put into a page table entry.
#[derive(Clone, Copy)]
pub(crate) enum Leaf<'a> {
    /// The page frame at this physical address, without a struct page.
    Frame(u64),
    /// A folio.
    Folio(&'a Folio),
}

/// A folio of device memory.
///
/// # Invariants
///
/// Points to a folio of a live pagemap on which somebody holds a reference for as long as this reference lives.
#[repr(transparent)]
pub(crate) struct Folio(Opaque<bindings::folio>);

impl Folio {
    /// # Safety
    ///
    /// The folio must be alive, with a reference held, for all of `'a`.
    pub(super) unsafe fn from_raw<'a>(folio: *mut bindings::folio) -> &'a Self {
        // SAFETY: The type is transparent, and the caller keeps the invariant.
        unsafe { &*folio.cast() }
    }

    fn as_ptr(&self) -> *mut bindings::folio {
        self.0.get()
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
    /// `leaf` says what stands so many bytes behind the first of them. Entries that are there
    /// already stay, except that a write fault makes its own page writable.
    ///
    /// Returns what became of the fault's own page, and how many entries were put in place.
    pub(crate) fn fill<'l>(
        &self,
        around: &Around,
        neighbours: bool,
        leaf: impl Fn(u64) -> Option<Leaf<'l>>,
    ) -> (Outcome, u32) {
        let shift = self.order.shift();
        if !self.reaches(around) {
            return (Outcome::SIGBUS, 0);
        }
        // SAFETY: The fault is valid. A copy of it is what the C functions take for a neighbour.
        let mut vmf = unsafe { *self.vmf };
        let (pud, pmd) = (vmf.pud, vmf.pmd);
        let mut put = |index: u64, leaf: Leaf<'_>| {
            let own = index == around.index;
            // CAST: Both are below 512.
            let steps = (index as isize).wrapping_sub(around.index as isize);
            let va = around.first_va.wrapping_add(index << shift) as c_ulong;
            vmf.__bindgen_anon_1.address = va;
            vmf.__bindgen_anon_1.real_address = va;
            vmf.pud = pud.wrapping_offset(steps);
            vmf.pmd = pmd.wrapping_offset(steps);
            // SAFETY: `reaches` has checked that the page lies in the VMA, and its entry in the
            // table that the fault's own entry is in.
            unsafe { self.put(&mut vmf, leaf, own) }
        };

        let Some(own) = leaf(around.index << shift) else {
            return (Outcome::SIGBUS, 0);
        };
        let outcome = put(around.index, own);
        if !outcome.is_done() || !neighbours {
            return (outcome, u32::from(outcome.is_done()));
        }
        let mut entries = 1u32;
        for index in (0..around.count).filter(|index| *index != around.index) {
            if leaf(index << shift).is_some_and(|leaf| put(index, leaf).is_done()) {
                entries = entries.wrapping_add(1);
            }
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

    /// Puts one entry in place; `own` says whether it is the fault's own.
    ///
    /// # Safety
    ///
    /// `vmf` must be the fault, or a copy whose address and whose `pud` or `pmd`, for the order of
    /// the fault, were moved by as many pages as entries, within one table and within the VMA.
    unsafe fn put(&self, vmf: &mut bindings::vm_fault, leaf: Leaf<'_>, own: bool) -> Outcome {
        // Neighbours that are there already stay as they are. The look is racy, the insertion that
        // follows is not.
        let entry = match self.order {
            _ if own => 0,
            // SAFETY: Points to an entry, by the caller's promise.
            PageOrder::Pud => unsafe { (*vmf.pud).pud },
            // SAFETY: As above.
            PageOrder::Pmd => unsafe { (*vmf.pmd).pmd },
            PageOrder::Page4K => 0,
        };
        if entry != 0 {
            return Outcome::FALLBACK;
        }
        // Only the faulting entry is known to hold nothing or this very page: a write flag on a
        // neighbour would make the kernel compare what may be a table with our page.
        let write = own && self.is_write();
        let vma = vmf.__bindgen_anon_1.vma;
        let address = vmf.__bindgen_anon_1.address;

        // SAFETY: The entry and the address are right by the caller's promise. PFNMAP is set exactly
        // when the driver inserts frames, and the mapping is shared: `NewVma::attach`. Folios are
        // alive by their invariant.
        Outcome(unsafe {
            match (self.order, leaf) {
                (PageOrder::Pud, Leaf::Frame(pa)) => {
                    bindings::vmf_insert_pfn_pud(vmf, pfn(pa), false)
                }
                (PageOrder::Pud, Leaf::Folio(folio)) => {
                    bindings::vmf_insert_folio_pud(vmf, folio.as_ptr(), write)
                }
                (PageOrder::Pmd, Leaf::Frame(pa)) => {
                    bindings::vmf_insert_pfn_pmd(vmf, pfn(pa), false)
                }
                (PageOrder::Pmd, Leaf::Folio(folio)) => {
                    bindings::vmf_insert_folio_pmd(vmf, folio.as_ptr(), write)
                }
                (PageOrder::Page4K, Leaf::Frame(pa)) => {
                    bindings::vmf_insert_pfn(vma, address, pfn(pa))
                }
                (PageOrder::Page4K, Leaf::Folio(folio)) => {
                    bindings::vmf_insert_page_mkwrite(vmf, folio.as_ptr().cast(), write)
                }
            }
        })
    }
}

fn pfn(pa: u64) -> c_ulong {
    (pa >> PageOrder::Page4K.shift()) as c_ulong
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
