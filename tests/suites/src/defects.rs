// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's own mistakes with memory of devices, shown by `tests/reproducers/` without barbuf.
//!
//! That our mappings survive the same calls is for `vmops`, `advice` and `import` to prove. Here the
//! stock kernel shows what they survive: should one of these tests fail because the kernel has got
//! better, the defence that docs/design.md names beside the mistake has become superfluous.
//!
//! What a mistake is stands at the head of its program. Here is only what the program needs, and
//! what the console has to show. Each leaves a machine that is to be thrown away, and gets one.

use std::process::Command;

use crate::kit::importer::Engine;
use crate::kit::pci::Function;
use crate::kit::prelude::*;
use crate::kit::vfio::Borrowed;

pub(crate) const SUITE: Suite = Suite {
    name: "defects",
    tests: &[
        test!(a_split_inside_of_a_1g_leaf_oopses)
            .on(VFIO)
            .kernels(STOCK)
            .timeout(60)
            .console(&[
                "BUG: unable to handle page fault",
                " __split_huge_pmd+",
                " vma_adjust_trans_huge+",
            ])
            .panics(),
        test!(mremap_of_a_1g_leaf_leaves_the_old_address_readable)
            .on(VFIO)
            .kernels(STOCK)
            .timeout(60)
            .console(&["bad pud"]),
        test!(a_1g_leaf_without_access_is_not_present)
            .on(VFIO)
            .kernels(&["debug"])
            .timeout(60)
            .console(&["WARNING: arch/x86/mm/pgtable.c"]),
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
const VFIO: &[&str] = &["iommu"];
/// Other kernels have checkers that may notice earlier, in other words. One mistake only they see.
const STOCK: &[&str] = &["stock"];

/// Runs a reproducer, which must end by saying that the kernel has the defect.
fn reproduce(name: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(format!("/reproducers/{name}"))
        .args(arguments)
        .output()
        .with_context(|| format!("/reproducers/{name}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    print!("{said}");
    let said = said.trim();
    // The numbers of tests/reproducers/reproducer.h.
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1) => bail!("this kernel no longer has what {name} shows: {said}"),
        _ => bail!("{name} ended with {}: {said}", output.status),
    }
}

/// Defect 1.
fn a_split_inside_of_a_1g_leaf_oopses(ctx: &Ctx) -> Result<()> {
    let npu = Borrowed::for_vfio(ctx, ctx.npu(0)?)?;
    reproduce("split-1g", &[&npu.function.bdf])?;
    bail!("split-1g ended well, although nothing comes back from the defect that it shows")
}

/// Defect 2.
fn mremap_of_a_1g_leaf_leaves_the_old_address_readable(ctx: &Ctx) -> Result<()> {
    let npu = Borrowed::for_vfio(ctx, ctx.npu(0)?)?;
    reproduce("mremap-1g", &[&npu.function.bdf])
}

/// What `pudp_invalidate()` says.
fn a_1g_leaf_without_access_is_not_present(ctx: &Ctx) -> Result<()> {
    let npu = Borrowed::for_vfio(ctx, ctx.npu(0)?)?;
    reproduce("protect-1g", &[&npu.function.bdf])
}

/// Defects 4 and 5.
fn folios_in_a_mixed_vma_are_lost_and_split(ctx: &Ctx) -> Result<()> {
    ctx.modules().load("unprotected", "")?;
    reproduce("lost-folio", &[])
}

/// Defect 3.
fn scatterlists_of_a_dma_buf_are_lost(ctx: &Ctx) -> Result<()> {
    let _engine = Engine::load(ctx)?;
    let npu = Borrowed::for_vfio(ctx, ctx.npu(0)?)?;
    reproduce("sg-leak", &[&npu.function.bdf])
}

/// Defect 6.
fn populating_pages_of_devices_is_an_unknown_error(ctx: &Ctx) -> Result<()> {
    // The drive's own driver has published its CMB.
    reproduce("populate", &[&Function::of(ctx.nvme(0)?)?.bdf])
}
