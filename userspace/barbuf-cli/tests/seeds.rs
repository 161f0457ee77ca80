// SPDX-License-Identifier: MIT OR Apache-2.0

//! The seeds of the fuzz target, through the same checks, where no fuzzer is at hand.

use std::fs;
use std::path::Path;

use barbuf_cli::rules::Rules;

#[path = "../fuzz/check.rs"]
mod check;

use check::{Fixed, check};

#[test]
fn rules() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/rules");
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        check(&bytes);
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::str::from_utf8(&bytes);
        match text.is_ok_and(|text| Rules::parse(text, &Fixed).is_ok()) {
            true => accepted.push(name),
            false => refused.push(name),
        }
    }
    accepted.sort();
    refused.sort();
    assert_eq!(accepted, ["full", "small", "two"]);
    assert_eq!(
        refused,
        [
            "deep",
            "no-utf8",
            "nobody",
            "overflow",
            "past-the-end",
            "unknown-key"
        ]
    );
}
