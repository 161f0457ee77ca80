// SPDX-License-Identifier: MIT OR Apache-2.0

//! Cache modes, as the kernel keeps them: what page faults put into page tables is taken from its list
//! of physical addresses.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;

use barbuf_guest::sysfs;

use crate::export::main_region;
use crate::kit::map::Room;
use crate::kit::pci::Function;
use crate::kit::prelude::*;

pub(crate) const SUITE: Suite = Suite {
    name: "cache",
    tests: &[
        test!(write_combining_is_reserved_for_its_buffer),
        test!(struct_pages_are_uncached),
        test!(write_combining_beside_an_uncached_mapping_is_refused),
    ],
};

/// `start..end` and the mode, of every range that is on the list (x86).
fn memtypes() -> Result<Vec<(u64, u64, String)>> {
    let text = sysfs::read("/sys/kernel/debug/x86/pat_memtype_list")?;
    let line = |line: &str| {
        let (range, mode) = line.strip_prefix("PAT: [mem 0x")?.split_once("] ")?;
        let (start, end) = range.split_once("-0x")?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?, mode.trim().to_owned()))
    };
    // One line is the title.
    let list: Vec<_> = text.lines().filter_map(line).collect();
    ensure!(!list.is_empty(), "not understood: {text}");
    Ok(list)
}

/// What the list says of some addresses. What is not on it is uncached, if it is no RAM.
fn modes(start: u64, len: u64) -> Result<Vec<(u64, u64, String)>> {
    let mut list = memtypes()?;
    list.retain(|(from, to, _)| *from < start + len && start < *to);
    Ok(list)
}

/// Write combining is on the list for the bytes of each such buffer and no other, also for parts of a
/// leaf, as long as there is the buffer; afterwards the same bytes can be had uncached.
fn write_combining_is_reserved_for_its_buffer(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let region = main_region(&provider.node.info()?)?;
    let base = provider.function.bar(region.bar as usize)?.start + region.offset;
    let combined = |at, len| Export::at(at, len).cache(BARBUF_CACHE_WC);
    ensure!(modes(base, region.length)?.is_empty(), "before");

    let large = provider.node.export(&combined(GIB, GIB))?;
    let small = provider.node.export(&combined(3 * GIB + PAGE, 3 * PAGE))?;
    let plain = provider.node.export(&Export::at(2 * GIB, GIB + PAGE))?;
    let maps = [&large, &small, &plain].map(Mapping::whole);
    for map in &maps {
        let map = map.as_ref().map_err(|errno| *errno)?;
        ensure!(map.store(0, 1) == Ok(()) && map.load(0) == Ok(1));
    }
    let of = |at: u64, len: u64| (base + at, base + at + len, "write-combining".to_owned());
    let (of_large, of_small) = (of(GIB, GIB), of(3 * GIB + PAGE, 3 * PAGE));
    let mut found = modes(base, region.length)?;
    found.sort();
    ensure!(found == [of_large.clone(), of_small.clone()], "{found:x?}");

    drop(maps);
    drop((small, plain));
    let found = modes(base, region.length)?;
    ensure!(found == [of_large], "without mappings: {found:x?}");
    drop(large);
    let found = modes(base, region.length)?;
    ensure!(found.is_empty(), "without buffers: {found:x?}");

    let plain = provider.node.export(&Export::at(GIB, GIB))?;
    let map = Mapping::whole(&plain)?;
    ensure!(map.load(0) == Ok(1));
    let found = modes(base, region.length)?;
    ensure!(found.is_empty(), "uncached: {found:x?}");
    Ok(())
}

/// Struct pages are uncached as a whole, for as long as there are any; a buffer with write combining
/// cannot be beside them, and is why they go.
fn struct_pages_are_uncached(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let region = main_region(&provider.node.info()?)?;
    let base = provider.function.bar(region.bar as usize)?.start + region.offset;
    let page = provider.node.export(&Export::at(0, GIB).page())?;
    let map = Mapping::whole(&page)?;
    ensure!(map.load(0).is_ok());
    let all = [(base, base + region.length, "uncached-minus".to_owned())];
    let found = modes(base, region.length)?;
    ensure!(found == all, "{found:x?}");
    let combined = Export::at(GIB, GIB).cache(BARBUF_CACHE_WC);
    let answer = provider.node.export(&combined).map(drop);
    ensure!(answer == Err(Errno::EBUSY), "beside them: {answer:?}");
    drop((map, page));
    let combined = provider.node.export(&combined)?;
    let found = modes(base, region.length)?;
    let wanted = (base + GIB, base + 2 * GIB, "write-combining".to_owned());
    ensure!(found == [wanted], "{found:x?}");
    drop(combined);
    ensure!(modes(base, region.length)?.is_empty());
    Ok(())
}

/// Write combining for bytes that somebody has uncached, here through /dev/mem from before the function
/// was bound, is refused: the kernel itself would give the other mode without a word.
fn write_combining_beside_an_uncached_mapping_is_refused(ctx: &Ctx) -> Result<()> {
    let function = Function::of(ctx.npu(0)?)?;
    function.unbind()?;
    let base = function.bar(2)?.start;
    let mem = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_SYNC)
        .open("/dev/mem")?;
    let room = Room::new(PAGE, 0, PAGE)?;
    room.map(0, PAGE, READ, &mem, base + GIB)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let theirs = modes(base, 2 * GIB)?;
    ensure!(
        theirs == [(base + GIB, base + GIB + PAGE, "uncached-minus".to_owned())],
        "{theirs:x?}"
    );
    let combined = |at, len| {
        let export = Export::at(at, len).cache(BARBUF_CACHE_WC);
        provider.node.export(&export).map(drop)
    };
    for (at, len) in [(GIB, PAGE), (GIB, GIB), (GIB - PAGE, 3 * PAGE)] {
        let answer = combined(at, len);
        ensure!(
            answer == Err(Errno::EBUSY),
            "{at:#x} + {len:#x}: {answer:?}"
        );
        ensure!(modes(base, 2 * GIB)? == theirs, "something stays reserved");
    }
    ensure!(combined(GIB + PAGE, PAGE) == Ok(()), "beside it");
    room.punch(0, PAGE)?;
    ensure!(combined(GIB, GIB) == Ok(()), "without it");
    Ok(())
}
