// SPDX-License-Identifier: GPL-2.0

//! The errors that the decisions can end in.
//!
//! The numbers are Linux's own, so that the driver turns an [`Errno`] into a `kernel::error::Error`
//! by number and the host tests need no kernel to name one.

/// What a decision returns: a value, or the errno that the caller should see.
pub type Result<T = ()> = core::result::Result<T, Errno>;

/// A Linux error number (`include/uapi/asm-generic/errno-base.h` and `errno.h`).
///
/// Each has one meaning in this module; the table that users read is in `uapi/linux/barbuf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[allow(clippy::upper_case_acronyms)] // the names that everybody knows
pub enum Errno {
    /// The caller lacks a capability that the request needs, or the kernel is locked down.
    EPERM = 1,
    /// The struct is longer than this kernel knows, and the part that it does not know is not zero.
    E2BIG = 7,
    /// Not now: a reset is in flight, and the importer is told when to ask again.
    EAGAIN = 11,
    /// The buffer does not grant the access asked for.
    EACCES = 13,
    /// A user pointer can't be read or written.
    EFAULT = 14,
    /// Somebody else holds these bytes in a way that excludes this request.
    EBUSY = 16,
    /// The device is gone, or the buffer is revoked.
    ENODEV = 19,
    /// A value that is never correct: an unknown flag, an empty or unaligned range, a range beyond
    /// the region.
    EINVAL = 22,
    /// No free range is long enough.
    ENOSPC = 28,
    /// The buffer has been revoked already.
    EBADFD = 77,
    /// Correct, but this region, device or kernel does not offer it.
    EOPNOTSUPP = 95,
    /// The function's own driver, which has registered the region, refused.
    ECONNREFUSED = 111,
}

impl Errno {
    /// The positive Linux number, for example 22 for `EINVAL`.
    pub const fn number(self) -> i32 {
        // CAST: The enum is `repr(i32)`, so the cast keeps the value.
        self as i32
    }
}
