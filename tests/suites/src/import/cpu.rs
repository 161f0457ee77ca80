// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the processors do with a buffer beside the devices that import it.

use super::{Both, mapped};
use crate::kit::importer::{ENGINE, Engine, TO_DEVICE};
use crate::kit::pattern;
use crate::kit::prelude::*;
use crate::kit::probe::Probe;

/// `vmap()`: only by consent, as I/O memory, and it shows what CPUs and devices see.
pub(crate) fn the_kernel_maps_for_its_cpus(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let consents = |export: Export| export.flag(BARBUF_EXPORT_STATIC_IMPORT);
    let importer = engine.importer()?;
    let strict = provider.node.export(&Export::any(MIB))?;
    ensure_eq!(importer.vmap(&strict), Err(Errno::EINVAL));
    let apart = [(GIB, PAGE), (GIB + 2 * PAGE, PAGE)];
    let apart = provider.node.export(&consents(Export::ranges(&apart)))?;
    ensure_eq!(importer.vmap(&apart), Err(Errno::EINVAL));
    let read_only = provider
        .node
        .export(&consents(Export::any(MIB).read_only()))?;
    ensure_eq!(importer.vmap(&read_only), Err(Errno::EINVAL));
    drop((strict, apart, read_only));

    for cache in [BARBUF_CACHE_UC, BARBUF_CACHE_WC] {
        let buffer = provider
            .node
            .export(&consents(Export::any(MIB).cache(cache)))?;
        let map = Mapping::whole(&buffer)?;
        importer.vmap(&buffer)?;
        let flags = provider.node.query(&buffer)?.raw.out_flags;
        ensure_eq!(flags, BARBUF_QUERY_HELD | BARBUF_QUERY_VMAPPED);
        ensure!(map.store(MIB - 8, 0x1234) == Ok(()));
        sync(&buffer, true)?;
        ensure_eq!(importer.peek(MIB - 8)?, (0x1234, false));
        importer.poke(0, 0x5678)?;
        ensure_eq!(map.load(0), Ok(0x5678));
        importer.vunmap()?;
        ensure_eq!(provider.node.query(&buffer)?.raw.out_flags, 0);
    }
    Ok(())
}

/// DMA_BUF_IOCTL_SYNC, begin and end.
pub(crate) fn sync(buffer: &Buffer, write: bool) -> Result<(), Errno> {
    const SYNC: u64 = (1 << 30) | (8 << 16) | ((b'b' as u64) << 8);
    const READ: u64 = 1;
    const WRITE: u64 = 2;
    const END: u64 = 4;
    let way = if write { WRITE } else { READ };
    for mut flags in [way, way | END] {
        // SAFETY: The argument is a `struct dma_buf_sync`, which is one u64.
        Errno::result(unsafe { libc::ioctl(buffer.number(), SYNC as _, &raw mut flags) })?;
    }
    Ok(())
}

/// Beginning and ending a CPU access works for every cache mode, backing and kind of provider, and
/// what was written has arrived at its end: a device reads it. A revoked buffer is ENODEV.
pub(crate) fn the_end_of_a_cpu_access(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let both = Both::new(ctx, MIB)?;
    let wc = Export::any(MIB).cache(BARBUF_CACHE_WC);
    let wc = both.npu.node.export(&wc)?;
    for (seed, buffer) in [&both.from, &both.to, &wc].into_iter().enumerate() {
        let seed = seed as u64;
        let importer = mapped(&engine, buffer, TO_DEVICE)?;
        let map = Mapping::whole(buffer)?;
        fill(&map, 0, PAGE, seed)?;
        sync(buffer, true)?;
        importer.load(0, ENGINE)?;
        let mut found = vec![0; ENGINE];
        importer.store_host(&mut found)?;
        ensure!(
            found == pattern::bytes(seed, 0, ENGINE),
            "buffer {seed}: the device read something else"
        );
        sync(buffer, false)?;
    }
    // Struct pages and write combining exclude each other in a region.
    drop(wc);
    let page = both.npu.node.export(&Export::any(2 * MIB).page())?;
    sync(&page, true)?;
    both.npu.node.revoke(&page)?;
    ensure_eq!(sync(&page, true), Err(Errno::ENODEV));
    Ok(())
}

/// That a device reads the right bytes does not show that somebody cared, because no store of an emulated
/// processor is ever late: so the kernel counts the barriers, and the mappings that are made to read back. One
/// of each for the end of a write, none for that of a read.
pub(super) fn the_end_of_a_write_drains_and_reads_back(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for cache in [BARBUF_CACHE_UC, BARBUF_CACHE_WC] {
        let buffer = provider.node.export(&Export::any(MIB).cache(cache))?;
        let drained = Probe::new("barbuf_test_drain", "barbuf:barbuf_helper_drain")?;
        let loaded = Probe::new("barbuf_test_iounmap", "iounmap")?;
        let hits = || -> Result<(u64, u64)> { Ok((drained.hits()?, loaded.hits()?)) };
        ensure_eq!(hits()?, (0, 0));
        for round in 1..=3 {
            sync(&buffer, false)?;
            ensure_eq!(hits()?, (round - 1, round - 1));
            sync(&buffer, true)?;
            ensure_eq!(hits()?, (round, round));
        }
    }
    Ok(())
}
