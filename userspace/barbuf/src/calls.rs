// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ioctls of the nodes, behind a trait: tests put a device made of memory in the kernel's place.

use std::fmt;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use barbuf_sys::{
    barbuf_adopt, barbuf_export, barbuf_info, barbuf_query, barbuf_revoke, barbuf_route,
};
use nix::errno::Errno;

/// What a node answers. The pointers in the structures are what the structure's documentation says.
///
/// # Safety
///
/// An implementation writes only where the kernel would, and makes a file descriptor for
/// `out_fd` that the caller then owns.
pub(crate) unsafe trait Calls: fmt::Debug + Send + Sync {
    /// # Safety
    ///
    /// `data.regions` is valid for writes of `nr_regions` times `region_stride` bytes.
    unsafe fn info(&self, node: BorrowedFd<'_>, data: &mut barbuf_info) -> Result<(), Errno>;
    /// # Safety
    ///
    /// `data.ranges` is valid for reads and writes of `nr_ranges` elements.
    unsafe fn export(&self, node: BorrowedFd<'_>, data: &mut barbuf_export) -> Result<(), Errno>;
    /// # Safety
    ///
    /// `data.ranges` is valid for writes of `nr_ranges` elements, `data.attachments` of
    /// `nr_attachments` times `attachment_stride` bytes.
    unsafe fn query(&self, node: BorrowedFd<'_>, data: &mut barbuf_query) -> Result<(), Errno>;
    fn revoke(&self, node: BorrowedFd<'_>, data: &mut barbuf_revoke) -> Result<(), Errno>;
    fn route(&self, node: BorrowedFd<'_>, data: &mut barbuf_route) -> Result<(), Errno>;
    fn adopt(&self, node: BorrowedFd<'_>, data: &mut barbuf_adopt) -> Result<(), Errno>;
    fn release(&self, node: BorrowedFd<'_>, data: &mut barbuf_adopt) -> Result<(), Errno>;
}

/// The kernel itself.
#[derive(Debug)]
pub(crate) struct Kernel;

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "x86",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64"
))]
use barbuf_sys::ioctl as raw;

/// Where ioctl-sys does not compile, nix knows the encoding.
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "x86",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64"
)))]
mod raw {
    use std::ffi::c_int;

    use barbuf_sys::*;
    use nix::{libc, request_code_none};

    macro_rules! calls {
        ($($name:ident $number:literal $data:ty;)*) => {$(
            pub(super) unsafe fn $name(fd: c_int, data: *mut $data) -> c_int {
                // SAFETY: Promised by the caller.
                unsafe { libc::ioctl(fd, request_code_none!(BARBUF_IOC_MAGIC, $number), data) }
            }
        )*};
    }
    calls! {
        info 0x00 barbuf_info;
        export 0x01 barbuf_export;
        query 0x02 barbuf_query;
        revoke 0x03 barbuf_revoke;
        route 0x04 barbuf_route;
        adopt 0x10 barbuf_adopt;
        release 0x11 barbuf_adopt;
    }
}

/// Calls again as long as a signal came in between; the kernel has changed nothing then.
pub(crate) fn retry(mut call: impl FnMut() -> i32) -> Result<(), Errno> {
    loop {
        match Errno::result(call()) {
            Err(Errno::EINTR) => continue,
            other => return other.map(drop),
        }
    }
}

// SAFETY: It is the kernel.
unsafe impl Calls for Kernel {
    unsafe fn info(&self, node: BorrowedFd<'_>, data: &mut barbuf_info) -> Result<(), Errno> {
        // SAFETY: The structure lives and has its size; the caller vouches for the array.
        retry(|| unsafe { raw::info(node.as_raw_fd(), data) })
    }

    unsafe fn export(&self, node: BorrowedFd<'_>, data: &mut barbuf_export) -> Result<(), Errno> {
        // SAFETY: As in `info`. What comes back in `out_fd` belongs to the caller.
        retry(|| unsafe { raw::export(node.as_raw_fd(), data) })
    }

    unsafe fn query(&self, node: BorrowedFd<'_>, data: &mut barbuf_query) -> Result<(), Errno> {
        // SAFETY: As in `info`.
        retry(|| unsafe { raw::query(node.as_raw_fd(), data) })
    }

    fn revoke(&self, node: BorrowedFd<'_>, data: &mut barbuf_revoke) -> Result<(), Errno> {
        // SAFETY: The structure lives and has its size. Accesses of this crate to mappings of a
        // revoked buffer are guarded; whoever uses a raw pointer has promised to be ready for it.
        retry(|| unsafe { raw::revoke(node.as_raw_fd(), data) })
    }

    fn route(&self, node: BorrowedFd<'_>, data: &mut barbuf_route) -> Result<(), Errno> {
        // SAFETY: The structure lives and has its size.
        retry(|| unsafe { raw::route(node.as_raw_fd(), data) })
    }

    fn adopt(&self, node: BorrowedFd<'_>, data: &mut barbuf_adopt) -> Result<(), Errno> {
        // SAFETY: The structure lives and has its size.
        retry(|| unsafe { raw::adopt(node.as_raw_fd(), data) })
    }

    fn release(&self, node: BorrowedFd<'_>, data: &mut barbuf_adopt) -> Result<(), Errno> {
        // SAFETY: As in `revoke`.
        retry(|| unsafe { raw::release(node.as_raw_fd(), data) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::request_code_none;

    /// ioctl-sys and nix each have an encoding of their own.
    #[test]
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64"
    ))]
    fn both_libraries_come_to_the_same_numbers() {
        use barbuf_sys::BARBUF_IOC_MAGIC as MAGIC;
        let theirs = [
            ("BARBUF_INFO", request_code_none!(MAGIC, 0x00)),
            ("BARBUF_EXPORT", request_code_none!(MAGIC, 0x01)),
            ("BARBUF_QUERY", request_code_none!(MAGIC, 0x02)),
            ("BARBUF_REVOKE", request_code_none!(MAGIC, 0x03)),
            ("BARBUF_ROUTE", request_code_none!(MAGIC, 0x04)),
            ("BARBUF_ADOPT", request_code_none!(MAGIC, 0x10)),
            ("BARBUF_RELEASE", request_code_none!(MAGIC, 0x11)),
        ];
        let ours = barbuf_sys::ioctl::REQUESTS;
        let ours: Vec<_> = ours
            .iter()
            .map(|(name, n)| (*name, u64::from(*n)))
            .collect();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        let mut calls = 0;
        let result = retry(|| {
            calls += 1;
            Errno::set_raw(if calls < 3 {
                Errno::EINTR
            } else {
                Errno::EBUSY
            } as i32);
            -1
        });
        assert_eq!((result, calls), (Err(Errno::EBUSY), 3));
        // A positive result is no error, which the `try` forms of ioctl-sys drop.
        assert_eq!(retry(|| 7), Ok(()));
    }
}
