// SPDX-License-Identifier: MIT OR Apache-2.0

//! Device memory in the address space of this process.

mod access;
mod guarded;
mod options;
mod place;
mod sigbus;

pub use access::Mapping;
pub use options::{Alignment, MapOptions};

/// Whether the accesses of [`Mapping`] return an error when the memory is gone. If not, `SIGBUS`
/// ends the process, as it does for whoever uses the raw pointer.
pub const GUARDED: bool = cfg!(all(target_arch = "x86_64", target_pointer_width = "64"));
