// SPDX-License-Identifier: MIT OR Apache-2.0

//! What every step needs: where things lie, how many jobs to run, whom to tell.

use std::env;
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, bail};

use crate::ui::Ui;

#[derive(Debug)]
pub(crate) struct Ctx {
    /// The repository.
    pub(crate) repo: PathBuf,
    /// What survives `make clean`: kernels, package lists, compiler cache.
    pub(crate) cache: PathBuf,
    /// What `make clean` removes.
    pub(crate) target: PathBuf,
    /// Parallel jobs of a build.
    pub(crate) jobs: usize,
    pub(crate) ui: Ui,
}

impl Ctx {
    pub(crate) fn from_env() -> Result<Self> {
        let var = |name: &str| env::var_os(name).map(PathBuf::from);
        let (Some(repo), Some(cache)) = (var("BARBUF_REPO"), var("BARBUF_CACHE")) else {
            bail!("BARBUF_REPO or BARBUF_CACHE is not set\nhint: run this through the Makefile");
        };
        Ok(Ctx {
            target: var("CARGO_TARGET_DIR").unwrap_or_else(|| repo.join("target")),
            repo,
            cache,
            jobs: thread::available_parallelism().map_or(1, |n| n.get()),
            ui: Ui::new(),
        })
    }
}
