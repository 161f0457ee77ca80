// SPDX-License-Identifier: GPL-2.0

//! Cache modes of physical addresses, and the kernel's own accesses to them.
//!
//! C header: `include/linux/io.h`.

use super::{
    access,
    shim, //
};
use crate::pure::range::Range;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    ffi::c_void,
    prelude::*, //
};

/// Physical addresses that are mapped with write combining.
///
/// The x86 page attribute table knows one mode for each address, and `vmf_insert_pfn*` takes the mode from there and not
/// from the VMA: without this reservation the mappings would be uncached.
///
/// # Invariants
///
/// The range was reserved by `arch_io_reserve_memtype_wc`.
pub(crate) struct WriteCombining(Range);

impl WriteCombining {
    /// Reserves the mode for `physical`. Sleeps.
    ///
    /// # Errors
    ///
    /// `EBUSY` when somebody has some of it in another mode, `ENOMEM`.
    pub(crate) fn reserve(physical: Range) -> Result<Self> {
        // SAFETY: Any range may be asked for; nothing of the memory changes.
        to_result(unsafe {
            bindings::arch_io_reserve_memtype_wc(physical.start(), physical.len())
        })?;
        // INVARIANT: Just reserved.
        let reserved = Self(physical);
        // All of a reservation has one mode, that of its first page.
        // SAFETY: The page is mapped for a moment, and not touched.
        to_result(unsafe { shim::barbuf_helper_check_wc(physical.start()) })?;
        Ok(reserved)
    }
}

impl Drop for WriteCombining {
    fn drop(&mut self) {
        // SAFETY: Reserved by the type's invariant.
        unsafe { bindings::arch_io_free_memtype_wc(self.0.start(), self.0.len()) };
    }
}

/// Device memory that is mapped into the kernel.
///
/// # Invariants
///
/// The address is from `ioremap` or `ioremap_wc`, and not unmapped.
pub(crate) struct IoMapping(NonNull<c_void>);

impl IoMapping {
    /// Maps `physical`, in the mode that its bytes have everywhere. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`
    pub(crate) fn new(physical: Range, write_combining: bool) -> Result<Self> {
        // CAST: Both have 64 bits on the machines that this builds for.
        let len = physical.len() as usize;
        // SAFETY: Mapping device memory has no effect on it.
        let base = unsafe {
            if write_combining {
                bindings::ioremap_wc(physical.start(), len)
            } else {
                bindings::ioremap(physical.start(), len)
            }
        };
        // INVARIANT: Just mapped.
        Ok(Self(NonNull::new(base).ok_or(ENOMEM)?))
    }

    /// Hands the mapping to C.
    pub(super) fn into_raw(self) -> *mut c_void {
        core::mem::ManuallyDrop::new(self).0.as_ptr()
    }

    /// Takes it back; `None` for a null pointer.
    ///
    /// # Safety
    ///
    /// `raw` must be null or from [`IoMapping::into_raw`], once.
    pub(super) unsafe fn from_raw(raw: *mut c_void) -> Option<Self> {
        // INVARIANT: Promised by the caller.
        NonNull::new(raw).map(Self)
    }
}

impl Drop for IoMapping {
    fn drop(&mut self) {
        // SAFETY: Mapped by the type's invariant.
        unsafe { bindings::iounmap(self.0.as_ptr()) };
    }
}

/// Lets all stores leave the processor: its write-combining buffers are empty afterwards.
pub(crate) fn drain() {
    // SAFETY: A barrier.
    unsafe { shim::barbuf_helper_drain() };
}

/// Reads the first word of `page`, a page of device memory whose reads have no side effects. What was written to that
/// device before has arrived when the answer is there: a read does not overtake writes on its way.
///
/// # Errors
///
/// `ENOMEM`
pub(crate) fn read_back(page: Range, write_combining: bool) -> Result {
    let mapping = IoMapping::new(page, write_combining)?;
    // SAFETY: A range has at least a byte and a mapping whole pages.
    unsafe { bindings::readl(mapping.0.as_ptr()) };
    Ok(())
}

/// Bytes that are mapped into the kernel at a time.
const WINDOW: u64 = 2 << 20;
/// Bytes between two looks at pending signals.
const STEP: usize = 64 << 10;

/// Writes zero to all bytes of device memory at `physical`, in chunks. Sleeps.
///
/// The caller must have the addresses to itself.
///
/// # Errors
///
/// `EAGAIN` as soon as `stop` says so, `EINTR` when the calling task is killed: some bytes are
/// written then and some not. `ENOMEM`.
pub(crate) fn zero(physical: Range, write_combining: bool, stop: impl Fn() -> bool) -> Result {
    let mut at = physical.start();
    while let Some(left) = Range::between(at, physical.end()) {
        let len = left.len().min(WINDOW);
        let window = Range::new(at, len).map_err(|_| EINVAL)?;
        let mapping = IoMapping::new(window, write_combining)?;
        let base = mapping.0.as_ptr();
        let mut done = 0usize;
        let mut result = Ok(());
        while done < len as usize && result.is_ok() {
            let step = (len as usize).saturating_sub(done).min(STEP);
            // SAFETY: `done + step` is at most `len`, which is what is mapped at `base`.
            unsafe { shim::barbuf_helper_memset_io(base.byte_add(done), 0, step) };
            done = done.saturating_add(step);
            result = access::breathe();
            if stop() {
                result = Err(EAGAIN);
            }
        }
        drop(mapping);
        result?;
        at = at.saturating_add(len);
    }
    Ok(())
}
