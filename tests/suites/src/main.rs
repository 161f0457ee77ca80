// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tests that run inside the guest, as one static program.
//!
//! On the host `suites --list` tells what there is; in the guest init starts
//! `suites SUITE TEST` once per test. A new suite is a file here and a line in [`SUITES`].

mod abi;
mod adopt;
mod advice;
mod arguments;
mod bench;
mod cache;
mod command;
mod compare;
mod cookie;
mod defects;
mod demo;
mod descriptor;
mod errors;
mod export;
mod figures;
mod foreign;
mod fuzz;
mod hardware;
mod import;
mod inbox;
mod inflight;
mod isolation;
mod kit;
mod layout;
mod library;
mod lifetime;
mod lockdown;
mod map;
mod observe;
mod odirect;
mod p2pmem;
mod passing;
mod pool;
mod posted;
mod provoke;
mod races;
mod recall;
mod reimport;
mod reset;
mod revoke;
mod route;
mod smoke;
mod support;
mod vendor;
mod vmops;

use std::process::ExitCode;

use support::{Suite, list, run};

/// What `make test` runs, in this order.
const SUITES: &[Suite] = &[
    smoke::SUITE,
    abi::SUITE,
    export::SUITE,
    descriptor::SUITE,
    errors::SUITE,
    arguments::SUITE,
    map::SUITE,
    cache::SUITE,
    cookie::SUITE,
    vmops::SUITE,
    advice::SUITE,
    foreign::SUITE,
    odirect::SUITE,
    p2pmem::SUITE,
    posted::SUITE,
    revoke::SUITE,
    inflight::SUITE,
    reset::SUITE,
    vendor::SUITE,
    adopt::SUITE,
    pool::SUITE,
    route::SUITE,
    import::SUITE,
    recall::SUITE,
    reimport::SUITE,
    inbox::SUITE,
    hardware::SUITE,
    isolation::SUITE,
    lockdown::SUITE,
    layout::SUITE,
    observe::SUITE,
    lifetime::SUITE,
    races::SUITE,
    fuzz::SUITE,
    library::SUITE,
    passing::SUITE,
    bench::SUITE,
    command::SUITE,
    demo::SUITE,
    defects::SUITE,
];

/// What `make figures` runs.
const FIGURES: &[Suite] = &[figures::SUITE];

/// What `make compare` runs: numbers first, then words.
const COMPARE: &[Suite] = &[compare::MEASUREMENTS];
const VERDICTS: &[Suite] = &[compare::VERDICTS];

/// What only the runner's test of itself runs: tests that must fail, or take the guest down.
const PROVOCATIONS: &[Suite] = &[provoke::SUITE];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--list"] => list(SUITES),
        ["--list-figures"] => list(FIGURES),
        ["--list-compare"] => list(COMPARE),
        ["--list-verdicts"] => list(VERDICTS),
        ["--list-provocations"] => list(PROVOCATIONS),
        ["demo-reader"] => demo::reader::main(),
        [suite, test] => run(
            [SUITES, FIGURES, COMPARE, VERDICTS, PROVOCATIONS]
                .into_iter()
                .flatten(),
            suite,
            test,
        ),
        _ => {
            eprintln!(
                "usage: suites --list[-figures | -compare | -verdicts | -provocations] | SUITE TEST"
            );
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `suite::test` that docs/testing.md names exists; a star stands for any end.
    #[test]
    fn the_document_names_tests_that_exist() {
        let text = include_str!("../../../docs/testing.md");
        let mut count = 0;
        for word in text.split('`').skip(1).step_by(2) {
            let Some((suite, test)) = word.split_once("::") else {
                continue;
            };
            // Of a test that runs on several topologies, one may be meant.
            let test = test.split_once('@').map_or(test, |(test, _)| test);
            let Some(suite) = SUITES.iter().find(|known| known.name == suite) else {
                continue;
            };
            let exists = |name: &str| match test.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == test || test == "oracles",
            };
            assert!(
                suite.tests.iter().any(|known| exists(known.name())),
                "docs/testing.md names {word}, which does not exist"
            );
            count += 1;
        }
        assert!(count > 50, "only {count} tests are named");
    }
}
