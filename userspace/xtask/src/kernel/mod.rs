// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernels that barbuf is built for and tested on.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::ctx::Ctx;

/// Which build of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flavour {
    /// Debian's binary package, untouched.
    Stock,
    /// Our own build with every checker that the kernel has.
    Debug,
    /// Our own build without them: the small one that patches are tried on.
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

/// Makes a kernel ready. The first call takes minutes, later ones check the cache.
pub(crate) fn ensure(flavour: Flavour, _ctx: &Ctx) -> Result<Kernel> {
    bail!("the {flavour} kernel cannot be built yet")
}
