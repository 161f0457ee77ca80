// SPDX-License-Identifier: GPL-2.0

//! The functions of `kmod/shim.c`; the two files and `kmod/shim.h` change together.

// As in the bindings crate: C structs that are empty in this configuration are only pointed to.
#![allow(improper_ctypes)]

use kernel::{
    bindings,
    ffi::{
        c_int,
        c_ulong,
        c_void, //
    },
};

extern "C" {
    pub(super) fn barbuf_helper_has_pmd_leaf() -> bool;
    pub(super) fn barbuf_helper_has_pud_leaf() -> bool;

    pub(super) fn barbuf_helper_vma_set_cache(vma: *mut bindings::vm_area_struct, wc: bool);
    pub(super) fn barbuf_helper_vma_start_write(vma: *mut bindings::vm_area_struct);

    pub(super) fn barbuf_helper_check_wc(phys: bindings::phys_addr_t) -> c_int;

    pub(super) fn barbuf_helper_release_fault_lock(vmf: *mut bindings::vm_fault);

    pub(super) fn barbuf_helper_pfn_folio(pfn: c_ulong) -> *mut bindings::folio;
    pub(super) fn barbuf_helper_folio_in_use(folio: *mut bindings::folio) -> bool;
    pub(super) fn barbuf_helper_folio_set_in_use(folio: *mut bindings::folio, in_use: bool);
    pub(super) fn barbuf_helper_folio_first_ref(folio: *mut bindings::folio);
    pub(super) fn barbuf_helper_folio_try_get(folio: *mut bindings::folio) -> bool;
    pub(super) fn barbuf_helper_folio_put(folio: *mut bindings::folio);
    pub(super) fn barbuf_helper_pagemap_tryget(pgmap: *mut bindings::dev_pagemap) -> bool;
    pub(super) fn barbuf_helper_pagemap_get(pgmap: *mut bindings::dev_pagemap);
    pub(super) fn barbuf_helper_pagemap_put(pgmap: *mut bindings::dev_pagemap);
    pub(super) fn barbuf_helper_folio_pagemap(
        folio: *mut bindings::folio,
    ) -> *mut bindings::dev_pagemap;
    pub(super) fn barbuf_helper_virt_to_pfn(addr: *mut c_void) -> c_ulong;

    pub(super) fn barbuf_helper_layout_size() -> u32;
    pub(super) fn barbuf_helper_layout_pgmap() -> u32;
    pub(super) fn barbuf_helper_layout_pgmap_size() -> u32;
    pub(super) fn barbuf_helper_layout_mem() -> u32;

    pub(super) fn barbuf_helper_has_dax() -> bool;
    pub(super) fn barbuf_helper_file_set_dax(file: *mut bindings::file);
    pub(super) fn barbuf_helper_vma_huge_faults(vma: *mut bindings::vm_area_struct) -> bool;

    pub(super) fn barbuf_helper_eventfd_signal(ctx: *mut bindings::eventfd_ctx);
    pub(super) fn barbuf_helper_fatal_signal_pending() -> bool;
    pub(super) fn barbuf_helper_cond_resched();

    pub(super) fn barbuf_helper_wait_between(
        queue: *mut bindings::wait_queue_head,
        word: *const i64,
        low: i64,
        high: i64,
        freezable: bool,
    ) -> bool;
    pub(super) fn barbuf_helper_wait_clear(
        queue: *mut bindings::wait_queue_head,
        word: *const i64,
        mask: i64,
    );
    pub(super) fn barbuf_helper_wake_all(queue: *mut bindings::wait_queue_head);

    pub(super) fn barbuf_helper_pci_resource_flags(
        pdev: *mut bindings::pci_dev,
        bar: c_int,
    ) -> c_ulong;
    pub(super) fn barbuf_helper_pci_domain(pdev: *mut bindings::pci_dev) -> c_int;
    pub(super) fn barbuf_helper_pci_lock(pdev: *mut bindings::pci_dev);
    pub(super) fn barbuf_helper_pci_unlock(pdev: *mut bindings::pci_dev);
    pub(super) fn barbuf_helper_pci_has_p2pmem(pdev: *mut bindings::pci_dev) -> bool;

    pub(super) fn barbuf_helper_pci_free_p2pmem(pdev: *mut bindings::pci_dev) -> u64;

    pub(super) fn barbuf_helper_pci_of(dev: *mut bindings::device) -> *mut bindings::pci_dev;
    pub(super) fn barbuf_helper_pci_meet(
        a: *mut bindings::pci_dev,
        b: *mut bindings::pci_dev,
        redirected: *mut bool,
    ) -> bool;
    pub(super) fn barbuf_helper_p2pdma_distance(
        provider: *mut bindings::pci_dev,
        client: *mut bindings::pci_dev,
    ) -> c_int;
    pub(super) fn barbuf_helper_p2pdma_provider(
        pdev: *mut bindings::pci_dev,
        bar: c_int,
    ) -> *mut bindings::p2pdma_provider;
    pub(super) fn barbuf_helper_dma_translated(dev: *mut bindings::device) -> bool;
    pub(super) fn barbuf_helper_dma_limit(dev: *mut bindings::device) -> u64;

    pub(super) fn barbuf_helper_dma_buf_map(
        attach: *mut bindings::dma_buf_attachment,
        provider: *mut bindings::p2pdma_provider,
        pieces: *const c_void,
        count: usize,
        size: usize,
        direction: bindings::dma_data_direction,
    ) -> *mut bindings::sg_table;
    pub(super) fn barbuf_helper_dma_buf_link(
        attach: *mut bindings::dma_buf_attachment,
        pieces: *const c_void,
        count: usize,
        size: usize,
        direction: bindings::dma_data_direction,
    ) -> *mut bindings::sg_table;
    pub(super) fn barbuf_helper_dma_buf_unmap(
        attach: *mut bindings::dma_buf_attachment,
        table: *mut bindings::sg_table,
        direction: bindings::dma_data_direction,
        linked: bool,
    );
    pub(super) fn barbuf_helper_iosys_map_set(map: *mut bindings::iosys_map, memory: *mut c_void);
    pub(super) fn barbuf_helper_iosys_map_get(map: *mut bindings::iosys_map) -> *mut c_void;

    pub(super) fn barbuf_helper_drain();
    pub(super) fn barbuf_helper_pci_refused(pdev: *mut bindings::pci_dev, error: c_int);

    pub(super) fn barbuf_helper_memset_io(dst: *mut c_void, value: c_int, len: usize);

    pub(super) fn barbuf_helper_trace_export(
        id: u64,
        region: u32,
        size: u64,
        backing: u32,
        cache: u32,
    );
    pub(super) fn barbuf_helper_trace_state(id: u64, state: u32, generation: u64);
    pub(super) fn barbuf_helper_trace_fault(
        id: u64,
        offset: u64,
        shift: u32,
        leaves: u32,
        result: u32,
    );
    pub(super) fn barbuf_helper_trace_release(id: u64);
}
