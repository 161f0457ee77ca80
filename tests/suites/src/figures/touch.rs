// SPDX-License-Identifier: MIT OR Apache-2.0

//! mmap and the first touch of every page, by barbuf and by vfio-pci.
//!
//! Every mapping is of the same 32 GiB at the same address, made anew for each run and unmapped afterwards.

use std::os::fd::AsFd;

use barbuf_guest::figure::Unit;
use barbuf_measure::clock::RUNS;
use barbuf_measure::mapping::{Target, life};

use super::clock::{CLOCK, tell};
use super::with_parameters;
use crate::export::main_region;
use crate::kit::prelude::*;
use crate::kit::vfio::Vfio;

/// The BAR of an NPU that holds its memory.
pub(super) const MEMORY_BAR: usize = 2;

/// One page size of 1 GiB.
pub(crate) fn touch_1g(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let len = main_region(&provider.node.info()?)?.length;
    for (name, wanted) in [
        ("touch_1g_pfn", Export::at(0, len)),
        ("touch_1g_page", Export::at(0, len).page()),
    ] {
        let buffer = provider.node.export(&wanted)?;
        ensure_eq!(
            (buffer.raw.out_page_shift, buffer.raw.out_phys_class),
            (30, 0)
        );
        measure(ctx, name, &buffer, 0, len, GIB)?;
        let query = provider.node.query(&buffer)?;
        let leaves = len / GIB * RUNS as u64;
        ensure_eq!(
            query.leaves(),
            Leaves {
                of_1g: leaves,
                ..Leaves::default()
            }
        );
    }
    Ok(())
}

/// The same by vfio-pci.
pub(crate) fn touch_1g_by_vfio(ctx: &Ctx) -> Result<()> {
    let vfio = Vfio::open(ctx, ctx.npu(0)?)?;
    let (offset, len) = vfio.bar(MEMORY_BAR)?;
    measure(ctx, "touch_1g_vfio", &vfio, offset, len, GIB)
}

/// Pages of 2 MiB, a table of them per fault.
pub(crate) fn touch_2m(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    touch_2m_of(ctx, &provider, "touch_2m_pfn", false)?;
    touch_2m_of(ctx, &provider, "touch_2m_page", true)
}

/// Pages of 2 MiB, each by a fault of its own.
pub(crate) fn touch_2m_one_by_one(ctx: &Ctx) -> Result<()> {
    with_parameters(ctx, "fault_around=0", |provider| {
        touch_2m_of(ctx, provider, "touch_2m_pfn_one_by_one", false)
    })
}

fn touch_2m_of(ctx: &Ctx, provider: &Provider, name: &str, page: bool) -> Result<()> {
    let len = main_region(&provider.node.info()?)?.length;
    let wanted = Export::at(0, len).leaf(BARBUF_PAGE_SHIFT_2M);
    let buffer = provider
        .node
        .export(&if page { wanted.page() } else { wanted })?;
    measure(ctx, name, &buffer, 0, len, 2 * MIB)?;
    let query = provider.node.query(&buffer)?;
    let leaves = len / (2 * MIB) * RUNS as u64;
    ensure_eq!(
        query.leaves(),
        Leaves {
            of_2m: leaves,
            ..Leaves::default()
        }
    );
    Ok(())
}

/// Maps, touches a byte of every page, unmaps.
fn measure(ctx: &Ctx, name: &str, file: impl AsFd, offset: u64, len: u64, page: u64) -> Result<()> {
    let target = Target {
        file: file.as_fd(),
        offset,
        len,
        leaf: page,
        phys_class: 0,
    };
    let life = life(CLOCK, &target)?;
    for (part, samples) in [
        ("", life.mmap_touch),
        ("_mmap", life.mmap),
        ("_touch", life.touch),
        ("_munmap", life.munmap),
    ] {
        ensure_eq!(samples.len(), RUNS);
        tell(ctx, &format!("{name}{part}"), Unit::Ns, samples)?;
    }
    Ok(())
}
