// SPDX-License-Identifier: MIT OR Apache-2.0

//! mmap of a buffer: which leaves it gets, what it refuses, and that its bytes are the device's.

use crate::export::main_region;
use crate::kit::map::mmap;
use crate::kit::pattern::{self, word};
use crate::kit::prelude::*;
use crate::kit::process::{Child, no_fd_leaks};
use crate::support::hash;

use barbuf_guest::protocol::HostOp;

pub(crate) const SUITE: Suite = Suite {
    name: "map",
    tests: &[
        test!(largest_leaves_are_used).timeout(120),
        test!(one_fault_fills_its_neighbours),
        test!(an_address_that_is_not_congruent_gets_smaller_leaves).timeout(60),
        test!(a_window_inside_a_leaf_gets_smaller_leaves).timeout(60),
        test!(private_mappings_are_refused),
        test!(execution_is_refused),
        test!(protection_follows_mprotect),
        test!(windows_agree_with_a_model).timeout(120),
        test!(windows_beyond_the_buffer_are_refused),
        test!(two_mappings_show_the_same_bytes),
        test!(another_backing_and_cache_mode_show_the_same_bytes).timeout(60),
        test!(the_host_sees_what_was_written).timeout(60),
    ],
};

/// Both backings with each size of leaf, and a length that holds several of them.
pub(crate) const SHAPES: [(u32, u32, u64); 6] = [
    (BARBUF_BACKING_PFN, BARBUF_PAGE_SHIFT_1G, 4 * GIB),
    (BARBUF_BACKING_PFN, BARBUF_PAGE_SHIFT_2M, 64 * MIB),
    (BARBUF_BACKING_PFN, BARBUF_PAGE_SHIFT_4K, MIB),
    (BARBUF_BACKING_PAGE, BARBUF_PAGE_SHIFT_1G, 4 * GIB),
    (BARBUF_BACKING_PAGE, BARBUF_PAGE_SHIFT_2M, 64 * MIB),
    (BARBUF_BACKING_PAGE, BARBUF_PAGE_SHIFT_4K, MIB),
];

/// A mapping with page backing whose place does not suit the pages: device-dax says EINVAL, and so
/// may this.
///
/// `None` for that answer. Without struct pages there is no reason for it.
pub(crate) fn unless_pages_do_not_fit(
    backing: u32,
    map: Result<Mapping, Errno>,
) -> Result<Option<Mapping>> {
    match map {
        Err(Errno::EINVAL) if backing == BARBUF_BACKING_PAGE => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// A congruent mapping gets the largest leaves that the buffer allows, and nothing smaller beside
/// them.
pub(crate) fn largest_leaves_are_used(ctx: &Ctx) -> Result<()> {
    for (backing, shift, len) in SHAPES {
        // Bound anew for each size of page: they are made once for a provider.
        let provider = Provider::bind(ctx.npu(0)?)?;
        let what = format!("backing {backing}, leaves of 2^{shift}");
        let buffer = provider
            .node
            .export(&Export::any(len).backing(backing).leaf(shift))
            .with_context(|| what.clone())?;
        ensure!(
            buffer.raw.out_page_shift == shift,
            "{what}: {:?}",
            buffer.raw
        );
        let map = Mapping::whole(&buffer)?;
        let wanted = map.model(shift);
        ensure!(
            wanted.of_1g + wanted.of_2m + wanted.of_4k == len >> shift,
            "{what}: the model says {wanted:?}"
        );
        ensure!(map.touch_all(shift) == Ok(()), "{what}");
        let got = provider.node.query(&buffer)?.leaves();
        ensure!(got == wanted, "{what}: {got:?} and not {wanted:?}");
        // A second touch finds everything in place.
        ensure!(map.touch_all(shift) == Ok(()));
        let again = provider.node.query(&buffer)?.leaves();
        ensure!(again == wanted, "{what}, touched again: {again:?}");
        drop((map, buffer));
    }
    Ok(())
}

/// A fault puts in the leaves beside its own as well: fewer faults than leaves.
pub(crate) fn one_fault_fills_its_neighbours(ctx: &Ctx) -> Result<()> {
    for (backing, shift, len) in SHAPES {
        if shift == BARBUF_PAGE_SHIFT_4K {
            continue;
        }
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider
            .node
            .export(&Export::any(len).backing(backing).leaf(shift))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.load(0).is_ok());
        let query = provider.node.query(&buffer)?;
        let leaves = query.leaves();
        // The mapping may lie across the border of a table, which one fault does not cross.
        let filled = leaves.of_1g + leaves.of_2m;
        ensure!(
            filled > 1 && query.raw.out_faults == 1,
            "backing {backing}, 2^{shift}: {:?}",
            query.raw
        );
        ensure!(map.touch_all(shift) == Ok(()));
        let query = provider.node.query(&buffer)?;
        ensure!(
            query.raw.out_faults <= 2 && query.leaves() == map.model(shift),
            "{:?}",
            query.raw
        );
    }
    Ok(())
}

/// An address that is off by a page, or by 2 MiB, still maps, with the leaves that fit there.
fn an_address_that_is_not_congruent_gets_smaller_leaves(ctx: &Ctx) -> Result<()> {
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider.node.export(&Export::any(GIB).backing(backing))?;
        for (off, len) in [
            (2 * MIB, GIB),
            (512 * MIB, GIB),
            (PAGE, 2 * MIB),
            (64 * KIB, 4 * MIB),
        ] {
            let window = Window::new(0, len);
            let before = provider.node.query(&buffer)?.leaves();
            let map = Mapping::new(&buffer, window, READ_WRITE, Place::Off(off));
            let Some(map) = unless_pages_do_not_fit(backing, map)? else {
                continue;
            };
            let wanted = map.model(30);
            ensure!(
                wanted.of_1g == 0 && map.touch_all(30) == Ok(()),
                "off by {off:#x}"
            );
            let got = provider.node.query(&buffer)?.leaves() - before;
            ensure!(
                got == wanted,
                "backing {backing}, off by {off:#x}: {got:?} and not {wanted:?}"
            );
            ensure!(map.store(len - 8, off) == Ok(()) && map.load(len - 8) == Ok(off));
        }
    }
    Ok(())
}

/// A window that begins and ends inside 1 GiB leaves has large leaves in its middle only.
pub(crate) fn a_window_inside_a_leaf_gets_smaller_leaves(ctx: &Ctx) -> Result<()> {
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider
            .node
            .export(&Export::any(3 * GIB).backing(backing))?;
        for window in [
            Window::new(GIB - 4 * MIB, GIB + 8 * MIB),
            Window::new(2 * GIB, 2 * MIB + 3 * PAGE),
            Window::new(GIB - 3 * PAGE, 3 * PAGE),
            Window::new(GIB - 3 * PAGE, GIB + 6 * PAGE),
        ] {
            let before = provider.node.query(&buffer)?.leaves();
            let map = Mapping::new(&buffer, window, READ_WRITE, Place::Congruent);
            let Some(map) = unless_pages_do_not_fit(backing, map)? else {
                continue;
            };
            let wanted = map.model(30);
            ensure!(map.touch_all(30) == Ok(()), "{window:x?}");
            let got = provider.node.query(&buffer)?.leaves() - before;
            ensure!(
                got == wanted,
                "backing {backing}, {window:x?}: {got:?} and not {wanted:?}"
            );
        }
    }
    Ok(())
}

/// R18: MAP_PRIVATE is refused, readable or writable, also of a read-only buffer; MAP_SHARED of
/// that works.
fn private_mappings_are_refused(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        for export in [Export::any(PAGE), Export::any(PAGE).read_only()] {
            let buffer = provider.node.export(&export.backing(backing))?;
            for prot in [READ, READ_WRITE] {
                // SAFETY: At an address that the kernel chooses.
                let answer = unsafe { mmap(0, PAGE, prot, libc::MAP_PRIVATE, &buffer, 0) };
                ensure!(
                    answer == Err(Errno::EINVAL),
                    "backing {backing}, prot {prot}: {answer:?}"
                );
                // SAFETY: As above.
                let cookie = unsafe {
                    mmap(
                        0,
                        PAGE,
                        prot,
                        libc::MAP_PRIVATE,
                        &provider.node,
                        buffer.raw.out_cookie,
                    )
                };
                ensure!(cookie == Err(Errno::EINVAL), "through the node: {cookie:?}");
            }
            ensure!(Mapping::new(&buffer, Window::new(0, PAGE), READ, Place::Congruent).is_ok());
        }
    }
    Ok(())
}

/// R13: never executable, neither at first nor later.
fn execution_is_refused(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider.node.export(&Export::any(PAGE).backing(backing))?;
        let window = Window::new(0, PAGE);
        let prot = READ | libc::PROT_EXEC;
        let answer = Mapping::new(&buffer, window, prot, Place::Congruent).map(drop);
        ensure!(
            matches!(answer, Err(Errno::EPERM | Errno::EACCES)),
            "{answer:?}"
        );
        let cookie = Window::new(buffer.raw.out_cookie, PAGE);
        let answer = Mapping::of(&provider.node, 0, cookie, prot, Place::Congruent).map(drop);
        ensure!(
            matches!(answer, Err(Errno::EPERM | Errno::EACCES)),
            "through the node: {answer:?}"
        );
        let map = Mapping::new(&buffer, window, READ, Place::Congruent)?;
        ensure!(
            map.room.protect(0, PAGE, prot) == Err(Errno::EACCES),
            "by mprotect"
        );
    }
    Ok(())
}

/// R13: write access comes and goes with mprotect, over leaves of any size.
pub(crate) fn protection_follows_mprotect(ctx: &Ctx) -> Result<()> {
    for (backing, shift, len) in SHAPES {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider
            .node
            .export(&Export::any(len).backing(backing).leaf(shift))?;
        let map = Mapping::whole(&buffer)?;
        let last = len - 8;
        ensure!(map.store(0, 1) == Ok(()) && map.store(last, 2) == Ok(()));
        map.room.protect(0, len, READ)?;
        ensure!(
            map.store(0, 3) == Err(Fault::protected(map.at(0))),
            "2^{shift}: still writable"
        );
        ensure!(
            map.store(last, 3) == Err(Fault::protected(map.at(last))),
            "2^{shift}: still writable"
        );
        ensure!((map.load(0), map.load(last)) == (Ok(1), Ok(2)));
        map.room.protect(0, len, libc::PROT_NONE)?;
        ensure!(
            map.load(0) == Err(Fault::protected(map.at(0))),
            "2^{shift}: still readable"
        );
        map.room.protect(0, len, READ_WRITE)?;
        ensure!(map.store(last, 4) == Ok(()) && (map.load(0), map.load(last)) == (Ok(1), Ok(4)));
        // Mapped for reading, then opened for writing: the first store faults on a leaf that is
        // there.
        let late = Mapping::new(&buffer, map.window, READ, Place::Congruent)?;
        ensure!(late.load(0) == Ok(1));
        late.room.protect(0, len, READ_WRITE)?;
        ensure!(late.store(0, 5) == Ok(()) && map.load(0) == Ok(5));
    }
    Ok(())
}

/// R19: random windows show the bytes that a model says, at their first, last and some other page,
/// through the buffer and through the node, with both backings.
pub(crate) fn windows_agree_with_a_model(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 64 * MIB;
    const WINDOWS: u64 = 64;
    // Ranges out of order and of odd lengths, so that offsets in buffer and region differ.
    let ranges = [
        (GIB, 20 * MIB),
        (PAGE, 3 * MIB),
        (512 * MIB + 3 * PAGE, 41 * MIB),
    ];
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider
            .node
            .export(&Export::ranges(&ranges).backing(backing))?;
        let cookie = buffer.raw.out_cookie;
        let map = Mapping::whole(&buffer)?;
        for page in (0..LEN).step_by(PAGE as usize) {
            ensure!(map.store(page, word(19, page)) == Ok(()));
        }
        drop(map);
        let mut next = (0..).map(|i| word(0x5eed + u64::from(backing), i));
        let mut draw = |below: u64| next.next().unwrap_or(0) % below;
        let mut beyond = 0;
        for i in 0..WINDOWS {
            let pages = LEN / PAGE;
            let first = draw(pages);
            // Some reach beyond the end.
            let count = 1 + draw((pages - first) * 9 / 8 + 1);
            let window = Window::new(first * PAGE, count * PAGE);
            let place = Place::Off(draw(1 << 18) * PAGE);
            let behind_cookie = Window::new(cookie + window.offset, window.len);
            let doors = [
                ("buffer", Mapping::new(&buffer, window, READ, place)),
                (
                    "node",
                    Mapping::of(&provider.node, 0, behind_cookie, READ, place),
                ),
            ];
            for (door, map) in doors {
                let what = format!("backing {backing}, {door}, window {i}, {window:x?}");
                if first + count > pages {
                    ensure!(
                        map.as_ref().err() == Some(&Errno::EINVAL),
                        "{what}: {map:?}"
                    );
                    beyond += 1;
                    continue;
                }
                let map = map.with_context(|| what.clone())?;
                for page in [0, count - 1, draw(count), draw(count)] {
                    let at = page * PAGE;
                    ensure!(
                        map.load(at) == Ok(word(19, window.offset + at)),
                        "{what}, page {page}"
                    );
                }
            }
        }
        ensure!(
            (1..WINDOWS).contains(&beyond),
            "{beyond} of {WINDOWS} windows reach beyond the end"
        );
    }
    Ok(())
}

/// R19: what no window can be, with the errno of mmap(2), on both doors, with both backings.
fn windows_beyond_the_buffer_are_refused(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider
            .node
            .export(&Export::any(4 * PAGE).backing(backing))?;
        let cookie = buffer.raw.out_cookie;
        for (offset, len) in [
            (0, 0),
            (0, 5 * PAGE),
            (4 * PAGE, PAGE),
            (3 * PAGE, 2 * PAGE),
            (1, PAGE),
            (PAGE - 1, PAGE),
            (1 << 40, PAGE),
            (u64::MAX - PAGE + 1, PAGE),
            (u64::MAX - PAGE + 1, 2 * PAGE),
            (1 << 63, PAGE),
        ] {
            // SAFETY: At addresses that the kernel chooses.
            let call = || unsafe { mmap(0, len, READ, libc::MAP_SHARED, &buffer, offset) };
            let answer = no_fd_leaks(call)?;
            ensure!(
                matches!(answer, Err(Errno::EINVAL | Errno::EOVERFLOW)),
                "{offset:#x} + {len:#x}: {answer:?}"
            );
            let offset = cookie.wrapping_add(offset);
            // SAFETY: As above.
            let answer = unsafe { mmap(0, len, READ, libc::MAP_SHARED, &provider.node, offset) };
            // Behind one buffer there is no other.
            let wanted = matches!(
                answer,
                Err(Errno::EINVAL | Errno::EOVERFLOW | Errno::ENODEV)
            );
            ensure!(wanted, "node at {offset:#x} + {len:#x}: {answer:?}");
        }
    }
    Ok(())
}

/// Mappings in one process and in another, congruent and not, are one memory.
fn two_mappings_show_the_same_bytes(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider
            .node
            .export(&Export::any(4 * MIB).backing(backing))?;
        let (one, two) = (Mapping::whole(&buffer)?, Mapping::whole(&buffer)?);
        fill(&one, 0, 64 * KIB, 1)?;
        verify(&two, 0, 64 * KIB, 1)?;
        Child::start(|| {
            verify(&two, 0, 64 * KIB, 1)?;
            let own = Mapping::whole(&buffer)?;
            verify(&own, 0, 64 * KIB, 1)?;
            fill(&own, 0, 64 * KIB, 2)
        })?
        .join()?;
        verify(&one, 0, 64 * KIB, 2)?;
    }
    Ok(())
}

/// What was written through one backing and cache mode is read through every other.
pub(crate) fn another_backing_and_cache_mode_show_the_same_bytes(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 256 * KIB;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let modes = [
        (BARBUF_BACKING_PFN, BARBUF_CACHE_UC),
        (BARBUF_BACKING_PAGE, BARBUF_CACHE_UC),
        (BARBUF_BACKING_PFN, BARBUF_CACHE_WC),
        (BARBUF_BACKING_PAGE, BARBUF_CACHE_UC),
        (BARBUF_BACKING_PFN, BARBUF_CACHE_UC),
    ];
    let mut last = None;
    for (seed, (backing, cache)) in (1..).zip(modes) {
        let buffer = provider
            .node
            .export(&Export::at(GIB, GIB).backing(backing).cache(cache))?;
        let map = Mapping::whole(&buffer)?;
        if let Some(seed) = last {
            verify(&map, 0, LEN, seed)
                .with_context(|| format!("backing {backing}, cache {cache}"))?;
        }
        fill(&map, 0, LEN, seed)?;
        last = Some(seed);
    }
    Ok(())
}

/// The second path to the bytes: the host, which has the same memory without any driver between.
pub(crate) fn the_host_sees_what_was_written(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 64 * KIB;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let region = main_region(&provider.node.info()?)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider
            .node
            .export(&Export::at(0, region.length).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        for at in [0, GIB - LEN / 2, region.length - LEN] {
            let seed = at ^ u64::from(backing);
            fill(&map, at, LEN, seed)?;
            let ours = pattern::bytes(seed, at, LEN as usize);
            let theirs = ctx.host_hash("npu0", region.offset + at, LEN)?;
            ensure!(
                theirs == hash(&ours),
                "backing {backing}, at {at:#x}: the host has other bytes"
            );
            let mark = word(seed, 0);
            ctx.host(HostOp::Write {
                id: "npu0".into(),
                offset: region.offset + at + 512,
                hex: barbuf_guest::protocol::to_hex(&mark.to_le_bytes()),
            })?;
            ensure!(
                map.load(at + 512) == Ok(mark),
                "backing {backing}, at {at:#x}: the host's bytes are not seen"
            );
        }
    }
    Ok(())
}
