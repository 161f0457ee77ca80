// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the suites are written with: providers, buffers, mappings, guarded accesses, processes,
//! drives.
//!
//! Everything here cleans up after itself when it is dropped, also while a failed test unwinds, so
//! that the oracles that run after a test see what the module left behind and not what the test
//! did.

pub(crate) mod command;
pub(crate) mod dax;
pub(crate) mod drive;
pub(crate) mod importer;
pub(crate) mod klog;
pub(crate) mod ledger;
pub(crate) mod map;
pub(crate) mod node;
pub(crate) mod p2pmem;
pub(crate) mod pattern;
pub(crate) mod pci;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod slab;
pub(crate) mod stopwatch;
pub(crate) mod touch;
pub(crate) mod vendor;
pub(crate) mod vfio;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const PAGE: u64 = 4 * KIB;

/// What nearly every test needs.
pub(crate) mod prelude {
    pub(crate) use anyhow::{Context as _, Result, bail, ensure};
    pub(crate) use barbuf_sys::*;
    pub(crate) use nix::errno::Errno;
    pub(crate) use nix::libc;

    pub(crate) use super::map::{Leaves, Mapping, Place, READ, READ_WRITE, Window};
    pub(crate) use super::node::{Buffer, Export, Node};
    pub(crate) use super::pattern::{fill, verify};
    pub(crate) use super::pci::Provider;
    pub(crate) use super::touch::Fault;
    pub(crate) use super::{GIB, KIB, MIB, PAGE};
    pub(crate) use crate::support::{Ctx, Suite, ensure_eq, test};
}
