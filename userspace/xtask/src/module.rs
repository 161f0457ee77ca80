// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel modules, built out of tree once per kernel flavour.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::ctx::Ctx;
use crate::kernel::Kernel;

#[derive(Debug)]
pub(crate) struct BuiltModules {
    /// Every `*.ko` that the tree builds, `barbuf.ko` first.
    pub(crate) modules: Vec<PathBuf>,
}

pub(crate) fn build(kernel: &Kernel, _ctx: &Ctx) -> Result<BuiltModules> {
    bail!("no module can be built for {} yet", kernel.release)
}
