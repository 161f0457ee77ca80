// SPDX-License-Identifier: MIT OR Apache-2.0

//! The source with the patches of `compound-sysfs/`.
//!
//! A kernel is built incrementally from it, so that a file keeps its time for as long as its
//! content stays: a new patch must not compile again what another one has changed before.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::debian::Choice;
use crate::cache::{self, Tree};
use crate::cmd::Log;
use crate::ctx::Ctx;

/// A patch as `git format-patch` writes it.
#[derive(Debug)]
pub(crate) struct Patch {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

/// The patches in the order of their numbers, which run through all directories of the series.
pub(crate) fn series(ctx: &Ctx) -> Result<Vec<Patch>> {
    let mut paths = Vec::new();
    for part in directories(&ctx.repo.join("compound-sysfs"))? {
        for entry in fs::read_dir(part)? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == "patch") {
                paths.push(path);
            }
        }
    }
    paths.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    paths
        .into_iter()
        .map(|path| {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", ctx.show(&path)))?;
            Ok(Patch { path, bytes })
        })
        .collect()
}

/// A directory and what is directly below it.
fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The files that patches change, as their `+++` and `---` lines name them.
pub(crate) fn files(patches: &[Patch]) -> BTreeSet<PathBuf> {
    patches
        .iter()
        .flat_map(|patch| patch.bytes.split(|byte| *byte == b'\n'))
        .filter_map(|line| {
            let name = line
                .strip_prefix(b"+++ b/")
                .or_else(|| line.strip_prefix(b"--- a/"))?;
            Some(PathBuf::from(std::str::from_utf8(name).ok()?))
        })
        .collect()
}

/// The source with the patches applied: a tree of hard links, but for the files that are changed.
pub(super) fn source(
    ctx: &Ctx,
    choice: &Choice,
    source: PathBuf,
    patches: &[Patch],
) -> Result<PathBuf> {
    if patches.is_empty() {
        return Ok(source);
    }
    let dir = choice.dir(ctx);
    let patched = dir.join("source-patched");
    let _lock = cache::lock(ctx, &dir.join("source-patched.lock"), "the patched source")?;
    let key = cache::hash(patches.iter().map(|patch| patch.bytes.as_slice()));
    let tree = Tree::new(ctx, patched.clone(), format!("{} {key}", choice.version));
    if tree.ready()? {
        return Ok(patched);
    }
    // What the tree that is replaced had changed: it may be what this one no longer changes.
    let list = dir.join("source-patched.files");
    let mut touched = files(patches);
    if let Ok(text) = fs::read_to_string(&list) {
        touched.extend(text.lines().map(PathBuf::from));
    }
    let log = Log::create(ctx, dir.join("patch.log"))?;
    tree.make(|staging| {
        log.run(
            Command::new("cp")
                .arg("-al")
                .arg(source.join("."))
                .arg(staging),
            "the source could not be copied",
        )?;
        for Patch { path, .. } in patches {
            log.run(
                Command::new("git")
                    .arg("apply")
                    .arg("-v")
                    .arg(path)
                    .current_dir(staging)
                    // The tree is no repository, and must not be taken for a part of one.
                    .env(
                        "GIT_CEILING_DIRECTORIES",
                        staging.parent().unwrap_or(staging),
                    ),
                &format!("{} does not apply to {}", ctx.show(path), choice.version),
            )?;
        }
        let names = touched.iter().map(|file| format!("{}\n", file.display()));
        cache::write(&list, names.collect::<String>().as_bytes())?;
        touched.iter().try_for_each(|file| {
            set_time(&source.join(file), &patched.join(file), &staging.join(file))
                .with_context(|| format!("cannot set the time of {}", file.display()))
        })
    })?;
    Ok(patched)
}

/// Gives a file the time of the one that it replaces, if their content is the same, and else this
/// very moment. A file that is still a link to the source is made one of its own before.
fn set_time(source: &Path, old: &Path, new: &Path) -> Result<()> {
    let Ok(bytes) = fs::read(new) else {
        return Ok(());
    };
    if fs::metadata(source).is_ok_and(|it| it.ino() == fs::metadata(new).map_or(0, |it| it.ino())) {
        cache::remove(new)?;
        fs::write(new, &bytes)?;
    }
    let time = match fs::read(old) {
        Ok(before) if before == bytes => fs::metadata(old)?.modified()?,
        _ => SystemTime::now(),
    };
    File::options().write(true).open(new)?.set_modified(time)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_of_patches() {
        let patch = Patch {
            path: "1.patch".into(),
            bytes: b"From: A\n\n--- a/mm/mremap.c\n+++ b/mm/mremap.c\n@@ -1 +1 @@\n-x\n+y\n\
                     --- /dev/null\n+++ b/new.c\n"
                .to_vec(),
        };
        let found: Vec<_> = files(&[patch]).into_iter().collect();
        assert_eq!(found, [Path::new("mm/mremap.c"), Path::new("new.c")]);
    }

    #[test]
    fn times_follow_the_content() {
        let dir = std::env::temp_dir().join(format!("barbuf-times-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let [source, old, new] = ["source", "old", "new"].map(|name| dir.join(name));
        let past = SystemTime::now() - Duration::from_secs(3600);
        let date = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        let back = |path: &Path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(past).unwrap();
        };
        fs::write(&source, "source").unwrap();
        fs::write(&old, "patched").unwrap();
        back(&source);
        back(&old);

        // The same patch again, although it has just been applied.
        fs::write(&new, "patched").unwrap();
        set_time(&source, &old, &new).unwrap();
        assert_eq!(date(&new), past);

        // Another one.
        fs::write(&new, "otherwise").unwrap();
        set_time(&source, &old, &new).unwrap();
        assert!(date(&new) > past);

        // None any more: newer than what was built from the patched file, and no link.
        fs::remove_file(&new).unwrap();
        fs::hard_link(&source, &new).unwrap();
        set_time(&source, &old, &new).unwrap();
        assert!(date(&new) > past);
        assert_eq!(date(&source), past);
        assert_eq!(fs::read(&new).unwrap(), b"source");
        fs::remove_dir_all(&dir).unwrap();
    }
}
