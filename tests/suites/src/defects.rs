// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's own mistakes with large leaves of device memory, shown without barbuf.
//!
//! That our mappings survive the same calls is for `vmops` and `advice` to prove. Here the stock
//! kernel shows what they survive: should one of these tests fail because the kernel has got
//! better, the defence in kmod/map.rs that it names has become superfluous.
//!
//! Each needs a machine that is thrown away afterwards, and gets one.

use barbuf_guest::sysfs;

use crate::import::slab;
use crate::kit::importer::Engine;
use crate::kit::map::Room;
use crate::kit::prelude::*;
use crate::kit::touch;
use crate::kit::vfio::{DmaBufRequest, Vfio};

pub(crate) const SUITE: Suite = Suite {
    name: "defects",
    tests: &[
        test!(a_split_inside_of_a_1g_leaf_oopses)
            .on(TOPOLOGIES)
            .kernels(STOCK)
            .timeout(60)
            .console(&[
                "BUG: unable to handle page fault",
                " __split_huge_pmd+",
                " vma_adjust_trans_huge+",
            ])
            .panics(),
        test!(mremap_of_a_1g_leaf_leaves_the_old_address_readable)
            .on(TOPOLOGIES)
            .kernels(STOCK)
            .timeout(60)
            .console(&["bad pud"]),
        test!(folios_in_a_mixed_vma_are_lost_and_split)
            .on(&["npu-cmb"])
            .kernels(STOCK)
            .timeout(60)
            .console(&[
                "unprotected: this machine is to be thrown away",
                // The counter is put right for pages that are put back, and these were not.
                "BUG: Bad rss-counter state",
            ]),
        test!(scatterlists_of_a_dma_buf_are_lost)
            .on(&["iommu-root-ports"])
            .kernels(STOCK)
            .timeout(60),
        test!(populating_pages_of_devices_is_an_unknown_error)
            .on(&["npu-cmb"])
            .kernels(STOCK)
            .timeout(60)
            .console(&["unhandled return value: -121"]),
    ],
};

/// VFIO needs an IOMMU.
const TOPOLOGIES: &[&str] = &["iommu"];
/// Other kernels have checkers that may notice earlier, in other words.
const STOCK: &[&str] = &["stock"];
/// The BAR of an NPU that holds its memory.
const MEMORY_BAR: usize = 2;

/// Two leaves of 1 GiB that vfio-pci has put into page tables, in a room of their own.
struct ByVfio {
    room: Room,
    _vfio: Vfio,
}

impl ByVfio {
    const LEN: u64 = 2 * GIB;

    fn new(ctx: &Ctx) -> Result<ByVfio> {
        let vfio = Vfio::open(ctx, ctx.npu(0)?)?;
        let (offset, _) = vfio.bar(MEMORY_BAR)?;
        // The firmware places a BAR at a multiple of its size.
        let room = Room::new(Self::LEN, 0, GIB)?;
        room.map(0, Self::LEN, READ_WRITE, &vfio, offset)?;
        for at in [0, GIB] {
            // SAFETY: The room holds nothing of Rust's.
            let answer = unsafe { touch::store(room.at(at), word_at(at)) };
            ensure!(answer == Ok(()), "byte {at:#x}: {answer:?}");
        }
        Ok(ByVfio { room, _vfio: vfio })
    }
}

fn word_at(offset: u64) -> u64 {
    0x5eed_0000_0000_0000 | offset
}

/// Defect 1: `__split_vma` asks `vma_adjust_trans_huge` to split what stands at the new border, and
/// that knows leaves of 2 MiB only. It takes the BAR itself for a table of them.
///
/// Our defence: `Mapping::may_split` removes the leaf before.
fn a_split_inside_of_a_1g_leaf_oopses(ctx: &Ctx) -> Result<()> {
    let mapping = ByVfio::new(ctx)?;
    let answer = mapping.room.unmap(GIB / 2 + PAGE, PAGE);
    bail!(
        "this kernel no longer has defect 1: unmapping 4 KiB inside of vfio-pci's leaf of 1 GiB \
         came back with {answer:?}"
    )
}

/// Defect 2: `get_old_pud` takes a leaf of 1 GiB for a damaged table, says so, clears it, and
/// nobody flushes the TLB.
///
/// Our defence: `Mapping::opened` removes the leaves before they can be moved.
fn mremap_of_a_1g_leaf_leaves_the_old_address_readable(ctx: &Ctx) -> Result<()> {
    /// An interrupt between the two calls may flush the TLB by chance.
    const TRIES: usize = 20;
    for _ in 0..TRIES {
        let mapping = ByVfio::new(ctx)?;
        let to = Room::new(GIB, 0, GIB)?;
        // In the TLB, too.
        ensure!(touch::load(mapping.room.at(0)) == Ok(word_at(0)));
        mapping.room.remap(0, GIB, GIB, 0, Some((&to, 0)))?;
        let old = touch::load(mapping.room.at(0));
        ensure!(
            touch::load(to.at(0)) == Ok(word_at(0)),
            "the new address does not show the BAR"
        );
        match old {
            Ok(value) => {
                ensure_eq!(value, word_at(0));
                return Ok(());
            }
            Err(fault) => ensure_eq!(fault, Fault::unmapped(mapping.room.at(0))),
        }
    }
    bail!(
        "this kernel no longer has defect 2: the old address of vfio-pci's leaf of 1 GiB was gone \
         after each of {TRIES} moves"
    )
}

/// What tests/kmod/unprotected.c tells: how many faults it has served, and how many references its
/// first folio has.
fn unprotected() -> Result<(u64, u64)> {
    let text = sysfs::read("/dev/unprotected")?;
    let mut numbers = text.split(' ').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(faults)), Some(Ok(references))) => Ok((faults, references)),
        _ => bail!("/dev/unprotected says {text:?}"),
    }
}

/// Defects 4 and 5: a leaf of 1 GiB in a VMA that is neither DAX nor PFNMAP keeps its reference
/// to the folio when it is unmapped, and a look at smaps splits it, which loses it.
///
/// Our defence: folios only in plain VMAs of an inode with S_DAX, whose leaves refault.
fn folios_in_a_mixed_vma_are_lost_and_split(ctx: &Ctx) -> Result<()> {
    ctx.modules().load("unprotected", "")?;
    let file = std::fs::File::open("/dev/unprotected")?;
    let map = || -> Result<Room> {
        let room = Room::new(2 * GIB, 0, GIB)?;
        room.map(0, 2 * GIB, READ, &file, 0)?;
        ensure!(touch::load(room.at(0)).is_ok());
        Ok(room)
    };
    ensure_eq!(unprotected()?, (0, 1));
    drop(map()?);
    ensure_eq!(unprotected()?.0, 1);
    ensure!(
        unprotected()?.1 == 2,
        "this kernel no longer has defect 4: the folio has {} references after munmap",
        unprotected()?.1
    );

    let room = map()?;
    ensure!(touch::load(room.at(8)).is_ok());
    ensure_eq!(unprotected()?.0, 2);
    sysfs::read("/proc/self/smaps")?;
    ensure!(touch::load(room.at(0)).is_ok());
    ensure!(
        unprotected()?.0 == 3,
        "this kernel no longer has defect 5: the leaf was still there after a look at smaps"
    );
    Ok(())
}

/// Defect 3: `dma_buf_free_sgt` frees as many entries as `orig_nents` says, and its counterpart has set that to 0.
///
/// Our defence: `barbuf_helper_dma_buf_unmap` puts it right before.
fn scatterlists_of_a_dma_buf_are_lost(ctx: &Ctx) -> Result<()> {
    const ROUNDS: u32 = 20_000;
    // Two entries of 32 bytes.
    const LEN: u64 = 4 * GIB;
    let engine = Engine::load(ctx)?;
    let vfio = Vfio::open(ctx, ctx.npu(0)?)?;
    let buffer = vfio.dma_buf(&DmaBufRequest::new(MEMORY_BAR, 0, LEN))?;
    let importer = engine.importer()?;
    importer.cycle(&buffer, 0, 1_000)?;
    let before = slab()?;
    importer.cycle(&buffer, 0, ROUNDS)?;
    let grown = slab()? - before;
    ensure!(
        grown > i64::from(ROUNDS) * 48,
        "this kernel no longer has defect 3: {ROUNDS} mappings took {grown} bytes of slab memory"
    );
    Ok(())
}

/// Defect 6: the page is there, but may not be pinned by this caller. `madvise` does not know the
/// errno for that (EREMOTEIO) and says ENOMEM, and a warning to the console.
///
/// There is no defence: the mapping must be as good as before. One touch fills all the same.
fn populating_pages_of_devices_is_an_unknown_error(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let len = 2 * GIB;
    let wanted = Export::at(0, len).page().leaf(BARBUF_PAGE_SHIFT_1G);
    let buffer = provider.node.export(&wanted)?;
    let map = Mapping::whole(&buffer)?;
    for at in [0, len - 8] {
        ensure!(map.store(at, word_at(at)) == Ok(()));
    }
    for advice in [libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE] {
        let answer = map.room.advise(0, len, advice);
        ensure!(
            answer == Err(Errno::ENOMEM),
            "this kernel no longer has defect 6: populating said {answer:?}"
        );
        for at in [0, len - 8] {
            ensure_eq!(map.load(at), Ok(word_at(at)));
        }
    }
    Ok(())
}
