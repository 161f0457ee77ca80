// SPDX-License-Identifier: GPL-2.0

//! Memory from the p2pmem pool of a function that has its own driver.
//!
//! C header: `include/linux/pci-p2pdma.h`.
//!
//! The pool has struct pages of 4 KiB with a reference count of zero. Whoever frees memory also puts one reference to the
//! pagemap, and whoever allocates gets one, whatever the size: both here and for single pages that reach zero.

use super::{
    access,
    fault::Folios,
    pci::Function,
    shim, //
};
use crate::pure::{
    order::PageOrder,
    range::Range, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::c_void,
    prelude::*, //
};

/// Bytes that were allocated from a function's pool.
///
/// All of them must be dropped before the function's driver is unbound.
///
/// # Invariants
///
/// `addr` is the kernel address of `len` bytes from `pci_alloc_p2pmem` of `function`, and they are ours.
pub(crate) struct PoolRange {
    function: Function,
    addr: NonNull<c_void>,
    len: usize,
    physical: u64,
}

// SAFETY: Just memory; it can be freed from any thread.
unsafe impl Send for PoolRange {}
// SAFETY: There is no way to write through a shared reference.
unsafe impl Sync for PoolRange {}

impl PoolRange {
    /// Allocates a page, which tells where the pool is.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when the pool has no page left.
    ///
    /// The function must be bound to a driver that has published p2pmem: see [`Function::has_p2pmem`]. The caller keeps
    /// the driver from being unbound.
    pub(crate) fn sample(function: &Function) -> Result<Self> {
        Self::first(function, PageOrder::Page4K.size())
    }

    /// Allocates `len` bytes, a multiple of 4 KiB, at a physical address that is aligned for `order`, and in `piece`: a
    /// pool can have more than one piece of memory.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when there is no such room, `EINVAL` when `len` is 0 or no multiple of 4 KiB, `ENOMEM`.
    ///
    /// The caller promises what [`PoolRange::sample`] asks for.
    pub(crate) fn alloc(
        function: &Function,
        len: u64,
        order: PageOrder,
        piece: Range,
    ) -> Result<Self> {
        if len == 0 || !PageOrder::Page4K.is_aligned(len) {
            return Err(EINVAL);
        }
        match Self::out_of_more(function, len, order) {
            Ok(found) if found.is_in(piece) => return Ok(found),
            other => drop(other),
        }
        Self::search(function, len, order, piece)
    }

    fn is_in(&self, piece: Range) -> bool {
        self.physical()
            .is_ok_and(|physical| piece.encloses(physical))
    }

    /// Takes the first place that the pool has, wherever it is.
    fn first(function: &Function, len: u64) -> Result<Self> {
        // SAFETY: The function is alive and has a pool, by the callers' promise.
        let addr = unsafe { bindings::pci_alloc_p2pmem(function.as_raw(), len as usize) };
        let addr = NonNull::new(addr).ok_or(ENOSPC)?;
        // SAFETY: The pool hands out memory with struct pages.
        let pfn = unsafe { shim::barbuf_helper_virt_to_pfn(addr.as_ptr()) };
        // INVARIANT: Just allocated.
        Ok(Self {
            function: function.clone(),
            addr,
            len: len as usize,
            physical: (pfn as u64) << PageOrder::Page4K.shift(),
        })
    }

    /// The bytes in front of the first address in it that is aligned for `order`.
    fn head(&self, order: PageOrder) -> Result<u64> {
        order
            .align_up(self.physical)
            .and_then(|aligned| aligned.checked_sub(self.physical))
            .ok_or(ENOSPC)
    }

    /// The pool itself aligns nothing: takes more than is needed, and gives the rest back at once.
    fn out_of_more(function: &Function, len: u64, order: PageOrder) -> Result<Self> {
        let slack = order.size().wrapping_sub(PageOrder::Page4K.size());
        let whole = Self::first(function, len.checked_add(slack).ok_or(ENOSPC)?)?;
        let head = whole.head(order)?;
        let (_, rest) = whole.split(head as usize);
        let (wanted, _) = rest.ok_or(ENOSPC)?.split(len as usize);
        wanted.ok_or(ENOSPC)
    }

    /// Where no hole has so much to spare, one can still have what is wanted. Fills the pool up in front of the next
    /// aligned address, until it begins there by itself, and holds what is of another piece.
    fn search(function: &Function, len: u64, order: PageOrder, piece: Range) -> Result<Self> {
        /// A pool that is more in pieces than that is not worth the time.
        const TRIES: usize = 64;
        let mut filled = KVec::with_capacity(TRIES, GFP_KERNEL)?;
        for _ in 0..TRIES {
            let found = Self::first(function, len)?;
            if !found.is_in(piece) {
                filled.push(found, GFP_KERNEL)?;
                continue;
            }
            let head = found.head(order)?;
            if head == 0 {
                return Ok(found);
            }
            drop(found);
            // It can land in a smaller hole further in front: then that is one less.
            filled.push(Self::first(function, head)?, GFP_KERNEL)?;
        }
        Err(ENOSPC)
    }

    /// Cuts it in two at `at` bytes; a half that would be empty does not exist.
    fn split(self, at: usize) -> (Option<Self>, Option<Self>) {
        if at == 0 {
            return (None, Some(self));
        }
        if at >= self.len {
            return (Some(self), None);
        }
        // SAFETY: The memory has struct pages and a live pagemap, to which this range holds a reference. The second
        // half gets one of its own.
        unsafe { shim::barbuf_helper_pagemap_get(self.pagemap()) };
        let me = core::mem::ManuallyDrop::new(self);
        // INVARIANT: The halves do not overlap and make up the whole, which is not dropped.
        let second = Self {
            function: me.function.clone(),
            // SAFETY: `at` is less than the length.
            addr: unsafe { me.addr.byte_add(at) },
            len: me.len.wrapping_sub(at),
            physical: me.physical.wrapping_add(at as u64),
        };
        let first = Self {
            // SAFETY: `me` is neither used nor dropped after this.
            function: unsafe { core::ptr::read(&me.function) },
            addr: me.addr,
            len: at,
            physical: me.physical,
        };
        (Some(first), Some(second))
    }

    fn folio(&self, physical: u64) -> *mut bindings::folio {
        // SAFETY: Callers pass addresses of the range, which has struct pages.
        unsafe { shim::barbuf_helper_pfn_folio((physical >> PageOrder::Page4K.shift()) as usize) }
    }

    /// Where its pages begin.
    fn pages(&self) -> impl Iterator<Item = u64> {
        let end = self.physical.saturating_add(self.len as u64);
        (self.physical..end).step_by(PageOrder::Page4K.size() as usize)
    }

    fn pagemap(&self) -> *mut bindings::dev_pagemap {
        // SAFETY: The folio belongs to a live pagemap.
        unsafe { shim::barbuf_helper_folio_pagemap(self.folio(self.physical)) }
    }

    /// The physical addresses.
    pub(crate) fn physical(&self) -> Result<Range> {
        Range::new(self.physical, self.len as u64).map_err(|_| EINVAL)
    }

    /// The physical addresses of all memory that its driver has given to the pool together with this one.
    pub(crate) fn pool(&self) -> Result<Range> {
        // SAFETY: The pagemap is alive; the pool's have one range.
        let range = unsafe { *(*self.pagemap()).__bindgen_anon_1.range.as_ref() };
        range
            .end
            .checked_add(1)
            .and_then(|end| Range::between(range.start, end))
            .ok_or(EINVAL)
    }
}

impl Drop for PoolRange {
    fn drop(&mut self) {
        // SAFETY: The memory is ours, and with it a reference to the pagemap, by the type's invariant.
        unsafe { bindings::pci_free_p2pmem(self.function.as_raw(), self.addr.as_ptr(), self.len) };
    }
}

/// The pages of a [`PoolRange`], handed out as folios of 4 KiB.
///
/// Each page goes back to the pool when its last reference is put, which page table entries and I/O can hold too.
///
/// # Invariants
///
/// Owns one reference to each page of `range`, and the reference to the pagemap that `range` came with. The memory
/// itself belongs to the references: the pool's `folio_free` frees it page by page.
pub(crate) struct PoolPages {
    range: core::mem::ManuallyDrop<PoolRange>,
}

impl PoolPages {
    /// Hands out all pages of `range`. Sleeps.
    ///
    /// # Errors
    ///
    /// `EINTR` when the calling task is killed.
    pub(crate) fn new(range: PoolRange) -> Result<Self> {
        access::breathe()?;
        let pagemap = range.pagemap();
        for at in range.pages() {
            let folio = range.folio(at);
            // SAFETY: The page is ours and has no reference. `folio_free` puts one to the pagemap for each page.
            unsafe {
                shim::barbuf_helper_pagemap_get(pagemap);
                shim::barbuf_helper_folio_first_ref(folio);
            }
        }
        // INVARIANT: The memory now belongs to the references.
        Ok(Self {
            range: core::mem::ManuallyDrop::new(range),
        })
    }

    /// The pages from `physical` on, that many; `None` unless all are of this range.
    pub(crate) fn folios(&self, physical: u64, count: u64) -> Option<Folios<'_>> {
        let order = PageOrder::Page4K;
        let wanted = Range::new(physical, count.checked_mul(order.size())?).ok()?;
        if !order.is_aligned(physical) || !self.range.physical().ok()?.encloses(wanted) {
            return None;
        }
        // SAFETY: They lie in one pagemap, and a reference to each is held as long as `self` lives.
        Some(unsafe { Folios::from_raw(self.range.folio(physical), count, order) })
    }
}

impl Drop for PoolPages {
    fn drop(&mut self) {
        let pagemap = self.range.pagemap();
        for at in self.range.pages() {
            // SAFETY: Gives back the reference that the type owns.
            unsafe { shim::barbuf_helper_folio_put(self.range.folio(at)) };
        }
        // SAFETY: The reference that `pci_alloc_p2pmem` took. The pagemap is alive until it is put. The function is
        // neither used nor dropped again.
        unsafe {
            shim::barbuf_helper_pagemap_put(pagemap);
            core::ptr::drop_in_place(&mut self.range.function);
        }
    }
}
