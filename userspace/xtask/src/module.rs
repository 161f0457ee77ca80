// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel modules, built out of tree, once per kernel flavour.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::cmd::{Log, make_dir};
use crate::ctx::Ctx;
use crate::kernel::Kernel;

#[derive(Debug)]
pub(crate) struct BuiltModules {
    /// Every `*.ko` that the tree builds, `barbuf.ko` first.
    pub(crate) modules: Vec<PathBuf>,
}

/// Builds the modules of the repository for a kernel, incrementally.
pub(crate) fn build(kernel: &Kernel, ctx: &Ctx) -> Result<BuiltModules> {
    let dir = ctx.target.join("kmod").join(kernel.flavour.to_string());
    let _lock = cache::lock(ctx, &beside(&dir, "lock"), "the module")?;
    // Objects for another kernel look newer than their sources and would be kept.
    let stamp = beside(&dir, "kernel");
    let identity = format!("{} {:?}", kernel.release, modified(&kernel.build_dir));
    if fs::read_to_string(&stamp).ok().as_ref() != Some(&identity) {
        cache::remove(&dir)?;
        make_dir(&dir)?;
        cache::write(&stamp, identity.as_bytes())?;
    }
    let step = ctx.ui.step(format!(
        "building the module for the {} kernel",
        kernel.flavour
    ));
    let log = Log::create(ctx, beside(&dir, "log"))?;
    log.run(
        &mut make(kernel, ctx, &dir),
        &format!("the module could not be built for {}", kernel.release),
    )?;
    let modules = find(&dir)?;
    step.done();
    Ok(BuiltModules { modules })
}

/// `make` for the repository's modules, with its products in `dir`.
pub(crate) fn make(kernel: &Kernel, ctx: &Ctx, dir: &Path) -> Command {
    let mut make = kernel.make(ctx);
    make.arg(format!("M={}", ctx.repo.display()));
    make.arg(format!("MO={}", dir.display()));
    make.args(["BARBUF_TESTS=m", "modules"]);
    make
}

/// When the tree that modules are built with was last made.
fn modified(build_dir: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(build_dir.join("Module.symvers"))
        .and_then(|data| data.modified())
        .ok()
}

fn beside(dir: &Path, extension: &str) -> PathBuf {
    dir.with_extension(extension)
}

/// The modules that kbuild says it made, `barbuf.ko` before those that stand on it.
fn find(dir: &Path) -> Result<Vec<PathBuf>> {
    let order = fs::read_to_string(dir.join("modules.order"))
        .context("the build left no list of its modules")?;
    let mut modules: Vec<PathBuf> = order
        .lines()
        .map(|object| dir.join(object).with_extension("ko"))
        .collect();
    modules.sort_by_key(|path| !path.ends_with("barbuf.ko"));
    match modules.first() {
        Some(first) if first.ends_with("barbuf.ko") => Ok(modules),
        _ => bail!("the build made no barbuf.ko"),
    }
}
