// SPDX-License-Identifier: GPL-2.0

//! The module's pure logic, compiled for the host as it is.
//!
//! `no_std` proves that the files need nothing but `core`.

#![no_std]

#[path = "../../../kmod/pure/mod.rs"]
pub mod pure;
