// SPDX-License-Identifier: MIT OR Apache-2.0

//! How long a buffer lives, and what that keeps alive: not its exporter, but the module and the
//! bytes.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use barbuf_guest::modules::{self, is_loaded};
use barbuf_guest::sysfs;
use nix::cmsg_space;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockType, recvmsg, sendmsg};

use crate::export::main_region;
use crate::kit::pattern::word;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::process::{Child, PROMPT, allow_fds, open_fds, within};
use crate::kit::slab;
use crate::passing::pair;

pub(crate) const SUITE: Suite = Suite {
    name: "lifetime",
    tests: &[
        test!(a_buffer_outlives_its_exporter).timeout(60),
        test!(whoever_is_left_keeps_the_module).timeout(60),
        test!(the_module_takes_its_providers_with_it).timeout(60),
        test!(killed_at_any_moment).timeout(240),
        test!(the_limit_of_one_file),
        test!(the_limit_in_all).timeout(60),
        test!(ten_thousand_buffers).timeout(300),
        test!(nothing_grows).timeout(120),
        test!(memory_is_charged_to_the_caller).timeout(60),
    ],
};

/// Sends a descriptor over a socket, with one byte.
fn send(socket: &OwnedFd, fd: &impl AsFd) -> Result<()> {
    let fds = [fd.as_fd().as_raw_fd()];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"b")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    ensure!(sent == 1);
    Ok(())
}

/// Receives one.
fn receive(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut part = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([i32; 4]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut part,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            ensure!(fds.len() == 1, "{fds:?}");
            // SAFETY: The kernel has just made this descriptor for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fds[0]) });
        }
    }
    bail!("a message without a descriptor")
}

/// R9: the exporter passes a buffer on and dies; the receiver maps it, and the node's holder can
/// still take it back.
fn a_buffer_outlives_its_exporter(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let (ours, theirs) = pair(SockType::SeqPacket)?;
        Child::start(|| {
            let node = provider.reopen()?;
            let buffer = node.export(&Export::any(GIB).backing(backing))?;
            ensure!(Mapping::whole(&buffer)?.store(8, 0x9e) == Ok(()));
            send(&theirs, &buffer.fd)
        })?
        .join()?;
        let fd = receive(&ours)?;
        let query = provider.node.query(&fd)?.raw;
        ensure!(query.out_state == BARBUF_STATE_LIVE, "{query:?}");
        let window = Window::new(0, GIB);
        let map = Mapping::of(
            &fd,
            query.out_phys_class,
            window,
            READ_WRITE,
            Place::Congruent,
        )?;
        ensure!(map.load(8) == Ok(0x9e) && map.store(16, 1) == Ok(()));
        ensure!(
            provider.node.query(&fd)?.leaves().of_1g > 0,
            "the receiver has no large leaf"
        );
        provider.node.revoke(&fd)?;
        ensure!(map.load(8) == Err(Fault::bus(map.at(8))));
    }
    Ok(())
}

/// R7: a node, a buffer or a mapping alone keeps the module in, and the module says so at once.
fn whoever_is_left_keeps_the_module(ctx: &Ctx) -> Result<()> {
    let product = ctx.product();
    let refused = |who: &str| -> Result<()> {
        let answer = within(PROMPT, "rmmod", || modules::unload(product))?;
        let errno = answer.as_ref().err().and_then(sysfs::errno);
        ensure!(errno == Some(libc::EAGAIN), "rmmod with {who}: {answer:?}");
        ensure!(is_loaded(product));
        Ok(())
    };
    let control = Node::control()?;
    refused("the control node open")?;
    drop(control);

    let provider = Provider::bind(ctx.npu(0)?)?;
    refused("a provider's node open")?;
    let buffer = provider.node.export(&Export::any(GIB))?;
    let map = Mapping::whole(&buffer)?;
    ensure!(map.store(0, 7) == Ok(()));
    drop(provider);
    refused("a buffer")?;
    drop(buffer);
    refused("nothing but a mapping, of a provider that is gone")?;
    ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
    drop(map);
    wait_until("the last reference gone", || {
        modules::references(product).is_ok_and(|count| count == 0)
    })?;
    modules::unload(product)?;
    Ok(ctx.modules().load(product, "")?)
}

/// R7: a bound function alone does not keep the module in; it is unbound, and its BARs are free.
fn the_module_takes_its_providers_with_it(ctx: &Ctx) -> Result<()> {
    let product = ctx.product();
    for _ in 0..5 {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let adopted = Provider::adopt(ctx.nvme(0)?)?;
        let functions = [provider.function.clone(), adopted.function.clone()];
        provider.leave();
        adopted.leave();
        modules::unload(product)?;
        ensure!(functions[0].driver().is_none(), "still bound");
        ensure!(
            functions[1].driver().as_deref() == Some("nvme"),
            "the adopted drive has lost its driver"
        );
        let left = sysfs::iomem_lines_of(product)?;
        ensure!(left.is_empty(), "left in /proc/iomem: {left:?}");
        ctx.modules().load(product, "")?;
        functions[0].restore()?;
    }
    Ok(())
}

/// R8: a process is killed at 1,000 random moments between and inside of its calls; nothing is left
/// of it.
fn killed_at_any_moment(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    for round in 0..1000u64 {
        let mut child = Child::start(|| {
            for i in 0.. {
                let wanted = match i % 3 {
                    0 => Export::any(2 * GIB),
                    1 => Export::any(GIB).page(),
                    _ => Export::any(4 * MIB),
                };
                let buffer = provider.node.export(&wanted)?;
                let map = Mapping::whole(&buffer)?;
                ensure!(map.store(0, i) == Ok(()));
                map.room.protect(0, map.len(), READ)?;
                if i % 2 == 0 {
                    provider.node.revoke(&buffer)?;
                }
            }
            Ok(())
        })?;
        std::thread::sleep(Duration::from_micros(word(round, 8) % 20_000));
        child.signal(Signal::SIGKILL)?;
        child.wait()?;
    }
    provider.wait_until_free(&before)
}

/// B7: what one open file can export is limited; others are not concerned, and closing gives the
/// place back.
fn the_limit_of_one_file(ctx: &Ctx) -> Result<()> {
    let limit = parameter(ctx, "max_buffers_per_file")?;
    allow_fds(2 * limit + 100)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let other = provider.reopen()?;
    let mut buffers = Vec::new();
    for i in 0..limit {
        buffers.push(
            provider
                .node
                .export(&Export::any(PAGE))
                .with_context(|| format!("buffer {i} of {limit}"))?,
        );
    }
    let answer = provider.node.export(&Export::any(PAGE)).map(drop);
    ensure!(
        answer == Err(Errno::ENOSPC),
        "one more than the limit: {answer:?}"
    );
    ensure!(other.export(&Export::any(PAGE)).is_ok(), "another file");
    buffers.truncate(buffers.len() - 1);
    ensure!(
        provider.node.export(&Export::any(PAGE)).is_ok(),
        "one was closed"
    );
    Ok(())
}

fn parameter(ctx: &Ctx, name: &str) -> Result<u64> {
    let text = sysfs::read(format!("/sys/module/{}/parameters/{name}", ctx.product()));
    match text {
        Ok(text) => Ok(text.parse()?),
        // Parameters of Rust modules are not in sysfs: these are the documented defaults.
        Err(_) => match name {
            "max_buffers_per_file" => Ok(1024),
            _ => bail!("no parameter {name}"),
        },
    }
}

/// B7: the limit of the module holds for all files together, and is a parameter.
fn the_limit_in_all(ctx: &Ctx) -> Result<()> {
    const LIMIT: usize = 8;
    let product = ctx.product();
    modules::unload(product)?;
    ctx.modules().load(
        product,
        &format!("max_buffers={LIMIT} max_buffers_per_file=5"),
    )?;
    let result = (|| {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let files = [provider.reopen()?, provider.reopen()?];
        let mut buffers = Vec::new();
        for (file, count) in [(&files[0], 5), (&files[1], 3)] {
            for i in 0..count {
                buffers.push(
                    file.export(&Export::any(PAGE))
                        .with_context(|| format!("buffer {i}"))?,
                );
            }
            let answer = file.export(&Export::any(PAGE)).map(drop);
            ensure!(
                answer == Err(Errno::ENOSPC),
                "after {count} buffers of a file: {answer:?}"
            );
        }
        buffers.pop();
        ensure!(
            files[1].export(&Export::any(PAGE)).is_ok(),
            "one was closed"
        );
        Ok(())
    })();
    modules::unload(product)?;
    ctx.modules().load(product, "")?;
    result
}

/// R29: ten thousand buffers at a time, and one unbind that revokes them all in linear time.
fn ten_thousand_buffers(ctx: &Ctx) -> Result<()> {
    const PER_FILE: usize = 1000;
    allow_fds(12_000)?;
    let mut times = Vec::new();
    for count in [2500, 10_000] {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let files = (0..count / PER_FILE + 1)
            .map(|_| provider.reopen())
            .collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let buffers = (0..count)
            .map(|i| {
                files[i / PER_FILE]
                    .export(&Export::any(PAGE))
                    .with_context(|| format!("buffer {i}"))
            })
            .collect::<Result<Vec<_>>>()?;
        let exported = start.elapsed();
        let maps = buffers
            .iter()
            .step_by(100)
            .map(Mapping::whole)
            .collect::<Result<Vec<_>, _>>()?;
        ensure!(maps.iter().all(|map| map.store(0, 1) == Ok(())));
        ensure!(main_region(&provider.node.info()?)?.nr_buffers as usize == count);
        let start = Instant::now();
        provider.function.unbind()?;
        let revoked = start.elapsed();
        ensure!(
            maps.iter()
                .all(|map| map.load(0) == Err(Fault::bus(map.at(0))))
        );
        let figures = format!("exported in {exported:.2?}, revoked by unbind in {revoked:.2?}");
        ctx.say(format!("{count} buffers: {figures}"));
        times.push(revoked);
    }
    // Four times the work; the factor leaves room for a busy host, not for a square.
    ensure!(
        times[1] < times[0] * 10 + Duration::from_millis(100),
        "revoking all is not linear: {times:?}"
    );
    Ok(())
}

/// Oracle 5: 20,000 buffers, one after the other, leave neither descriptors nor slab objects.
fn nothing_grows(ctx: &Ctx) -> Result<()> {
    /// One per cent of the buffers: what others allocate meanwhile.
    const NOISE: u64 = 200;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let cycle = |count: u64| -> Result<()> {
        for i in 0..count {
            let buffer = provider
                .node
                .export(&Export::any(if i % 8 == 0 { GIB } else { PAGE }))?;
            if i % 4 == 0 {
                let map = Mapping::whole(&buffer)?;
                ensure!(map.load(0).is_ok());
            }
        }
        Ok(())
    };
    cycle(500)?;
    let (fds, objects) = (open_fds()?, slab::Objects::count()?);
    cycle(20_000)?;
    ensure!(open_fds()? == fds);
    objects.wait_until_near(NOISE)
}

/// A control group of its own, until this is dropped.
struct Group;

impl Group {
    const ROOT: &str = "/run/barbuf-cgroup";
    const DIR: &str = "/run/barbuf-cgroup/test";

    fn new() -> Result<Group> {
        let none = None::<&str>;
        std::fs::create_dir_all(Self::ROOT)?;
        mount(none, Self::ROOT, Some("cgroup2"), MsFlags::empty(), none)?;
        let group = Group;
        sysfs::write(format!("{}/cgroup.subtree_control", Self::ROOT), "+memory")?;
        std::fs::create_dir(Self::DIR)?;
        Ok(group)
    }

    /// Bytes of kernel objects that are charged to the group.
    fn objects() -> Result<u64> {
        let text = sysfs::read(format!("{}/memory.stat", Self::DIR))?;
        let line = text.lines().find_map(|line| line.strip_prefix("slab "));
        Ok(line.context("memory.stat has no slab")?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let left =
            || std::fs::remove_dir(Self::DIR).is_ok() || !std::path::Path::new(Self::DIR).exists();
        if wait_until("the control group gone", left).is_err() || umount(Self::ROOT).is_err() {
            eprintln!("cannot remove the control group");
        }
    }
}

/// B7: what the module allocates for an export is charged to the control group of the caller. Two
/// groups of buffers that differ in nothing but their number of ranges, which only the module
/// stores, differ in what is charged.
fn memory_is_charged_to_the_caller(ctx: &Ctx) -> Result<()> {
    const BUFFERS: u64 = 800;
    const RANGES: u64 = BARBUF_MAX_RANGES as u64;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let charged = |ranges: u64| -> Result<u64> {
        let _group = Group::new()?;
        let (answer, says) = nix::unistd::pipe()?;
        Child::start(|| {
            sysfs::write(format!("{}/cgroup.procs", Group::DIR), "0")?;
            let before = Group::objects()?;
            let mut buffers = Vec::new();
            for buffer in 0..BUFFERS {
                // All in one stretch, but no two that could be taken for one range.
                let at = |range| ((buffer * RANGES + range) * PAGE, PAGE);
                let list: Vec<(u64, u64)> = (0..ranges).rev().map(at).collect();
                buffers.push(provider.node.export(&Export::ranges(&list))?);
            }
            let grown = Group::objects()?.saturating_sub(before);
            ensure!(nix::unistd::write(&says, &grown.to_ne_bytes())? == 8);
            // The last ones first, which is quicker.
            while buffers.pop().is_some() {}
            Ok(())
        })?
        .join()?;
        let mut bytes = [0; 8];
        ensure!(nix::unistd::read(&answer, &mut bytes)? == 8);
        Ok(u64::from_ne_bytes(bytes))
    };
    let (few, many) = (charged(1)?, charged(RANGES)?);
    ctx.say(format!(
        "{BUFFERS} buffers: {few} bytes with 1 range each, {many} bytes with {RANGES}"
    ));
    // A range takes 16 bytes at least.
    let least = BUFFERS * (RANGES - 1) * 16;
    ensure!(
        many >= few + least,
        "{few} bytes are charged with 1 range, {many} with {RANGES}"
    );
    Ok(())
}
