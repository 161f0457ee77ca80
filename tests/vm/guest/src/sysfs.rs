// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reading the kernel's own records, with errors that name the file.

use std::fs;
use std::io;
use std::path::Path;

/// A file's text without surrounding white space.
pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| named(format!("cannot read {}", path.display()), error))
}

/// Writes a file that exists, in one write.
pub fn write(path: impl AsRef<Path>, text: &str) -> io::Result<()> {
    use io::Write;
    let path = path.as_ref();
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| {
            named(
                format!("cannot write {text:?} to {}", path.display()),
                error,
            )
        })
}

/// The taint that a WARNING leaves, "W".
pub const TAINT_WARN: u64 = 1 << 9;

/// The kernel's taint bits.
pub fn taint() -> io::Result<u64> {
    let text = read("/proc/sys/kernel/tainted")?;
    text.parse().map_err(io::Error::other)
}

/// The letters of taint bits, as in the kernel's own messages.
pub fn taint_letters(bits: u64) -> String {
    const LETTERS: &str = "PFSRMBUDAWCIOELKXTNJ";
    let letters: String = LETTERS
        .chars()
        .enumerate()
        .filter(|(bit, _)| (bits >> bit) & 1 == 1)
        .map(|(_, letter)| letter)
        .collect();
    if letters.is_empty() {
        "none".into()
    } else {
        letters
    }
}

/// How many dma-bufs exist, as debugfs tells.
pub fn dma_buf_count() -> io::Result<u64> {
    let text = read("/sys/kernel/debug/dma_buf/bufinfo")?;
    dma_bufs_in(&text).ok_or_else(|| io::Error::other("dma_buf/bufinfo has no total"))
}

fn dma_bufs_in(bufinfo: &str) -> Option<u64> {
    let total = bufinfo
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("Total "))?;
    total.split_whitespace().next()?.parse().ok()
}

/// The lines of /proc/iomem that name somebody.
pub fn iomem_lines_of(owner: &str) -> io::Result<Vec<String>> {
    let text = fs::read_to_string("/proc/iomem")?;
    Ok(text
        .lines()
        .filter(|line| {
            line.split(" : ")
                .nth(1)
                .is_some_and(|name| name.contains(owner))
        })
        .map(|line| line.trim().to_owned())
        .collect())
}

/// The errno behind an error of this module, or of the system itself.
pub fn errno(error: &io::Error) -> Option<i32> {
    let named = || error.get_ref()?.downcast_ref::<Named>()?.1.raw_os_error();
    error.raw_os_error().or_else(named)
}

/// Puts what was tried before an error, and keeps its errno.
pub fn named(what: String, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), Named(format!("{what}: {error}"), error))
}

/// An error with a better text that keeps its errno.
#[derive(Debug)]
struct Named(String, io::Error);

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Named {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taint_reads_like_the_kernels() {
        assert_eq!(taint_letters(0), "none");
        assert_eq!(taint_letters(4096 | 8192), "OE");
        assert_eq!(taint_letters(TAINT_WARN), "W");
    }

    #[test]
    fn errors_name_the_file_and_keep_errno() {
        let error = read("/proc/no-such-file").unwrap_err();
        assert!(error.to_string().contains("/proc/no-such-file"), "{error}");
        assert_eq!(errno(&error), Some(nix::libc::ENOENT));
    }

    #[test]
    fn bufinfo_total() {
        let text = "\nDma-buf Objects:\nsize    flags\n\nTotal 3 objects, 12288 bytes\n";
        assert_eq!(dma_bufs_in(text), Some(3));
        assert_eq!(dma_bufs_in("nothing"), None);
    }
}
