// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the tests share. A memfd stands in for a buffer: it is mapped and passed in the same way.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use barbuf::Buffer;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

/// The name of the memfds, by which they are counted.
pub(crate) const NAME: &std::ffi::CStr = c"barbuf-stand-in";

pub(crate) fn memfd(len: u64) -> OwnedFd {
    let file = memfd_create(NAME, MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&file, len as i64).unwrap();
    file
}

pub(crate) fn buffer(len: u64) -> Buffer {
    Buffer::from(memfd(len))
}

/// How many descriptors of stand-ins this process has open. (Other descriptors come and go with the
/// test runner's own threads.)
pub(crate) fn stand_ins() -> usize {
    stand_ins_of(std::process::id())
}

pub(crate) fn stand_ins_of(pid: u32) -> usize {
    count(&format!("/proc/{pid}/fd"), "barbuf-stand-in")
}

pub(crate) fn count(directory: &str, name: &str) -> usize {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().contains(name))
        .count()
}

/// Whether a descriptor is closed over execve().
pub(crate) fn is_cloexec(fd: &impl std::os::fd::AsFd) -> bool {
    let info = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = fs::read_to_string(Path::new(&info)).unwrap();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    flags & nix::libc::O_CLOEXEC as u32 != 0
}

/// A pair of connected sockets of each type that buffers can be passed over.
pub(crate) fn pairs() -> [(OwnedFd, OwnedFd); 2] {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    [SockType::Stream, SockType::SeqPacket]
        .map(|kind| socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap())
}
