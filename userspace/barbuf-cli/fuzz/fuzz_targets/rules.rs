// SPDX-License-Identifier: MIT OR Apache-2.0

//! The parser of the broker's rules: whatever the file says, it neither panics nor lets anything
//! pass that the rules forbid.
//!
//! `cargo +nightly fuzz run rules corpus/rules seeds/rules` runs it under libFuzzer. Where there is no cargo-fuzz,
//! `cargo run --release --no-default-features -- RUNS` mutates the seeds without coverage.

#![cfg_attr(feature = "libfuzzer", no_main)]

#[path = "../check.rs"]
mod check;

use check::check;
#[cfg(not(feature = "libfuzzer"))]
use {barbuf_cli::rules::Rules, check::Fixed};

#[cfg(feature = "libfuzzer")]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

#[cfg(not(feature = "libfuzzer"))]
fn main() {
    let runs: u64 = std::env::args().nth(1).and_then(|runs| runs.parse().ok()).unwrap_or(1_000_000);
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/rules");
    let mut seeds: Vec<Vec<u8>> = std::fs::read_dir(dir)
        .expect("the seeds")
        .map(|entry| std::fs::read(entry.expect("a seed").path()).expect("a seed"))
        .collect();
    seeds.sort();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let mut accepted = 0u64;
    for _ in 0..runs {
        let mut bytes = seeds[next(seeds.len())].clone();
        for _ in 0..next(4) {
            let at = next(bytes.len());
            match next(5) {
                0 => bytes[at] = next(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"0123456789abcdef\"[]{}=,.\n -"[next(27)]),
                3 => bytes.truncate(at.max(1)),
                // A part of another seed.
                _ => {
                    let other = &seeds[next(seeds.len())];
                    let from = next(other.len());
                    let part = &other[from..(from + next(40)).min(other.len())];
                    bytes.splice(at..at, part.iter().copied());
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        check(&bytes);
        accepted += u64::from(std::str::from_utf8(&bytes).is_ok_and(|t| Rules::parse(t, &Fixed).is_ok()));
    }
    println!("{runs} runs, {accepted} of them rules");
}
