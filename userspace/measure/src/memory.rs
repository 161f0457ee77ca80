// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that the kernel spends, as /proc tells.

use std::fs;

use anyhow::{Context as _, Result};

const PAGE: u64 = 4096;

/// Bytes of memory that hold struct pages, of all memory of the machine.
///
/// # Errors
///
/// Without root each processor's part of the count cannot be folded; that is an error, because what is read then may
/// lag behind.
pub fn struct_page_bytes() -> Result<u64> {
    let text = vmstat()?;
    let pages = number_after(&text, "nr_memmap_pages ")
        .context("/proc/vmstat has no nr_memmap_pages: a kernel before 6.11")?;
    let boot = number_after(&text, "nr_memmap_boot_pages ").unwrap_or(0);
    Ok((pages + boot) * PAGE)
}

/// How many pages of all memory are pinned, as for file I/O with `O_DIRECT`.
///
/// # Errors
///
/// As for [`struct_page_bytes`].
pub fn pinned_pages() -> Result<i64> {
    let text = vmstat()?;
    let count = |name: &str| {
        number_after(&text, name).with_context(|| format!("/proc/vmstat has no {name}"))
    };
    let (pinned, released) = (
        count("nr_foll_pin_acquired ")?,
        count("nr_foll_pin_released ")?,
    );
    Ok(pinned.wrapping_sub(released) as i64)
}

/// With every processor's part of the counts.
fn vmstat() -> Result<String> {
    const REFRESH: &str = "/proc/sys/vm/stat_refresh";
    fs::write(REFRESH, "1").with_context(|| format!("cannot write {REFRESH}"))?;
    fs::read_to_string("/proc/vmstat").context("cannot read /proc/vmstat")
}

/// Bytes of page tables of this process (`VmPTE`). Reading it looks at no mapping, unlike reading smaps.
pub fn page_table_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let kib = number_after(&text, "VmPTE:").context("/proc/self/status has no VmPTE")?;
    Ok(kib * 1024)
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found() {
        let text = "a 1\nVmPTE:\t     36 kB\nnr_memmap_pages 64\n";
        assert_eq!(number_after(text, "VmPTE:"), Some(36));
        assert_eq!(number_after(text, "nr_memmap_pages "), Some(64));
        assert_eq!(number_after(text, "nr_memmap"), None);
    }

    #[test]
    fn this_process_has_page_tables() {
        assert!(page_table_bytes().unwrap() >= PAGE);
    }
}
