// SPDX-License-Identifier: MIT OR Apache-2.0

//! Taking buffers back: by ioctl, unbind, hot unplug and removal. What everybody sees then, and
//! what comes after.

use crate::export::main_region;
use crate::kit::map::mmap;
use crate::kit::pattern::word;
use crate::kit::pci::{Function, rescan, wait_until};
use crate::kit::prelude::*;
use crate::kit::process::{Child, Event, PROMPT, within};
use crate::map::SHAPES;

use barbuf_guest::protocol::HostOp;

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

pub(crate) const SUITE: Suite = Suite {
    name: "revoke",
    tests: &[
        test!(revoke_takes_every_leaf).timeout(60),
        test!(revoke_leaves_others_alone),
        test!(revoke_names_each_error),
        test!(closing_the_node_revokes_if_asked),
        test!(unbind_revokes).timeout(60),
        test!(rebind_with_old_descriptors_open).timeout(60),
        test!(removal_and_rescan).timeout(60),
        test!(hot_unplug).hotplug().timeout(120),
        test!(a_child_is_told_too),
    ],
};

/// Where each leaf of a mapping is touched.
fn spots(len: u64, leaf: u64) -> impl Iterator<Item = u64> {
    (0..len / leaf).flat_map(move |n| [n * leaf, (n + 1) * leaf - 8])
}

/// Oracle 6: everything that a holder of a revoked buffer can try.
fn is_dead(buffer: &Buffer, map: &Mapping, leaf: u64) -> Result<()> {
    for at in spots(map.len(), leaf) {
        let (load, store) = (map.load(at), map.store(at, 0xdead));
        let wanted = Err(Fault::bus(map.at(at)));
        ensure!(load == wanted, "load of {at:#x}: {load:x?}");
        ensure!(store == wanted.map(drop), "store to {at:#x}: {store:x?}");
    }
    let again = Mapping::new(buffer, Window::new(0, PAGE), READ, Place::Congruent).map(drop);
    ensure!(again == Err(Errno::ENODEV), "mmap: {again:?}");
    let query = Node::control()?
        .query(buffer)
        .context("QUERY of a revoked buffer")?
        .raw;
    ensure!(
        query.out_state == BARBUF_STATE_REVOKED && query.out_generation == 2,
        "{query:?}"
    );
    Ok(())
}

/// A node whose provider has gone answers ENODEV to everything.
fn is_deserted(node: &Node, buffer: &Buffer) -> Result<()> {
    // SAFETY: At an address that the kernel chooses.
    let map = unsafe { mmap(0, PAGE, READ, libc::MAP_SHARED, node, buffer.raw.out_cookie) };
    let answers = [
        ("INFO", node.info().map(drop)),
        ("EXPORT", node.export(&Export::any(PAGE)).map(drop)),
        ("QUERY", node.query(buffer).map(drop)),
        ("REVOKE", node.revoke(buffer)),
        ("ROUTE", node.route(buffer, 0, "0000:00:00.0").map(drop)),
        ("mmap", map.map(drop)),
    ];
    for (what, answer) in answers {
        ensure!(
            answer == Err(Errno::ENODEV),
            "{what} on a node without provider: {answer:?}"
        );
    }
    Ok(())
}

/// R28: after the ioctl every leaf is gone at once, the event has come once, and the bytes belong
/// to the next owner.
pub(crate) fn revoke_takes_every_leaf(ctx: &Ctx) -> Result<()> {
    for (backing, shift, len) in SHAPES {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let event = Event::new()?;
        let wanted = Export::at(0, len).backing(backing).leaf(shift);
        let buffer = provider
            .node
            .export(&wanted.clone().eventfd(event.number()))?;
        let map = Mapping::whole(&buffer)?;
        for at in spots(len, 1 << shift) {
            ensure!(map.store(at, word(28, at)) == Ok(()));
        }
        within(PROMPT, "REVOKE", || provider.node.revoke(&buffer))??;
        is_dead(&buffer, &map, 1 << shift)
            .with_context(|| format!("backing {backing}, leaves of 2^{shift}"))?;
        ensure!(
            event.take()? == 1,
            "the event did not come, or more than once"
        );
        let again = provider.node.revoke(&buffer);
        ensure!(
            again == Err(Errno::EBADFD) && event.take()? == 0,
            "a second REVOKE: {again:?}"
        );
        let info = main_region(&provider.node.info()?)?;
        ensure!(
            info.nr_buffers == 0,
            "a revoked buffer counts as live: {info:?}"
        );

        // The memory is free for the next owner, whose bytes the old mapping does not show.
        let next = provider.node.export(&wanted)?;
        let next_map = Mapping::whole(&next)?;
        for at in spots(len, 1 << shift) {
            ensure!(
                next_map.load(at) == Ok(word(28, at)),
                "a store to the revoked mapping arrived at {at:#x}"
            );
            ensure!(next_map.store(at, word(29, at)) == Ok(()));
        }
        is_dead(&buffer, &map, 1 << shift).context("with a next owner")?;
        drop((map, buffer));
        ensure!(
            next_map.load(0) == Ok(word(29, 0)),
            "the next owner's mapping went with the old one"
        );
    }
    Ok(())
}

/// Another buffer, even over the same bytes, does not notice.
pub(crate) fn revoke_leaves_others_alone(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let wanted = Export::at(0, GIB).backing(backing).shared();
        let (event, other_event) = (Event::new()?, Event::new()?);
        let buffer = provider
            .node
            .export(&wanted.clone().eventfd(event.number()))?;
        let other = provider
            .node
            .export(&wanted.eventfd(other_event.number()))?;
        let (map, kept) = (Mapping::whole(&buffer)?, Mapping::whole(&other)?);
        ensure!(map.store(0, 1) == Ok(()) && kept.load(0) == Ok(1));
        provider.node.revoke(&buffer)?;
        is_dead(&buffer, &map, GIB)?;
        ensure!(
            kept.load(0) == Ok(1) && kept.store(0, 2) == Ok(()),
            "the other buffer over the same bytes died"
        );
        ensure!((event.take()?, other_event.take()?) == (1, 0));
        ensure!(provider.node.query(&other)?.raw.out_generation == 1);
    }
    Ok(())
}

/// A dma-buf of the kernel's own udmabuf driver.
pub(crate) fn udmabuf() -> Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        memfd: u32,
        flags: u32,
        offset: u64,
        size: u64,
    }
    nix::ioctl_write_ptr!(udmabuf_create, b'u', 0x42, Create);
    // SAFETY: A new descriptor, which nobody else closes.
    let memory = unsafe {
        let flags = libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC;
        File::from_raw_fd(Errno::result(libc::memfd_create(
            c"foreign".as_ptr(),
            flags,
        ))?)
    };
    memory.set_len(PAGE)?;
    // SAFETY: No pointers.
    Errno::result(unsafe {
        libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK)
    })?;
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/udmabuf")
        .context("/dev/udmabuf")?;
    let create = Create {
        memfd: memory.as_raw_fd() as u32,
        flags: 0,
        offset: 0,
        size: PAGE,
    };
    // SAFETY: The structure lives; what is returned is a new descriptor.
    unsafe {
        Ok(OwnedFd::from_raw_fd(udmabuf_create(
            device.as_raw_fd(),
            &create,
        )?))
    }
}

/// R28: each descriptor that is not a live buffer of this provider has its own errno.
fn revoke_names_each_error(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let other = Provider::adopt(ctx.nvme(0)?)?;
    let foreign = udmabuf()?;
    let theirs = other.node.export(&Export::any(PAGE))?;
    let file = File::open("/dev/null")?;
    let closed = file.try_clone()?.as_raw_fd();
    let revoke = |fd: i32| provider.node.revoke_raw(fd);
    ensure!(
        revoke(foreign.as_raw_fd()) == Err(Errno::ENODEV),
        "a udmabuf"
    );
    ensure!(
        revoke(theirs.number()) == Err(Errno::ENODEV),
        "another provider's buffer"
    );
    ensure!(revoke(closed) == Err(Errno::EBADF), "a closed descriptor");
    ensure!(revoke(-1) == Err(Errno::EBADF), "-1");
    ensure!(revoke(file.as_raw_fd()) == Err(Errno::EINVAL), "no dma-buf");
    ensure!(
        revoke(provider.node.as_raw_fd()) == Err(Errno::EINVAL),
        "the node itself"
    );
    for node in [&provider.node, &Node::control()?] {
        ensure!(
            node.query(&foreign).map(drop) == Err(Errno::ENODEV),
            "QUERY of a udmabuf"
        );
    }
    ensure!(
        Mapping::whole(&theirs)?.load(0).is_ok(),
        "the other provider's buffer lives"
    );
    for (flags, reserved) in [(1, 0), (0, 1)] {
        let mut raw = barbuf_revoke {
            fd: theirs.number(),
            flags,
            reserved,
            ..barbuf_revoke::new()
        };
        // SAFETY: The structure lives.
        let answer = unsafe {
            other
                .node
                .raw_ioctl(ioctl::BARBUF_REVOKE.into(), &raw mut raw as u64)
        };
        ensure!(
            answer == Err(Errno::EINVAL),
            "flags {flags}, reserved {reserved}: {answer:?}"
        );
    }
    ensure!(other.node.query(&theirs)?.raw.out_state == BARBUF_STATE_LIVE);
    Ok(())
}

/// REVOKE_ON_CLOSE: the exporter's own open file counts, to its last copy, and no other.
pub(crate) fn closing_the_node_revokes_if_asked(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let node = provider.reopen()?;
    let event = Event::new()?;
    let bound = Export::at(0, GIB)
        .flag(BARBUF_EXPORT_REVOKE_ON_CLOSE)
        .eventfd(event.number());
    let buffer = node.export(&bound)?;
    let free = node.export(&Export::at(GIB, GIB))?;
    let (map, kept) = (Mapping::whole(&buffer)?, Mapping::whole(&free)?);
    ensure!(map.load(0).is_ok() && kept.load(0).is_ok());
    let copy = nix::unistd::dup(&node)?;
    drop(provider.reopen()?);
    drop(node);
    ensure!(
        map.load(0).is_ok() && event.take()? == 0,
        "a copy of the file is still open"
    );
    drop(copy);
    wait_until("the revocation", || map.load(0).is_err())?;
    is_dead(&buffer, &map, GIB)?;
    ensure!(event.take()? == 1);
    ensure!(kept.load(0).is_ok(), "a buffer without the flag died");
    Ok(())
}

/// A buffer of each backing, mapped and touched, with its event.
fn both_backings(provider: &Provider) -> Result<[(Buffer, Mapping, Event); 2]> {
    let make = |at, backing| {
        let event = Event::new()?;
        let wanted = Export::at(at, 2 * GIB)
            .backing(backing)
            .eventfd(event.number());
        let buffer = provider.node.export(&wanted)?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, word(1, at)) == Ok(()) && map.store(2 * GIB - 8, 2) == Ok(()));
        Ok((buffer, map, event))
    };
    Ok([
        make(0, BARBUF_BACKING_PFN)?,
        make(2 * GIB, BARBUF_BACKING_PAGE)?,
    ])
}

/// Whatever took the provider away: buffers are dead, the old node is deserted, and its path is
/// gone.
fn all_is_dead(buffers: &[(Buffer, Mapping, Event)], provider: &Provider) -> Result<()> {
    let path = provider.function.node_path();
    ensure!(!Path::new(&path).exists(), "{path} is still there");
    for (buffer, map, event) in buffers {
        is_dead(buffer, map, GIB)?;
        ensure!(event.take()? == 1, "the event");
        is_deserted(&provider.node, buffer)?;
    }
    Ok(())
}

/// A provider that came back works, whatever is still held of the one before.
fn a_new_provider_works(
    ctx: &Ctx,
    old: &[(Buffer, Mapping, Event)],
    old_node: &Node,
) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider
            .node
            .export(&Export::at(0, 4 * GIB).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, 0xbb) == Ok(()) && map.load(0) == Ok(0xbb));
        for (buffer, map, event) in old {
            is_dead(buffer, map, GIB).context("after the device came back")?;
            is_deserted(old_node, buffer).context("after the device came back")?;
            ensure!(event.take()? == 0, "a second event");
            let answers = (
                provider.node.query(buffer).map(drop),
                provider.node.revoke(buffer),
            );
            ensure!(
                answers == (Err(Errno::ENODEV), Err(Errno::ENODEV)),
                "an old buffer at the new node: {answers:?}"
            );
        }
        ensure!(map.load(0) == Ok(0xbb));
    }
    Ok(())
}

/// R1: unbinding does not wait for anybody who maps.
pub(crate) fn unbind_revokes(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both_backings(&provider)?;
    within(PROMPT, "unbind", || provider.function.unbind())??;
    ensure!(
        !Path::new(&provider.function.node_path()).exists(),
        "the node is still there"
    );
    all_is_dead(&buffers, &provider)?;
    let left = barbuf_guest::sysfs::iomem_lines_of("barbuf")?;
    ensure!(left.is_empty(), "left in /proc/iomem: {left:?}");
    Ok(())
}

/// R2: the device is bound again while all descriptors and mappings of before are open; they are
/// closed late.
pub(crate) fn rebind_with_old_descriptors_open(ctx: &Ctx) -> Result<()> {
    let first = Provider::bind(ctx.npu(0)?)?;
    let buffers = both_backings(&first)?;
    for _ in 0..3 {
        first.function.unbind()?;
        all_is_dead_silently(&buffers)?;
        a_new_provider_works(ctx, &[], &first.node)?;
    }
    for (_, _, event) in &buffers {
        ensure!(event.take()? == 1);
    }
    a_new_provider_works(ctx, &buffers, &first.node)?;
    drop(buffers);
    a_new_provider_works(ctx, &[], &first.node)
}

/// Dead, without looking at the events.
fn all_is_dead_silently(buffers: &[(Buffer, Mapping, Event)]) -> Result<()> {
    buffers
        .iter()
        .try_for_each(|(buffer, map, _)| is_dead(buffer, map, GIB))
}

/// R4: removal through sysfs, and finding the device again.
pub(crate) fn removal_and_rescan(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both_backings(&provider)?;
    within(PROMPT, "remove", || provider.function.remove())??;
    all_is_dead(&buffers, &provider)?;
    rescan()?;
    wait_until("the device found again", || {
        Function::of(ctx.npu(0).expect("the topology")).is_ok()
    })?;
    a_new_provider_works(ctx, &buffers, &provider.node)
}

/// R3: the device is pulled while it is mapped, and plugged in again.
pub(crate) fn hot_unplug(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both_backings(&provider)?;
    ctx.host(HostOp::DeviceDel { id: "npu0".into() })?;
    wait_until("the device gone", || !provider.function.dir().exists())?;
    all_is_dead(&buffers, &provider)?;
    ctx.host(HostOp::DeviceAdd { id: "npu0".into() })?;
    let device = ctx.npu(0)?;
    let is_back = || {
        Function::of(device).is_ok_and(|function| function.bar(2).is_ok_and(|bar| bar.start != 0))
    };
    wait_until("the device back", is_back)?;
    a_new_provider_works(ctx, &buffers, &provider.node)
}

/// R10: a child that inherited the mapping gets the signal as well, and its own event.
fn a_child_is_told_too(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both_backings(&provider)?;
    let (ready, go) = (Event::new()?, Event::new()?);
    let child = Child::start(|| {
        for (_, map, _) in &buffers {
            ensure!(map.load(2 * GIB - 8) == Ok(2));
        }
        signal(&ready)?;
        wait_until("the parent", || go.take().is_ok_and(|count| count == 1))?;
        all_is_dead_silently(&buffers)
    })?;
    wait_until("the child", || ready.take().is_ok_and(|count| count == 1))?;
    for (buffer, ..) in &buffers {
        provider.node.revoke(buffer)?;
    }
    signal(&go)?;
    child.join()?;
    all_is_dead_silently(&buffers)?;
    // And one that is made afterwards.
    Child::start(|| all_is_dead_silently(&buffers))?.join()
}

fn signal(event: &Event) -> Result<()> {
    ensure!(nix::unistd::write(&event.0, &1u64.to_ne_bytes())? == 8);
    Ok(())
}
