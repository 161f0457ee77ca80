// SPDX-License-Identifier: MIT OR Apache-2.0

//! Drivers that keep their device and register its memory: the in-kernel interface, as
//! tests/kmod/npu_sample.c uses it, and everything else that bound providers are tested with.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::hardware::Deaf;
use crate::kit::drive;
use crate::kit::pattern::word;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::process::{Child, PROMPT, drop_capability, within};
use crate::kit::vendor::{self, Counters, Loaded, Region, Sample, Wanted};
use crate::reset::reset;

/// A test of another suite, on what the sample driver registers.
macro_rules! again {
    ($module:ident::$name:ident) => {{
        fn body(ctx: &Ctx) -> Result<()> {
            vendor::instead(ctx, crate::$module::$name)
        }
        crate::support::Test::new(concat!(stringify!($module), "_", stringify!($name)), body)
    }};
}

pub(crate) const SUITE: Suite = Suite {
    name: "vendor",
    tests: &[
        test!(a_registered_region_is_memory_only),
        test!(regions_of_several_kinds),
        test!(each_registration_error).timeout(60),
        test!(the_driver_is_asked_and_told),
        test!(the_driver_refuses),
        test!(kernel_code_exports_and_revokes),
        test!(a_fault_waits_for_the_end_of_a_suspension),
        test!(a_waiting_fault_can_be_killed),
        test!(whatever_ends_the_buffer_ends_the_wait).timeout(60),
        test!(file_input_waits_too),
        test!(exports_wait_too),
        test!(a_thousand_suspensions).timeout(240),
        test!(resets_go_through_the_driver).timeout(60),
        test!(a_device_that_does_not_come_back).timeout(60),
        test!(unloading_the_driver_revokes).timeout(60),
        test!(unregistering_in_a_storm_of_faults).timeout(120),
        again!(map::largest_leaves_are_used).timeout(120),
        again!(map::one_fault_fills_its_neighbours),
        again!(map::a_window_inside_a_leaf_gets_smaller_leaves).timeout(60),
        again!(map::protection_follows_mprotect),
        again!(map::windows_agree_with_a_model).timeout(120),
        again!(map::another_backing_and_cache_mode_show_the_same_bytes).timeout(60),
        again!(map::the_host_sees_what_was_written).timeout(60),
        again!(cookie::the_node_maps_at_a_cookie),
        again!(vmops::munmap_inside_a_leaf).timeout(60),
        again!(vmops::mremap_moves_to_any_address).timeout(60),
        again!(vmops::fork_before_and_after_the_first_touch).timeout(60),
        again!(odirect::raw_drive_to_memory).timeout(60),
        again!(odirect::memory_to_raw_drive).timeout(60),
        again!(odirect::ext4_to_memory_and_back).timeout(120),
        again!(odirect::without_struct_pages_it_is_efault).timeout(60),
        again!(inflight::direct_io_in_flight_while_unbound).timeout(120),
        again!(revoke::revoke_takes_every_leaf).timeout(60),
        again!(revoke::revoke_leaves_others_alone),
        again!(revoke::closing_the_node_revokes_if_asked),
        again!(revoke::unbind_revokes).timeout(60),
        again!(revoke::rebind_with_old_descriptors_open).timeout(60),
        again!(revoke::removal_and_rescan).timeout(60),
        again!(revoke::hot_unplug).timeout(120),
        again!(races::faults_against_unbind).timeout(120),
        again!(reset::a_bus_reset_brings_everything_back).timeout(60),
        again!(reset::nobody_notices_a_reset_but_by_waiting).timeout(120),
        again!(reset::sleep_brings_everything_back).timeout(120),
    ],
};

/// How long something that waits is watched not to go on.
const A_WHILE: Duration = Duration::from_millis(300);

/// The sample driver, bound to the NPU. Dropped in this order.
struct Vendor {
    provider: Provider,
    sample: Sample,
    _loaded: Loaded,
}

impl Vendor {
    fn new(ctx: &Ctx) -> Result<Vendor> {
        let loaded = Loaded::new(ctx)?;
        let provider = Provider::register(ctx.npu(0)?)?;
        wait_until("/dev/npu_sample", || Path::new("/dev/npu_sample").exists())?;
        Ok(Vendor {
            provider,
            sample: Sample::open()?,
            _loaded: loaded,
        })
    }

    /// The node of the provider, after it has been registered anew.
    fn node(&self) -> Result<Node> {
        let path = self.provider.function.node_path();
        wait_until(&path, || Path::new(&path).exists())?;
        Node::open(&path)
    }

    /// A mapped buffer with one word in it.
    fn buffer(&self, backing: u32) -> Result<(Buffer, Mapping)> {
        let buffer = self
            .provider
            .node
            .export(&Export::any(GIB).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, word(4, 0)) == Ok(()));
        Ok((buffer, map))
    }

    fn state(&self, buffer: &Buffer) -> Result<(u32, u64)> {
        let raw = Node::control()?.query(buffer)?.raw;
        Ok((raw.out_state, raw.out_generation))
    }
}

fn a_registered_region_is_memory_only(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let info = vendor.provider.node.info()?;
    ensure_eq!(info.raw.out_kind, BARBUF_KIND_REGISTERED);
    ensure_eq!(info.regions.len(), 1);
    let region = &info.regions[0];
    ensure_eq!(
        region.flags,
        BARBUF_REGION_MEMORY_ONLY | BARBUF_REGION_PREFETCHABLE
    );
    ensure_eq!((region.backings, region.caches), (0b11, 0b11));
    ensure_eq!((region.page_shift, region.max_page_shift), (30, 30));
    let bar = vendor.provider.function.bar(2)?;
    ensure_eq!((region.offset, region.length), (0, bar.len));
    // The node alone is enough, and zeros can be asked for.
    let node = vendor.provider.reopen()?;
    Child::start(|| {
        const CAP_SYS_RAWIO: u32 = 17;
        drop_capability(CAP_SYS_RAWIO)?;
        for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
            let wanted = Export::at(0, GIB).backing(backing);
            let first = node.export(&wanted)?;
            ensure!(Mapping::whole(&first)?.store(8, 1) == Ok(()));
            drop(first);
        }
        let zeroed = node.export(&Export::at(0, 2 * MIB).flag(BARBUF_EXPORT_ZERO))?;
        ensure!(Mapping::whole(&zeroed)?.load(8) == Ok(0));
        Ok(())
    })?
    .join()
}

fn regions_of_several_kinds(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    vendor.sample.unregister()?;
    let registers = Region {
        flags: 0,
        caches: 1,
        ..Region::new(0, MIB)
    };
    let memory = Region {
        flags: vendor::MEMORY_ONLY,
        ..Region::new(GIB, GIB)
    };
    vendor.sample.register(&[registers, memory], true)?;
    let node = vendor.node()?;
    let info = node.info()?;
    let facts: Vec<_> = info
        .regions
        .iter()
        .map(|region| {
            (
                region.offset,
                region.length,
                region.flags,
                region.backings,
                region.caches,
            )
        })
        .collect();
    let flags = BARBUF_REGION_MEMORY_ONLY | BARBUF_REGION_PREFETCHABLE;
    ensure_eq!(
        facts,
        [(0, MIB, 0, 0b01, 0b01), (GIB, GIB, flags, 0b01, 0b11)]
    );
    let first = |export: Export| node.export(&export.with(|raw| raw.region = 0)).map(drop);
    ensure_eq!(
        first(Export::any(PAGE).flag(BARBUF_EXPORT_ZERO)),
        Err(Errno::EOPNOTSUPP)
    );
    ensure_eq!(
        first(Export::any(PAGE).cache(BARBUF_CACHE_WC)),
        Err(Errno::EOPNOTSUPP)
    );
    ensure_eq!(first(Export::any(PAGE)), Ok(()));
    Child::start(|| {
        drop_capability(17)?;
        ensure_eq!(first(Export::any(PAGE)), Err(Errno::EPERM));
        Ok(())
    })?
    .join()
}

/// Everything that a driver can get wrong, each with its errno and nothing left behind.
fn each_registration_error(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let sample = &vendor.sample;
    ensure_eq!(
        sample.register(&[Region::new(0, MIB)], true),
        Err(Errno::EALREADY)
    );
    sample.unregister()?;
    let good = Region::new(0, GIB);
    let bar = vendor.provider.function.bar(2)?;
    let cases: &[(&str, &[Region], Errno)] = &[
        ("no region", &[], Errno::EINVAL),
        (
            "an unknown flag",
            &[Region { flags: 4, ..good }],
            Errno::EINVAL,
        ),
        (
            "a reserved member",
            &[Region {
                reserved: 1,
                ..good
            }],
            Errno::EINVAL,
        ),
        (
            "no cache mode",
            &[Region { caches: 0, ..good }],
            Errno::EINVAL,
        ),
        (
            "an unknown cache mode",
            &[Region { caches: 5, ..good }],
            Errno::EINVAL,
        ),
        ("no length", &[Region::new(0, 0)], Errno::EINVAL),
        ("half a page", &[Region::new(0, 2048)], Errno::EINVAL),
        ("between pages", &[Region::new(2048, PAGE)], Errno::EINVAL),
        (
            "beyond the BAR",
            &[Region::new(bar.len, PAGE)],
            Errno::EINVAL,
        ),
        (
            "over the end",
            &[Region::new(bar.len - PAGE, 2 * PAGE)],
            Errno::EINVAL,
        ),
        (
            "wrapping around",
            &[Region::new(PAGE, 0u64.wrapping_sub(PAGE))],
            Errno::EINVAL,
        ),
        (
            "bytes twice",
            &[good, Region::new(GIB - PAGE, MIB)],
            Errno::EINVAL,
        ),
        (
            "a BAR that is not there",
            &[Region { bar: 1, ..good }],
            Errno::ENODEV,
        ),
        (
            "a BAR of half a page",
            &[Region {
                bar: 0,
                caches: 1,
                ..good
            }],
            Errno::ENODEV,
        ),
        (
            "the expansion ROM",
            &[Region { bar: 6, ..good }],
            Errno::ENODEV,
        ),
        ("too many", &[good; 25], Errno::EINVAL),
    ];
    for (what, regions, errno) in cases {
        let answer = sample.register(regions, true);
        ensure!(answer == Err(*errno), "{what}: {answer:?} and not {errno}");
        ensure!(
            !Path::new(&vendor.provider.function.node_path()).exists(),
            "{what}: a node"
        );
    }
    let unclaimed = sample.register(&[good], false);
    ensure!(
        unclaimed == Err(Errno::EACCES),
        "nobody has claimed the BAR: {unclaimed:?}"
    );
    sample.register(&[good], true)?;
    ensure!(vendor.node()?.export(&Export::any(GIB)).is_ok());
    Ok(())
}

/// Asked before the first buffer, told after the last one, whatever makes and ends them.
fn the_driver_is_asked_and_told(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let node = &vendor.provider.node;
    let is = |first_exports, last_releases, in_use| {
        let counters = vendor.sample.counters()?;
        let wanted = Counters {
            first_exports,
            last_releases,
            in_use,
            ..Counters::default()
        };
        ensure_eq!(counters, wanted);
        Ok(())
    };
    is(0, 0, 0)?;
    let one = node.export(&Export::at(0, GIB))?;
    let two = node.export(&Export::at(GIB, GIB))?;
    is(1, 0, 1)?;
    // An export that fails changes nothing while there are others.
    ensure!(node.export(&Export::at(0, GIB)).map(drop) == Err(Errno::EBUSY));
    let map = Mapping::whole(&one)?;
    drop((one, two));
    is(1, 0, 1).context("a mapping is left")?;
    drop(map);
    is(1, 1, 0)?;
    let three = node.export(&Export::at(0, GIB))?;
    is(2, 1, 1)?;
    node.revoke(&three)?;
    is(2, 2, 0).context("revoked, but not closed")?;
    let four = vendor.sample.export(Wanted {
        length: GIB,
        ..Wanted::default()
    })?;
    is(3, 2, 1).context("kernel code has exported")?;
    vendor.sample.revoke_all()?;
    is(3, 3, 0)?;
    drop((three, four));
    // One that fails as the only one is told about as well.
    let too_much = Export::any(64 * GIB);
    ensure!(node.export(&too_much).map(drop) == Err(Errno::ENOSPC));
    is(4, 4, 0)?;
    let _five = node.export(&Export::any(GIB))?;
    vendor.sample.unregister()?;
    is(5, 5, 0).context("unregistered")
}

fn the_driver_refuses(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let node = &vendor.provider.node;
    for errno in [Errno::EAGAIN, Errno::EIO] {
        vendor.sample.refuse(errno as i32)?;
        let answer = node.export(&Export::any(GIB)).map(drop);
        ensure!(answer == Err(Errno::ECONNREFUSED), "{answer:?}");
        let answer = vendor.sample.export(Wanted {
            length: GIB,
            ..Wanted::default()
        });
        ensure!(answer.map(drop) == Err(Errno::ECONNREFUSED));
    }
    let free = node.info()?.regions[0].free;
    ensure!(
        free == vendor.provider.function.bar(2)?.len,
        "bytes were lost: {free:#x} are free"
    );
    vendor.sample.refuse(0)?;
    let buffer = node.export(&Export::any(GIB))?;
    // Not asked again while there is one.
    vendor.sample.refuse(Errno::EIO as i32)?;
    ensure!(node.export(&Export::any(GIB)).is_ok());
    vendor.sample.refuse(0)?;
    drop(buffer);
    let counters = vendor.sample.counters()?;
    ensure_eq!(
        (
            counters.refusals,
            counters.first_exports,
            counters.last_releases
        ),
        (4, 1, 1)
    );
    Ok(())
}

fn kernel_code_exports_and_revokes(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (node, sample) = (&vendor.provider.node, &vendor.sample);
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let fd = sample.export(Wanted {
            offset: GIB,
            length: GIB,
            backing,
            ..Wanted::default()
        })?;
        let query = node.query(&fd)?;
        ensure_eq!(query.raw.out_kind, BARBUF_KIND_REGISTERED);
        ensure_eq!((query.raw.out_size, query.raw.out_backing), (GIB, backing));
        ensure_eq!(query.ranges[0].offset, GIB);
        let buffer = Buffer {
            raw: barbuf_export {
                out_size: GIB,
                out_cookie: query.raw.out_cookie,
                out_phys_class: query.raw.out_phys_class,
                out_page_shift: query.raw.out_page_shift,
                ..barbuf_export::new()
            },
            ranges: query.ranges,
            fd,
        };
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, 7) == Ok(()) && map.load(0) == Ok(7));
        ensure!(ctx.host_read("npu0", GIB, 1)? == [7]);
        let taken = sample.export(Wanted {
            offset: GIB,
            length: PAGE,
            ..Wanted::default()
        });
        ensure_eq!(taken.map(drop), Err(Errno::EBUSY));
        sample.revoke(buffer.number())?;
        ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
        ensure_eq!(sample.revoke(buffer.number()), Err(Errno::EBADFD));
    }
    let export = |wanted| sample.export(wanted).map(drop);
    let any = Wanted {
        flags: BARBUF_EXPORT_ANY,
        length: PAGE,
        ..Wanted::default()
    };
    ensure_eq!(export(any), Ok(()));
    ensure_eq!(
        export(Wanted {
            flags: BARBUF_EXPORT_ANY | BARBUF_EXPORT_ZERO,
            ..any
        }),
        Ok(())
    );
    ensure_eq!(
        export(Wanted {
            flags: BARBUF_EXPORT_REVOKE_ON_CLOSE,
            ..any
        }),
        Err(Errno::EINVAL)
    );
    ensure_eq!(
        export(Wanted {
            flags: 1 << 20,
            ..any
        }),
        Err(Errno::EINVAL)
    );
    ensure_eq!(export(Wanted { region: 1, ..any }), Err(Errno::EINVAL));
    ensure_eq!(export(Wanted { length: 0, ..any }), Err(Errno::EINVAL));
    ensure_eq!(
        export(Wanted {
            offset: PAGE,
            ..any
        }),
        Err(Errno::EINVAL)
    );
    // What is not this provider's is left alone.
    let other = Provider::adopt(ctx.nvme(0)?)?;
    let theirs = other.node.export(&Export::any(PAGE))?;
    ensure_eq!(sample.revoke(theirs.number()), Err(Errno::ENODEV));
    ensure_eq!(sample.revoke(node.as_raw_fd()), Err(Errno::EINVAL));
    ensure!(Mapping::whole(&theirs)?.load(0).is_ok());
    sample.suspend()?;
    ensure_eq!(export(any), Err(Errno::EAGAIN));
    sample.resume()?;
    ensure_eq!(export(any), Ok(()));
    Ok(())
}

/// A fault during a suspension neither fails nor holds up the rest of its process.
fn a_fault_waits_for_the_end_of_a_suspension(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let (buffer, map) = vendor.buffer(backing)?;
        vendor.sample.suspend()?;
        vendor.sample.suspend()?;
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_SUSPENDED, 1));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let toucher = scope.spawn(|| {
                let value = map.load(0);
                done.store(true, Ordering::SeqCst);
                value
            });
            let outcome = (|| {
                for _ in 0..20 {
                    thread::sleep(A_WHILE / 20);
                    // The lock of the address space is free: this needs it for writing.
                    let other = within(PROMPT, "mmap", || {
                        Mapping::new(&buffer, Window::new(0, GIB), READ, Place::Congruent).map(drop)
                    })?;
                    ensure_eq!(other, Ok(()));
                }
                ensure!(!done.load(Ordering::SeqCst), "the fault did not wait");
                Ok(())
            })();
            vendor.sample.resume()?;
            let value = toucher.join().expect("the thread that touches");
            ensure!(value == Ok(word(4, 0)), "{value:x?}");
            outcome
        })?;
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 2));
        vendor.sample.resume()?;
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 2));
    }
    Ok(())
}

fn a_waiting_fault_can_be_killed(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let (buffer, map) = vendor.buffer(backing)?;
        vendor.sample.suspend()?;
        let mut child = Child::start(|| {
            let value = map.load(0);
            bail!("the fault returned {value:x?}")
        })?;
        thread::sleep(A_WHILE);
        child.signal(Signal::SIGKILL)?;
        let end = within(PROMPT, "the end of the child", || child.wait())??;
        ensure!(
            matches!(end, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
            "{end:?}"
        );
        vendor.sample.resume()?;
        ensure!(map.load(0) == Ok(word(4, 0)));
        drop(buffer);
    }
    Ok(())
}

/// A device that never comes back: REVOKE, unregistering and unbinding free those who wait.
fn whatever_ends_the_buffer_ends_the_wait(ctx: &Ctx) -> Result<()> {
    type End = fn(&Vendor, &Buffer) -> Result<()>;
    let ends: [(&str, End); 4] = [
        ("REVOKE", |vendor, buffer| {
            Ok(vendor.provider.node.revoke(buffer)?)
        }),
        ("revoke_all", |vendor, _| Ok(vendor.sample.revoke_all()?)),
        ("unregister", |vendor, _| Ok(vendor.sample.unregister()?)),
        ("unbind", |vendor, _| vendor.provider.function.unbind()),
    ];
    for (what, end) in ends {
        let vendor = Vendor::new(ctx)?;
        let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
        vendor.sample.suspend()?;
        thread::scope(|scope| {
            let toucher = scope.spawn(|| map.load(0));
            thread::sleep(A_WHILE);
            let ended = within(PROMPT, what, || end(&vendor, &buffer)).and_then(|result| result);
            if ended.is_err() {
                let _ = vendor.sample.resume();
            }
            let value = toucher.join().expect("the thread that touches");
            ended?;
            ensure!(value == Err(Fault::bus(map.at(0))), "{what}: {value:x?}");
            Ok(())
        })?;
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_REVOKED, 2));
    }
    Ok(())
}

/// get_user_pages() by a write(2) with O_DIRECT out of a suspended mapping.
fn file_input_waits_too(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (_buffer, map) = vendor.buffer(BARBUF_BACKING_PAGE)?;
    let file = drive::open_direct(&drive::block_device(ctx.nvme(1)?)?)?;
    let before = drive::Aligned::new(PAGE)?;
    ensure_eq!(drive::read_into(&file, before.as_ptr(), PAGE, 0)?, PAGE);
    vendor.sample.suspend()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let answer = drive::read_into(&file, map.at(0), PAGE, 0);
            done.store(true, Ordering::SeqCst);
            answer
        });
        thread::sleep(A_WHILE);
        let waited = !done.load(Ordering::SeqCst);
        vendor.sample.resume()?;
        let answer = reader.join().expect("the thread that reads");
        ensure!(waited, "the read did not wait: {answer:?}");
        ensure_eq!(answer, Ok(PAGE));
        Ok(())
    })?;
    let first = u64::from_le_bytes(before.bytes()[..8].try_into()?);
    ensure!(map.load(0) == Ok(first));
    Ok(())
}

/// An export of user space comes back when the device does, fails with the provider, or dies.
fn exports_wait_too(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let node = &vendor.provider.node;
    let export = || node.export(&Export::any(GIB)).map(drop);
    let waits = |end: &dyn Fn() -> Result<()>, answer: Result<(), Errno>| {
        vendor.sample.suspend()?;
        thread::scope(|scope| {
            let exporter = scope.spawn(export);
            thread::sleep(A_WHILE);
            let waited = !exporter.is_finished();
            within(PROMPT, "the end of the wait", end)??;
            ensure_eq!(exporter.join().expect("the thread that exports"), answer);
            ensure!(waited, "the export did not wait");
            Ok(())
        })
    };
    waits(&|| Ok(vendor.sample.resume()?), Ok(()))?;
    // Other requests do not wait.
    vendor.sample.suspend()?;
    within(PROMPT, "INFO", || node.info())??;
    let mut child = Child::start(|| bail!("the export returned {:?}", export()))?;
    thread::sleep(A_WHILE);
    child.signal(Signal::SIGKILL)?;
    let end = within(PROMPT, "the end of the child", || child.wait())??;
    ensure!(
        matches!(end, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
        "{end:?}"
    );
    vendor.sample.resume()?;
    waits(&|| Ok(vendor.sample.unregister()?), Err(Errno::ENODEV))
}

/// L5: a thousand times away and back, with a revocation now and then, and one more of each.
fn a_thousand_suspensions(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let node = &vendor.provider.node;
    let mut cycles = 0;
    for round in 0..100u64 {
        let backing = [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE][round as usize % 2];
        let (buffer, map) = vendor.buffer(backing)?;
        for _ in 0..10 {
            vendor.sample.suspend()?;
            vendor.sample.resume()?;
            cycles += 1;
            ensure!(map.load(0) == Ok(word(4, 0)), "after {cycles} cycles");
        }
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 11));
        if round % 2 == 0 {
            vendor.sample.suspend()?;
        }
        node.revoke(&buffer)?;
        ensure_eq!(node.revoke(&buffer), Err(Errno::EBADFD));
        vendor.sample.resume()?;
        ensure!(
            map.load(0) == Err(Fault::bus(map.at(0))),
            "a revoked buffer came back"
        );
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_REVOKED, 12));
    }
    let counters = vendor.sample.counters()?;
    ensure_eq!((counters.first_exports, counters.last_releases), (100, 100));
    Ok(())
}

fn resets_go_through_the_driver(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
    for round in 1..=2 {
        reset(&vendor.provider.function)?;
        let counters = vendor.sample.counters()?;
        ensure_eq!(
            (counters.resets_prepared, counters.resets_done),
            (round, round)
        );
        ensure!(map.load(0) == Ok(word(4, 0)));
        ensure_eq!(
            vendor.state(&buffer)?,
            (BARBUF_STATE_LIVE, 1 + u64::from(round))
        );
    }
    Ok(())
}

/// Resuming a device that does not decode its memory fails, and nothing is let in.
fn a_device_that_does_not_come_back(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
    vendor.sample.suspend()?;
    let deaf = Deaf::new(&vendor.provider.function)?;
    ensure_eq!(vendor.sample.resume(), Err(Errno::EIO));
    ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_SUSPENDED, 1));
    drop(deaf);
    vendor.sample.resume()?;
    ensure!(map.load(0) == Ok(word(4, 0)));
    ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 2));
    Ok(())
}

/// The module goes while its memory is mapped and exported.
fn unloading_the_driver_revokes(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
    let (paged, paged_map) = vendor.buffer(BARBUF_BACKING_PAGE)?;
    // An open file of its own device keeps the module, as for any driver.
    ensure!(
        vendor::unload().is_err(),
        "the module went with its device open"
    );
    ensure!(map.load(0) == Ok(word(4, 0)));
    let Vendor {
        provider: kept,
        sample,
        _loaded: loaded,
    } = vendor;
    drop(sample);
    within(PROMPT, "unloading", vendor::unload)??;
    for (buffer, map) in [(&buffer, &map), (&paged, &paged_map)] {
        ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
        let raw = Node::control()?.query(buffer)?.raw;
        ensure_eq!(raw.out_state, BARBUF_STATE_REVOKED);
    }
    ensure!(kept.node.info().map(drop) == Err(Errno::ENODEV));
    ensure!(!Path::new(&kept.function.node_path()).exists());
    drop(kept);
    drop(loaded);
    // And all again.
    let vendor = Vendor::new(ctx)?;
    ensure!(vendor.buffer(BARBUF_BACKING_PAGE)?.1.load(0).is_ok());
    ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
    Ok(())
}

/// Unregistering while four threads fault: each gets its value or SIGBUS, and nobody waits.
fn unregistering_in_a_storm_of_faults(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let whole = [Region::new(0, vendor.provider.function.bar(2)?.len)];
    for round in 0..10 {
        let node = vendor.node()?;
        let backing = [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE][round % 2];
        let buffer = node.export(&Export::at(0, GIB).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, word(4, 0)) == Ok(()));
        let faults = AtomicU64::new(0);
        thread::scope(|scope| {
            let storm = || {
                loop {
                    let small = Mapping::new(&buffer, Window::new(0, GIB), READ, Place::Congruent);
                    let small = match small {
                        Ok(small) => small,
                        Err(Errno::ENODEV) => return Ok(()),
                        Err(error) => bail!("mmap: {error}"),
                    };
                    let value = small.load(0);
                    let fine = value == Ok(word(4, 0)) || value == Err(Fault::bus(small.at(0)));
                    ensure!(fine, "{value:x?}");
                    faults.fetch_add(1, Ordering::Relaxed);
                }
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(storm)).collect();
            wait_until("faults", || faults.load(Ordering::Relaxed) > 20)?;
            within(PROMPT, "unregistering", || vendor.sample.unregister())??;
            for thread in threads {
                thread.join().expect("a thread of the storm")?;
            }
            anyhow::Ok(())
        })?;
        ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
        vendor.sample.register(&whole, true)?;
    }
    Ok(())
}
