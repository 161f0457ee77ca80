// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an adopted pool gives, and where: one that is as large as an NPU's memory, one that is used by
//! several, one that has nothing left, one of more than one piece of memory, as a driver makes it that
//! gives the kernel several ranges of its BARs.

use crate::adopt::{available, the_drive_works};
use crate::export::main_region;
use crate::kit::map::Room;
use crate::kit::p2pmem::{DRIVER, P2pmem, Variant};
use crate::kit::pattern::{self, word};
use crate::kit::pci::{Function, Lent};
use crate::kit::prelude::*;
use crate::kit::process::no_fd_leaks;

use barbuf_guest::sysfs;

use std::fs::File;
use std::path::Path;

pub(crate) const SUITE: Suite = Suite {
    name: "pool",
    tests: &[
        test!(one_piece_is_offered_and_the_other_kept_out).timeout(60),
        test!(places_are_aligned_for_the_largest_leaves).timeout(120),
        test!(exporters_at_once_are_not_in_each_others_way).timeout(120),
        test!(a_pool_without_a_page_cannot_be_adopted),
    ],
};

const SIZES: [u64; 2] = [8 * MIB, 16 * MIB];

/// The region is the piece that the pool gives from. Memory of the other one, which the pool gives when
/// that is used up, is no memory of the region, and goes back.
fn one_piece_is_offered_and_the_other_kept_out(ctx: &Ctx) -> Result<()> {
    let [first, second] = SIZES;
    let pieces = format!("size={first} second={second}");
    ctx.modules().load(DRIVER, &pieces)?;
    let lent = Lent::to(Function::of(ctx.npu(0)?)?, DRIVER)?;
    let dir = lent.function().dir();
    let available = || -> Result<u64> { Ok(sysfs::read(dir.join("p2pmem/available"))?.parse()?) };
    ensure_eq!(available()?, first + second);

    let provider = Provider::adopt(ctx.npu(0)?)?;
    let region = main_region(&provider.node.info()?)?;
    ensure!(
        SIZES.contains(&region.length) && region.free == region.length,
        "{region:?}"
    );
    // The last of 4 MiB has nothing to spare, which the other piece has.
    for len in [MIB, 4 * MIB] {
        let mut buffers = Vec::new();
        let errno = loop {
            match provider.node.export(&Export::any(len)) {
                Ok(buffer) => buffers.push(buffer),
                Err(errno) => break errno,
            }
            ensure!(buffers.len() as u64 <= (first + second) / len);
        };
        ensure_eq!(
            (errno, buffers.len() as u64),
            (Errno::ENOSPC, region.length / len)
        );
        ensure_eq!(available()?, first + second - region.length);
        for (seed, buffer) in (0..).zip(&buffers) {
            let range = buffer.ranges[0];
            ensure!(
                range.offset + range.length <= region.length,
                "{range:x?} is not in {region:x?}"
            );
            fill(&Mapping::whole(buffer)?, 0, PAGE, seed)?;
            let there = ctx.host_read("npu0", region.offset + range.offset, 64)?;
            ensure!(there == pattern::bytes(seed, 0, 64), "{range:x?}");
        }
        drop(buffers);
        ensure_eq!(available()?, first + second);
    }
    Ok(())
}

/// A pool that has room for 1 GiB on a border of 1 GiB gives it, whatever lies around, and the mapping
/// is one leaf of that size. The pool of an NPU, whose driver has made part of a BAR p2pmem.
fn places_are_aligned_for_the_largest_leaves(ctx: &Ctx) -> Result<()> {
    const POOL: u64 = 4 * GIB;
    let owner = P2pmem::register_part(ctx, ctx.npu(0)?, Variant::Base, POOL)?;
    let provider = Provider::adopt(ctx.npu(0)?)?;
    let region = main_region(&provider.node.info()?)?;
    let expected = (POOL, POOL, 0, BARBUF_PAGE_SHIFT_1G);
    let found = (
        region.length,
        region.free,
        region.offset,
        region.max_page_shift,
    );
    ensure!(found == expected, "{region:?}");
    let base = owner.function().bar(region.bar as usize)?.start;
    ensure!(base % GIB == 0, "the BAR is at {base:#x}");

    let aligned = |what: &str, len: u64, shift: u32| -> Result<Buffer> {
        let buffer = provider.node.export(&Export::any(len))?;
        let at = buffer.ranges[0].offset;
        ensure!(
            at % (1 << shift) == 0
                && buffer.raw.out_phys_class == at % GIB
                && buffer.raw.out_page_shift == shift,
            "{what}: {len:#x} bytes at {at:#x}, {:?}",
            buffer.raw
        );
        let map = Mapping::whole(&buffer)?;
        for place in [0, len / 2, len - 8] {
            ensure!(map.store(place, word(at, place)) == Ok(()));
            let seen = ctx.host_read("npu0", at + place, 8)?;
            ensure!(seen == word(at, place).to_le_bytes(), "{what}: {place:#x}");
        }
        let leaves = provider.node.query(&buffer)?.leaves();
        ensure!(
            leaves == map.model(shift) && leaves.of_4k == 0,
            "{what}: {leaves:?}"
        );
        Ok(buffer)
    };
    let page = || provider.node.export(&Export::any(PAGE));
    // Two pages in front: [1, 2), [2, 3) and [3, 4) GiB are left.
    let small = (page()?, page()?);
    let mib = aligned("2 MiB, behind pages", 2 * MIB, BARBUF_PAGE_SHIFT_2M)?;
    let first = aligned("behind pages", GIB, BARBUF_PAGE_SHIFT_1G)?;
    let second = aligned("the next", GIB, BARBUF_PAGE_SHIFT_1G)?;
    // Nothing has room to spare now. What the pool would give first is not aligned.
    drop(mib);
    drop(first);
    let first = aligned("a hole of not quite 2 GiB", GIB, BARBUF_PAGE_SHIFT_1G)?;
    let third = aligned("the last", GIB, BARBUF_PAGE_SHIFT_1G)?;
    let more = provider.node.export(&Export::any(GIB)).map(drop);
    ensure!(more == Err(Errno::ENOSPC), "a fourth: {more:?}");
    // In what is left of the first GiB, 2 MiB are aligned to the last one.
    let mut rest = Vec::new();
    loop {
        match provider.node.export(&Export::any(128 * MIB)) {
            Ok(buffer) => rest.push(buffer),
            Err(Errno::ENOSPC) => break,
            Err(errno) => bail!("128 MiB: {errno}"),
        }
    }
    let places: Vec<u64> = rest
        .iter()
        .map(|buffer| buffer.raw.out_phys_class)
        .collect();
    ensure!(
        places.len() == 7 && places.iter().all(|at| at % (2 * MIB) == 0),
        "{places:x?}"
    );
    // The pool's struct pages are of 4 KiB, and so are the leaves of page-backed buffers.
    drop((first, second, third, small));
    let pages = provider.node.export(&Export::any(GIB).page())?;
    ensure!(
        pages.raw.out_page_shift == BARBUF_PAGE_SHIFT_4K && pages.raw.out_phys_class == 0,
        "{:?}",
        pages.raw
    );
    Ok(())
}

/// Two exporters at once: what the search for a border of 1 GiB takes for a moment is no reason for the
/// other one to get a worse place, or none.
fn exporters_at_once_are_not_in_each_others_way(ctx: &Ctx) -> Result<()> {
    const ROUNDS: u64 = 500;
    let _owner = P2pmem::register_part(ctx, ctx.npu(0)?, Variant::Base, 4 * GIB)?;
    let provider = Provider::adopt(ctx.npu(0)?)?;
    let _small = provider.node.export(&Export::any(2 * PAGE))?;
    let exporter = || -> Result<()> {
        for round in 0..ROUNDS {
            let buffer = provider.node.export(&Export::any(GIB));
            let class = buffer.map(|buffer| buffer.raw.out_phys_class);
            ensure!(class == Ok(0), "round {round}: {class:x?}");
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(exporter);
        let mine = exporter();
        let other = other.join();
        mine.and(other.map_err(|_| anyhow::anyhow!("the thread panicked"))?)
    })
}

/// ENOSPC of ADOPT: its owner's users have taken all of the pool, through sysfs, so that no page is left
/// to find it by. Once one is back, it can be adopted.
fn a_pool_without_a_page_cannot_be_adopted(ctx: &Ctx) -> Result<()> {
    let function = Function::of(ctx.nvme(0)?)?;
    let control = Node::control()?;
    let path = function.dir().join("p2pmem/allocate");
    let file = File::options().read(true).write(true).open(&path)?;
    let mut taken = Vec::new();
    let mut size = 8 * MIB;
    while size >= PAGE {
        let room = Room::new(size, 0, PAGE)?;
        match room.map(0, size, READ_WRITE, &file, 0) {
            Ok(()) => taken.push(room),
            Err(Errno::ENOMEM) => size /= 2,
            Err(errno) => bail!("{}: {errno}", path.display()),
        }
    }
    ensure!(
        available(&function)? == 0,
        "{} bytes are left",
        available(&function)?
    );
    let answer = no_fd_leaks(|| control.adopt(&function.bdf))?;
    ensure!(answer == Err(Errno::ENOSPC), "{answer:?}");
    ensure!(!Path::new(&function.node_path()).exists(), "a node");
    ensure!(control.release(&function.bdf) == Err(Errno::ENODEV));
    drop(taken.pop());
    let back = available(&function)?;
    ensure!(back > 0, "nothing came back");
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    ensure!(main_region(&provider.node.info()?)?.free == back);
    drop(provider);
    drop(taken);
    the_drive_works(ctx, 3)
}
