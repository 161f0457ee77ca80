// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files that outlive a run: locks, finished trees, damage.
//!
//! A finished tree has a stamp beside it, which holds the key of what it was made from and a
//! digest of its files' names, sizes and times. A tree without a stamp, with another key or
//! another digest is made again; so a run may be killed anywhere.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cmd::make_dir;
use crate::ctx::Ctx;

/// Held while one run makes what others may want as well. Released when dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

/// Takes the lock of `path`, waiting for another run to release it.
pub(crate) fn lock(ctx: &Ctx, path: &Path, what: &str) -> Result<Lock> {
    make_dir(path.parent().unwrap_or(Path::new("/")))?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", ctx.show(path)))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(Lock(lock)),
        Err((file, _)) => file,
    };
    let step = ctx.ui.step(format!("waiting for another run ({what})"));
    let lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| anyhow!("cannot lock {}: {errno}", ctx.show(path)))?;
    step.done();
    Ok(Lock(lock))
}

#[derive(Debug, Deserialize, Serialize)]
struct Stamp {
    key: String,
    digest: String,
}

/// A directory that is made as a whole.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    ctx: &'a Ctx,
    dir: PathBuf,
    key: String,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(ctx: &'a Ctx, dir: PathBuf, key: impl Into<String>) -> Self {
        Tree {
            ctx,
            dir,
            key: key.into(),
        }
    }

    fn stamp_path(&self) -> PathBuf {
        beside(&self.dir, ".stamp")
    }

    /// Whether the tree is finished, made from the same things, and whole.
    pub(crate) fn ready(&self) -> Result<bool> {
        let Ok(text) = fs::read_to_string(self.stamp_path()) else {
            return Ok(false);
        };
        let Ok(stamp) = serde_json::from_str::<Stamp>(&text) else {
            return Ok(false);
        };
        if stamp.key != self.key {
            return Ok(false);
        }
        let whole = self.dir.is_dir() && digest(&self.dir)? == stamp.digest;
        if !whole {
            self.ctx.ui.line(&format!(
                "{} is damaged: making it again",
                self.ctx.show(&self.dir)
            ));
        }
        Ok(whole)
    }

    /// Makes the tree in a staging directory and puts it into its place when it is whole.
    pub(crate) fn make(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let staging = beside(&self.dir, ".new");
        remove(&staging)?;
        make_dir(&staging)?;
        fill(&staging)?;
        self.unseal()?;
        remove(&self.dir)?;
        fs::rename(&staging, &self.dir)
            .with_context(|| format!("cannot create {}", self.ctx.show(&self.dir)))?;
        self.seal()
    }

    /// Declares the tree unfinished, before it is changed in place.
    pub(crate) fn unseal(&self) -> Result<()> {
        remove(&self.stamp_path())
    }

    /// Declares the tree finished.
    pub(crate) fn seal(&self) -> Result<()> {
        let stamp = Stamp {
            key: self.key.clone(),
            digest: digest(&self.dir)?,
        };
        write(
            &self.stamp_path(),
            serde_json::to_string(&stamp)?.as_bytes(),
        )
    }
}

/// `dir` with something added to its last component.
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Writes a file so that it is there as a whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = beside(path, ".new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file or a tree; it need not be there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match gone {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A digest of the names, sizes and times of all files below a directory. Reading their content
/// as well would cost more than it finds.
fn digest(dir: &Path) -> Result<String> {
    let mut lines = Vec::new();
    list(dir, dir, &mut lines).with_context(|| format!("cannot list {}", dir.display()))?;
    lines.sort_unstable();
    Ok(hash(lines.iter().map(String::as_bytes)))
}

fn list(top: &Path, dir: &Path, lines: &mut Vec<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(top, &path, lines)?;
            continue;
        }
        let data = entry.metadata()?;
        let name = path.strip_prefix(top).unwrap_or(&path).display();
        lines.push(if kind.is_symlink() {
            format!("{name} -> {}\n", fs::read_link(&path)?.display())
        } else {
            format!(
                "{name} {} {}.{}\n",
                data.len(),
                data.mtime(),
                data.mtime_nsec()
            )
        });
    }
    Ok(())
}

/// SHA-256 of parts, in hexadecimal.
pub(crate) fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    format!("{:x}", hash.finalize())
}

/// Refuses to begin what the disk has no room for.
pub(crate) fn need_space(ctx: &Ctx, dir: &Path, gib: u64, what: &str) -> Result<()> {
    make_dir(dir)?;
    let stat =
        statvfs(dir).with_context(|| format!("cannot ask for space in {}", dir.display()))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < gib << 30 {
        bail!(
            "the disk is too full for {what}: {} has {:.1} GiB free, {gib} GiB are needed\n\
             hint: free some space, or set BARBUF_CACHE to a directory on a larger disk",
            ctx.show(dir),
            free as f64 / (1u64 << 30) as f64
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            remove(&self.0).unwrap();
        }
    }

    fn tree<'a>(ctx: &'a Ctx, scratch: &Scratch, key: &str) -> Tree<'a> {
        Tree::new(ctx, scratch.0.join("tree"), key)
    }

    fn fill(staging: &Path) -> Result<()> {
        fs::create_dir(staging.join("a"))?;
        fs::write(staging.join("a/b"), "content")?;
        Ok(())
    }

    #[test]
    fn a_finished_tree_is_ready_and_another_key_is_not() {
        let (ctx, scratch) = (Ctx::for_tests(), Scratch::new("key"));
        assert!(!tree(&ctx, &scratch, "1").ready().unwrap());
        tree(&ctx, &scratch, "1").make(fill).unwrap();
        assert!(tree(&ctx, &scratch, "1").ready().unwrap());
        assert!(!tree(&ctx, &scratch, "2").ready().unwrap());
    }

    #[test]
    fn damage_is_noticed() {
        let (ctx, scratch) = (Ctx::for_tests(), Scratch::new("damage"));
        let tree = tree(&ctx, &scratch, "1");
        for damage in [
            (|dir| fs::remove_file(dir.join("a/b")).unwrap()) as fn(PathBuf),
            |dir| fs::write(dir.join("a/b"), "conten").unwrap(),
            |dir| fs::write(dir.join("a/c"), "").unwrap(),
            |dir| fs::remove_dir_all(dir).unwrap(),
        ] {
            tree.make(fill).unwrap();
            assert!(tree.ready().unwrap());
            damage(scratch.0.join("tree"));
            assert!(!tree.ready().unwrap());
        }
    }

    #[test]
    fn a_failed_remake_leaves_what_was_there() {
        let (ctx, scratch) = (Ctx::for_tests(), Scratch::new("fail"));
        let tree = tree(&ctx, &scratch, "1");
        tree.make(fill).unwrap();
        assert!(tree.make(|_| bail!("no")).is_err());
        assert!(tree.ready().unwrap());
    }
}
