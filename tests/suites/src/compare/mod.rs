// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `make compare` runs in the guest: every way to map the memory of a device, measured alike.
//!
//! [`paths`] knows the ways and how memory is made available for each, [`measure`] tells numbers, [`verdicts`] tells in
//! words how each answers to calls that are not about time. The host
//! (`userspace/xtask/src/compare/`) puts the report together. Nothing here fails because a number is large.

mod measure;
mod paths;
mod verdicts;

use crate::support::Suite;

/// Numbers, on a machine whose time counts instructions.
pub(crate) const MEASUREMENTS: Suite = Suite {
    name: "compare",
    tests: measure::TESTS,
};

/// Words, on a machine that may not survive them.
pub(crate) const VERDICTS: Suite = Suite {
    name: "verdicts",
    tests: verdicts::TESTS,
};

const TOPOLOGIES: &[&str] = &["compare"];
