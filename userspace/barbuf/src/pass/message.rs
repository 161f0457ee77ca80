// SPDX-License-Identifier: MIT OR Apache-2.0

//! One recvmsg(2) and one sendmsg(2) with file descriptors.
//!
//! Received descriptors are wrapped before anything can fail, so that none is lost: not when there
//! are too many, and not when the kernel could deliver only some of them (`MSG_CTRUNC`). nix loses
//! those: its `cmsgs()` returns an error without closing what has come.

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, c_int, cmsghdr, iovec, msghdr};

/// The largest number of descriptors in one message: `SCM_MAX_FD` of the kernel's `net/scm.h`.
const MAX_FDS: usize = 253;
/// `SCM_PIDFD` of `linux/socket.h`, which the kernel adds if the socket asks for it.
const SCM_PIDFD: c_int = 4;

/// Who sent a message, as the kernel vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl From<libc::ucred> for Credentials {
    fn from(raw: libc::ucred) -> Self {
        Credentials {
            pid: raw.pid,
            uid: raw.uid,
            gid: raw.gid,
        }
    }
}

/// What one recvmsg(2) has brought.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes. 0 at the end of a stream.
    pub(crate) len: usize,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) credentials: Option<Credentials>,
    /// Descriptors were lost: this process has too many open, or may not have these.
    pub(crate) lost_fds: bool,
    /// The message was longer than the room for it.
    pub(crate) lost_bytes: bool,
}

/// Room for control data, aligned as the kernel wants it: all descriptors that one message can have,
/// and credentials and a pidfd besides.
#[repr(C)]
union Control {
    _align: cmsghdr,
    bytes: [u8; CONTROL],
}

const CONTROL: usize = cmsg_space(MAX_FDS * size_of::<RawFd>())
    + cmsg_space(size_of::<libc::ucred>())
    + cmsg_space(size_of::<RawFd>());

/// `CMSG_SPACE`, which libc has as an unsafe function.
const fn cmsg_space(bytes: usize) -> usize {
    let align = size_of::<usize>();
    size_of::<cmsghdr>().next_multiple_of(align) + bytes.next_multiple_of(align)
}

/// Receives into `bytes`. Every descriptor that comes is closed over `execve()` from the first
/// instant.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: c_int,
) -> Result<Received, Errno> {
    let mut control = MaybeUninit::<Control>::zeroed();
    let mut part = iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: Integers and pointers, for which zero is a valid value.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    let len = loop {
        // SAFETY: The pointers are to memory that lives and is as long as the structure says.
        let got = unsafe {
            libc::recvmsg(
                socket.as_raw_fd(),
                &mut message,
                flags | libc::MSG_CMSG_CLOEXEC,
            )
        };
        match Errno::result(got) {
            Ok(len) => break len as usize,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    let mut received = Received {
        len,
        fds: Vec::new(),
        credentials: None,
        lost_fds: message.msg_flags & libc::MSG_CTRUNC != 0,
        lost_bytes: message.msg_flags & libc::MSG_TRUNC != 0,
    };
    // SAFETY: The kernel has filled the control data up to `msg_controllen`; the macros walk it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !header.is_null() {
        // SAFETY: The header lies in the control data, as long as it says.
        unsafe {
            take(&*header, libc::CMSG_DATA(header), &mut received);
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok(received)
}

/// Takes over what one control message holds.
///
/// # Safety
///
/// `data` is what the kernel put behind `header`. It is called once for each.
unsafe fn take(header: &cmsghdr, data: *const u8, received: &mut Received) {
    #[allow(
        clippy::unnecessary_cast,
        reason = "other C libraries have another type here"
    )]
    let room = (header.cmsg_len as usize).saturating_sub(cmsg_space(0));
    if header.cmsg_level != libc::SOL_SOCKET {
        return;
    }
    match header.cmsg_type {
        libc::SCM_RIGHTS => {
            for n in 0..room / size_of::<RawFd>() {
                // SAFETY: The kernel has put this many new descriptors there for this process.
                received.fds.push(unsafe {
                    let fd = ptr::read_unaligned(data.cast::<RawFd>().add(n));
                    OwnedFd::from_raw_fd(fd)
                });
            }
        }
        libc::SCM_CREDENTIALS if room >= size_of::<libc::ucred>() => {
            // SAFETY: The kernel has put a whole structure there.
            let raw = unsafe { ptr::read_unaligned(data.cast::<libc::ucred>()) };
            received.credentials = Some(raw.into());
        }
        SCM_PIDFD if room >= size_of::<RawFd>() => {
            // SAFETY: A new descriptor, or a negative errno. It was asked for by somebody else, and
            // is no descriptor that the message has sent.
            unsafe {
                let fd = ptr::read_unaligned(data.cast::<RawFd>());
                if fd >= 0 {
                    drop(OwnedFd::from_raw_fd(fd));
                }
            }
        }
        _ => {}
    }
}

/// Sends bytes, with descriptors if there are any. Returns how many bytes have gone; the descriptors
/// go with the first of them.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: c_int,
) -> Result<usize, Errno> {
    use std::io::IoSlice;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    let numbers: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    // A peer that has gone is an error, and no signal.
    let flags = MsgFlags::from_bits_retain(flags) | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            flags,
            None,
        ) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_what_libc_says() {
        for bytes in [0, 1, 4, 12, 253 * 4] {
            // SAFETY: It only calculates.
            let theirs = unsafe { libc::CMSG_SPACE(bytes as u32) } as usize;
            assert_eq!(cmsg_space(bytes), theirs);
        }
        assert!(std::mem::align_of::<Control>() >= std::mem::align_of::<cmsghdr>());
    }
}
