// SPDX-License-Identifier: GPL-2.0

//! The module's tracepoints; `kmod/trace.h` says what each one records.

use super::shim;
use crate::pure::{
    mode::{
        Backing,
        Cache, //
    },
    order::PageOrder,
};

/// A buffer came into being.
pub(crate) fn export(id: u64, region: u32, size: u64, backing: Backing, cache: Cache) {
    // SAFETY: Takes values only.
    unsafe {
        shim::barbuf_helper_trace_export(id, region, size, backing.to_uapi(), cache.to_uapi())
    };
}

/// A buffer changed its state.
pub(crate) fn state(id: u64, state: u32, generation: u64) {
    // SAFETY: Takes values only.
    unsafe { shim::barbuf_helper_trace_state(id, state, generation) };
}

/// A fault was served with `leaves` entries; `result` are `VM_FAULT_*` bits.
pub(crate) fn fault(id: u64, offset: u64, order: PageOrder, leaves: u32, result: u32) {
    // SAFETY: Takes values only.
    unsafe { shim::barbuf_helper_trace_fault(id, offset, order.shift(), leaves, result) };
}

/// A buffer went away.
pub(crate) fn release(id: u64) {
    // SAFETY: Takes values only.
    unsafe { shim::barbuf_helper_trace_release(id) };
}
