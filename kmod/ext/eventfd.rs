// SPDX-License-Identifier: GPL-2.0

//! An eventfd(2) that the kernel signals.
//!
//! C header: `include/linux/eventfd.h`.

use super::shim;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*, //
};

/// A reference to an eventfd's context.
///
/// # Invariants
///
/// Owns one reference to the `eventfd_ctx`.
pub(crate) struct EventFd(NonNull<bindings::eventfd_ctx>);

impl EventFd {
    /// Looks up file descriptor `fd` of the calling task.
    ///
    /// # Errors
    ///
    /// `EBADF` when it is not open, `EINVAL` when it is no eventfd.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: Any number may be passed.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(fd) })?;
        // INVARIANT: `eventfd_ctx_fdget` has taken a reference for us.
        Ok(Self(NonNull::new(ctx).ok_or(EINVAL)?))
    }

    /// Adds one to the counter and wakes those who wait. Does not sleep.
    pub(crate) fn signal(&self) {
        // SAFETY: The context is alive by the type's invariant.
        unsafe { shim::barbuf_helper_eventfd_signal(self.0.as_ptr()) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: Gives back the reference that the type owns.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}

// SAFETY: An eventfd context may be signalled and released by any thread.
unsafe impl Send for EventFd {}
// SAFETY: `signal` takes the context's own lock.
unsafe impl Sync for EventFd {}
