// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernels that barbuf is built for and tested on.
//!
//! [`debian`] decides which version that is, [`packages`] fetches it, [`stock`] makes Debian's binary
//! package fit to build Rust modules for, [`custom`] builds kernels of our own from its source.

mod config;
mod custom;
mod debian;
mod packages;
mod patched;
mod stock;
mod symvers;

use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

pub(crate) use self::patched::{Patch, files as patch_files, series as patch_series};
use crate::ctx::Ctx;
pub(crate) use debian::apt_conf;

/// Which build of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flavour {
    /// Debian's binary package, untouched.
    Stock,
    /// Our own build with every checker that the kernel has.
    Debug,
    /// Our own build without them, with the patches of `compound-sysfs/`: for the comparison.
    Base,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Stock => "stock",
            Flavour::Debug => "debug",
            Flavour::Base => "base",
        })
    }
}

/// A kernel that is ready to boot and to build modules for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Kernel {
    pub(crate) flavour: Flavour,
    /// The version of Debian's source package.
    pub(crate) version: String,
    /// What `uname -r` says in the guest.
    pub(crate) release: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// The `lib/modules/<release>` directory, with `modules.dep`.
    pub(crate) modules: PathBuf,
    /// What `make -C` takes to build modules.
    pub(crate) build_dir: PathBuf,
    /// The kernel's `.config`.
    pub(crate) config: PathBuf,
}

impl Kernel {
    /// `make` in the kernel's tree, with the compiler that the kernel was built with.
    pub(crate) fn make(&self, ctx: &Ctx) -> Command {
        let mut make = Command::new("make");
        make.arg("-C").arg(&self.build_dir);
        make.arg(format!("-j{}", ctx.jobs));
        make.args(custom::compiler(self.flavour));
        make
    }
}

/// Makes a kernel ready. The first call takes minutes, later ones check the cache.
pub(crate) fn ensure(flavour: Flavour, ctx: &Ctx) -> Result<Kernel> {
    let choice = debian::choose(ctx)?;
    let kernel = match flavour {
        Flavour::Stock => stock::ensure(ctx, choice)?,
        Flavour::Debug | Flavour::Base => custom::ensure(ctx, flavour, choice)?,
    };
    ctx.ui.line(&format!(
        "{flavour} kernel: {} (Debian {})",
        kernel.release, kernel.version
    ));
    Ok(kernel)
}

/// The source that all the kernels come from, unpatched.
pub(crate) fn source(ctx: &Ctx) -> Result<PathBuf> {
    let choice = packages::binaries(ctx, debian::choose(ctx)?)?;
    packages::source(ctx, &choice)
}

/// Asks the mirror for a newer kernel and takes it.
pub(crate) fn update(ctx: &Ctx) -> Result<()> {
    let (before, now) = debian::update(ctx)?;
    match before {
        Some(before) if before != now => ctx.ui.line(&format!(
            "{} is replaced by {}; the next build fetches it",
            before.version, now.version
        )),
        Some(_) => ctx.ui.line("nothing newer"),
        None => (),
    }
    Ok(())
}
