// SPDX-License-Identifier: MIT OR Apache-2.0

//! Does a kernel that Debian built export what our regenerated Rust crates promise?
//!
//! Rust's mangled names hold a hash of the crate. Were our `kernel` crate another one than
//! Debian's, its symbols would have other names, and a module built with it would not load.

use std::collections::HashSet;

use anyhow::{Result, bail};

/// How many missing symbols an error names.
const NAMED: usize = 3;

/// The names in a kernel's `Module.symvers`.
pub(super) fn exported(symvers: &str) -> HashSet<&str> {
    symvers
        .lines()
        .filter_map(|line| line.split('\t').nth(1))
        .collect()
}

/// The names in one of kbuild's `exports_*_generated.h`.
pub(super) fn promised(header: &str) -> impl Iterator<Item = &str> {
    header.lines().filter_map(|line| {
        let (_, rest) = line.split_once("EXPORT_SYMBOL_RUST_GPL(")?;
        rest.split_once(')').map(|(name, _)| name)
    })
}

/// Checks that all that the headers promise is exported. Tells how many symbols that are.
pub(super) fn check(headers: &[String], symvers: &str) -> Result<usize> {
    let exported = exported(symvers);
    let promised: Vec<&str> = headers.iter().flat_map(|header| promised(header)).collect();
    if promised.is_empty() {
        bail!("the regenerated Rust metadata exports no symbol at all");
    }
    let missing: Vec<&str> = promised
        .iter()
        .copied()
        .filter(|name| !exported.contains(name))
        .collect();
    if !missing.is_empty() {
        let named = &missing[..missing.len().min(NAMED)];
        bail!(
            "the regenerated Rust metadata does not fit Debian's kernel: {} of {} symbols are not \
             in its Module.symvers, such as {}\n\
             hint: the toolchain's rustc differs from Debian's; remove the cache's kernels and try \
             again, or report this",
            missing.len(),
            promised.len(),
            named.join(", ")
        );
    }
    Ok(promised.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMVERS: &str = "0x00000000\t_RNvA\tvmlinux\tEXPORT_SYMBOL_GPL\t\n\
                           0x00000000\t_RNvB\tvmlinux\tEXPORT_SYMBOL_GPL\t\n";

    fn headers(names: &[&str]) -> Vec<String> {
        names
            .iter()
            .map(|name| format!("EXPORT_SYMBOL_RUST_GPL({name});\n"))
            .collect()
    }

    #[test]
    fn what_fits_is_counted() {
        assert_eq!(check(&headers(&["_RNvA", "_RNvB"]), SYMVERS).unwrap(), 2);
    }

    #[test]
    fn a_missing_symbol_is_named() {
        let error = check(&headers(&["_RNvA", "_RNvC"]), SYMVERS).unwrap_err();
        assert!(error.to_string().contains("1 of 2 symbols"));
        assert!(error.to_string().contains("_RNvC"));
    }

    #[test]
    fn nothing_promised_is_an_error_too() {
        assert!(check(&headers(&[]), SYMVERS).is_err());
    }
}
