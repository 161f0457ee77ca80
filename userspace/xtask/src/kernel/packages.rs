// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian's packages of the kernel that [`debian`](super::debian) chose, downloaded and unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::debian::{Choice, Package, apt_get, update};
use crate::cache::{self, Tree};
use crate::cmd::{Log, make_dir};
use crate::ctx::Ctx;

/// Makes binary and headers ready, unpacked. If the mirror has moved on since the choice was
/// made, chooses once more.
pub(super) fn binaries(ctx: &Ctx, choice: Choice) -> Result<Choice> {
    let ready = |choice: &Choice| {
        let tree = Tree::new(ctx, choice.packages_dir(ctx), &choice.version);
        Ok::<_, anyhow::Error>((tree.ready()?, tree))
    };
    let lock = |choice: &Choice| {
        let path = choice.dir(ctx).join("packages.lock");
        cache::lock(ctx, &path, "the kernel's packages")
    };
    let mut choice = choice;
    let mut held = lock(&choice)?;
    if ready(&choice)?.0 {
        return Ok(choice);
    }
    if let Err(error) = download(ctx, &choice) {
        ctx.ui.line(&format!("{error}; asking for a newer version"));
        choice = update(ctx).map_err(|_| error)?.1;
        drop(held);
        held = lock(&choice)?;
        download(ctx, &choice)?;
    }
    let (is_ready, tree) = ready(&choice)?;
    if !is_ready {
        let step = ctx.ui.step(format!("unpacking kernel {}", choice.version));
        let log = Log::create(ctx, choice.dir(ctx).join("unpack.log"))?;
        tree.make(|staging| {
            for package in choice.packages.iter().filter(|p| !is_source(p)) {
                unpack(&log, ctx, &choice, package, staging)?;
            }
            log.run(
                Command::new("depmod")
                    .arg("-b")
                    .arg(staging.join("usr"))
                    .arg(&choice.release),
                "the modules' dependencies could not be found out",
            )
        })?;
        step.done();
    }
    drop(held);
    Ok(choice)
}

/// Makes the unpacked source of a kernel ready whose packages are.
pub(super) fn source(ctx: &Ctx, choice: &Choice) -> Result<PathBuf> {
    let dir = choice.dir(ctx);
    let _lock = cache::lock(ctx, &dir.join("source.lock"), "the kernel's source")?;
    let tree = Tree::new(ctx, choice.source_dir(ctx), &choice.version);
    if tree.ready()? {
        return Ok(choice.source_dir(ctx));
    }
    download(ctx, choice)?;
    let package = choice.packages.iter().find(|package| is_source(package));
    let package = package.context("the choice has no source package")?;
    let step = ctx.ui.step(format!("unpacking {}", package.name));
    cache::need_space(ctx, &dir, 3, "the kernel's source")?;
    let log = Log::create(ctx, dir.join("source.log"))?;
    tree.make(|staging| {
        let deb = staging.join("deb");
        unpack(&log, ctx, choice, package, &deb)?;
        let archive = deb.join(format!("usr/src/{}.tar.xz", package.name));
        log.run(
            Command::new("tar")
                .args(["--no-same-owner", "--strip-components=1", "-xf"])
                .arg(&archive)
                .arg("-C")
                .arg(staging),
            "the kernel's source could not be unpacked",
        )?;
        cache::remove(&deb)
    })?;
    step.done();
    Ok(choice.source_dir(ctx))
}

fn is_source(package: &Package) -> bool {
    package.name.starts_with("linux-source-")
}

/// The downloaded file of a package, if it is there and as long as it should be.
fn deb_path(debs: &Path, package: &Package) -> Option<PathBuf> {
    let prefix = format!("{}_", package.name);
    let entries = fs::read_dir(debs).ok()?.filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .find(|entry| entry.metadata().is_ok_and(|m| m.len() == package.size))
        .map(|entry| entry.path())
}

fn unpack(log: &Log<'_>, ctx: &Ctx, choice: &Choice, package: &Package, into: &Path) -> Result<()> {
    let deb = deb_path(&choice.dir(ctx).join("debs"), package)
        .with_context(|| format!("the download of {} is gone", package.name))?;
    log.run(
        Command::new("dpkg-deb").arg("-x").arg(&deb).arg(into),
        "a kernel package could not be unpacked",
    )
    .inspect_err(|_| {
        // A damaged download must not fail the next run too: it gets it again.
        let _ = fs::remove_file(&deb);
    })
}

/// Downloads the packages of a kernel that are not there yet.
fn download(ctx: &Ctx, choice: &Choice) -> Result<()> {
    let debs = choice.dir(ctx).join("debs");
    make_dir(&debs)?;
    let missing: Vec<&Package> = choice
        .packages
        .iter()
        .filter(|package| deb_path(&debs, package).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    cache::need_space(ctx, &debs, 4, "the kernel's packages")?;
    let total: u64 = missing.iter().map(|package| package.size).sum();
    let step = ctx.ui.step(format!(
        "downloading kernel {} ({} MiB)",
        choice.version,
        total >> 20
    ));
    let log = Log::create(ctx, choice.dir(ctx).join("download.log"))?;
    // One by one: what has arrived stays when a later one fails.
    let mut done = 0;
    for package in missing {
        step.note(format!("{} MiB", done >> 20));
        log.run(
            apt_get(ctx)
                .current_dir(&debs)
                .arg("download")
                .arg(format!("{}={}", package.name, package.version)),
            &format!(
                "{} {} could not be downloaded",
                package.name, package.version
            ),
        )?;
        done += package.size;
    }
    step.done();
    Ok(())
}
