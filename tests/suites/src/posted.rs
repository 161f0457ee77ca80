// SPDX-License-Identifier: MIT OR Apache-2.0

//! What compound p2pmem as posted (variant S) cannot do, because nothing puts back what was taken
//! out of a page table, and because mm takes no care of leaves of 1 GiB in such a mapping.
//!
//! The report of the comparison names these. Should one of these tests fail, the patches have got
//! better than what they are to show.

use std::fs::OpenOptions;

use barbuf_guest::sysfs;

use crate::kit::map::Room;
use crate::kit::p2pmem::{P2pmem, Variant};
use crate::kit::pattern::word;
use crate::kit::pci::Function;
use crate::kit::prelude::*;
use crate::kit::process::Child;
use crate::p2pmem::{BASE, registered};

pub(crate) const SUITE: Suite = Suite {
    name: "posted",
    tests: &[
        test!(splits_are_refused).kernels(BASE).timeout(60),
        test!(a_child_has_nothing).kernels(BASE).timeout(60),
        test!(what_is_not_needed_never_comes_back)
            .kernels(BASE)
            .timeout(60),
        test!(smaps_loses_memory_for_good)
            .kernels(BASE)
            .timeout(60)
            .console(&["BUG: Bad rss-counter state", "sysrq: Trigger a crash"])
            .panics(),
        test!(mremap_loses_memory_for_good)
            .kernels(BASE)
            .timeout(60)
            .console(&[
                "bad pud",
                "BUG: Bad rss-counter state",
                "sysrq: Trigger a crash",
            ])
            .panics(),
        test!(a_drives_memory_has_small_pages).kernels(BASE),
        test!(a_drives_memory_has_the_pages_that_nvme_is_told)
            .kernels(BASE)
            .on(&["compound-cmb"]),
    ],
};

const POSTED: [Variant; 2] = [Variant::S_2M, Variant::S_1G];

fn marked(memory: &P2pmem, page: u64) -> Result<Mapping> {
    let map = memory.map(2 * page)?;
    for at in [0, page] {
        ensure_eq!(map.store(at, word(6, at)), Ok(()));
    }
    Ok(map)
}

/// munmap, mprotect and mremap inside of a page are EINVAL, and change nothing.
fn splits_are_refused(ctx: &Ctx) -> Result<()> {
    for variant in POSTED {
        let memory = registered(ctx, variant)?;
        let page = variant.page();
        let map = marked(&memory, page)?;
        let inside = page / 2;
        let refused = Err(Errno::EINVAL);
        ensure_eq!(map.room.unmap(inside, PAGE), refused);
        ensure_eq!(map.room.protect(inside, PAGE, READ), refused);
        ensure_eq!(map.room.punch(inside, PAGE), refused);
        for at in [0, page] {
            ensure_eq!(map.load(at), Ok(word(6, at)));
        }
        // At a border it is possible.
        map.room.unmap(page, page)?;
        ensure_eq!(map.load(0), Ok(word(6, 0)));
    }
    Ok(())
}

/// fork() copies page tables of mixed mappings only, and a fault finds no handler.
fn a_child_has_nothing(ctx: &Ctx) -> Result<()> {
    for variant in POSTED {
        let memory = registered(ctx, variant)?;
        let map = marked(&memory, variant.page())?;
        Child::start(|| {
            ensure_eq!(map.load(0), Err(Fault::bus(map.at(0))));
            Ok(())
        })?
        .join()?;
        ensure_eq!(map.load(0), Ok(word(6, 0)));
    }
    Ok(())
}

/// MADV_DONTNEED gives the memory away, and leaves a mapping of nothing.
fn what_is_not_needed_never_comes_back(ctx: &Ctx) -> Result<()> {
    for variant in POSTED {
        let memory = registered(ctx, variant)?;
        let page = variant.page();
        let map = marked(&memory, page)?;
        let free = memory.available()?;
        map.room.advise(0, page, libc::MADV_DONTNEED)?;
        ensure_eq!(map.load(0), Err(Fault::bus(map.at(0))));
        ensure_eq!(memory.available()?, free + page);
        ensure_eq!(map.load(page), Ok(word(6, page)));
    }
    Ok(())
}

/// Runs on each processor once: an idle one keeps the memory map of the process before, whose counters are looked at
/// when nobody has it any more.
fn visit_all_processors() -> Result<()> {
    for cpu in 0..std::thread::available_parallelism()?.get() {
        // SAFETY: All zeros are an empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: The set is ours, and far larger than the number of processors.
        unsafe { libc::CPU_SET(cpu, &mut set) };
        // SAFETY: The set lives; its size is told.
        Errno::result(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) })?;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}

/// A machine whose memory is lost cannot unbind the driver any more.
fn throw_away(memory: P2pmem) -> Result<()> {
    visit_all_processors()?;
    std::mem::forget(memory);
    sysfs::write("/proc/sys/kernel/sysrq", "1")?;
    sysfs::write("/proc/sysrq-trigger", "c")?;
    bail!("the machine is still there")
}

fn smaps_loses_memory_for_good(ctx: &Ctx) -> Result<()> {
    let memory = registered(ctx, Variant::S_1G)?;
    let free = memory.available()?;
    // The kernel counts when the process ends.
    Child::start(|| {
        let map = marked(&memory, GIB)?;
        sysfs::read("/proc/self/smaps")?;
        ensure_eq!(map.load(0), Err(Fault::bus(map.at(0))));
        Ok(())
    })?
    .join()?;
    ensure_eq!(memory.available()?, free - 2 * GIB);
    throw_away(memory)
}

fn mremap_loses_memory_for_good(ctx: &Ctx) -> Result<()> {
    let memory = registered(ctx, Variant::S_1G)?;
    let free = memory.available()?;
    Child::start(|| {
        let map = marked(&memory, GIB)?;
        let to = Room::new(2 * GIB, 0, GIB)?;
        map.room.remap(0, 2 * GIB, 2 * GIB, 0, Some((&to, 0)))?;
        ensure_eq!(crate::kit::touch::load(to.at(0)), Err(Fault::bus(to.at(0))));
        Ok(())
    })?
    .join()?;
    ensure_eq!(memory.available()?, free - 2 * GIB);
    throw_away(memory)
}

/// `nvme.cmb_devmap_align` is off unless somebody asks for it.
fn a_drives_memory_has_small_pages(ctx: &Ctx) -> Result<()> {
    drive_with_pages(ctx, PAGE)
}

/// With it, user space gets whole pages of 2 MiB, and so do the driver's queues.
fn a_drives_memory_has_the_pages_that_nvme_is_told(ctx: &Ctx) -> Result<()> {
    drive_with_pages(ctx, 2 * MIB)
}

/// Whether the CMB of a drive comes in pages of this size.
fn drive_with_pages(ctx: &Ctx, page: u64) -> Result<()> {
    let told = sysfs::read("/sys/module/nvme/parameters/cmb_devmap_align")?;
    ensure_eq!(told.trim().parse(), Ok(page));
    let dir = Function::of(ctx.nvme(0)?)?.dir().join("p2pmem");
    let available = || -> Result<u64> { Ok(sysfs::read(dir.join("available"))?.trim().parse()?) };
    let before = available()?;
    ensure!(before >= 2 * MIB && before % page == 0, "{before:#x} free");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(dir.join("allocate"))?;
    let map = |len| Mapping::of(&file, 0, Window::new(0, len), READ_WRITE, Place::Congruent);
    if page > PAGE {
        ensure_eq!(map(PAGE).map(drop), Err(Errno::EINVAL));
    }
    let whole = map(2 * MIB)?;
    ensure_eq!(available()?, before - 2 * MIB);
    let pages = || (0..2 * MIB).step_by(PAGE as usize);
    for at in pages() {
        ensure_eq!(whole.store(at, word(8, at)), Ok(()));
    }
    for at in pages() {
        ensure_eq!(whole.load(at), Ok(word(8, at)));
    }
    // A part of a page cannot go.
    let part = whole.room.unmap(MIB, PAGE);
    ensure_eq!(part.is_ok(), page == PAGE);
    Ok(())
}
