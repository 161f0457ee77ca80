// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a mapping of device memory costs, measured the same way everywhere.
//!
//! Two programs measure with this: the guest's suite behind `make compare`, on a machine whose time counts
//! instructions, and `barbuf bench`, on whatever machine it is started. Both make the same [`report::Report`].
//!
//! - [`clock`]: what time is;
//! - [`mapping`]: mmap, first and second touch, munmap, page tables;
//! - [`guard`]: what is measured goes away meanwhile;
//! - [`process`]: fork, and a descriptor's way into another process;
//! - [`direct`]: file I/O past the page cache;
//! - [`machine`]: whether time is real;
//! - [`memory`]: struct pages and page tables, as /proc tells;
//! - [`vfio`]: vfio-pci's own mmap and dma-buf;
//! - [`report`]: rows, answers, JSON; [`table`]: the same for people.

pub mod clock;
pub mod direct;
pub mod guard;
pub mod machine;
pub mod mapping;
pub mod memory;
pub mod process;
pub mod report;
pub mod table;
pub mod vfio;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
