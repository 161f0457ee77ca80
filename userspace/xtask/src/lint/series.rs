// SPDX-License-Identifier: MIT OR Apache-2.0

//! The patches of compound-sysfs/: that they apply one after the other, as they would in the
//! kernel's own repository, and that its checkpatch has nothing to say.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::Tree;
use crate::cache;
use crate::cmd::make_dir;
use crate::kernel::{Patch, patch_files, patch_series};

pub(super) fn check(tree: &Tree<'_>) -> Result<Vec<String>> {
    let patches = patch_series(tree.ctx)?;
    let mut wrong: Vec<String> = patches.iter().enumerate().filter_map(misplaced).collect();
    wrong.extend(apply(tree, &patches)?);

    let mut perl = Command::new("perl");
    perl.current_dir(&tree.source);
    perl.args(["scripts/checkpatch.pl", "--terse", "--no-summary"]);
    perl.args(patches.iter().map(|patch| &patch.path));
    wrong.extend(tree.run("series-checkpatch", &mut perl)?);
    Ok(wrong)
}

/// The directory of a patch says what it belongs to, and so does its subject; its number is its
/// place.
fn misplaced((at, patch): (usize, &Patch)) -> Option<String> {
    let part = patch.path.parent()?.file_name()?.to_str()?;
    let prefix = match part {
        "common" => "Subject: [PATCH] ",
        "s" => "Subject: [PATCH S] ",
        "r" => "Subject: [PATCH R] ",
        "compare" => "Subject: [PATCH FOR COMPARISON] ",
        _ => return Some(format!("{}: no part of the series", patch.path.display())),
    };
    let text = String::from_utf8_lossy(&patch.bytes);
    let numbered = format!("{:04}-", at + 1);
    let name = patch.path.file_name()?.to_str()?;
    if !name.starts_with(&numbered) {
        Some(format!("{part}/{name}: should begin with {numbered}"))
    } else if !text.lines().any(|line| line.starts_with(prefix)) {
        Some(format!(
            "{part}/{name}: the subject should begin with {prefix:?}"
        ))
    } else {
        None
    }
}

/// In a repository of the files that the patches touch: one of the whole source takes minutes.
fn apply(tree: &Tree<'_>, patches: &[Patch]) -> Result<Vec<String>> {
    let dir = tree.ctx.target.join("lint/series");
    let _lock = cache::lock(tree.ctx, &dir.with_extension("lock"), "the patches")?;
    cache::remove(&dir)?;
    make_dir(&dir)?;
    for file in patch_files(patches) {
        let copy = dir.join(&file);
        make_dir(copy.parent().unwrap_or(Path::new("/")))?;
        fs::copy(tree.source.join(&file), &copy)
            .with_context(|| format!("the source has no {}", file.display()))?;
    }
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(&dir).args(arguments);
        for role in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{role}_NAME"), "lint");
            git.env(format!("GIT_{role}_EMAIL"), "lint");
        }
        git
    };
    for arguments in [
        &["init", "-q"][..],
        &["add", "-A"],
        &["commit", "-q", "-m", "the source"],
    ] {
        let wrong = tree.run("series-git", &mut git(arguments))?;
        if !wrong.is_empty() {
            return Ok(wrong);
        }
    }
    // The first that does not apply is the one to look at.
    for patch in patches {
        let wrong = tree.run("series-am", git(&["am", "-q"]).arg(&patch.path))?;
        if !wrong.is_empty() {
            return Ok(wrong);
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_where_they_say() {
        let patch = |path: &str, subject: &str| Patch {
            path: path.into(),
            bytes: format!("From: A\nSubject: {subject}\n").into_bytes(),
        };
        let good = patch("x/s/0002-a.patch", "[PATCH S] a");
        assert_eq!(misplaced((1, &good)), None);
        assert!(misplaced((0, &good)).is_some());
        for bad in [
            patch("x/s/0002-a.patch", "[PATCH] a"),
            patch("x/r/0002-a.patch", "[PATCH S] a"),
            patch("x/0002-a.patch", "[PATCH] a"),
        ] {
            assert!(misplaced((1, &bad)).is_some(), "{bad:?}");
        }
    }
}
