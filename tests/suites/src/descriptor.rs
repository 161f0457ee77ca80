// SPDX-License-Identifier: MIT OR Apache-2.0

//! The file descriptor that EXPORT returns: an ordinary dma-buf, opened as asked for.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::fstat;

use crate::kit::prelude::*;
use crate::kit::process::{Event, no_fd_leaks};

pub(crate) const SUITE: Suite = Suite {
    name: "descriptor",
    tests: &[
        test!(read_only_is_kept),
        test!(cloexec_is_kept),
        test!(cloexec_decides_what_exec_leaves_open),
        test!(eventfds),
        test!(generic_dma_buf_operations),
    ],
};

/// R13: a read-only buffer stays read-only.
fn read_only_is_kept(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider
            .node
            .export(&Export::any(2 * MIB).backing(backing).read_only())?;
        let flags = OFlag::from_bits_truncate(fcntl(&buffer, FcntlArg::F_GETFL)?);
        ensure!(flags & OFlag::O_ACCMODE == OFlag::O_RDONLY, "{flags:?}");
        let window = Window::new(0, 2 * MIB);
        let write = Mapping::new(&buffer, window, READ_WRITE, Place::Congruent);
        ensure!(write.err() == Some(Errno::EACCES));
        let map = Mapping::new(&buffer, window, READ, Place::Congruent)?;
        ensure!(map.load(0).is_ok());
        ensure!(map.store(0, 1) == Err(Fault::protected(map.at(0))));
        ensure!(map.room.protect(0, 2 * MIB, READ_WRITE) == Err(Errno::EACCES));
        // The second door must not be wider than the first.
        let cookie = buffer.raw.out_cookie;
        let class = buffer.raw.out_phys_class.wrapping_sub(cookie) % GIB;
        let all = Window::new(cookie, 2 * MIB);
        let node = Mapping::of(&provider.node, class, all, READ_WRITE, Place::Congruent);
        ensure!(node.err() == Some(Errno::EACCES), "through the node");
        // The node's own file is open for writing, so that only the module stands in the way here.
        let node = Mapping::of(&provider.node, class, all, READ, Place::Congruent)?;
        let late = node.room.protect(0, 2 * MIB, READ_WRITE);
        ensure!(
            late == Err(Errno::EACCES),
            "through the node, by mprotect: {late:?}"
        );
    }
    Ok(())
}

/// O_CLOEXEC is kept, both ways.
fn cloexec_is_kept(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for (flags, wanted) in [
        (libc::O_RDWR, false),
        (libc::O_RDWR | libc::O_CLOEXEC, true),
    ] {
        let buffer = provider.node.export(&Export::any(PAGE).open_flags(flags))?;
        let kept = FdFlag::from_bits_truncate(fcntl(&buffer, FcntlArg::F_GETFD)?)
            .contains(FdFlag::FD_CLOEXEC);
        ensure!(kept == wanted, "asked for {wanted}, got {kept}");
    }
    Ok(())
}

/// R38: another program has the buffer that was exported without O_CLOEXEC, and not the one with it.
fn cloexec_decides_what_exec_leaves_open(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let export = |flags| provider.node.export(&Export::any(PAGE).open_flags(flags));
    let open = export(libc::O_RDWR)?;
    let closed = export(libc::O_RDWR | libc::O_CLOEXEC)?;
    let read_only = export(libc::O_RDONLY)?;
    for (buffer, wanted) in [(&open, true), (&closed, false), (&read_only, true)] {
        let output = Command::new("/bin/busybox")
            .args(["cat", &format!("/proc/self/fdinfo/{}", buffer.number())])
            .output()
            .context("cannot run busybox")?;
        let text = String::from_utf8(output.stdout)?;
        let is_there = output.status.success() && text.contains("exp_name:\tbarbuf");
        ensure!(
            is_there == wanted,
            "{:#o}: {text:?}, {:?}",
            buffer.raw.open_flags,
            output.stderr
        );
    }
    Ok(())
}

/// An eventfd may be closed by the caller, is not signalled by the end of a buffer, and is one.
fn eventfds(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let event = Event::new()?;
    let buffer = provider
        .node
        .export(&Export::any(PAGE).eventfd(event.number()))?;
    ensure!(event.take()? == 0);
    drop(buffer);
    ensure!(event.take()? == 0, "closing is no revocation");

    let no_event = std::fs::File::open("/dev/null")?;
    let closed = Event::new()?.number();
    for (fd, errno) in [
        (closed, Errno::EBADF),
        (no_event.as_raw_fd(), Errno::EINVAL),
        (-2, Errno::EBADF),
    ] {
        let answer = no_fd_leaks(|| {
            provider
                .node
                .export(&Export::any(PAGE).eventfd(fd))
                .map(drop)
        })?;
        // A number that never was a descriptor may be called a bad value as well.
        ensure!(
            answer == Err(errno) || fd == -2 && answer == Err(Errno::EINVAL),
            "{fd}: {answer:?}"
        );
    }
    Ok(())
}

/// R38: what any dma-buf can do, this one can.
fn generic_dma_buf_operations(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let bar = provider.function.bar(2)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider
            .node
            .export(&Export::any(4 * MIB).backing(backing))?;
        let fd = buffer.number();
        ensure!(fstat(&buffer)?.st_size == 4 * MIB as i64);
        ensure!(
            nix::unistd::lseek(buffer.as_fd(), 0, nix::unistd::Whence::SeekEnd)? == 4 * MIB as i64
        );
        ensure!(nix::unistd::lseek(buffer.as_fd(), 0, nix::unistd::Whence::SeekSet)? == 0);

        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut wait = [PollFd::new(
            buffer.as_fd(),
            PollFlags::POLLIN | PollFlags::POLLOUT,
        )];
        ensure!(
            poll(&mut wait, PollTimeout::from(1000u16))? == 1,
            "no fence, so that it is ready"
        );

        dma_buf::set_name(fd, c"weights")?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        ensure!(
            info.contains("name:\tweights") && info.contains(&format!("size:\t{}", 4 * MIB)),
            "{info}"
        );
        for direction in [
            dma_buf::READ,
            dma_buf::WRITE,
            dma_buf::READ | dma_buf::WRITE,
        ] {
            dma_buf::sync(fd, direction)?;
            dma_buf::sync(fd, direction | dma_buf::END)?;
        }

        let map = Mapping::whole(&buffer)?;
        ensure!(map.load(0).is_ok());
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let start = format!("{:x}-", map.at(0) as usize);
        let line = maps
            .lines()
            .find(|line| line.starts_with(&start))
            .context("the mapping is not in maps")?;
        ensure!(line.contains("weights"), "{line}");
        // Where the buffer lies in physical memory is told nowhere.
        let physical = format!("{:x}", bar.start);
        let query = format!("{:x?}", provider.node.query(&buffer)?);
        for text in [&info, &line.to_owned(), &query] {
            ensure!(!text.contains(&physical), "a physical address: {text}");
        }
    }
    Ok(())
}

/// The ioctls of linux/dma-buf.h that are used here.
mod dma_buf {
    use nix::errno::Errno;
    use nix::libc;

    pub(super) const READ: u64 = 1;
    pub(super) const WRITE: u64 = 2;
    pub(super) const END: u64 = 4;

    nix::ioctl_write_ptr!(ioctl_sync, b'b', 0, u64);

    pub(super) fn sync(fd: i32, flags: u64) -> Result<(), Errno> {
        // SAFETY: struct dma_buf_sync is one __u64.
        unsafe { ioctl_sync(fd, &flags) }.map(drop)
    }

    pub(super) fn set_name(fd: i32, name: &std::ffi::CStr) -> Result<(), Errno> {
        let request = nix::request_code_write!(b'b', 1, size_of::<u64>());
        // SAFETY: The name is NUL-terminated, and the kernel copies it.
        Errno::result(unsafe { libc::ioctl(fd, request as _, name.as_ptr()) }).map(drop)
    }
}
