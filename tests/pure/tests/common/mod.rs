// SPDX-License-Identifier: GPL-2.0

//! What all property tests share.

use proptest::test_runner::Config;

/// `cases` random cases, and no file for the ones that fail: proptest prints the smallest failing
/// input, which belongs into a test of its own.
pub(crate) fn cases(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    }
}
