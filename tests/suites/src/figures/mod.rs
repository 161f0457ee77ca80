// SPDX-License-Identifier: MIT OR Apache-2.0

//! The figures of `make figures`, measured in one boot of a machine whose time counts instructions.
//!
//! A benchmark and no test: nothing here fails because a number is large. Each function measures a few quantities
//! [`RUNS`](barbuf_measure::clock::RUNS) times and tells them to the host (`userspace/xtask/src/vm/figures.rs`), which knows what they
//! should be.

mod clock;
mod export;
mod import;
mod receive;
mod revoke;
mod touch;

use anyhow::Result;
use barbuf_guest::modules;

use crate::kit::pci::Provider;
use crate::support::{Ctx, Suite, test};

use clock::clock_counts_instructions;
use export::{export, export_by_vfio, struct_pages};
use import::{import, import_by_vfio};
use receive::{first_map_exporter, receive, receive_bare};
use revoke::revoke;
use touch::{touch_1g, touch_1g_by_vfio, touch_2m, touch_2m_one_by_one};

const TOPOLOGIES: &[&str] = &["icount"];
/// Where the importing device is in an IOMMU group of its own.
const IMPORT: &[&str] = &["icount-root-ports"];

pub(crate) const SUITE: Suite = Suite {
    name: "figures",
    tests: &[
        test!(clock_counts_instructions).on(TOPOLOGIES),
        test!(touch_1g).on(TOPOLOGIES).timeout(120),
        test!(touch_2m).on(TOPOLOGIES).timeout(300),
        test!(touch_2m_one_by_one).on(TOPOLOGIES).timeout(300),
        test!(struct_pages).on(TOPOLOGIES).timeout(120),
        test!(export).on(TOPOLOGIES).timeout(120),
        test!(revoke).on(TOPOLOGIES).timeout(300),
        test!(receive).on(TOPOLOGIES).timeout(120),
        test!(receive_bare).on(TOPOLOGIES).timeout(120),
        test!(first_map_exporter).on(TOPOLOGIES).timeout(120),
        test!(touch_1g_by_vfio).on(TOPOLOGIES).timeout(120),
        test!(export_by_vfio).on(TOPOLOGIES).timeout(120),
        test!(import).on(IMPORT).timeout(120),
        test!(import_by_vfio).on(IMPORT).timeout(120),
    ],
};

/// Makes the NPU a provider of a module that was loaded with these parameters, and undoes both.
fn with_parameters(
    ctx: &Ctx,
    parameters: &str,
    run: impl FnOnce(&Provider) -> Result<()>,
) -> Result<()> {
    let again = |parameters: &str| -> Result<()> {
        modules::unload(ctx.product())?;
        Ok(ctx.modules().load(ctx.product(), parameters)?)
    };
    again(parameters)?;
    let result = Provider::bind(ctx.npu(0)?).and_then(|provider| run(&provider));
    again("")?;
    result
}
