// SPDX-License-Identifier: MIT OR Apache-2.0

//! Request numbers, and one raw function for each request.
//!
//! Each function returns what ioctl(2) returns: 0, or -1 with `errno` set. They exist where
//! ioctl-sys knows the encoding of request numbers: Linux on x86, Arm and 64-bit RISC-V.

use core::ffi::c_int;

use ioctl_sys::io;

use crate::BARBUF_IOC_MAGIC;

// The size of a structure is in its first member and no part of the number, so that these are all
// _IO().

/// Asks a provider's node what it offers; takes a [`barbuf_info`](crate::barbuf_info).
pub const BARBUF_INFO: u32 = io!(BARBUF_IOC_MAGIC, 0x00);
/// Asks a provider's node for a buffer; takes a [`barbuf_export`](crate::barbuf_export).
pub const BARBUF_EXPORT: u32 = io!(BARBUF_IOC_MAGIC, 0x01);
/// Asks any node what a dma-buf is; takes a [`barbuf_query`](crate::barbuf_query).
pub const BARBUF_QUERY: u32 = io!(BARBUF_IOC_MAGIC, 0x02);
/// Takes a buffer back; takes a [`barbuf_revoke`](crate::barbuf_revoke).
pub const BARBUF_REVOKE: u32 = io!(BARBUF_IOC_MAGIC, 0x03);
/// Asks whether a device reaches a provider's memory; takes a
/// [`barbuf_route`](crate::barbuf_route).
pub const BARBUF_ROUTE: u32 = io!(BARBUF_IOC_MAGIC, 0x04);
/// Makes a function with p2pmem a provider, on the control node; takes a
/// [`barbuf_adopt`](crate::barbuf_adopt).
pub const BARBUF_ADOPT: u32 = io!(BARBUF_IOC_MAGIC, 0x10);
/// Ends that; takes a [`barbuf_adopt`](crate::barbuf_adopt).
pub const BARBUF_RELEASE: u32 = io!(BARBUF_IOC_MAGIC, 0x11);

/// All request numbers, by the names of the C header.
pub const REQUESTS: &[(&str, u32)] = &[
    ("BARBUF_INFO", BARBUF_INFO),
    ("BARBUF_EXPORT", BARBUF_EXPORT),
    ("BARBUF_QUERY", BARBUF_QUERY),
    ("BARBUF_REVOKE", BARBUF_REVOKE),
    ("BARBUF_ROUTE", BARBUF_ROUTE),
    ("BARBUF_ADOPT", BARBUF_ADOPT),
    ("BARBUF_RELEASE", BARBUF_RELEASE),
];

/// What the macro of ioctl-sys makes.
///
/// Its forms for _IO() numbers pass either nothing or an integer. `bad read` is the one that takes
/// a finished number and a pointer to something that the kernel may write. The `try` forms are not
/// used: they drop a positive result.
#[allow(
    missing_docs,
    clippy::missing_safety_doc,
    reason = "the macro takes no attributes; the documentation stands where the functions are exported"
)]
mod raw {
    use crate::{
        barbuf_adopt, barbuf_export, barbuf_info, barbuf_query, barbuf_revoke, barbuf_route,
    };

    ioctl_sys::ioctl!(bad read info with super::BARBUF_INFO; barbuf_info);
    ioctl_sys::ioctl!(bad read export with super::BARBUF_EXPORT; barbuf_export);
    ioctl_sys::ioctl!(bad read query with super::BARBUF_QUERY; barbuf_query);
    ioctl_sys::ioctl!(bad read revoke with super::BARBUF_REVOKE; barbuf_revoke);
    ioctl_sys::ioctl!(bad read route with super::BARBUF_ROUTE; barbuf_route);
    ioctl_sys::ioctl!(bad read adopt with super::BARBUF_ADOPT; barbuf_adopt);
    ioctl_sys::ioctl!(bad read release with super::BARBUF_RELEASE; barbuf_adopt);
}

/// ioctl(fd, [`BARBUF_INFO`], data).
///
/// # Safety
///
/// `data` is valid for reads and writes of `data.size` bytes, and `data.regions` for writes of
/// `data.nr_regions` times `data.region_stride` bytes.
pub use raw::info;

/// ioctl(fd, [`BARBUF_EXPORT`], data). On success the caller owns `data.out_fd`.
///
/// # Safety
///
/// `data` is valid for reads and writes of `data.size` bytes, and `data.ranges` for reads (with
/// `BARBUF_EXPORT_ANY` for writes too) of `data.nr_ranges` elements.
pub use raw::export;

/// ioctl(fd, [`BARBUF_QUERY`], data).
///
/// # Safety
///
/// `data` is valid for reads and writes of `data.size` bytes, and `data.ranges` for writes of
/// `data.nr_ranges` elements, and `data.attachments` for `data.nr_attachments` times
/// `data.attachment_stride` bytes.
pub use raw::query;

/// ioctl(fd, [`BARBUF_REVOKE`], data).
///
/// # Safety
///
/// `data` is valid for reads and writes of `data.size` bytes. Every mapping of the buffer, in every
/// process, raises SIGBUS from then on.
pub use raw::revoke;

/// ioctl(fd, [`BARBUF_ROUTE`], data).
///
/// # Safety
///
/// `data` is valid for reads and writes of `data.size` bytes.
pub use raw::route;

/// ioctl(fd, [`BARBUF_ADOPT`], data).
///
/// # Safety
///
/// `data` is valid for reads and writes of `data.size` bytes.
pub use raw::adopt;

/// ioctl(fd, [`BARBUF_RELEASE`], data).
///
/// # Safety
///
/// `data` is valid for reads and writes of `data.size` bytes. Every mapping of a buffer of that
/// provider raises SIGBUS from then on.
pub use raw::release;

// The wrappers must keep the result of ioctl(2) as it is, and `data` must be a pointer that the
// kernel may write to.
const _: unsafe fn(c_int, *mut crate::barbuf_export) -> c_int = export;
