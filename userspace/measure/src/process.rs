// SPDX-License-Identifier: MIT OR Apache-2.0

//! What other processes pay: a child that inherits a mapping, a process that is sent the descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::clock::Clock;
use crate::mapping::{Anchor, Target};

/// A number that parent and child share.
pub(crate) struct Shared(*mut AtomicU64);

impl Shared {
    /// Zero.
    pub(crate) fn new() -> Result<Shared> {
        // SAFETY: A new mapping of zeros, which is a valid AtomicU64, for as long as the process lives or `drop`.
        let found = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<AtomicU64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        ensure!(found != libc::MAP_FAILED, "no shared memory");
        Ok(Shared(found.cast()))
    }

    pub(crate) fn number(&self) -> &AtomicU64 {
        // SAFETY: Mapped in `new`, and until `drop`.
        unsafe { &*self.0 }
    }

    /// Where it is, until `drop`.
    pub(crate) fn as_ptr(&self) -> *mut AtomicU64 {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: Mapped in `new`, and `number` borrows.
        unsafe { libc::munmap(self.0.cast(), size_of::<AtomicU64>()) };
    }
}

/// A child, killed if it is not waited for.
struct Child(Option<Pid>);

impl Child {
    /// Forks. The child ends with the value that its part returns.
    ///
    /// # Safety
    ///
    /// The process must have one thread, or the part must only do what a signal handler may.
    unsafe fn start(part: impl FnOnce() -> i32) -> Result<Child> {
        // SAFETY: Promised by the caller.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Child(Some(child))),
            // SAFETY: Nothing of the parent's is to be cleaned up here.
            ForkResult::Child => unsafe { libc::_exit(part()) },
        }
    }

    fn join(mut self, what: &str) -> Result<()> {
        let Some(pid) = self.0.take() else {
            return Ok(());
        };
        match waitpid(pid, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) => bail!("{what}: the child failed at step {code}"),
            WaitStatus::Signaled(_, signal, _) => bail!("{what}: the child got {signal}"),
            other => bail!("{what}: the child ended as {other:?}"),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

/// From the call of fork(2) until the child has touched every leaf of the mapping that it inherits, which the parent
/// has touched before.
///
/// # Errors
///
/// Also if the child is killed by a signal, which the error names.
pub fn fork_touch(clock: Clock, target: &Target<'_>) -> Result<Vec<u64>> {
    let _anchor = Anchor::behind(target)?;
    let shared = Shared::new()?;
    let mapped = target.map()?;
    mapped.touch();
    let mut samples = Vec::new();
    clock.repeat(|| {
        let start = clock.now();
        // SAFETY: The child reads memory and the clock.
        let child = unsafe {
            Child::start(|| {
                mapped.touch();
                shared.number().store(clock.now(), Ordering::Release);
                0
            })
        }?;
        child.join("touching what was inherited")?;
        samples.push(shared.number().load(Ordering::Acquire) - start);
        Ok(())
    })?;
    Ok(samples)
}

/// From sending a descriptor over a unix socket until another process has mapped it and touched every leaf.
pub fn send_map_touch(clock: Clock, target: &Target<'_>) -> Result<Vec<u64>> {
    let shared = Shared::new()?;
    let mut samples = Vec::new();
    clock.repeat(|| {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let ready = Shared::new()?;
        // SAFETY: The child makes system calls, reads memory and the clock.
        let child = unsafe {
            Child::start(|| {
                let Ok(_anchor) = Anchor::behind(target) else {
                    return 1;
                };
                ready.number().store(1, Ordering::Release);
                let Ok(file) = receive(theirs.as_fd()) else {
                    return 2;
                };
                let target = Target {
                    file: file.as_fd(),
                    ..*target
                };
                let Ok(mapped) = target.map() else {
                    return 3;
                };
                mapped.touch();
                shared.number().store(clock.now(), Ordering::Release);
                drop(mapped);
                0
            })
        }?;
        drop(theirs);
        while ready.number().load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        // Once more, so that it waits in recvmsg.
        std::thread::yield_now();
        let start = clock.now();
        send(ours.as_fd(), target.file)?;
        child.join("mapping what was sent")?;
        samples.push(shared.number().load(Ordering::Acquire) - start);
        Ok(())
    })?;
    Ok(samples)
}

/// Sends a descriptor.
pub fn send(socket: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<()> {
    let fds: [RawFd; 1] = [file.as_raw_fd()];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"f")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .context("sending a descriptor")?;
    Ok(())
}

/// Receives a descriptor.
pub fn receive(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .context("receiving a descriptor")?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            if let [fd] = fds[..] {
                // SAFETY: The kernel has just made this descriptor for us.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    bail!("no descriptor came")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::RUNS;
    use crate::mapping::tests::{alone, file};

    #[test]
    fn children_are_measured() {
        let _alone = alone();
        let file = file(1 << 20);
        let target = Target {
            file: file.as_fd(),
            offset: 0,
            len: 1 << 20,
            leaf: 4096,
            phys_class: 0,
        };
        assert_eq!(fork_touch(Clock::Wall, &target).unwrap().len(), RUNS);
        assert_eq!(send_map_touch(Clock::Wall, &target).unwrap().len(), RUNS);
    }

    #[test]
    fn a_signal_in_the_child_is_named() {
        let _alone = alone();
        // The file is shorter than its mapping.
        let file = file(4096);
        let target = Target {
            file: file.as_fd(),
            offset: 0,
            len: 8192,
            leaf: 4096,
            phys_class: 0,
        };
        let error = send_map_touch(Clock::Wall, &target).unwrap_err();
        assert!(error.to_string().contains("SIGBUS"), "{error}");
    }
}
