// SPDX-License-Identifier: MIT OR Apache-2.0

//! How much the kernel's slab caches hold, to see whether something is lost.

use anyhow::{Context as _, Result};
use barbuf_guest::sysfs;

/// By how much [`bytes`] may grow while nothing is lost, and after a warm-up.
pub(crate) const NOISE: i64 = 256 * 1024;

/// Bytes of slab memory that cannot be reclaimed.
pub(crate) fn bytes() -> Result<i64> {
    shrink()?;
    let text = sysfs::read("/proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("SUnreclaim:")?.trim().split(' ').next())
        .context("/proc/meminfo has no SUnreclaim")?;
    Ok(kib.parse::<i64>()? * 1024)
}

/// The objects in use in the caches of these names.
pub(crate) fn objects(caches: &[&str]) -> Result<Vec<(String, u64)>> {
    shrink()?;
    let text = sysfs::read("/proc/slabinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            caches
                .contains(&name)
                .then_some((name.to_owned(), words.next()?.parse().ok()?))
        })
        .collect())
}

/// Has each cache give up what it only keeps.
///
/// Those are empty slabs, and on the debug kernel freed objects as well: KASAN keeps them in a quarantine of a
/// thirty-second of the memory, where they count as in use, until their cache is shrunk.
fn shrink() -> Result<()> {
    for cache in std::fs::read_dir("/sys/kernel/slab").context("the slab caches")? {
        let path = cache?.path().join("shrink");
        // A cache can go away meanwhile.
        if path.exists() {
            sysfs::write(path, "1")?;
        }
    }
    Ok(())
}
