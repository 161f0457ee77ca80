// SPDX-License-Identifier: MIT OR Apache-2.0

//! The other design, compound pages for p2pmem in sysfs: that its variants do what they are
//! compared for. compound-sysfs/README.md says what they are; what S cannot do is in `posted`.

use std::fs::File;

use barbuf_guest::sysfs;

use crate::kit::drive::{Aligned, block_device, open_direct, read_into, write_from};
use crate::kit::map::Room;
use crate::kit::p2pmem::{DRIVER, P2pmem, Variant};
use crate::kit::pattern::{self, word};
use crate::kit::pci::{Function, Lent};
use crate::kit::prelude::*;
use crate::kit::process::{Child, minor_faults};
use crate::kit::touch;

pub(crate) const SUITE: Suite = Suite {
    name: "p2pmem",
    tests: &[
        test!(base_works).kernels(&["stock", "base"]),
        test!(posted_works).kernels(BASE).timeout(60),
        test!(reviewed_works).kernels(BASE).timeout(60),
        test!(all_of_the_memory).kernels(BASE).timeout(120),
        test!(transfers).kernels(BASE).timeout(120),
        test!(removal_with_live_mappings).kernels(BASE).timeout(120),
        test!(refused_memory_leaves_nothing)
            .kernels(BASE)
            .timeout(60)
            .console(&[
                "WARNING: mm/memory_hotplug.c",
                "WARNING: arch/x86/mm/init_64.c",
            ]),
        test!(a_refused_mapping_keeps_no_memory)
            .kernels(BASE)
            .timeout(60),
        test!(pages_fit_the_mapping).kernels(BASE).timeout(60),
        test!(smaller_pages_where_larger_ones_are_gone)
            .kernels(BASE)
            .timeout(60),
        test!(large_pages_become_single_ones_again)
            .kernels(BASE)
            .timeout(60),
        test!(survives_smaps).kernels(BASE).timeout(60),
        test!(survives_madv_dontneed).kernels(BASE).timeout(60),
        test!(survives_fork).kernels(BASE).timeout(60),
        test!(survives_munmap_of_a_part).kernels(BASE).timeout(60),
        test!(survives_mprotect_of_a_part).kernels(BASE).timeout(60),
        test!(survives_mremap).kernels(BASE).timeout(60),
    ],
};

/// The kernel that has the patches.
pub(crate) const BASE: &[&str] = &["base"];
const COMPOUND: [Variant; 4] = [Variant::S_2M, Variant::S_1G, Variant::R_2M, Variant::R_1G];
const REVIEWED: [Variant; 2] = [Variant::R_2M, Variant::R_1G];

/// Enough for every test but one, and less to make struct pages for.
const PART: u64 = 4 * GIB;

pub(crate) fn registered(ctx: &Ctx, variant: Variant) -> Result<P2pmem> {
    P2pmem::register_part(ctx, ctx.npu(0)?, variant, PART)
}

/// Maps twice, and looks whether the two are different memory that comes back.
fn works(ctx: &Ctx, variant: Variant, len: u64) -> Result<()> {
    let memory = registered(ctx, variant)?;
    let free = memory.available()?;
    let first = memory.map(len)?;
    let second = memory.map(len)?;
    ensure_eq!(memory.available()?, free - 2 * len);
    for at in [0, PAGE, len / 2 - 8, len / 2, len - 8] {
        ensure_eq!(first.store(at, word(1, at)), Ok(()));
        ensure_eq!(second.store(at, word(2, at)), Ok(()));
    }
    for at in [0, PAGE, len / 2 - 8, len / 2, len - 8] {
        ensure_eq!(first.load(at), Ok(word(1, at)));
        ensure_eq!(second.load(at), Ok(word(2, at)));
    }
    drop(first);
    ensure_eq!(memory.available()?, free - len);
    drop(second);
    ensure_eq!(memory.available()?, free);
    Ok(())
}

fn base_works(ctx: &Ctx) -> Result<()> {
    works(ctx, Variant::Base, 8 * MIB)
}

fn posted_works(ctx: &Ctx) -> Result<()> {
    works(ctx, Variant::S_2M, 8 * MIB)?;
    works(ctx, Variant::S_1G, 2 * GIB)?;
    // The alignment is the device's, and nothing smaller can be had.
    let memory = registered(ctx, Variant::S_2M)?;
    ensure_eq!(memory.map(PAGE).err(), Some(Errno::EINVAL));
    Ok(())
}

fn reviewed_works(ctx: &Ctx) -> Result<()> {
    works(ctx, Variant::R_2M, 8 * MIB)?;
    works(ctx, Variant::R_1G, 2 * GIB)?;
    works(ctx, Variant::R_1G, 3 * MIB + PAGE)
}

/// Every page of all 32 GiB is there, and no two are the same.
fn all_of_the_memory(ctx: &Ctx) -> Result<()> {
    for variant in COMPOUND {
        let memory = P2pmem::register(ctx, ctx.npu(0)?, variant)?;
        let free = memory.available()?;
        let map = memory.map(free)?;
        ensure_eq!(memory.available()?, 0);
        ensure_eq!(memory.map(variant.page()).err(), Some(Errno::ENOMEM));
        let leaves = || (0..free).step_by(variant.page() as usize);
        for at in leaves() {
            ensure_eq!(map.store(at, word(3, at)), Ok(()));
        }
        for at in leaves() {
            ensure_eq!(map.load(at), Ok(word(3, at)));
        }
        drop(map);
        ensure_eq!(memory.available()?, free);
    }
    Ok(())
}

/// O_DIRECT from and to a drive, across borders of pages.
fn transfers(ctx: &Ctx) -> Result<()> {
    let drive = open_direct(&block_device(ctx.nvme(0)?)?)?;
    for variant in [Variant::Base].into_iter().chain(COMPOUND) {
        let memory = registered(ctx, variant)?;
        let page = variant.page();
        let map = memory.map(4 * page.max(MIB))?;
        for (n, size) in [4 * KIB, MIB].into_iter().enumerate() {
            let border = page.max(MIB) - (size / 2).max(PAGE);
            for at in [0, border, map.len() - size] {
                let mut sent = Aligned::new(size)?;
                let seed = at ^ size;
                sent.bytes_mut()
                    .copy_from_slice(&pattern::bytes(seed, 0, size as usize));
                ensure_eq!(write_from(&drive, sent.as_ptr(), size, MIB), Ok(size));
                ensure_eq!(read_into(&drive, map.at(at), size, MIB), Ok(size));
                for byte in (0..size).step_by(512) {
                    let wanted = sent.bytes()[byte as usize..][..8].try_into()?;
                    ensure_eq!(map.load(at + byte), Ok(u64::from_ne_bytes(wanted)));
                }
                let back = MIB * (2 + n as u64);
                ensure_eq!(write_from(&drive, map.at(at), size, back), Ok(size));
                let received = Aligned::new(size)?;
                ensure_eq!(read_into(&drive, received.as_ptr(), size, back), Ok(size));
                ensure!(received.bytes() == sent.bytes(), "{variant:?}: {at:#x}");
            }
        }
    }
    Ok(())
}

/// The driver is unbound while a process maps the memory: the next touch is SIGBUS.
fn removal_with_live_mappings(ctx: &Ctx) -> Result<()> {
    for variant in [Variant::Base].into_iter().chain(COMPOUND) {
        let memory = registered(ctx, variant)?;
        let map = memory.map(2 * variant.page())?;
        ensure_eq!(map.store(8, 1), Ok(()));
        memory.function().unbind()?;
        ensure_eq!(map.load(8), Err(Fault::bus(map.at(8))));
        drop(map);
    }
    Ok(())
}

/// The memmap comes in sections, of which 1 MiB is none. The driver stays all the same: its removal
/// finds no half of a registration, and a next attempt is free to choose another alignment.
fn refused_memory_leaves_nothing(ctx: &Ctx) -> Result<()> {
    let bound = |second: u64| {
        let pieces = format!("align=0 size={MIB} lenient=1 second={second}");
        ctx.modules().load(DRIVER, &pieces)?;
        Lent::to(Function::of(ctx.npu(0)?)?, DRIVER)
    };
    let nothing = bound(0)?;
    let dir = nothing.function().dir().join("p2pmem");
    let allocate = File::open(dir.join("allocate"));
    nothing.function().unbind()?;
    ensure!(allocate.is_err(), "{} was there", dir.display());
    drop(nothing);

    // The largest alignment of the one is 4 KiB, of the other 1 GiB.
    let _second = bound(GIB)?;
    ensure_eq!(sysfs::read(dir.join("size"))?, GIB.to_string());
    let answer = sysfs::write(dir.join("max_page_size"), "4096");
    ensure!(answer.is_err(), "the alignment is 4 KiB");
    Ok(())
}

/// One open file has mappings of one kind. Memory for another is allocated before that is known.
fn a_refused_mapping_keeps_no_memory(ctx: &Ctx) -> Result<()> {
    let memory = registered(ctx, Variant::Base)?;
    let limit = memory.function().dir().join("p2pmem/max_page_size");
    let _small = memory.map(PAGE)?;
    let free = memory.available()?;
    sysfs::write(limit, &GIB.to_string())?;
    ensure_eq!(memory.map(GIB).err(), Some(Errno::EINVAL));
    ensure_eq!(memory.available()?, free);
    Ok(())
}

/// As many faults as there are pages of the largest sizes that fit.
fn pages_fit_the_mapping(ctx: &Ctx) -> Result<()> {
    for (len, shift) in [(3 * GIB + 6 * MIB + 3 * PAGE, 30), (2 * GIB, 21), (MIB, 30)] {
        let variant = Variant::Reviewed { page: 1 << shift };
        let memory = registered(ctx, variant)?;
        let map = memory.map(len)?;
        let leaves = map.model(shift);
        let wanted = leaves.of_1g + leaves.of_2m + leaves.of_4k;
        let before = minor_faults()?;
        map.touch_all(shift)
            .map_err(|it| anyhow::anyhow!("{it:?}"))?;
        let faults = minor_faults()? - before;
        // A page of the test's own program may be among them.
        ensure!(
            (wanted..wanted + 4).contains(&faults),
            "{len:#x} bytes: {faults} faults, {wanted} pages"
        );
    }
    Ok(())
}

/// Two GiB of which each has lost a page: 1 GiB in one piece is nowhere.
fn smaller_pages_where_larger_ones_are_gone(ctx: &Ctx) -> Result<()> {
    let memory = P2pmem::register_part(ctx, ctx.npu(0)?, Variant::R_1G, 2 * GIB)?;
    let _in_the_first = memory.map(PAGE)?;
    let rest_of_the_first = memory.map(GIB - PAGE)?;
    let _in_the_second = memory.map(PAGE)?;
    drop(rest_of_the_first);

    let map = memory.map(GIB)?;
    let before = minor_faults()?;
    for at in (0..GIB).step_by(2 * MIB as usize) {
        ensure_eq!(map.store(at, word(4, at)), Ok(()));
    }
    let faults = minor_faults()? - before;
    ensure!((512..516).contains(&faults), "{faults} faults");
    for at in (0..GIB).step_by(2 * MIB as usize) {
        ensure_eq!(map.load(at), Ok(word(4, at)));
    }
    ensure_eq!(memory.available()?, GIB - 2 * PAGE);
    Ok(())
}

/// What R has given back is what base expects to find in the pool.
fn large_pages_become_single_ones_again(ctx: &Ctx) -> Result<()> {
    let mut memory = P2pmem::register_part(ctx, ctx.npu(0)?, Variant::R_1G, GIB)?;
    for page in [2 * MIB, GIB] {
        memory.limit(page)?;
        let large = memory.map(GIB)?;
        ensure_eq!(large.store(0, word(8, page)), Ok(()));
        drop(large);
        memory.limit(PAGE)?;
        let small = memory.map(4 * MIB)?;
        for at in (0..small.len()).step_by(PAGE as usize) {
            ensure_eq!(small.store(at, word(9, at)), Ok(()));
        }
        drop(small);
        ensure_eq!(memory.available()?, GIB);
    }
    Ok(())
}

/// Three pages, marked at their ends and in the middle.
struct Marked {
    map: Mapping,
    page: u64,
}

impl Marked {
    fn spots(&self) -> impl Iterator<Item = u64> + use<> {
        let page = self.page;
        (0..3).flat_map(move |n| [n * page, n * page + page / 2, (n + 1) * page - 8])
    }

    /// The marks between two offsets, where offset 0 is at `base`.
    fn check_at(&self, base: *mut u8, from: u64, to: u64) -> Result<()> {
        for at in self.spots().filter(|at| (from..to).contains(at)) {
            let found = touch::load(base.wrapping_add(at as usize));
            ensure!(found == Ok(word(5, at)), "byte {at:#x}: {found:x?}");
        }
        Ok(())
    }

    fn check(&self, from: u64, to: u64) -> Result<()> {
        self.check_at(self.map.at(0), from, to)
    }
}

/// Runs a test on each variant that refaults; all memory must be free again afterwards.
fn each_reviewed(ctx: &Ctx, test: impl Fn(&Marked) -> Result<()>) -> Result<()> {
    for variant in REVIEWED {
        let memory = registered(ctx, variant)?;
        let free = memory.available()?;
        let page = variant.page();
        let case = Marked {
            map: memory.map(3 * page)?,
            page,
        };
        for at in case.spots() {
            ensure_eq!(case.map.store(at, word(5, at)), Ok(()));
        }
        test(&case).with_context(|| variant.label())?;
        drop(case);
        ensure_eq!(memory.available()?, free);
    }
    Ok(())
}

fn survives_smaps(ctx: &Ctx) -> Result<()> {
    each_reviewed(ctx, |case| {
        for _ in 0..2 {
            sysfs::read("/proc/self/smaps")?;
            case.check(0, 3 * case.page)?;
        }
        Ok(())
    })
}

fn survives_madv_dontneed(ctx: &Ctx) -> Result<()> {
    each_reviewed(ctx, |case| {
        let (room, page) = (&case.map.room, case.page);
        for (at, len) in [(0, 3 * page), (page + PAGE, PAGE), (page / 2, page)] {
            room.advise(at, len, libc::MADV_DONTNEED)?;
            case.check(0, 3 * page)?;
        }
        Ok(())
    })
}

fn survives_fork(ctx: &Ctx) -> Result<()> {
    each_reviewed(ctx, |case| {
        let last = 3 * case.page - 8;
        Child::start(|| {
            case.check(0, 3 * case.page)?;
            ensure_eq!(case.map.store(last, 7), Ok(()));
            Ok(case.map.room.unmap(case.page / 2, PAGE)?)
        })?
        .join()?;
        case.check(0, last)?;
        ensure_eq!(case.map.load(last), Ok(7));
        Ok(())
    })
}

fn survives_munmap_of_a_part(ctx: &Ctx) -> Result<()> {
    each_reviewed(ctx, |case| {
        let (room, page) = (&case.map.room, case.page);
        let hole = page + page / 4;
        room.unmap(hole, PAGE)?;
        case.check(0, hole)?;
        case.check(hole + PAGE, 3 * page)?;
        ensure_eq!(case.map.load(hole), Err(Fault::unmapped(case.map.at(hole))));
        Ok(())
    })
}

fn survives_mprotect_of_a_part(ctx: &Ctx) -> Result<()> {
    each_reviewed(ctx, |case| {
        let (room, page) = (&case.map.room, case.page);
        let at = page + page / 2;
        room.protect(at, PAGE, READ)?;
        case.check(0, 3 * page)?;
        let answer = case.map.store(at, 7);
        ensure_eq!(answer, Err(Fault::protected(case.map.at(at))));
        room.protect(at, PAGE, READ_WRITE)?;
        ensure_eq!(case.map.store(at, word(5, at)), Ok(()));
        case.check(0, 3 * page)
    })
}

/// As a whole to a place that is aligned alike and to one that is not, and then a part.
fn survives_mremap(ctx: &Ctx) -> Result<()> {
    for off in [0, PAGE] {
        each_reviewed(ctx, |case| {
            let (room, page) = (&case.map.room, case.page);
            let to = Room::new(3 * page + off, 0, GIB)?;
            room.remap(0, 3 * page, 3 * page, 0, Some((&to, off)))?;
            case.check_at(to.at(off), 0, 3 * page)?;
            ensure_eq!(case.map.load(0), Err(Fault::unmapped(case.map.at(0))));

            let part = Room::new(page, 0, GIB)?;
            let from = page / 2;
            to.remap(off + from, page, page, 0, Some((&part, 0)))?;
            case.check_at(part.at(0).wrapping_sub(from as usize), from, from + page)?;
            case.check_at(to.at(off), 0, from)?;
            case.check_at(to.at(off), from + page, 3 * page)
        })?;
    }
    Ok(())
}
