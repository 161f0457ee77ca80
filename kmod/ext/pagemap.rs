// SPDX-License-Identifier: GPL-2.0

//! Compound struct pages for device memory.
//!
//! C headers: `include/linux/memremap.h`, `include/linux/pci-p2pdma.h`.
//!
//! A folio's reference count is zero after `memremap_pages`. [`PageMap::hold`] hands folios out with one reference of
//! ours; page table entries and I/O add theirs. When the last one goes, the core calls `folio_free`.

use super::{
    access,
    fault::Folios,
    pci::Function,
    shim, //
};
use crate::pure::{
    order::PageOrder,
    pagemap::Layout,
    range::Range, //
};
use kernel::{
    bindings,
    error::from_err_ptr,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

/// Struct pages of one size for a stretch of a BAR.
///
/// # Invariants
///
/// `storage` holds a `struct pci_p2pdma_pagemap` of the verified layout at its start. It was passed to `memremap_pages`,
/// and does not move.
#[pin_data(PinnedDrop)]
pub(crate) struct PageMap {
    storage: KVec<u64>,
    order: PageOrder,
    physical: Range,
    /// Serialises handing folios out.
    #[pin]
    handing_out: Mutex<()>,
}

// SAFETY: The C functions that use the storage do their own locking.
unsafe impl Send for PageMap {}
// SAFETY: As above; `hold` takes a lock.
unsafe impl Sync for PageMap {}

const OPS: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
    folio_free: Some(folio_free),
    ..pin_init::zeroed()
};

/// The last reference to a folio has gone. Called from any context.
///
/// # Safety
///
/// For mm alone, which passes a folio of a [`PageMap`] that has no reference left.
unsafe extern "C" fn folio_free(folio: *mut bindings::folio) {
    // SAFETY: The core calls this for folios of our pagemaps. The pagemap stays until the reference that `hold` took
    // for this folio is put, and nothing of the folio is used after it is marked.
    unsafe {
        let pgmap = shim::barbuf_helper_folio_pagemap(folio);
        shim::barbuf_helper_folio_set_in_use(folio, false);
        shim::barbuf_helper_pagemap_put(pgmap);
    }
}

impl PageMap {
    /// Makes struct pages of size `order` for `physical`, which lies in BAR `bar` of `function`.
    ///
    /// The caller owns the BAR, has called `p2pdma::init`, and drops the map before its driver is unbound.
    ///
    /// # Errors
    ///
    /// `EINVAL` when start or length are not multiples of the page size and of 2 MiB (the kernel's memory hotplug works
    /// in units of that), `ENOMEM`, `EBUSY` when another user maps the addresses with another cache mode.
    pub(crate) fn new(
        layout: Layout,
        function: &Function,
        bar: u32,
        physical: Range,
        order: PageOrder,
    ) -> Result<Arc<Self>> {
        let unit = order.max(PageOrder::Pmd);
        if !unit.is_aligned(physical.start() | physical.len()) {
            return Err(EINVAL);
        }
        // SAFETY: The function is alive and prepared. CAST: At most 5.
        let mem = unsafe { bindings::pcim_p2pdma_provider(function.as_raw(), bar as i32) };
        if mem.is_null() {
            return Err(EOPNOTSUPP);
        }

        let words = (layout.size as usize).div_ceil(size_of::<u64>());
        let mut storage = KVec::from_elem(0u64, words, GFP_KERNEL)?;
        let base = storage.as_mut_ptr();
        // SAFETY: `layout::verified` has checked that both members lie within the size, `pgmap` first.
        unsafe {
            let pgmap = base.cast::<bindings::dev_pagemap>();
            (*pgmap).type_ = bindings::memory_type_MEMORY_DEVICE_PCI_P2PDMA;
            (*pgmap).vmemmap_shift = order.order() as usize;
            (*pgmap).ops = &OPS;
            (*pgmap).nr_range = 1;
            // The kernel's ranges include their last byte. They are never empty.
            *(*pgmap).__bindgen_anon_1.range.as_mut() = bindings::range {
                start: physical.start(),
                end: physical.end().wrapping_sub(1),
            };
            base.byte_add(layout.mem as usize)
                .cast::<*mut bindings::p2pdma_provider>()
                .write_unaligned(mem);
        }
        Arc::pin_init(
            try_pin_init!(Self {
                order,
                physical,
                handing_out <- new_mutex!(()),
                // INVARIANT: The storage is on the heap, where moving the vector does not move it. Nothing can fail
                // after this, so the pages are unmapped by `drop` and only there.
                storage: {
                    // SAFETY: The pagemap is complete, and `drop` unmaps it before the storage is freed.
                    from_err_ptr(unsafe {
                        bindings::memremap_pages(base.cast(), bindings::NUMA_NO_NODE)
                    })?;
                    storage
                },
            }),
            GFP_KERNEL,
        )
    }

    /// The size of its pages.
    pub(crate) fn order(&self) -> PageOrder {
        self.order
    }

    fn folio(&self, physical: u64) -> *mut bindings::folio {
        // SAFETY: Callers pass addresses within the map, which have struct pages.
        unsafe { shim::barbuf_helper_pfn_folio((physical >> PageOrder::Page4K.shift()) as usize) }
    }

    /// The first addresses of the folios in `physical`, which must lie in the map and on whole folios.
    fn folios(&self, physical: Range) -> impl Iterator<Item = u64> {
        (physical.start()..physical.end()).step_by(self.order.size() as usize)
    }

    fn covers(&self, physical: Range) -> bool {
        self.physical.encloses(physical) && self.order.is_aligned(physical.start() | physical.len())
    }

    /// Whether somebody still holds a reference to a page in `physical`.
    pub(crate) fn in_use(&self, physical: Range) -> bool {
        self.covers(physical)
            && self.folios(physical).any(|at| {
                // SAFETY: The folio belongs to this map.
                unsafe { shim::barbuf_helper_folio_in_use(self.folio(at)) }
            })
    }

    /// Hands out the folios of `physical`. Sleeps.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the range is not made of whole folios of this map, `EBUSY` when one of them is just being freed,
    /// `EINTR` when the calling task is killed.
    pub(crate) fn hold(self: &Arc<Self>, physical: Range) -> Result<Hold> {
        if !self.covers(physical) {
            return Err(EINVAL);
        }
        let mut hold = Hold {
            map: self.clone(),
            start: physical.start(),
            end: physical.start(),
        };
        let _lock = self.handing_out.lock();
        for (index, at) in self.folios(physical).enumerate() {
            if index & 0xfff == 0xfff {
                access::breathe()?;
            }
            let folio = self.folio(at);
            // SAFETY: The folio belongs to this map. One that is not in use has no reference, and the lock keeps
            // others from handing it out; then both the mark and the pagemap's reference are for `folio_free`.
            unsafe {
                if shim::barbuf_helper_folio_in_use(folio) {
                    if !shim::barbuf_helper_folio_try_get(folio) {
                        return Err(EBUSY);
                    }
                } else {
                    if !shim::barbuf_helper_pagemap_tryget(self.storage.as_ptr().cast_mut().cast())
                    {
                        return Err(ENODEV);
                    }
                    shim::barbuf_helper_folio_set_in_use(folio, true);
                    shim::barbuf_helper_folio_first_ref(folio);
                }
            }
            // INVARIANT: One more folio is held.
            hold.end = at.saturating_add(self.order.size());
        }
        Ok(hold)
    }
}

#[pinned_drop]
impl PinnedDrop for PageMap {
    fn drop(self: Pin<&mut Self>) {
        // Waits until the last reference to the last folio is gone: short, since nobody can pin such pages for long
        // (FOLL_LONGTERM is refused for P2PDMA).
        // SAFETY: Mapped by `new`.
        unsafe { bindings::memunmap_pages(self.storage.as_ptr().cast_mut().cast()) };
    }
}

/// References to folios of a [`PageMap`].
///
/// # Invariants
///
/// Owns one reference to each folio from `start` up to `end`.
pub(crate) struct Hold {
    map: Arc<PageMap>,
    start: u64,
    end: u64,
}

impl Hold {
    /// The folios from `physical` on, that many; `None` unless all are held.
    pub(crate) fn folios(&self, physical: u64, count: u64) -> Option<Folios<'_>> {
        let order = self.map.order;
        let wanted = Range::new(physical, count.checked_mul(order.size())?).ok()?;
        let held = Range::between(self.start, self.end)?;
        if !order.is_aligned(physical) || !held.encloses(wanted) {
            return None;
        }
        // SAFETY: They lie in one map, whose order they have, and a reference to each is held as long as `self` lives.
        Some(unsafe { Folios::from_raw(self.map.folio(physical), count, order) })
    }

    /// The size of its folios.
    pub(crate) fn order(&self) -> PageOrder {
        self.map.order
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(held) = Range::between(self.start, self.end) {
            for at in self.map.folios(held) {
                // SAFETY: Gives back the reference that the type owns.
                unsafe { shim::barbuf_helper_folio_put(self.map.folio(at)) };
            }
        }
    }
}
