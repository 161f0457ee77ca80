// SPDX-License-Identifier: MIT OR Apache-2.0

//! An NVMe drive's controller memory buffer, adopted: its driver keeps the drive, and its pool
//! gives the memory.

use crate::export::main_region;
use crate::kit::drive::{Aligned, block_device, open_direct, read_into, write_from};
use crate::kit::node::name;
use crate::kit::pattern;
use crate::kit::pci::{Function, wait_until};
use crate::kit::prelude::*;
use crate::kit::process::{Child, Event, PROMPT, within};
use crate::odirect::prepared_drive;

use barbuf_guest::protocol::HostOp;
use barbuf_guest::sysfs;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use std::path::Path;
use std::thread::sleep;
use std::time::Instant;

pub(crate) const SUITE: Suite = Suite {
    name: "adopt",
    tests: &[
        test!(an_adopted_drive_offers_its_pool),
        test!(places_are_aligned_for_large_leaves),
        test!(zeroed_before_anybody_sees_it),
        test!(zeroing_can_be_killed).timeout(120),
        test!(another_drive_reads_into_the_pool),
        test!(the_whole_pool_and_not_a_byte_more).timeout(60),
        test!(release_gives_everything_back),
        test!(unbinding_the_owner_with_live_buffers).timeout(60),
        test!(removing_the_owner_with_live_buffers).timeout(60),
        test!(unplugging_the_owner_with_live_buffers)
            .hotplug()
            .timeout(120),
        test!(adopt_and_release_name_each_error),
    ],
};

/// The bytes that the kernel's pool has left.
pub(crate) fn available(function: &Function) -> Result<u64> {
    Ok(sysfs::read(function.dir().join("p2pmem/available"))?.parse()?)
}

/// The drive works: what is written at 1 MiB is read back, without any of our memory.
pub(crate) fn the_drive_works(ctx: &Ctx, seed: u64) -> Result<()> {
    const LEN: u64 = 256 * KIB;
    let drive = open_direct(&block_device(ctx.nvme(0)?)?)?;
    let mut memory = Aligned::new(LEN)?;
    memory
        .bytes_mut()
        .copy_from_slice(&pattern::bytes(seed, 0, LEN as usize));
    ensure!(
        write_from(&drive, memory.as_ptr(), LEN, MIB) == Ok(LEN),
        "writing to the drive"
    );
    let back = Aligned::new(LEN)?;
    ensure!(
        read_into(&drive, back.as_ptr(), LEN, MIB) == Ok(LEN),
        "reading from the drive"
    );
    ensure!(
        back.bytes() == memory.bytes(),
        "the drive returns other bytes"
    );
    Ok(())
}

/// INFO tells of one region, the pool, and the driver keeps the drive.
fn an_adopted_drive_offers_its_pool(ctx: &Ctx) -> Result<()> {
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    ensure!(
        provider.function.driver().as_deref() == Some("nvme"),
        "the drive has lost its driver"
    );
    let info = provider.node.info()?;
    ensure!(info.raw.out_kind == BARBUF_KIND_ADOPTED && name(&info.raw.out_name) == provider.bdf());
    let region = main_region(&info)?;
    ensure!(info.regions.len() == 1, "{:?}", info.regions);
    ensure!(
        region.flags == BARBUF_REGION_MEMORY_ONLY | BARBUF_REGION_POOL,
        "{region:?}"
    );
    let size: u64 = sysfs::read(provider.function.dir().join("p2pmem/size"))?.parse()?;
    let bar = provider.function.bar(region.bar as usize)?;
    ensure!(
        region.length == size && region.offset + region.length <= bar.len,
        "{region:?}, {bar:?}"
    );
    ensure!(
        region.phys_class == (bar.start + region.offset) % GIB,
        "{region:?}, {bar:?}"
    );
    let available = available(&provider.function)?;
    ensure!(
        region.free == available,
        "{} bytes free, {available} in the pool",
        region.free
    );
    the_drive_works(ctx, 1)
}

/// Where the pool has room for it, a buffer begins at a multiple of 2 MiB, and is mapped with such
/// leaves.
fn places_are_aligned_for_large_leaves(ctx: &Ctx) -> Result<()> {
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    // Small ones in between spoil the natural alignment of what follows.
    let mut small = Vec::new();
    for _ in 0..4 {
        small.push(provider.node.export(&Export::any(3 * PAGE))?);
        let buffer = provider.node.export(&Export::any(4 * MIB))?;
        ensure!(
            buffer.raw.out_phys_class % (2 * MIB) == 0,
            "{:?}",
            buffer.raw
        );
        ensure!(
            buffer.raw.out_page_shift == BARBUF_PAGE_SHIFT_2M,
            "{:?}",
            buffer.raw
        );
        let map = Mapping::whole(&buffer)?;
        fill(&map, 0, 4 * MIB, 2)?;
        verify(&map, 0, 4 * MIB, 2)?;
        let leaves = provider.node.query(&buffer)?.leaves();
        ensure!(
            leaves
                == Leaves {
                    of_4k: 0,
                    of_2m: 2,
                    of_1g: 0
                },
            "{leaves:?}"
        );
        small.push(buffer);
    }
    Ok(())
}

/// ZERO: the next owner finds nothing of the last one.
fn zeroed_before_anybody_sees_it(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 4 * MIB;
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let wanted = Export::any(LEN).backing(backing);
        let first = provider.node.export(&wanted)?;
        fill(&Mapping::whole(&first)?, 0, LEN, 3)?;
        let place = first.ranges[0];
        drop(first);
        let next = provider.node.export(&wanted.flag(BARBUF_EXPORT_ZERO))?;
        ensure!(
            next.ranges[0] == place,
            "the pool gave other memory, so that nothing is proven"
        );
        let map = Mapping::whole(&next)?;
        for at in (0..LEN).step_by(8) {
            ensure!(
                map.load(at) == Ok(0),
                "backing {backing}: byte {at:#x} is not zero"
            );
        }
    }
    Ok(())
}

/// Who is killed while its bytes are filled with zero does not keep anybody waiting until they all
/// are: the last ones are as they were. None of them stays taken.
fn zeroing_can_be_killed(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 8 * MIB;
    const MARK: u64 = 0x0ddb_a115_0ddb_a115;
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let free = main_region(&provider.node.info()?)?.free;
    let plain = Export::any(LEN);
    let zeroed = plain.clone().flag(BARBUF_EXPORT_ZERO);
    let start = Instant::now();
    drop(provider.node.export(&zeroed)?);
    let whole = start.elapsed();
    let mut begun = 0;
    for round in 0..6 {
        let buffer = provider.node.export(&plain)?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, MARK) == Ok(()) && map.store(LEN - 8, MARK) == Ok(()));
        let place = buffer.raw.out_phys_class;
        drop((map, buffer));

        let ready = Event::new()?;
        let mut child = Child::start(|| {
            nix::unistd::write(&ready.0, &1u64.to_ne_bytes())?;
            drop(provider.node.export(&zeroed)?);
            Ok(())
        })?;
        wait_until("the child", || ready.take().is_ok_and(|count| count == 1))?;
        sleep(whole / 8);
        child.signal(Signal::SIGKILL)?;
        let status = child.wait()?;
        ensure!(
            matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
            "it had ended before: {status:?}"
        );
        let left = main_region(&provider.node.info()?)?;
        ensure!(
            (left.free, left.nr_buffers) == (free, 0),
            "{left:?} of {free} bytes"
        );

        let buffer = provider.node.export(&plain)?;
        ensure_eq!(buffer.raw.out_phys_class, place);
        let map = Mapping::whole(&buffer)?;
        ensure!(
            map.load(LEN - 8) == Ok(MARK),
            "round {round}: the last bytes are zero, so that nothing was cut short"
        );
        begun += u32::from(map.load(0) == Ok(0));
    }
    // On a busy machine the signal can come before the first byte is written, but not each time.
    ensure!(begun > 0, "nothing was ever being filled");
    Ok(())
}

/// Page backing of the pool: the other drive reads straight into the controller memory buffer, and
/// writes from it.
fn another_drive_reads_into_the_pool(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = MIB;
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let buffer = provider.node.export(&Export::any(LEN).page())?;
    let map = Mapping::whole(&buffer)?;
    // Its own drive, and with the switch in between the other one.
    for id in [0, 1] {
        let path = block_device(ctx.nvme(id)?)?;
        if id == 1 {
            // The other drive has a file system: only read from it.
            let drive = open_direct(&path)?;
            let there = Aligned::new(LEN)?;
            ensure!(
                read_into(&drive, there.as_ptr(), LEN, 0) == Ok(LEN),
                "reading in the ordinary way"
            );
            ensure!(
                read_into(&drive, map.at(0), LEN, 0) == Ok(LEN),
                "reading into the pool"
            );
            for (at, word) in (0..).step_by(8).zip(there.bytes().chunks_exact(8)) {
                let word = u64::from_le_bytes(word.try_into()?);
                ensure!(
                    map.load(at) == Ok(word),
                    "byte {at:#x} from the other drive"
                );
            }
            continue;
        }
        let drive = prepared_drive(&path, 5, LEN)?;
        ensure!(
            read_into(&drive, map.at(0), LEN, 0) == Ok(LEN),
            "reading into the pool"
        );
        verify(&map, 0, LEN, 5)?;
        fill(&map, 0, LEN, 6)?;
        ensure!(
            write_from(&drive, map.at(0), LEN, LEN) == Ok(LEN),
            "writing from the pool"
        );
        let back = Aligned::new(LEN)?;
        ensure!(read_into(&drive, back.as_ptr(), LEN, LEN) == Ok(LEN));
        ensure!(
            back.bytes() == pattern::bytes(6, 0, LEN as usize),
            "the drive has other bytes"
        );
    }
    Ok(())
}

/// R37: all of the pool can be had and written over, the driver's own queues in the same BAR are
/// not among it, the next export is ENOSPC, and the pool is whole again afterwards.
fn the_whole_pool_and_not_a_byte_more(ctx: &Ctx) -> Result<()> {
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let before = available(&provider.function)?;
    let mut buffers = Vec::new();
    let mut size = 8 * MIB;
    while size >= PAGE {
        match provider.node.export(&Export::any(size)) {
            Ok(buffer) => buffers.push(buffer),
            Err(Errno::ENOSPC) => size /= 2,
            Err(errno) => bail!("{size:#x} bytes: {errno}"),
        }
    }
    let had: u64 = buffers.iter().map(Buffer::size).sum();
    ensure!(
        had == before && available(&provider.function)? == 0,
        "{had} of {before} bytes"
    );
    ensure!(main_region(&provider.node.info()?)?.free == 0);
    let mut ranges: Vec<_> = buffers.iter().map(|buffer| buffer.ranges[0]).collect();
    ranges.sort_by_key(|range| range.offset);
    ensure!(
        ranges
            .windows(2)
            .all(|pair| pair[0].offset + pair[0].length <= pair[1].offset),
        "{ranges:x?}"
    );
    for buffer in &buffers {
        // Over a submission queue this would be the end of the drive.
        let map = Mapping::whole(buffer)?;
        for at in (0..buffer.size()).step_by(64) {
            ensure!(map.store(at, u64::MAX) == Ok(()));
        }
    }
    the_drive_works(ctx, 2)?;
    drop(buffers);
    wait_until("the pool whole again", || {
        available(&provider.function).is_ok_and(|bytes| bytes == before)
    })
}

/// A buffer of each backing out of the pool, mapped and touched.
fn both_backings(provider: &Provider) -> Result<Vec<(Buffer, Mapping, Event)>> {
    [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE]
        .into_iter()
        .map(|backing| {
            let event = Event::new()?;
            let wanted = Export::any(4 * MIB)
                .backing(backing)
                .eventfd(event.number());
            let buffer = provider.node.export(&wanted)?;
            let map = Mapping::whole(&buffer)?;
            ensure!(map.store(0, 1) == Ok(()) && map.store(4 * MIB - 8, 2) == Ok(()));
            Ok((buffer, map, event))
        })
        .collect()
}

fn all_are_dead(buffers: &[(Buffer, Mapping, Event)], node: &Node) -> Result<()> {
    for (buffer, map, event) in buffers {
        for at in [0, 2 * MIB, 4 * MIB - 8] {
            ensure!(
                map.load(at) == Err(Fault::bus(map.at(at))),
                "byte {at:#x}: {:?}",
                map.load(at)
            );
        }
        ensure!(event.take()? == 1, "the event");
        let query = Node::control()?.query(buffer)?.raw;
        ensure!(query.out_state == BARBUF_STATE_REVOKED, "{query:?}");
        ensure!(
            node.query(buffer).map(drop) == Err(Errno::ENODEV),
            "the old node answers"
        );
    }
    Ok(())
}

/// RELEASE revokes, empties and removes the node; the drive goes on.
fn release_gives_everything_back(ctx: &Ctx) -> Result<()> {
    let function = Function::of(ctx.nvme(0)?)?;
    let before = available(&function)?;
    for round in 0..5 {
        let provider = Provider::adopt(ctx.nvme(0)?)?;
        let buffers = both_backings(&provider)?;
        within(PROMPT, "RELEASE", || {
            Node::control()?.release(provider.bdf()).context("RELEASE")
        })??;
        all_are_dead(&buffers, &provider.node)?;
        ensure!(
            !Path::new(&function.node_path()).exists(),
            "the node is still there"
        );
        ensure!(
            available(&function)? == before,
            "{} of {before} bytes are back",
            available(&function)?
        );
        let again = Node::control()?.release(provider.bdf());
        ensure!(again == Err(Errno::ENODEV), "a second RELEASE: {again:?}");
        the_drive_works(ctx, round)?;
    }
    Ok(())
}

/// The owner's driver comes back and publishes its pool.
pub(crate) fn the_drive_is_back(ctx: &Ctx) -> Result<()> {
    let device = ctx.nvme(0)?;
    let is_back = || {
        let function = Function::of(device).ok();
        let published = |f: Function| {
            sysfs::read(f.dir().join("p2pmem/published")).is_ok_and(|text| text == "1")
        };
        function.is_some_and(published)
    };
    wait_until("the pool published again", is_back)?;
    the_drive_works(ctx, 9)?;
    let provider = Provider::adopt(device)?;
    both_backings(&provider).map(drop)
}

/// The owner's driver is unbound under live buffers: it neither waits for their holders nor meets
/// allocated chunks, which would be a BUG.
fn unbinding_the_owner_with_live_buffers(ctx: &Ctx) -> Result<()> {
    for _ in 0..3 {
        let provider = Provider::adopt(ctx.nvme(0)?)?;
        let buffers = both_backings(&provider)?;
        within(PROMPT, "unbind", || provider.function.unbind())??;
        all_are_dead(&buffers, &provider.node)?;
        ensure!(
            !Path::new(&provider.function.node_path()).exists(),
            "the node is still there"
        );
        provider.function.restore()?;
        the_drive_is_back(ctx)?;
    }
    Ok(())
}

/// The drive is pulled under live buffers.
fn unplugging_the_owner_with_live_buffers(ctx: &Ctx) -> Result<()> {
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let buffers = both_backings(&provider)?;
    ctx.host(HostOp::DeviceDel { id: "nvme0".into() })?;
    wait_until("the drive gone", || !provider.function.dir().exists())?;
    all_are_dead(&buffers, &provider.node)?;
    ctx.host(HostOp::DeviceAdd { id: "nvme0".into() })?;
    the_drive_is_back(ctx)
}

/// The drive is removed through sysfs under live buffers, and found again.
fn removing_the_owner_with_live_buffers(ctx: &Ctx) -> Result<()> {
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let buffers = both_backings(&provider)?;
    within(PROMPT, "remove", || provider.function.remove())??;
    all_are_dead(&buffers, &provider.node)?;
    crate::kit::pci::rescan()?;
    the_drive_is_back(ctx)
}

/// Each errno of ADOPT and RELEASE.
fn adopt_and_release_name_each_error(ctx: &Ctx) -> Result<()> {
    let control = Node::control()?;
    let function = |device| Function::of(device).map(|function| function.bdf);
    let (with, without) = (function(ctx.nvme(0)?)?, function(ctx.nvme(1)?)?);
    let npu = function(ctx.npu(0)?)?;
    let adopt = |bdf: &str| control.adopt(bdf);
    ensure!(
        adopt("ffff:ff:1f.7") == Err(Errno::ENODEV),
        "no such function"
    );
    ensure!(adopt(&npu) == Err(Errno::ENODEV), "no driver is bound");
    ensure!(adopt(&without) == Err(Errno::EOPNOTSUPP), "no p2pmem");
    ensure!(control.release(&with) == Err(Errno::ENODEV), "not adopted");
    for nonsense in [
        "",
        "nvme0",
        "0000:00:00",
        "0000:00:00.8",
        "0000:00:20.0",
        "0000:00:00.0 ",
        "00:00.0",
    ] {
        let answers = (adopt(nonsense), control.release(nonsense));
        ensure!(
            answers == (Err(Errno::EINVAL), Err(Errno::EINVAL)),
            "{nonsense:?}: {answers:?}"
        );
    }
    let raw = |change: &dyn Fn(&mut barbuf_adopt)| {
        let mut raw = barbuf_adopt::new();
        raw.name[..with.len()].copy_from_slice(with.as_bytes());
        change(&mut raw);
        // SAFETY: The structure lives.
        unsafe { control.raw_ioctl(ioctl::BARBUF_ADOPT.into(), &raw mut raw as u64) }
    };
    ensure!(raw(&|raw| raw.flags = 1) == Err(Errno::EINVAL), "a flag");
    ensure!(
        raw(&|raw| raw.name = [b'0'; 32]) == Err(Errno::EINVAL),
        "a name without end"
    );
    ensure!(
        raw(&|raw| raw.name[31] = 1) == Err(Errno::EINVAL),
        "something behind the name"
    );

    let provider = Provider::adopt(ctx.nvme(0)?)?;
    ensure!(adopt(&with) == Err(Errno::EEXIST), "adopted already");
    drop(provider);
    let bound = Provider::bind(ctx.npu(0)?)?;
    ensure!(adopt(bound.bdf()) == Err(Errno::EEXIST), "bound to barbuf");
    ensure!(
        control.release(bound.bdf()) == Err(Errno::ENODEV),
        "bound, not adopted"
    );
    Ok(())
}
