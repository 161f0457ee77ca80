// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an importing device costs: attaching, and DMA addresses of 32 GiB, next to vfio-pci's dma-buf.
//!
//! On a machine with a root port for each device, so that the importer is in another IOMMU group than the NPU: vfio-pci
//! wants a group for itself. The addresses are one range behind the IOMMU.

use barbuf_guest::figure::Unit;
use barbuf_measure::clock::RUNS;

use super::clock::tell;
use super::touch::MEMORY_BAR;
use crate::export::main_region;
use crate::kit::importer::Engine;
use crate::kit::prelude::*;
use crate::kit::vfio::{DmaBufRequest, Vfio};

use std::os::fd::AsFd;

/// Attach and map together, by the kernel's own clock of instructions, and the entries of the scatterlist.
fn attach_and_map(ctx: &Ctx, engine: &Engine, buffer: impl AsFd, name: &str) -> Result<()> {
    let importer = engine.importer()?;
    let mut samples = Vec::new();
    let mut entries = Vec::new();
    for _ in 0..RUNS {
        let cycle = importer.cycle(&buffer, 0, 2)?;
        samples.push(cycle.least_cycles);
        entries.push(u64::from(cycle.nents));
    }
    tell(ctx, &format!("import_{name}"), Unit::Ns, samples)?;
    tell(
        ctx,
        &format!("import_{name}_entries"),
        Unit::Entries,
        entries,
    )
}

/// Of a buffer of 32 GiB.
pub(crate) fn import(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let len = main_region(&provider.node.info()?)?.length;
    let buffer = provider.node.export(&Export::at(0, len))?;
    attach_and_map(ctx, &engine, &buffer, "barbuf")
}

/// Of vfio-pci's dma-buf of the same bytes.
pub(crate) fn import_by_vfio(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let vfio = Vfio::open(ctx, ctx.npu(0)?)?;
    let (_, len) = vfio.bar(MEMORY_BAR)?;
    let buffer = vfio.dma_buf(&DmaBufRequest::new(MEMORY_BAR, 0, len))?;
    attach_and_map(ctx, &engine, &buffer, "vfio")
}
