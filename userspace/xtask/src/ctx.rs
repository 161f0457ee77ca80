// SPDX-License-Identifier: MIT OR Apache-2.0

//! What every step needs: where things lie, how many jobs to run, whom to tell.

use std::env;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// Where repository and cache lie outside the toolchain.
    outside: [(PathBuf, PathBuf); 2],
}

impl Ctx {
    pub(crate) fn from_env() -> Result<Self> {
        let var = |name: &str| env::var_os(name).map(PathBuf::from);
        let (Some(repo), Some(cache)) = (var("BARBUF_REPO"), var("BARBUF_CACHE")) else {
            bail!("BARBUF_REPO or BARBUF_CACHE is not set\nhint: run this through the Makefile");
        };
        let ui = Ui::new();
        let seconds = |name: &str| env::var(name).ok()?.parse().ok().map(Duration::from_secs);
        if let Some(took) = seconds("BARBUF_TOOLCHAIN_SECONDS") {
            ui.past_step("making the toolchain ready", took);
        }
        if let (Some(began), Ok(now)) = (
            seconds("BARBUF_XTASK_BEGAN"),
            SystemTime::now().duration_since(UNIX_EPOCH),
        ) {
            ui.past_step("building xtask", now.saturating_sub(began));
        }
        Ok(Ctx {
            target: var("CARGO_TARGET_DIR").unwrap_or_else(|| repo.join("target")),
            jobs: thread::available_parallelism().map_or(1, |n| n.get()),
            ui,
            outside: [
                (repo.clone(), PathBuf::new()),
                (
                    cache.clone(),
                    var("BARBUF_HOST_CACHE").unwrap_or_else(|| cache.clone()),
                ),
            ],
            repo,
            cache,
        })
    }

    /// A path as the user knows it, outside the toolchain: relative to the repository, or in
    /// the cache's own place.
    pub(crate) fn show(&self, path: &Path) -> String {
        self.outside
            .iter()
            .find_map(|(inside, outside)| Some(outside.join(path.strip_prefix(inside).ok()?)))
            .unwrap_or_else(|| path.into())
            .display()
            .to_string()
    }
}

#[cfg(test)]
impl Ctx {
    pub(crate) fn for_tests() -> Self {
        Ctx {
            repo: "/barbuf".into(),
            cache: "/cache".into(),
            target: "/barbuf/target".into(),
            jobs: 1,
            ui: Ui::new(),
            outside: [
                ("/barbuf".into(), PathBuf::new()),
                ("/cache".into(), "/elsewhere/barbuf".into()),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_as_the_user_knows_them() {
        let ctx = Ctx::for_tests();
        assert_eq!(ctx.show(Path::new("/barbuf/target/x.log")), "target/x.log");
        assert_eq!(
            ctx.show(Path::new("/cache/kernels")),
            "/elsewhere/barbuf/kernels"
        );
        assert_eq!(ctx.show(Path::new("/etc/passwd")), "/etc/passwd");
    }
}
