// SPDX-License-Identifier: GPL-2.0

//! What the calling task may do, and how its long operations end.
//!
//! C headers: `include/linux/capability.h`, `include/linux/security.h`, `include/linux/sched/signal.h`.

use super::shim;
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// `CAP_SYS_RAWIO` in the initial user namespace, and a kernel that is not locked down against PCI access.
///
/// # Errors
///
/// `EPERM` when one of the two is missing.
pub(crate) fn raw_io() -> Result {
    // SAFETY: Only looks at the calling task's credentials.
    if !unsafe { bindings::capable(bindings::CAP_SYS_RAWIO as i32) } {
        return Err(EPERM);
    }
    // SAFETY: Asks the security modules; any reason from the enum may be passed.
    to_result(unsafe {
        bindings::security_locked_down(bindings::lockdown_reason_LOCKDOWN_PCI_ACCESS)
    })
}

/// `CAP_SYS_ADMIN` in the initial user namespace.
///
/// # Errors
///
/// `EPERM` when it is missing.
pub(crate) fn admin() -> Result {
    // SAFETY: Only looks at the calling task's credentials.
    if unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as i32) } {
        Ok(())
    } else {
        Err(EPERM)
    }
}

/// A place to stop in a long operation.
///
/// # Errors
///
/// `EINTR` when the task has been killed.
pub(crate) fn breathe() -> Result {
    // SAFETY: Both only concern the calling task, which runs in process context.
    unsafe {
        if shim::barbuf_helper_fatal_signal_pending() {
            return Err(EINTR);
        }
        shim::barbuf_helper_cond_resched();
    }
    Ok(())
}
