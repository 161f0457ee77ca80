// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian's binary kernel, untouched, and a tree to build Rust modules for it.
//!
//! Debian's headers package has no Rust metadata: no `*.rmeta`, no procedural macros, no
//! `target.json`. They are regenerated here from Debian's source with Debian's configuration and
//! the same rustc, and every symbol that they promise is looked up in the kernel's
//! `Module.symvers` before anything is built with them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::config::Config;
use super::debian::Choice;
use super::packages;
use super::{Flavour, Kernel, symvers};
use crate::cache::{self, Tree};
use crate::cmd::{self, Log, make_dir};
use crate::ctx::Ctx;

/// Part of the key of what is made here: another recipe, another tree.
const RECIPE: &str = "1";

/// kbuild's way to build beside the source, with paths that follow the tree.
const MAKEFILE: &str = "\
KBUILD_OUTPUT := $(realpath $(dir $(lastword $(MAKEFILE_LIST))))
include $(KBUILD_OUTPUT)/common/Makefile
";

pub(super) fn ensure(ctx: &Ctx, choice: Choice) -> Result<Kernel> {
    let choice = packages::binaries(ctx, choice)?;
    let usr = choice.packages_dir(ctx).join("usr");
    let modules = usr.join("lib/modules").join(&choice.release);
    let boot = choice.packages_dir(ctx).join("boot");
    let image = [
        modules.join("vmlinuz"),
        boot.join(format!("vmlinuz-{}", choice.release)),
    ];
    let headers = usr.join(format!("src/linux-headers-{}", choice.release));
    let kernel = Kernel {
        flavour: Flavour::Stock,
        image: image
            .into_iter()
            .find(|image| image.is_file())
            .context("Debian's packages hold no kernel image")?,
        build_dir: choice.dir(ctx).join("stock/kdir"),
        config: headers.join(".config"),
        version: choice.version.clone(),
        release: choice.release.clone(),
        modules,
    };
    check_rustc(&kernel.config)?;

    let dir = choice.dir(ctx).join("stock");
    let _lock = cache::lock(ctx, &dir.join("lock"), "the stock kernel")?;
    let key = format!("{} {RECIPE}", choice.version);
    let tree = Tree::new(ctx, kernel.build_dir.clone(), key);
    if !tree.ready()? {
        let source = packages::source(ctx, &choice)?;
        let step = ctx.ui.step("regenerating the stock kernel's Rust metadata");
        let meta = dir.join("meta");
        regenerate(ctx, &source, &headers, &meta)?;
        let count = check_symbols(&meta, &headers)?;
        tree.make(|staging| assemble(&choice, &usr, &headers, &meta, staging))?;
        cache::remove(&meta)?;
        step.done();
        ctx.ui.line(&format!(
            "all {count} Rust symbols of the regenerated metadata are in Debian's Module.symvers"
        ));
    }
    Ok(kernel)
}

/// The compiler must be the very one that built the kernel: metadata and symbol names depend
/// on it.
fn check_rustc(config: &Path) -> Result<()> {
    let text = read(config)?;
    let config = Config::parse(&text);
    let ours = cmd::output(Command::new("rustc").arg("--version"))?;
    compare_rustc(config.get("CONFIG_RUSTC_VERSION_TEXT"), ours.trim())
}

fn compare_rustc(kernel: Option<&str>, ours: &str) -> Result<()> {
    let Some(kernel) = kernel else {
        bail!("this kernel is built without Rust\nhint: see SERIES in xtask/src/kernel/debian.rs");
    };
    let kernel = kernel.trim_matches('"');
    // "rustc 1.85.1 (hash date) (how it was built)": the way of building does not matter.
    let identity = |text: &str| text.split(')').next().map(str::to_owned);
    if identity(kernel) != identity(ours) {
        bail!(
            "the kernel was built with \"{kernel}\", the toolchain has \"{ours}\"\n\
             hint: make distclean brings the newest toolchain; if that does not help, Debian's \
             kernel is ahead of trixie and a newer barbuf is needed"
        );
    }
    Ok(())
}

fn regenerate(ctx: &Ctx, source: &Path, headers: &Path, meta: &Path) -> Result<()> {
    // From scratch: a killed run can leave files that are newer than what they are made from.
    cache::remove(meta)?;
    make_dir(meta)?;
    cache::need_space(ctx, meta, 2, "the Rust metadata")?;
    // .kernelvariables is Debian's: architecture and compiler as they were at Debian's.
    for name in [".config", ".kernelvariables"] {
        copy(&headers.join(name), &meta.join(name))?;
    }
    let log = Log::create(ctx, meta.with_extension("log"))?;
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.arg("-C").arg(source);
        make.arg(format!("O={}", meta.display()));
        make.arg(format!("-j{}", ctx.jobs)).arg(target);
        make
    };
    let what = "the Rust metadata could not be regenerated";
    log.run(&mut make("olddefconfig"), what)?;
    let (theirs, ours) = (
        read(&headers.join(".config"))?,
        read(&meta.join(".config"))?,
    );
    let (theirs, ours) = (Config::parse(&theirs), Config::parse(&ours));
    // Of the C compiler only the name differs: Debian calls it by its full name.
    let differences: Vec<&str> = ours
        .differences(&theirs)
        .into_iter()
        .filter(|name| *name != "CONFIG_CC_VERSION_TEXT")
        .collect();
    if let Some(first) = differences.first() {
        bail!(
            "{} options of Debian's configuration come out otherwise here, such as {first}\n\
             hint: the toolchain differs from Debian's; make distclean brings the newest",
            differences.len()
        );
    }
    log.run(&mut make("prepare"), what)
}

fn check_symbols(meta: &Path, headers: &Path) -> Result<usize> {
    let mut promised = Vec::new();
    for entry in fs::read_dir(meta.join("rust")).context("no Rust metadata was generated")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("exports_") && name.ends_with("_generated.h") {
            promised.push(read(&path)?);
        }
    }
    symvers::check(&promised, &read(&headers.join("Module.symvers"))?)
}

/// Puts headers, build scripts and Rust metadata together.
fn assemble(choice: &Choice, usr: &Path, headers: &Path, meta: &Path, tree: &Path) -> Result<()> {
    let kbuild = usr.join(format!("lib/linux-kbuild-{}", choice.abi()));
    cmd::output(
        Command::new("cp")
            .arg("-a")
            .arg(headers.join("."))
            .arg(tree),
    )?;
    for link in ["scripts", "tools", "Makefile"] {
        cache::remove(&tree.join(link))?;
    }
    cmd::output(
        Command::new("cp")
            .arg("-a")
            .arg(kbuild.join("scripts"))
            .arg(tree),
    )?;
    let packages = Path::new("../../packages/usr");
    let abi = choice.abi();
    symlink(
        packages.join(format!("lib/linux-kbuild-{abi}/tools")),
        tree.join("tools"),
    )?;
    symlink(
        packages.join(format!("src/linux-headers-{abi}-common")),
        tree.join("common"),
    )?;
    fs::write(tree.join("Makefile"), MAKEFILE)?;
    copy(
        &meta.join("scripts/target.json"),
        &tree.join("scripts/target.json"),
    )?;
    make_dir(&tree.join("rust"))?;
    let mut copied = 0;
    for entry in fs::read_dir(meta.join("rust"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rmeta" || e == "so") {
            let name = path.file_name().unwrap_or_default();
            copy(&path, &tree.join("rust").join(name))?;
            copied += 1;
        }
    }
    if copied == 0 {
        bail!("no Rust metadata was generated");
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "rustc 1.85.1 (4eb161250 2025-03-15) (built from a source tarball)";

    #[test]
    fn the_same_compiler_is_accepted() {
        let kernel = "\"rustc 1.85.1 (4eb161250 2025-03-15) (built from a source tarball)\"";
        compare_rustc(Some(kernel), OURS).unwrap();
        compare_rustc(Some("\"rustc 1.85.1 (4eb161250 2025-03-15)\""), OURS).unwrap();
    }

    #[test]
    fn another_compiler_is_named() {
        let kernel = "\"rustc 1.86.0 (05f9846f8 2025-03-31)\"";
        let error = compare_rustc(Some(kernel), OURS).unwrap_err().to_string();
        assert!(error.contains("1.86.0") && error.contains("1.85.1"));
        assert!(compare_rustc(None, OURS).is_err());
    }
}
