// SPDX-License-Identifier: MIT OR Apache-2.0

//! How much the kernel's slab caches hold, to see whether something is lost.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use barbuf_guest::sysfs;

use super::process::scaled;

/// By how much [`bytes`] may grow while nothing is lost, and after a warm-up.
pub(crate) const NOISE: i64 = 256 * 1024;

/// Bytes of slab memory that cannot be reclaimed.
pub(crate) fn bytes() -> Result<i64> {
    for cache in std::fs::read_dir(SLABS).context("the slab caches")? {
        shrink(&cache?.path())?;
    }
    let text = sysfs::read("/proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("SUnreclaim:")?.trim().split(' ').next())
        .context("/proc/meminfo has no SUnreclaim")?;
    Ok(kib.parse::<i64>()? * 1024)
}

/// What a buffer, its mappings and its importers are made of. The module's own memory is charged to cgroups, what the
/// core keeps of an attachment is not.
const CACHES: [&str; 14] = [
    "filp",
    "dentry",
    "inode_cache",
    "vm_area_struct",
    "kmalloc-64",
    "kmalloc-96",
    "kmalloc-128",
    "kmalloc-192",
    "kmalloc-256",
    "kmalloc-cg-64",
    "kmalloc-cg-128",
    "kmalloc-cg-256",
    "kmalloc-cg-512",
    "kmalloc-cg-1k",
];

/// The objects in use in each of [`CACHES`].
#[derive(Debug)]
pub(crate) struct Objects(Vec<(String, u64)>);

impl Objects {
    pub(crate) fn count() -> Result<Objects> {
        for name in CACHES {
            shrink(&Path::new(SLABS).join(name))?;
        }
        let text = sysfs::read("/proc/slabinfo")?;
        let objects: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let name = words.next()?;
                CACHES
                    .contains(&name)
                    .then_some((name.to_owned(), words.next()?.parse().ok()?))
            })
            .collect();
        ensure!(
            objects.len() == CACHES.len(),
            "caches are missing: {objects:?}"
        );
        Ok(Objects(objects))
    }

    /// By how many each cache has grown that has.
    pub(crate) fn growth(&self) -> Result<Vec<(String, u64)>> {
        let now = Objects::count()?.0;
        let pairs = self.0.iter().zip(now);
        let grown = pairs.map(|((_, before), (name, now))| (name, now.saturating_sub(*before)));
        Ok(grown.filter(|(_, count)| *count > 0).collect())
    }

    /// Waits until none has more than so many more: RCU frees late. That includes what asking itself uses, so that it is
    /// not asked often.
    pub(crate) fn wait_until_near(&self, noise: u64) -> Result<()> {
        let mut grown = self.growth()?;
        for _ in 0..30 {
            if grown.iter().all(|(_, count)| *count < noise) {
                return Ok(());
            }
            sleep(scaled(Duration::from_secs(1)));
            grown = self.growth()?;
        }
        bail!("objects that are not given back: {grown:?}")
    }
}

const SLABS: &str = "/sys/kernel/slab";

/// Has a cache give up what it only keeps.
///
/// Those are empty slabs, what each processor has set aside, and on the debug kernel freed objects as well: KASAN keeps them
/// in a quarantine of a thirty-second of the memory, where they count as in use, until their cache is shrunk.
fn shrink(cache: &Path) -> Result<()> {
    let path = cache.join("shrink");
    // A cache can go away meanwhile.
    if path.exists() {
        sysfs::write(path, "1")?;
    }
    Ok(())
}
