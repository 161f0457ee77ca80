// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a driver registers, what it is asked and told, and what its own code exports.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread;

use super::Vendor;
use crate::kit::prelude::*;
use crate::kit::process::{Child, drop_capability};
use crate::kit::vendor::{self, Counters, Region, Sample, Wanted};

pub(super) fn a_registered_region_is_memory_only(ctx: &Ctx) -> Result<()> {
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

pub(super) fn regions_of_several_kinds(ctx: &Ctx) -> Result<()> {
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

/// ZERO and SHARED: nobody comes in, though he says shared too, before the last byte is zero.
pub(super) fn shared_bytes_are_nobody_elses_until_they_are_zero(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 128 * MIB;
    const MARK: u64 = 0x0ddb_a115_0ddb_a115;
    let vendor = Vendor::new(ctx)?;
    let node = &vendor.provider.node;
    let whole = node.info()?.regions[0].free;
    let last = Export::at(LEN - PAGE, PAGE).shared();
    ensure!(Mapping::whole(&node.export(&last)?)?.store(PAGE - 8, MARK) == Ok(()));

    let mut refused = 0;
    let zeroed = thread::scope(|scope| {
        let wanted = Export::at(0, LEN).shared().flag(BARBUF_EXPORT_ZERO);
        let zeroing = scope.spawn(move || node.export(&wanted));
        while !zeroing.is_finished() {
            if node.info()?.regions[0].free == whole {
                // It has not come as far as to claim them.
                continue;
            }
            match node.export(&last) {
                Err(Errno::EBUSY) => refused += 1,
                Ok(buffer) => ensure_eq!(Mapping::whole(&buffer)?.load(PAGE - 8), Ok(0)),
                Err(errno) => bail!("{errno}"),
            }
        }
        Ok(zeroing.join().expect("the thread that exports")?)
    })?;
    ensure!(refused > 0, "nothing was ever being filled");
    let beside = node.export(&last).context("afterwards")?;
    ensure_eq!(Mapping::whole(&beside)?.load(PAGE - 8), Ok(0));
    ensure!(Mapping::whole(&zeroed)?.store(LEN - 8, 1) == Ok(()));
    ensure_eq!(Mapping::whole(&beside)?.load(PAGE - 8), Ok(1));
    Ok(())
}

/// Everything that a driver can get wrong, each with its errno and nothing left behind.
pub(super) fn each_registration_error(ctx: &Ctx) -> Result<()> {
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
pub(super) fn the_driver_is_asked_and_told(ctx: &Ctx) -> Result<()> {
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

pub(super) fn the_driver_refuses(ctx: &Ctx) -> Result<()> {
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

pub(super) fn kernel_code_exports_and_revokes(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (node, sample) = (&vendor.provider.node, &vendor.sample);
    type Way = fn(&Sample, Wanted) -> Result<OwnedFd, Errno>;
    for (backing, way) in [
        (BARBUF_BACKING_PFN, Sample::export as Way),
        (BARBUF_BACKING_PAGE, Sample::export_dmabuf),
    ] {
        let fd = way(
            sample,
            Wanted {
                offset: GIB,
                length: GIB,
                backing,
                ..Wanted::default()
            },
        )?;
        let query = node.query(&fd)?;
        ensure_eq!(query.raw.out_kind, BARBUF_KIND_REGISTERED);
        ensure_eq!((query.raw.out_size, query.raw.out_backing), (GIB, backing));
        ensure_eq!(query.ranges[0].offset, GIB);
        let buffer = vendor.received(fd)?;
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
    let dmabuf = sample.export_dmabuf(any).map(drop);
    ensure_eq!(dmabuf, Err(Errno::EAGAIN));
    sample.resume()?;
    ensure_eq!(export(any), Ok(()));
    Ok(())
}
