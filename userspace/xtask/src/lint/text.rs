// SPDX-License-Identifier: MIT OR Apache-2.0

//! Checks of what stands in files, whatever their language.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::ctx::Ctx;

/// Looks at every text file. What a check returns is put behind the file's name.
pub(super) fn each(
    ctx: &Ctx,
    files: &[PathBuf],
    check: impl Fn(&Path, &str) -> Vec<String>,
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for file in files {
        // A fuzzer's seeds are what they have to be.
        if file.iter().any(|part| part == "seeds") {
            continue;
        }
        let bytes = fs::read(ctx.repo.join(file))?;
        // What is no UTF-8 is no text, such as an image.
        let Ok(text) = std::str::from_utf8(&bytes) else {
            continue;
        };
        let found = check(file, text);
        wrong.extend(
            found
                .iter()
                .map(|what| format!("{}:{what}", file.display())),
        );
    }
    Ok(wrong)
}

/// Every file names its licence in its first three lines, unless nothing but data may stand in it.
pub(super) fn spdx(path: &Path, text: &str) -> Vec<String> {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let exempt = path.starts_with("LICENSES")
        || path.ends_with("Cargo.lock")
        || ["json", "patch"].contains(&extension)
        || text.is_empty();
    let tagged = text
        .lines()
        .take(3)
        .any(|line| line.contains("SPDX-License-Identifier: "));
    if exempt || tagged {
        Vec::new()
    } else {
        vec![" no SPDX tag in the first 3 lines".into()]
    }
}

/// The places of this checkout and its cache, if they are long enough to be told from others.
pub(super) fn own_paths() -> Vec<String> {
    ["BARBUF_HOST_REPO", "BARBUF_HOST_CACHE"]
        .iter()
        .filter_map(|name| env::var(name).ok())
        .filter(|path| path.matches('/').count() >= 2)
        .collect()
}

/// Home directories, and where this very checkout lies.
pub(super) fn machine_paths(path: &Path, text: &str, mine: &[String]) -> Vec<String> {
    if path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    // Put together here, so that this file passes its own check.
    let homes = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
    ];
    lines(text, |line| {
        homes
            .iter()
            .copied()
            .chain(mine.iter().map(String::as_str))
            .find(|needle| begins_path(line, needle))
            .map(|needle| format!("a path of one machine: {needle}"))
    })
}

/// Whether an absolute path that begins like this stands in a line.
fn begins_path(line: &str, needle: &str) -> bool {
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "/._-}".contains(c))
    })
}

/// `unsafe` and `bindings::` belong to the safe abstractions in `kmod/ext`, and there alone.
pub(super) fn unsafe_code(path: &Path, text: &str) -> Vec<String> {
    let rust = path.extension().is_some_and(|e| e == "rs");
    if !rust || !path.starts_with("kmod") || path.starts_with("kmod/ext") {
        return Vec::new();
    }
    lines(text, |line| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe", "bindings"]
            .iter()
            .find(|word| has_word(code, word))
            .map(|word| format!("`{word}` outside kmod/ext"))
    })
}

/// Nothing is delivered that its author knew to be unfinished.
pub(super) fn unfinished(path: &Path, text: &str) -> Vec<String> {
    if path.starts_with("LICENSES") || path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let words = [
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("TO", "DO"),
        concat!("to", "do!"),
        concat!("unimple", "mented!"),
    ];
    lines(text, |line| {
        words
            .iter()
            .find(|word| has_word(line, word))
            .map(|word| format!("left to do: {word}"))
    })
}

/// No blanks at the end of a line, a line end at the end of the file.
pub(super) fn white_space(path: &Path, text: &str) -> Vec<String> {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    if ["md", "patch", "log"].contains(&extension) || path.starts_with("LICENSES") {
        return Vec::new();
    }
    let mut wrong = lines(text, |line| {
        (line.trim_end() != line).then(|| "blanks at the end of the line".into())
    });
    if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
        wrong.push(" does not end with exactly one line end".into());
    }
    wrong
}

fn lines(text: &str, check: impl Fn(&str) -> Option<String>) -> Vec<String> {
    text.split('\n')
        .enumerate()
        .filter_map(|(at, line)| Some(format!("{}: {}", at + 1, check(line)?)))
        .collect()
}

/// Whether a word stands in a line by itself, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !part(line[..at].chars().next_back()) && !part(line[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tag_is_found() {
        let path = Path::new("kmod/a.rs");
        assert!(spdx(path, "// SPDX-License-Identifier: GPL-2.0\n").is_empty());
        assert_eq!(
            spdx(path, "\n\n\n// SPDX-License-Identifier: GPL-2.0\n").len(),
            1
        );
        assert!(spdx(Path::new("LICENSES/MIT"), "MIT License").is_empty());
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let mine = ["/srv/checkout".to_owned()];
        let path = Path::new("Makefile");
        for bad in [
            concat!("x = /ho", "me/anna/x"),
            concat!("\"/ro", "ot/x\""),
            "cd /srv/checkout",
        ] {
            assert_eq!(machine_paths(path, bad, &mine).len(), 1, "{bad}");
        }
        for good in [concat!("$x/ro", "ot/y"), "/barbuf/target", "/srv/other"] {
            assert!(machine_paths(path, good, &mine).is_empty(), "{good}");
        }
    }

    #[test]
    fn unsafe_code_is_found_where_it_may_not_stand() {
        let text = "fn a() {\n    unsafe { b() }\n}\n";
        assert_eq!(
            unsafe_code(Path::new("kmod/map.rs"), text),
            ["2: `unsafe` outside kmod/ext"]
        );
        assert!(unsafe_code(Path::new("kmod/ext/vma.rs"), text).is_empty());
        assert!(unsafe_code(Path::new("userspace/a.rs"), text).is_empty());
        let fine = "#![forbid(unsafe_code)]\n// unsafe is no word here\n";
        assert!(unsafe_code(Path::new("kmod/map.rs"), fine).is_empty());
        let bindings = "let x = bindings::FOO;\n";
        assert_eq!(unsafe_code(Path::new("kmod/map.rs"), bindings).len(), 1);
    }

    #[test]
    fn unfinished_work_is_found() {
        let path = Path::new("a.rs");
        assert_eq!(unfinished(path, concat!("// FIX", "ME: later\n")).len(), 1);
        assert!(unfinished(path, concat!("mktemp XX", "XXXX\n")).is_empty());
    }

    #[test]
    fn white_space_is_found() {
        let path = Path::new("a.rs");
        assert!(white_space(path, "a\n").is_empty());
        assert_eq!(
            white_space(path, "a \n"),
            ["1: blanks at the end of the line"]
        );
        assert_eq!(white_space(path, "a").len(), 1);
        assert_eq!(white_space(path, "a\n\n").len(), 1);
    }
}
