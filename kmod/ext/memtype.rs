// SPDX-License-Identifier: GPL-2.0

//! Cache modes of physical addresses, and filling them with zero.
//!
//! C header: `include/linux/io.h`.

use super::{
    access,
    shim, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

use crate::pure::range::Range;

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
    /// Reserves the mode for `physical`.
    ///
    /// # Errors
    ///
    /// `EBUSY` when somebody maps some of it with another mode.
    pub(crate) fn reserve(physical: Range) -> Result<Self> {
        // SAFETY: Any range may be asked for; conflicts are refused.
        to_result(unsafe {
            bindings::arch_io_reserve_memtype_wc(physical.start(), physical.len())
        })?;
        // INVARIANT: Just reserved.
        Ok(Self(physical))
    }
}

impl Drop for WriteCombining {
    fn drop(&mut self) {
        // SAFETY: Reserved by the type's invariant.
        unsafe { bindings::arch_io_free_memtype_wc(self.0.start(), self.0.len()) };
    }
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
/// `ENODEV` as soon as `stop` says so, `EINTR` when the calling task is killed: some bytes are
/// written then and some not. `ENOMEM`.
pub(crate) fn zero(physical: Range, write_combining: bool, stop: impl Fn() -> bool) -> Result {
    let mut at = physical.start();
    while let Some(left) = Range::between(at, physical.end()) {
        let len = left.len().min(WINDOW);
        // SAFETY: Mapping device memory has no effect on it; the caller owns the addresses.
        let base = unsafe {
            if write_combining {
                bindings::ioremap_wc(at, len as usize)
            } else {
                bindings::ioremap(at, len as usize)
            }
        };
        if base.is_null() {
            return Err(ENOMEM);
        }
        let mut done = 0usize;
        let mut result = Ok(());
        while done < len as usize && result.is_ok() {
            let step = (len as usize).saturating_sub(done).min(STEP);
            // SAFETY: `done + step` is at most `len`, which is what is mapped at `base`.
            unsafe { shim::barbuf_helper_memset_io(base.byte_add(done), 0, step) };
            done = done.saturating_add(step);
            result = access::breathe();
            if stop() {
                result = Err(ENODEV);
            }
        }
        // SAFETY: Mapped above.
        unsafe { bindings::iounmap(base) };
        result?;
        at = at.saturating_add(len);
    }
    Ok(())
}
