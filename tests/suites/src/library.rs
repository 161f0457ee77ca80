// SPDX-License-Identifier: MIT OR Apache-2.0

//! The safe crate on the module itself: what it promises about devices, buffers and mappings.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use barbuf::{
    Access, Alignment, Backing, Buffer, Cache, Control, Device, Direction, ErrorKind, Interest,
    Kind, Origin, PageSize, Reason, RouteKind, State, Watch,
};
use nix::libc;

use crate::kit::pci::Function;
use crate::kit::process::{PROMPT, scaled};
use crate::kit::{GIB, MIB, PAGE};
use crate::revoke::udmabuf;
use crate::support::{Ctx, Suite, bars_of, ensure_eq, test};

pub(crate) const SUITE: Suite = Suite {
    name: "library",
    tests: &[
        test!(a_device_tells_what_it_has),
        test!(mappings_get_the_largest_pages).timeout(60),
        test!(what_is_written_arrives).timeout(60),
        test!(a_read_only_buffer_is_read_only),
        test!(revocation_is_an_event_and_an_error).timeout(60),
        test!(unbinding_ends_copies_with_an_error).timeout(60),
        test!(adopted_memory_takes_file_io).timeout(60),
        test!(other_drivers_buffers_are_told_apart),
        test!(names_fences_and_sync_files),
        test!(refusals_say_what_to_do),
        test!(routes_to_a_buffer_are_told).on(&["npu-cmb", "no-route"]),
    ],
};

/// The NPU as a provider of the crate, and what gives it back.
pub(crate) fn npu(ctx: &Ctx) -> Result<(Device, crate::kit::pci::Provider)> {
    let provider = crate::kit::pci::Provider::bind(ctx.npu(0)?)?;
    Ok((Device::open(provider.bdf())?, provider))
}

fn a_device_tells_what_it_has(ctx: &Ctx) -> Result<()> {
    ensure!(Device::paths()?.is_empty(), "there is no provider yet");
    let error = Device::open("0000:00:00.0")
        .err()
        .context("a host bridge is no provider")?;
    ensure_eq!(error.errno(), Some(libc::ENOENT));
    let (device, provider) = npu(ctx)?;
    ensure_eq!(
        Device::paths()?,
        [std::path::PathBuf::from(provider.function.node_path())]
    );
    let info = device.info()?;
    ensure_eq!(
        (info.name.as_str(), info.kind),
        (provider.bdf(), Kind::Bound)
    );
    ensure!(info.capabilities.page_backing());
    ensure_eq!(info.capabilities.largest_page(), PageSize::Size1G);
    let region = info.roomiest().context("a region")?;
    let bars = bars_of(&provider.function.dir())?;
    let all = bars.iter().map(|bar| bar.len).max().context("a BAR")?;
    ensure_eq!((region.length, region.free), (all, all));
    ensure_eq!(region.backings, [Backing::Pfn, Backing::Page]);
    ensure_eq!(region.caches, [Cache::Uncached, Cache::WriteCombining]);
    let buffer = device.export().region(region.index).any(GIB).build()?;
    ensure_eq!(
        device.info()?.roomiest().map(|region| region.free),
        Some(all - GIB)
    );

    let query = device.query(&buffer)?;
    ensure_eq!(Control::open()?.query(&buffer)?, query);
    ensure_eq!(buffer.query()?, query);
    ensure_eq!((query.state, query.generation), (State::Live, 1));
    ensure_eq!((query.size, buffer.size()?), (GIB, GIB));
    ensure_eq!(
        query.ranges.first().map(|range| range.start),
        buffer.place()
    );
    ensure_eq!(Some(query.cookie), buffer.cookie());
    ensure_eq!(buffer.origin()?, Origin::Barbuf(Box::new(query)));
    Ok(())
}

/// Auto is enough for pages of 1 GiB, for whoever has exported it and for whoever has only its
/// descriptor.
fn mappings_get_the_largest_pages(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    for backing in [Backing::Pfn, Backing::Page] {
        let exported = device.export().any(4 * GIB).backing(backing).build()?;
        let fd = std::os::fd::OwnedFd::from(exported.try_clone()?);
        let imported = Buffer::import(fd)?;
        for buffer in [&exported, &imported] {
            let before = buffer.query()?.faults;
            let map = buffer.map().populate(true).build()?;
            let query = buffer.query()?;
            let faults = query.faults;
            ensure!(
                (faults.of_2m, faults.of_4k) == (0, 0) && faults.of_1g == before.of_1g + 4,
                "{backing}: {before:?}, then {faults:?}"
            );
            ensure_eq!((query.mappings, query.mapped_bytes), (1, 4 * GIB));
            drop(map);
        }
        // A part in the middle, from an offset that is no multiple of 1 GiB.
        if backing == Backing::Pfn {
            let before = exported.query()?.faults;
            let range = GIB - 2 * MIB..2 * GIB + 4 * MIB;
            let map = exported.map().range(range).populate(true).build()?;
            let after = exported.query()?.faults;
            ensure_eq!(after.of_1g - before.of_1g, 1);
            ensure_eq!((after.of_2m - before.of_2m, after.of_4k), (3, 0));
            drop(map);
            let map = exported.map().alignment(Alignment::Anywhere).build()?;
            map.read_u64(0)?;
        }
        ensure_eq!(exported.query()?.mappings, 0);
    }
    Ok(())
}

/// The host sees what the accesses have done, through whatever cache mode.
fn what_is_written_arrives(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    for cache in [Cache::Uncached, Cache::WriteCombining] {
        let buffer = device.export().any(4 * MIB).cache(cache).build()?;
        let place = buffer.place().context("a place")?;
        let map = buffer.map().build()?;
        let bytes: Vec<u8> = (0..8000u32).map(|n| (n * 7 + 3) as u8).collect();
        let access = buffer.cpu_access(Direction::Write)?;
        map.fill(0, 64 << 10, 0x11)?;
        map.write_from(4093, &bytes)?;
        map.write_u16(30_000, 0xbeef)?;
        map.write_u64(30_008, 0x0123_4567_89ab_cdef)?;
        map.copy_to(4093, &map, 40_001, bytes.len())?;
        access.finish()?;
        ensure_eq!(ctx.host_read("npu0", place + 4092, 2)?, [0x11, bytes[0]]);
        for (at, len) in [(4093, 1000), (40_001, 1000), (40_001 + 7000, 1000)] {
            let from = (at - if at < 40_000 { 4093 } else { 40_001 }) as usize;
            let found = ctx.host_read("npu0", place + at, len)?;
            ensure!(found == bytes[from..from + len], "{cache}: at {at}");
        }
        ensure_eq!(ctx.host_read("npu0", place + 30_000, 2)?, [0xef, 0xbe]);
        ctx.host_write("npu0", place + 100, b"from the host")?;
        let access = buffer.cpu_access(Direction::Read)?;
        ensure_eq!(map.read_to_vec(100, 13)?, b"from the host");
        access.finish()?;
    }
    Ok(())
}

fn a_read_only_buffer_is_read_only(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    let export = device.export().any(PAGE).access(Access::ReadOnly);
    let exported = export.build()?;
    let imported = Buffer::import(exported.try_clone()?)?;
    for buffer in [exported, imported] {
        let map = buffer.map().build()?;
        ensure_eq!(map.access(), Access::ReadOnly);
        map.read_u8(0)?;
        let error = buffer.map().access(Access::ReadWrite).build().err();
        ensure_eq!(error.map(|e| e.kind()), Some(ErrorKind::ReadOnly));
    }
    Ok(())
}

fn revocation_is_an_event_and_an_error(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    for backing in [Backing::Pfn, Backing::Page] {
        let watch = Watch::new()?;
        let export = device.export().any(2 * GIB).backing(backing);
        let buffer = export.watch(&watch).build()?;
        let map = buffer.map().populate(true).build()?;
        ensure!(!watch.is_revoked()?);
        device.revoke(&buffer)?;
        ensure!(watch.is_revoked()?, "no event");
        let mut bytes = vec![0; 100];
        for (what, result) in [
            ("read", map.read_u32(4).map(drop)),
            ("write", map.write_u8(GIB as usize, 1)),
            ("read_into", map.read_into(1, &mut bytes)),
            ("write_from", map.write_from(1, &bytes)),
            ("fill", map.fill(0, map.len(), 0)),
            ("copy_to", map.copy_to(0, &map, 500, 100)),
            ("map", buffer.map().build().map(drop)),
            ("revoke", device.revoke(&buffer)),
        ] {
            let error = result.err().with_context(|| format!("{what} worked"))?;
            ensure!(error.is_revoked(), "{what}: {error}");
        }
        let query = buffer.query()?;
        ensure_eq!((query.state, query.generation), (State::Revoked, 2));
        ensure_eq!(buffer.id()?.generation, 2);
    }
    Ok(())
}

/// The device goes while threads copy: each gets an error, and none a signal.
fn unbinding_ends_copies_with_an_error(ctx: &Ctx) -> Result<()> {
    let (device, provider) = npu(ctx)?;
    let watch = Watch::new()?;
    let buffer = device.export().any(GIB).watch(&watch).build()?;
    let map = buffer.map().build()?;
    let (copies, unbound) = (AtomicU64::new(0), AtomicBool::new(false));
    let errors = std::thread::scope(|scope| {
        let copy = |writes: bool| {
            let mut bytes = vec![7; 64 << 10];
            loop {
                let result = match writes {
                    true => map.write_from(3, &bytes),
                    false => map.read_into(3, &mut bytes),
                };
                match result {
                    Ok(()) => drop(copies.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => return error,
                }
            }
        };
        let threads = [false, true].map(|writes| scope.spawn(move || copy(writes)));
        while copies.load(Ordering::Relaxed) < 20 {
            std::thread::yield_now();
        }
        let result = provider.function.unbind();
        unbound.store(true, Ordering::Release);
        let errors = threads.map(|thread| thread.join());
        result.map(|()| errors)
    })?;
    for error in errors {
        let error = error.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        ensure!(error.is_revoked(), "{error}");
    }
    ensure!(watch.wait(Some(scaled(PROMPT)))?, "no event");
    for result in [
        device.info().map(drop),
        device.export().any(PAGE).build().map(drop),
    ] {
        let error = result.err().context("a provider that has gone answers")?;
        ensure!(error.is_revoked() && error.hint().is_some(), "{error}");
    }
    Ok(())
}

/// The drive's own memory, through its own driver, with struct pages.
fn adopted_memory_takes_file_io(ctx: &Ctx) -> Result<()> {
    let function = Function::of(ctx.nvme(0)?)?;
    let control = Control::open()?;
    control.adopt(&function.bdf)?;
    let result = (|| {
        let again = control
            .adopt(&function.bdf)
            .err()
            .context("adopted twice")?;
        ensure_eq!(again.errno(), Some(libc::EEXIST));
        let device = Device::open(&function.bdf)?;
        let info = device.info()?;
        ensure_eq!(info.kind, Kind::Adopted);
        let region = info.roomiest().context("a region")?;
        ensure!(region.pool && region.memory_only);
        let buffer = device
            .export()
            .any(4 * MIB)
            .backing(Backing::Page)
            .build()?;
        let map = buffer.map().build()?;
        let disk = crate::kit::drive::block_device(ctx.nvme(1)?)?;
        let disk = crate::kit::drive::open_direct(&disk)?;
        let got = crate::kit::drive::read_into(&disk, map.as_mut_ptr(), MIB, 0);
        ensure_eq!(got, Ok(MIB));
        let mut plain = crate::kit::drive::Aligned::new(MIB)?;
        let got = crate::kit::drive::read_into(&disk, plain.bytes_mut().as_mut_ptr(), MIB, 0);
        ensure_eq!(got, Ok(MIB));
        ensure!(
            map.read_to_vec(0, MIB as usize)? == plain.bytes(),
            "another megabyte"
        );
        drop((map, buffer));
        Ok(())
    })();
    control.release(&function.bdf)?;
    let again = control
        .release(&function.bdf)
        .err()
        .context("released twice")?;
    ensure_eq!(again.errno(), Some(libc::ENODEV));
    result
}

fn other_drivers_buffers_are_told_apart(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    let ours = device.export().any(PAGE).build()?;
    let foreign = Buffer::import(udmabuf()?)?;
    let Origin::Foreign(info) = foreign.origin()? else {
        anyhow::bail!("a udmabuf is ours")
    };
    ensure_eq!((info.exporter.as_str(), info.size), ("udmabuf", PAGE));
    ensure_eq!((foreign.cookie(), foreign.largest_page()), (None, None));
    let error = foreign.query().err().context("QUERY of a udmabuf")?;
    ensure_eq!(error.kind(), ErrorKind::NotOurs);
    // It is a dma-buf all the same.
    let map = foreign.map().build()?;
    let access = foreign.cpu_access(Direction::ReadWrite)?;
    map.write_u32(8, 99)?;
    ensure_eq!(map.read_u32(8)?, 99);
    access.finish()?;

    let twin = ours.try_clone()?;
    ensure_eq!(ours.id()?, twin.id()?);
    ensure!(ours.id()? != foreign.id()?);
    ensure_eq!((ours.id()?.generation, foreign.id()?.generation), (1, 0));
    let error = Buffer::import(std::fs::File::open("/dev/null")?).err();
    ensure_eq!(error.map(|e| e.kind()), Some(ErrorKind::NotDmaBuf));
    Ok(())
}

fn names_fences_and_sync_files(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    let buffer = device.export().any(PAGE).build()?;
    buffer.set_name("weights of layer 1")?;
    let info = buffer.fdinfo()?;
    ensure_eq!(
        (info.exporter.as_str(), info.name.as_deref(), info.size),
        ("barbuf", Some("weights of layer 1"), PAGE)
    );
    ensure_eq!(
        buffer.set_name(&"x".repeat(32)).err().map(|e| e.kind()),
        Some(ErrorKind::Invalid)
    );
    // No device has put a fence on it.
    for interest in [Interest::Readable, Interest::Writable] {
        ensure!(buffer.poll(interest, Some(Duration::ZERO))?, "{interest:?}");
    }
    let fence = buffer.export_sync_file(Direction::ReadWrite)?;
    ensure!(
        Watch::from(fence.try_clone()?).wait(Some(Duration::ZERO))?,
        "an unsignalled fence"
    );
    buffer.import_sync_file(Direction::Write, &fence)?;
    ensure!(buffer.poll(Interest::Writable, Some(scaled(PROMPT)))?);
    let error = buffer.import_sync_file(Direction::Read, &buffer).err();
    ensure_eq!(error.and_then(|e| e.errno()), Some(libc::EINVAL));
    Ok(())
}

fn refusals_say_what_to_do(ctx: &Ctx) -> Result<()> {
    let (device, _provider) = npu(ctx)?;
    let held = device.export().range(0..PAGE).build()?;
    let refusals = [
        (device.export().range(0..PAGE), libc::EBUSY),
        (device.export().any(33 * GIB), libc::ENOSPC),
        (device.export().any(PAGE + 1), libc::EINVAL),
        (device.export().range(32 * GIB..33 * GIB), libc::EINVAL),
        (device.export().region(7).any(PAGE), libc::EINVAL),
    ];
    for (export, errno) in refusals {
        let what = format!("{export:?}");
        let error = export.build().err().context(what)?;
        ensure_eq!(error.errno(), Some(errno));
        ensure!(error.hint().is_some(), "{error}");
    }
    let control = Device::open_path("/dev/barbuf/control")?;
    let error = control.info().err().context("INFO of the control node")?;
    ensure_eq!(error.errno(), Some(libc::ENOTTY));
    drop(held);
    Ok(())
}

/// Reachable, not reachable and why, no such function; and a buffer that is not the provider's.
fn routes_to_a_buffer_are_told(ctx: &Ctx) -> Result<()> {
    let (device, provider) = npu(ctx)?;
    let buffer = device.export().any(MIB).build()?;
    let drive = Function::of(ctx.nvme(0)?)?.bdf;
    let route = device.route_to(&buffer, &drive)?;
    if ctx.topology().name == "no-route" {
        ensure_eq!(
            (route.kind, route.reason),
            (RouteKind::None, Reason::HostBridge)
        );
        ensure!(!route.is_good() && route.distance == 0, "{route:?}");
    } else {
        ensure_eq!(
            (route.kind, route.reason),
            (RouteKind::Switch, Reason::None)
        );
        ensure!(route.is_good() && route.distance == 4, "{route:?}");
    }
    // nvme is its driver.
    ensure_eq!((route.dma_mask, route.iommu), (Some(u64::MAX), false));
    // The same as for the region, and with a shorter address.
    let region = device.info()?.roomiest().context("a region")?.index;
    ensure_eq!(device.route(region, &drive)?, route);
    ensure_eq!(device.route_to(&buffer, &drive["0000:".len()..])?, route);
    let nobody = device.route_to(&buffer, "ffff:ff:1f.7")?;
    ensure_eq!(
        (nobody.kind, nobody.reason),
        (RouteKind::None, Reason::NoDevice)
    );
    ensure!(!nobody.is_good() && nobody.dma_mask.is_none(), "{nobody:?}");

    let error = device.route_to(udmabuf()?, &drive).err();
    ensure_eq!(error.and_then(|error| error.errno()), Some(libc::ENODEV));
    provider.function.unbind()?;
    let error = device.route_to(&buffer, &drive).err();
    ensure_eq!(error.and_then(|error| error.errno()), Some(libc::ENODEV));
    Ok(())
}
