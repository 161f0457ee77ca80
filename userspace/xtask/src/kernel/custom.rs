// SPDX-License-Identifier: MIT OR Apache-2.0

//! Kernels of our own, from Debian's source: small, configured by the fragments in
//! `tests/vm/configs/`. The base kernel has the patches of `compound-sysfs/`; the debug kernel has
//! none, as the module must be proven on a kernel that nobody has repaired.
//!
//! The build tree stays in the cache and is built incrementally; ccache helps where it cannot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::config::{self, Config};
use super::debian::Choice;
use super::packages;
use super::patched;
use super::{Flavour, Kernel};
use crate::cache::{self, Tree};
use crate::cmd::{Log, make_dir};
use crate::ctx::Ctx;

/// Part of the key of what is made here: another recipe, another kernel.
const RECIPE: &str = "1";
/// How long before the newest file of a killed build a file may have been in the making.
const UNFINISHED: Duration = Duration::from_secs(60);

/// The compiler of a flavour, as arguments of make. KASAN needs clang where Rust is built too.
pub(super) fn compiler(flavour: Flavour) -> &'static [&'static str] {
    match flavour {
        Flavour::Stock => &[],
        Flavour::Base => &["CC=ccache gcc"],
        Flavour::Debug => &["LLVM=1", "CC=ccache clang"],
    }
}

fn fragments(flavour: Flavour) -> &'static [&'static str] {
    match flavour {
        Flavour::Debug => &["base.config", "debug.config"],
        _ => &["base.config", "compare.config"],
    }
}

pub(super) fn ensure(ctx: &Ctx, flavour: Flavour, choice: Choice) -> Result<Kernel> {
    let choice = packages::binaries(ctx, choice)?;
    let dir = choice.dir(ctx).join(flavour.to_string());
    let _lock = cache::lock(ctx, &dir.join("lock"), &format!("the {flavour} kernel"))?;

    let mut texts = Vec::new();
    for name in fragments(flavour) {
        let path = ctx.repo.join("tests/vm/configs").join(name);
        texts.push(
            fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", ctx.show(&path)))?,
        );
    }
    let mut wanted = Config::default();
    for text in &texts {
        wanted.merge(text);
    }
    let patches = match flavour {
        Flavour::Base => patched::series(ctx)?,
        _ => Vec::new(),
    };
    let mut parts = vec![RECIPE.as_bytes(), choice.version.as_bytes()];
    let options = wanted.text();
    parts.push(options.as_bytes());
    parts.extend(patches.iter().map(|patch| patch.bytes.as_slice()));
    let key = cache::hash(parts);

    let build = dir.join("build");
    let installed = Tree::new(ctx, dir.join("installed"), key);
    // A kernel is ready when it can be booted and when modules can be built for it.
    let ready = build.join("Module.symvers").is_file()
        && build.join("rust/libkernel.rmeta").is_file()
        && installed.ready()?;
    if !ready {
        installed.unseal()?;
        let source = packages::source(ctx, &choice)?;
        let step = ctx.ui.step(format!("building the {flavour} kernel"));
        cache::need_space(ctx, &dir, 8, "a kernel build")?;
        let source = patched::source(ctx, &choice, source, &patches)?;
        let run = Build {
            ctx,
            flavour,
            source: &source,
            build: &build,
        };
        run.configure(&options, &wanted)?;
        run.compile(|count| step.note(format!("{count} files")))?;
        installed.make(|staging| run.install(staging))?;
        step.done();
    }
    let release = read_release(&build)?;
    let installed = dir.join("installed");
    Ok(Kernel {
        flavour,
        version: choice.version,
        image: installed.join("vmlinuz"),
        modules: installed.join("lib/modules").join(&release),
        config: build.join(".config"),
        build_dir: build,
        release,
    })
}

fn read_release(build: &Path) -> Result<String> {
    let text = fs::read_to_string(build.join("include/config/kernel.release"))
        .context("the kernel build has no release")?;
    Ok(text.trim().into())
}

struct Build<'a> {
    ctx: &'a Ctx,
    flavour: Flavour,
    source: &'a Path,
    build: &'a Path,
}

impl Build<'_> {
    fn make(&self) -> Command {
        let mut make = Command::new("make");
        make.arg("-C").arg(self.source);
        make.arg(format!("O={}", self.build.display()));
        make.arg(format!("-j{}", self.ctx.jobs));
        make.arg(format!("LOCALVERSION=-barbuf-{}", self.flavour));
        make.args(["KBUILD_BUILD_USER=barbuf", "KBUILD_BUILD_HOST=barbuf"]);
        make.args(compiler(self.flavour));
        make
    }

    /// Makes `.config` of what the fragments ask for, and nothing else.
    fn configure(&self, options: &str, wanted: &Config<'_>) -> Result<()> {
        make_dir(self.build)?;
        let fragment = self.build.join("fragment.config");
        cache::write(&fragment, options.as_bytes())?;
        let log = Log::create(self.ctx, self.build.with_extension("config.log"))?;
        log.run(
            self.make()
                .arg(format!("KCONFIG_ALLCONFIG={}", fragment.display()))
                .arg("allnoconfig"),
            "the kernel could not be configured",
        )?;
        let text = fs::read_to_string(self.build.join(".config"))?;
        config::check(wanted, &Config::parse(&text))
    }

    fn compile(&self, note: impl Fn(usize)) -> Result<()> {
        let unfinished = self.build.join("unfinished");
        if unfinished.exists() {
            self.forget_unfinished()?;
        }
        fs::write(&unfinished, "")?;
        let log = Log::create(self.ctx, self.build.with_extension("log"))?;
        let mut count = 0;
        let result = log.watch(
            self.make().args(["bzImage", "modules"]),
            &format!("the {} kernel could not be built", self.flavour),
            |line| {
                if is_compilation(line) {
                    count += 1;
                    note(count);
                }
            },
        );
        // However make ended, it has ended: it has removed what it left unfinished.
        cache::remove(&unfinished)?;
        result
    }

    /// After a kill: a file may be cut short, yet newer than its source, and make would take it.
    fn forget_unfinished(&self) -> Result<()> {
        let mut files = Vec::new();
        list(self.build, &mut files)?;
        let newest = files.iter().map(|(_, time)| *time).max();
        let Some(limit) = newest.and_then(|newest| newest.checked_sub(UNFINISHED)) else {
            return Ok(());
        };
        for (path, time) in files {
            if time >= limit
                && !path.ends_with(".config")
                && !path.starts_with(self.build.join("include/config"))
            {
                cache::remove(&path)?;
            }
        }
        Ok(())
    }

    fn install(&self, to: &Path) -> Result<()> {
        let image = self.build.join("arch/x86/boot/bzImage");
        fs::copy(&image, to.join("vmlinuz")).context("the build made no bzImage")?;
        let log = Log::create(self.ctx, self.build.with_extension("install.log"))?;
        log.run(
            self.make()
                .arg(format!("INSTALL_MOD_PATH={}", to.display()))
                .args(["INSTALL_MOD_STRIP=1", "modules_install"]),
            "the kernel's modules could not be installed",
        )?;
        let modules = to.join("lib/modules").join(read_release(self.build)?);
        if !modules.join("modules.dep").is_file() {
            bail!("the kernel's modules have no modules.dep");
        }
        // They lead to the build tree by absolute paths, and Kernel::build_dir tells it anyway.
        cache::remove(&modules.join("build"))?;
        cache::remove(&modules.join("source"))
    }
}

fn list(dir: &Path, files: &mut Vec<(PathBuf, SystemTime)>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push((entry.path(), entry.metadata()?.modified()?));
        }
    }
    Ok(())
}

/// Whether a line of kbuild's output says that a file was compiled.
fn is_compilation(line: &str) -> bool {
    let mut words = line.split_whitespace();
    matches!(
        words.next(),
        Some("CC" | "AS" | "RUSTC" | "HOSTCC" | "HOSTRUSTC" | "BINDGEN")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilations_are_counted() {
        assert!(is_compilation("  CC      mm/memory.o"));
        assert!(is_compilation("  CC [M]  drivers/nvme/host/pci.o"));
        assert!(is_compilation("  RUSTC L rust/kernel.o"));
        assert!(!is_compilation("  LD      vmlinux.o"));
        assert!(!is_compilation(""));
    }
}
