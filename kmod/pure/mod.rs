// SPDX-License-Identifier: GPL-2.0

//! The module's decisions, as values in and values out.
//!
//! Everything here uses only `core`: no allocation, no lock, no pointer, no `unsafe`. The driver
//! asks these files what to do and then does it. That is why the same files run under property
//! tests on the host (`tests/pure`) and under KUnit in the debug kernel.
//!
//! Two rules hold in every file, because a mistake here would be a mistake in the kernel:
//!
//! - Nothing panics, whatever the arguments. Numbers that come from user space, from a device or
//!   from firmware meet checked arithmetic only: the kernel is built with overflow checks, so a
//!   plain `+` would be a `BUG()`.
//! - Nothing prints, and no answer carries a physical address that its caller did not pass in.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unreachable,
    clippy::unwrap_used
)]

pub mod address;
pub mod alloc;
pub mod btf;
pub mod errno;
pub mod exclude;
pub mod export;
pub mod mode;
pub mod order;
pub mod order_kunit;
pub mod pagemap;
pub mod range;
pub mod route;
pub mod size_first;
pub mod state;
pub mod vendor;
