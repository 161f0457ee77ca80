// SPDX-License-Identifier: MIT OR Apache-2.0

//! INFO, EXPORT and QUERY that succeed: what is promised is there, and the three agree with each
//! other.

use crate::kit::node::{Info, name};
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;

use barbuf_guest::protocol::DeviceKind;
use barbuf_measure::memory::struct_page_bytes;

use std::os::fd::AsRawFd as _;

pub(crate) const SUITE: Suite = Suite {
    name: "export",
    tests: &[
        test!(info_agrees_with_sysfs),
        test!(info_respects_the_room_it_is_given),
        test!(any_finds_the_best_place),
        test!(ranges_keep_their_order),
        test!(query_tells_what_was_exported),
        test!(query_counts_mappings),
        test!(exclusive_and_shared),
        test!(bytes_come_back_last),
        test!(struct_pages_go_with_the_provider).timeout(60),
        test!(a_refused_export_makes_no_struct_pages),
    ],
};

/// The region that holds the device's memory: the longest.
pub(crate) fn main_region(info: &Info) -> Result<barbuf_region_info> {
    info.regions
        .iter()
        .max_by_key(|region| region.length)
        .copied()
        .context("a provider without a region")
}

/// INFO tells the provider's name, kind and regions, as sysfs has them.
fn info_agrees_with_sysfs(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let info = provider.node.info()?;
    ensure!(name(&info.raw.out_name) == provider.bdf());
    ensure!(info.raw.out_abi == BARBUF_ABI_VERSION);
    ensure!(info.raw.out_kind == BARBUF_KIND_BOUND);
    ensure!(
        info.has(BARBUF_CAP_LEAF_1G)
            && info.has(BARBUF_CAP_LEAF_2M)
            && info.has(BARBUF_CAP_PAGE_BACKING)
    );
    for (i, region) in info.regions.iter().enumerate() {
        ensure!(region.index == i as u32, "{region:?}");
        let bar = provider.function.bar(region.bar as usize)?;
        ensure!(
            region.length > 0 && region.offset + region.length <= bar.len,
            "{region:?} is not in {bar:x?}"
        );
        ensure!(
            region.phys_class == (bar.start + region.offset) % GIB,
            "{region:?}, {bar:x?}"
        );
        ensure!(
            region.free == region.length && region.nr_buffers == 0,
            "{region:?}"
        );
    }
    let region = main_region(&info)?;
    ensure_eq!(
        DeviceKind::Npu {
            bar_bytes: region.length
        },
        ctx.npu(0)?.kind
    );
    ensure!(
        region.max_page_shift == BARBUF_PAGE_SHIFT_1G && region.page_shift == BARBUF_PAGE_SHIFT_1G,
        "{region:?}"
    );
    ensure!(
        region.backings == (1 << BARBUF_BACKING_PFN) | (1 << BARBUF_BACKING_PAGE),
        "{region:?}"
    );
    ensure!(
        region.caches == (1 << BARBUF_CACHE_UC) | (1 << BARBUF_CACHE_WC),
        "{region:?}"
    );
    ensure!(region.flags == BARBUF_REGION_PREFETCHABLE, "{region:?}");
    Ok(())
}

/// INFO says how many regions there are, however little room it is given, and writes no element
/// beyond it.
fn info_respects_the_room_it_is_given(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let all = provider.node.info()?;
    let node = provider.node.as_raw_fd();

    let mut count = barbuf_info {
        region_stride: 64,
        ..barbuf_info::new()
    };
    // SAFETY: No array.
    Errno::result(unsafe { ioctl::info(node, &mut count) }).context("with room for none")?;
    ensure!(count.nr_regions as usize == all.regions.len());

    // A caller from the future knows longer elements, which this kernel fills with zeros.
    const STRIDE: usize = 128;
    let mut longer = [0xa5u8; STRIDE * 8];
    let room = all.regions.len() as u32;
    let mut info = barbuf_info {
        nr_regions: room,
        region_stride: STRIDE as u32,
        regions: longer.as_mut_ptr() as u64,
        ..barbuf_info::new()
    };
    // SAFETY: The array has eight elements of that stride.
    Errno::result(unsafe { ioctl::info(node, &mut info) }).context("with longer elements")?;
    for (element, region) in longer.chunks(STRIDE).zip(&all.regions) {
        ensure!(
            element[..4] == region.index.to_ne_bytes()
                && element[16..24] == region.length.to_ne_bytes()
        );
        ensure!(
            element[64..].iter().all(|byte| *byte == 0),
            "what the kernel does not know is not zero"
        );
    }
    ensure!(
        longer[STRIDE * room as usize..]
            .iter()
            .all(|byte| *byte == 0xa5),
        "written beyond the room"
    );
    Ok(())
}

/// `any` finds the best alignment that is free, and INFO's free bytes follow.
fn any_finds_the_best_place(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = main_region(&provider.node.info()?)?;
    let small = provider.node.export(&Export::any(PAGE))?;
    let medium = provider.node.export(&Export::any(4 * MIB))?;
    let large = provider.node.export(&Export::any(2 * GIB))?;
    for (buffer, size, shift) in [
        (&small, PAGE, 12),
        (&medium, 4 * MIB, 21),
        (&large, 2 * GIB, 30),
    ] {
        ensure!(buffer.size() == size, "{:?}", buffer.raw);
        ensure!(
            buffer.raw.out_page_shift == shift,
            "{size:#x} bytes: {:?}",
            buffer.raw
        );
        ensure!(
            buffer.raw.out_phys_class % (1u64 << shift) == 0,
            "{size:#x} bytes: {:?}",
            buffer.raw
        );
        let at = (before.phys_class + buffer.ranges[0].offset) % GIB;
        ensure!(
            at == buffer.raw.out_phys_class,
            "{:?} {:?}",
            buffer.ranges,
            buffer.raw
        );
    }
    let now = main_region(&provider.node.info()?)?;
    ensure!(
        now.free == before.free - (2 * GIB + 4 * MIB + PAGE),
        "{now:?}"
    );
    ensure!(now.nr_buffers == 3);
    drop((small, medium, large));
    ensure!(
        main_region(&provider.node.info()?)? == before,
        "closing gives everything back"
    );
    Ok(())
}

/// Several ranges make one buffer, in the order in which they were given.
fn ranges_keep_their_order(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let ranges = [(GIB, 2 * MIB), (0, PAGE), (GIB - 3 * PAGE, 3 * PAGE)];
    let buffer = provider.node.export(&Export::ranges(&ranges))?;
    ensure!(buffer.size() == 2 * MIB + 4 * PAGE);
    let query = provider.node.query(&buffer)?;
    ensure!(
        query.ranges.iter().map(|r| (r.offset, r.length)).eq(ranges),
        "{:?}",
        query.ranges
    );
    let map = Mapping::whole(&buffer)?;
    let marks: [(u64, u64, usize); 3] =
        [(0, 0x11, 0), (2 * MIB, 0x22, 1), (2 * MIB + PAGE, 0x33, 2)];
    for (at, value, _) in marks {
        ensure!(map.store(at, value) == Ok(()));
    }
    drop((map, buffer));
    for (_, value, range) in marks {
        let (offset, length) = ranges[range];
        let alone = provider.node.export(&Export::at(offset, length))?;
        ensure!(
            Mapping::whole(&alone)?.load(0) == Ok(value),
            "range {range}"
        );
    }
    Ok(())
}

/// What EXPORT was asked for is what QUERY tells, on both nodes.
fn query_tells_what_was_exported(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let control = Node::control()?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        for cache in [BARBUF_CACHE_UC, BARBUF_CACHE_WC] {
            // The kernel maps struct pages of device memory uncached.
            if (backing, cache) == (BARBUF_BACKING_PAGE, BARBUF_CACHE_WC) {
                continue;
            }
            for access in [libc::O_RDONLY, libc::O_RDWR] {
                let wanted = Export::at(GIB, GIB)
                    .backing(backing)
                    .cache(cache)
                    .open_flags(access | libc::O_CLOEXEC)
                    .shared();
                let buffer = provider
                    .node
                    .export(&wanted)
                    .with_context(|| format!("{:?}", wanted.raw))?;
                let here = provider.node.query(&buffer)?;
                let raw = here.raw;
                ensure!(
                    raw.out_state == BARBUF_STATE_LIVE && raw.out_generation == 1,
                    "{raw:?}"
                );
                ensure!(
                    raw.out_size == GIB && raw.out_cookie == buffer.raw.out_cookie,
                    "{raw:?}"
                );
                ensure!(raw.out_phys_class == buffer.raw.out_phys_class, "{raw:?}");
                ensure!(raw.out_page_shift == buffer.raw.out_page_shift, "{raw:?}");
                ensure!(
                    raw.out_kind == BARBUF_KIND_BOUND && raw.out_region == wanted.raw.region,
                    "{raw:?}"
                );
                ensure!(
                    (raw.out_backing, raw.out_cache) == (backing, cache),
                    "{raw:?}"
                );
                ensure!(raw.out_export_flags == BARBUF_EXPORT_SHARED, "{raw:?}");
                ensure!(raw.out_access == access as u32, "{raw:?}");
                ensure!(
                    (raw.out_attachments, raw.out_mappings, raw.out_mapped_bytes) == (0, 0, 0),
                    "{raw:?}"
                );
                ensure!(
                    here.leaves() == Leaves::default() && raw.out_faults == 0,
                    "{raw:?}"
                );
                ensure!(
                    name(&raw.out_name) == provider.bdf() && here.ranges == wanted.ranges,
                    "{raw:?}"
                );
                let there = control.query(&buffer)?;
                ensure!(
                    barbuf_query {
                        ranges: 0,
                        ..there.raw
                    } == barbuf_query { ranges: 0, ..raw },
                    "{there:?}"
                );
            }
        }
    }
    Ok(())
}

/// QUERY counts the mappings that exist now, and their bytes.
fn query_counts_mappings(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(8 * MIB))?;
    let counts = || {
        provider
            .node
            .query(&buffer)
            .map(|q| (q.raw.out_mappings, q.raw.out_mapped_bytes))
    };
    let first = Mapping::whole(&buffer)?;
    let second = Mapping::new(&buffer, Window::new(MIB, 2 * MIB), READ, Place::Off(PAGE))?;
    ensure!(counts()? == (2, 10 * MIB), "{:?}", counts());
    first.room.unmap(2 * MIB, 2 * MIB)?;
    ensure!(counts()? == (3, 8 * MIB), "after a hole: {:?}", counts());
    drop(first);
    ensure!(counts()? == (1, 2 * MIB), "{:?}", counts());
    drop(second);
    ensure!(counts()? == (0, 0), "{:?}", counts());
    Ok(())
}

/// Exclusive means alone; shared means with others that say the same, in the same mode.
fn exclusive_and_shared(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let node = &provider.node;
    let errno = |export: &Export| node.export(export).map(drop);
    let alone = node.export(&Export::at(2 * MIB, 2 * MIB))?;
    for (offset, length) in [
        (2 * MIB, 2 * MIB),
        (0, 4 * MIB + PAGE),
        (2 * MIB - PAGE, 2 * PAGE),
        (3 * MIB, PAGE),
    ] {
        ensure!(
            errno(&Export::at(offset, length)) == Err(Errno::EBUSY),
            "{offset:#x} + {length:#x}"
        );
        ensure!(
            errno(&Export::at(offset, length).shared()) == Err(Errno::EBUSY),
            "shared, {offset:#x}"
        );
    }
    for (offset, length) in [(2 * MIB - PAGE, PAGE), (4 * MIB, PAGE)] {
        ensure!(
            errno(&Export::at(offset, length)) == Ok(()),
            "a neighbour at {offset:#x}"
        );
    }
    drop(alone);

    let first = node.export(&Export::at(0, 4 * MIB).shared())?;
    let second = node.export(&Export::at(2 * MIB, 4 * MIB).shared())?;
    ensure!(Mapping::whole(&first)?.store(2 * MIB, 77) == Ok(()));
    ensure!(
        Mapping::whole(&second)?.load(0) == Ok(77),
        "two buffers show the same bytes"
    );
    ensure!(
        errno(&Export::at(0, PAGE)) == Err(Errno::EBUSY),
        "exclusive beside shared"
    );
    ensure!(
        errno(&Export::at(0, PAGE).shared().cache(BARBUF_CACHE_WC)) == Err(Errno::EBUSY),
        "another cache mode"
    );
    ensure!(
        errno(&Export::at(0, PAGE).shared().page()) == Err(Errno::EBUSY),
        "another backing"
    );
    drop((first, second));
    ensure!(
        errno(&Export::at(0, 6 * MIB)) == Ok(()),
        "all is free again"
    );
    Ok(())
}

/// Bytes are handed out again only when the last descriptor and the last mapping are gone.
fn bytes_come_back_last(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let wanted = Export::at(0, 4 * MIB);
    let again = || provider.node.export(&wanted).map(drop);
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider.node.export(&wanted.clone().backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, 1) == Ok(()));
        let copy = buffer.fd.try_clone()?;
        drop(buffer);
        ensure!(
            again() == Err(Errno::EBUSY),
            "a copy of the descriptor is open"
        );
        drop(copy);
        ensure!(again() == Err(Errno::EBUSY), "a mapping is left");
        ensure!(
            map.load(0) == Ok(1),
            "the mapping works without a descriptor"
        );
        drop(map);
        ensure!(again() == Ok(()), "nothing is left");
    }
    Ok(())
}

/// Struct pages come with the first buffer that needs them, stay for the next ones of that size, are
/// exchanged for those of another size, and go with the provider.
fn struct_pages_go_with_the_provider(ctx: &Ctx) -> Result<()> {
    // The struct pages of a compound page, whatever its size, take two pages: the others are the same.
    let of = |compound_pages: u64| 2 * PAGE * compound_pages;
    let before = struct_page_bytes()?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let gigabytes = main_region(&provider.node.info()?)?.length / GIB;
    let more = || -> Result<u64> { Ok(struct_page_bytes()? - before) };
    drop(provider.node.export(&Export::any(GIB))?);
    ensure_eq!(more()?, 0);
    drop(provider.node.export(&Export::any(GIB).page())?);
    ensure_eq!(more()?, of(gigabytes));
    drop(provider.node.export(&Export::any(GIB).page())?);
    ensure_eq!(more()?, of(gigabytes));
    let smaller = Export::any(2 * MIB).page().leaf(BARBUF_PAGE_SHIFT_2M);
    let held = provider.node.export(&smaller)?;
    ensure_eq!(more()?, of(512 * gigabytes));
    let map = Mapping::whole(&held)?;
    ensure!(map.load(0).is_ok());
    drop(provider);
    ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
    wait_until("all struct pages gone", || {
        struct_page_bytes().is_ok_and(|now| now == before)
    })
}

/// An export with page backing for which there is no room changes nothing: no struct pages are made, and
/// what is mapped as frames stays.
fn a_refused_export_makes_no_struct_pages(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let node = &provider.node;
    let all = node.export(&Export::any(main_region(&node.info()?)?.length))?;
    let map = Mapping::new(&all, Window::new(0, GIB), READ_WRITE, Place::Congruent)?;
    let state = || -> Result<(u64, u64)> {
        ensure!(map.load(0).is_ok());
        Ok((struct_page_bytes()?, node.query(&all)?.raw.out_faults))
    };
    let before = state()?;
    for (wanted, errno) in [
        (Export::any(GIB).page(), Errno::ENOSPC),
        (Export::at(GIB, GIB).page(), Errno::EBUSY),
        (Export::at(GIB, GIB).page().shared(), Errno::EBUSY),
    ] {
        ensure_eq!(node.export(&wanted).map(drop), Err(errno));
        ensure_eq!(state()?, before);
    }
    Ok(())
}
