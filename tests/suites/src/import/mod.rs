// SPDX-License-Identifier: MIT OR Apache-2.0

//! Importing devices: who is let in, what they are given, and that the bytes move.

mod admission;
mod cpu;

use crate::export::main_region;
use crate::kit::importer::{BIDIRECTIONAL, ENGINE, Engine, FROM_DEVICE, Importer, TO_DEVICE};
use crate::kit::pattern;
use crate::kit::prelude::*;
use crate::kit::slab;
use crate::support::hash;

pub(crate) use admission::{
    a_small_dma_mask_is_erange, consent_is_asked_of_importers_that_cannot_stop,
    devices_without_a_route_are_refused, query_lists_the_attachments,
    read_only_buffers_are_read_only_for_devices,
};
use cpu::the_end_of_a_write_drains_and_reads_back;
pub(crate) use cpu::{sync, the_end_of_a_cpu_access, the_kernel_maps_for_its_cpus};

/// Where DMA takes each kind of way: a switch, a trusted host bridge, an IOMMU.
pub(crate) const REACHABLE: &[&str] = &["npu-cmb", "two-root-ports", "iommu-root-ports"];

pub(crate) const SUITE: Suite = Suite {
    name: "import",
    tests: &[
        test!(bytes_move_between_npu_cmb_and_host)
            .on(REACHABLE)
            .timeout(120),
        test!(a_megabyte_from_npu_to_cmb).timeout(180),
        test!(addresses_cover_every_byte)
            .on(&["npu-cmb", "two-root-ports", "iommu", "iommu-root-ports"])
            .timeout(60),
        test!(a_copy_beyond_4_gib).on(REACHABLE).timeout(60),
        test!(several_ranges_are_one_buffer)
            .on(REACHABLE)
            .timeout(60),
        // On the debug kernel the NPU has 8 GiB.
        test!(ranges_of_more_than_4_gib)
            .on(REACHABLE)
            .kernels(&["stock", "base"])
            .timeout(60),
        test!(page_backed_buffers_are_imported_too),
        test!(read_only_buffers_are_read_only_for_devices),
        test!(consent_is_asked_of_importers_that_cannot_stop),
        test!(devices_without_a_route_are_refused).on(&["no-route"]),
        test!(a_small_dma_mask_is_erange).on(REACHABLE),
        test!(query_lists_the_attachments),
        test!(the_kernel_maps_for_its_cpus),
        test!(the_end_of_a_cpu_access).on(REACHABLE),
        test!(the_end_of_a_write_drains_and_reads_back),
        test!(a_hundred_thousand_rounds_leak_nothing)
            .on(REACHABLE)
            .timeout(300),
    ],
};

/// A buffer of the NPU, and one of the drive's memory.
struct Both {
    npu: Provider,
    _cmb: Provider,
    from: Buffer,
    to: Buffer,
}

impl Both {
    fn new(ctx: &Ctx, len: u64) -> Result<Both> {
        let npu = Provider::bind(ctx.npu(0)?)?;
        let cmb = Provider::adopt(ctx.nvme(0)?)?;
        let from = npu.node.export(&Export::any(len))?;
        let to = cmb.node.export(&Export::any(len))?;
        Ok(Both {
            npu,
            _cmb: cmb,
            from,
            to,
        })
    }
}

fn mapped(engine: &Engine, buffer: &Buffer, direction: u32) -> Result<Importer> {
    let importer = engine.attached(buffer)?;
    let map = importer.map(direction).context("mapping")?;
    ensure!(map.bytes == buffer.size(), "{map:?}");
    Ok(importer)
}

/// NPU to CMB, CMB to NPU, host to NPU, NPU to host, each by two transfers of the engine; and the
/// host sees the NPU's bytes too.
pub(crate) fn bytes_move_between_npu_cmb_and_host(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let both = Both::new(ctx, 2 * ENGINE as u64)?;
    let npu = mapped(&engine, &both.from, BIDIRECTIONAL)?;
    let cmb = mapped(&engine, &both.to, BIDIRECTIONAL)?;
    let (npu_map, cmb_map) = (Mapping::whole(&both.from)?, Mapping::whole(&both.to)?);
    let page = ENGINE as u64;

    fill(&npu_map, 0, 2 * page, 1)?;
    fill(&cmb_map, 0, 2 * page, 2)?;
    // NPU to CMB.
    npu.load(0, ENGINE)?;
    cmb.store(page, ENGINE)?;
    for at in (0..page).step_by(8) {
        ensure_eq!(cmb_map.load(page + at), Ok(pattern::word(1, at)));
    }
    verify(&cmb_map, 0, page, 2).context("beside the transfer")?;
    // CMB to NPU.
    cmb.load(0, ENGINE)?;
    npu.store(page, ENGINE)?;
    for at in (0..page).step_by(8) {
        ensure_eq!(npu_map.load(page + at), Ok(pattern::word(2, at)));
    }
    verify(&npu_map, 0, page, 1).context("beside the transfer")?;
    // Host to NPU.
    let bytes = pattern::bytes(3, 0, ENGINE);
    npu.load_host(&bytes)?;
    npu.store(0, ENGINE)?;
    verify(&npu_map, 0, page, 3)?;
    let offset = main_region(&both.npu.node.info()?)?.offset + both.from.ranges[0].offset;
    ensure_eq!(ctx.host_hash("npu0", offset, page)?, hash(&bytes));
    // NPU to host.
    let mut back = vec![0; ENGINE];
    npu.load(page, ENGINE)?;
    npu.store_host(&mut back)?;
    ensure!(
        back == pattern::bytes(2, 0, ENGINE),
        "other bytes came back"
    );
    Ok(())
}

/// The whole of a megabyte, page by page, and every byte is checked at both ends.
fn a_megabyte_from_npu_to_cmb(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let both = Both::new(ctx, MIB)?;
    let npu = mapped(&engine, &both.from, TO_DEVICE)?;
    let cmb = mapped(&engine, &both.to, FROM_DEVICE)?;
    let (npu_map, cmb_map) = (Mapping::whole(&both.from)?, Mapping::whole(&both.to)?);
    fill(&npu_map, 0, MIB, 4)?;
    for at in (0..MIB).step_by(ENGINE) {
        npu.load(at, ENGINE)?;
        cmb.store(at, ENGINE)?;
    }
    verify(&cmb_map, 0, MIB, 4)?;
    let offset = main_region(&both.npu.node.info()?)?.offset + both.from.ranges[0].offset;
    ensure_eq!(
        ctx.host_hash("npu0", offset, MIB)?,
        hash(&pattern::bytes(4, 0, MIB as usize))
    );
    Ok(())
}

/// L8, L9: the addresses of a buffer add up to its size, up to all of the region, with as few
/// entries as possible and in one range where an IOMMU translates.
pub(crate) fn addresses_cover_every_byte(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let all = main_region(&provider.node.info()?)?.length;
    let sizes = [PAGE, MIB, GIB, 4 * GIB - PAGE, 4 * GIB, 8 * GIB + PAGE, all];
    for size in sizes.into_iter().filter(|size| *size <= all) {
        let buffer = provider.node.export(&Export::at(0, size))?;
        let importer = engine.attached(&buffer)?;
        let map = importer.map(BIDIRECTIONAL)?;
        ensure!(map.bytes == size, "{size:#x} bytes: {map:?}");
        ensure!(map.ranges == 1, "{size:#x} bytes: {map:?}");
        let most = size.div_ceil(2 * GIB);
        ensure!(u64::from(map.nents) <= most, "{size:#x} bytes: {map:?}");
        if ctx.topology().name == "two-root-ports" {
            // Pieces that are mapped one by one keep the alignment of the memory.
            ensure!(map.unaligned == 0, "{size:#x} bytes: {map:?}");
        }
        ctx.note(format!("{size:#x} bytes: {map:?}"));
        importer.unmap()?;
        importer.detach()?;
    }
    Ok(())
}

/// L8: an offset beyond 4 GiB reaches the bytes that are there.
fn a_copy_beyond_4_gib(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let all = main_region(&provider.node.info()?)?.length;
    let buffer = provider.node.export(&Export::at(0, all))?;
    let map = Mapping::whole(&buffer)?;
    let importer = mapped(&engine, &buffer, BIDIRECTIONAL)?;
    for (seed, at) in [
        0,
        2 * GIB - PAGE,
        4 * GIB - PAGE,
        4 * GIB,
        all / 2 + 5 * PAGE,
        all - PAGE,
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = pattern::bytes(seed as u64, at, ENGINE);
        importer.load_host(&bytes)?;
        importer.store(at, ENGINE)?;
        verify(&map, at, PAGE, seed as u64)?;
        ensure_eq!(ctx.host_hash("npu0", at, PAGE)?, hash(&bytes));
    }
    Ok(())
}

/// Bytes that are apart in the region follow each other in the buffer, also for devices.
pub(crate) fn several_ranges_are_one_buffer(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let ranges = [(GIB, 2 * PAGE), (8 * PAGE, PAGE), (3 * GIB, PAGE)];
    let buffer = provider.node.export(&Export::ranges(&ranges))?;
    let map = Mapping::whole(&buffer)?;
    let importer = engine.attached(&buffer)?;
    let addresses = importer.map(BIDIRECTIONAL)?;
    let translated = ctx.topology().iommu;
    ensure!(
        addresses.bytes == 4 * PAGE && addresses.ranges == if translated { 1 } else { 3 },
        "{addresses:?}"
    );
    for at in [0, PAGE, 2 * PAGE, 3 * PAGE, 2 * PAGE - 8] {
        let len = 16.min((4 * PAGE - at) as usize);
        let bytes = pattern::bytes(7, at, len);
        importer.load_host(&bytes)?;
        importer.store(at, len)?;
        verify(&map, at, len as u64, 7)?;
    }
    Ok(())
}

/// L8: none of three ranges fits into one entry of a scatterlist, nor does the offset of the last two.
fn ranges_of_more_than_4_gib(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let ranges = [
        (16 * GIB, 5 * GIB + PAGE),
        (2 * GIB, 5 * GIB),
        (24 * GIB, 4 * GIB + PAGE),
    ];
    let buffer = provider.node.export(&Export::ranges(&ranges))?;
    let map = Mapping::whole(&buffer)?;
    let importer = engine.attached(&buffer)?;
    let addresses = importer.map(BIDIRECTIONAL)?;
    ensure!(
        addresses.bytes == buffer.size()
            && addresses.ranges == if ctx.topology().iommu { 1 } else { 3 },
        "{addresses:?}"
    );
    let base = main_region(&provider.node.info()?)?.offset;
    let mut start = 0;
    for (offset, len) in ranges {
        // The first bytes, the last ones, and those around 4 GiB.
        for at in [0, 4 * GIB - PAGE, len - PAGE] {
            let seed = offset + at;
            let bytes = pattern::bytes(seed, start + at, ENGINE);
            importer.load_host(&bytes)?;
            importer.store(start + at, ENGINE)?;
            verify(&map, start + at, PAGE, seed)?;
            ensure_eq!(
                ctx.host_hash("npu0", base + offset + at, PAGE)?,
                hash(&bytes)
            );
        }
        start += len;
    }
    Ok(())
}

/// Struct pages change nothing for importers.
pub(crate) fn page_backed_buffers_are_imported_too(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(GIB).page())?;
    let map = Mapping::whole(&buffer)?;
    let importer = mapped(&engine, &buffer, BIDIRECTIONAL)?;
    importer.load_host(&pattern::bytes(8, GIB - PAGE, ENGINE))?;
    importer.store(GIB - PAGE, ENGINE)?;
    verify(&map, GIB - PAGE, PAGE, 8)
}

/// Defect 3: the kernel's helper loses the scatterlist at every unmap, 64 bytes and more; here it
/// does not.
fn a_hundred_thousand_rounds_leak_nothing(ctx: &Ctx) -> Result<()> {
    let rounds = if ctx.kernel() == "debug" {
        2_000
    } else {
        100_000
    };
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(4 * GIB))?;
    let importer = engine.importer()?;
    // What is kept for later is there after the first rounds.
    importer.cycle(&buffer, 0, 1_000)?;
    let before = slab::bytes()?;
    importer.cycle(&buffer, 0, rounds)?;
    let grown = slab::bytes()? - before;
    ctx.note(format!("{rounds} rounds: {grown} bytes more"));
    // However many rounds: what the kernel keeps for later does not grow with them.
    ensure!(
        grown < slab::NOISE,
        "{rounds} rounds of attach, map, unmap and detach: {grown} bytes more in slabs"
    );
    let query = provider.node.query(&buffer)?.raw;
    ensure_eq!((query.out_attachments, query.out_flags), (0, 0));
    Ok(())
}
