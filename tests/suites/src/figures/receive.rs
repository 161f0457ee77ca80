// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a buffer's way into another process costs, and its first mapping there.
//!
//! Every run has a process of its own to receive, so that each mapping is the first one that its process makes. A
//! message is sent before its receiver exists: the scheduler has no part in what is measured.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use barbuf::pass::{Descriptor, Policy, send};
use barbuf_guest::figure::Unit;
use barbuf_guest::sysfs;
use barbuf_measure::clock::RUNS;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::clock::{CLOCK, tell};
use crate::kit::prelude::*;
use crate::kit::process::Child;
use crate::library::npu;

const SIZE: u64 = 16 * GIB;

/// Sending and receiving with the crate, and the receiver's mmap with the first touch of every GiB.
pub(crate) fn receive(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    let buffer = device.export().any(SIZE).build()?;
    let (mut pass, mut map) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (ours, theirs) = UnixStream::pair()?;
        let (sending, sent) = CLOCK.time(|| send(&ours, &buffer, None, &Descriptor::default()));
        sent?;
        let [receiving, mapping] = in_a_process(|| {
            let policy = Policy::anybody();
            let (receiving, received) = CLOCK.time(|| barbuf::pass::receive(&theirs, &policy));
            Ok([receiving, touch(&received?.buffer)?])
        })?;
        pass.push(sending + receiving);
        map.push(mapping);
    }
    tell(ctx, "pass_buffer", Unit::Ns, pass)?;
    tell(ctx, "first_map_receiver", Unit::Ns, map)
}

/// The two system calls alone, with one byte.
pub(crate) fn receive_bare(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    let buffer = device.export().any(SIZE).build()?;
    let fds = [buffer.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let byte = [IoSlice::new(&[0])];
    let mut pass = Vec::new();
    for _ in 0..RUNS {
        let (ours, theirs) = UnixStream::pair()?;
        let flags = MsgFlags::empty();
        let (sending, sent) =
            CLOCK.time(|| sendmsg::<UnixAddr>(ours.as_raw_fd(), &byte, &rights, flags, None));
        sent?;
        let [receiving, _] = in_a_process(|| {
            let (receiving, received) = CLOCK.time(|| take(&theirs));
            received?;
            Ok([receiving, 0])
        })?;
        pass.push(sending + receiving);
    }
    tell(ctx, "pass_bare", Unit::Ns, pass)
}

/// The first mapping of a process which has the buffer from its parent, that exported it.
pub(crate) fn first_map_exporter(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    let buffer = device.export().any(SIZE).build()?;
    let mut map = Vec::new();
    for _ in 0..RUNS {
        let [mapping, _] = in_a_process(|| Ok([touch(&buffer)?, 0]))?;
        map.push(mapping);
    }
    tell(ctx, "first_map_exporter", Unit::Ns, map)
}

fn take(socket: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut room = nix::cmsg_space!([i32; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs()?.next() else {
        bail!("no descriptor came")
    };
    let fd = *fds.first().context("no descriptor came")?;
    // SAFETY: The kernel has just made it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Maps with the crate and reads a word of every GiB: how long that took, and by faults of 1 GiB alone.
fn touch(buffer: &barbuf::Buffer) -> Result<u64> {
    let before = buffer.query()?.faults;
    populate_program()?;
    let start = CLOCK.now();
    let map = buffer.map().build()?;
    for offset in (0..SIZE).step_by(GIB as usize) {
        map.read_u64(offset as usize)?;
    }
    let took = CLOCK.now() - start;
    let faults = buffer.query()?.faults;
    ensure_eq!(
        (
            faults.of_1g - before.of_1g,
            faults.of_2m - before.of_2m,
            faults.of_4k - before.of_4k
        ),
        (SIZE / GIB, 0, 0)
    );
    Ok(took)
}

/// Has the program and its memory in the page tables. A child finds none of its code there, and its data to be copied
/// when it writes; how many faults that takes depends on where the linker has put what.
fn populate_program() -> Result<()> {
    for line in sysfs::read("/proc/self/maps")?.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(access)) = (words.next(), words.next()) else {
            continue;
        };
        let advice = match access {
            "rw-p" => libc::MADV_POPULATE_WRITE,
            "r--p" | "r-xp" => libc::MADV_POPULATE_READ,
            _ => continue,
        };
        let (start, end) = range.split_once('-').context("a range")?;
        let (start, end) = (
            usize::from_str_radix(start, 16)?,
            usize::from_str_radix(end, 16)?,
        );
        // SAFETY: Reads what is mapped there, or writes what it holds, and changes nothing of it.
        let done = unsafe { libc::madvise(start as *mut _, end - start, advice) };
        // The kernel's own mappings, for the clock, have no such thing.
        if !line.contains("[v") {
            Errno::result(done)?;
        }
    }
    Ok(())
}

/// What a child measures.
fn in_a_process(part: impl FnOnce() -> Result<[u64; 2]>) -> Result<[u64; 2]> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let child = Child::start(|| {
        for number in part()? {
            theirs.write_all(&number.to_ne_bytes())?;
        }
        Ok(())
    })?;
    // It has written all when it ends.
    child.join()?;
    let mut number = || -> Result<u64> {
        let mut bytes = [0; 8];
        ours.read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    Ok([number()?, number()?])
}
