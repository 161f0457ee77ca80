// SPDX-License-Identifier: GPL-2.0

//! What the kernel crate does not offer yet, one C concept a file.
//!
//! This folder is the only place in the module with `unsafe` and with `bindings::`. Each file wraps one C interface so
//! that the driver, which lives one level up, can be written without either. Nothing in here knows what a provider or
//! a buffer is.

pub(crate) mod access;
pub(crate) mod attach;
pub(crate) mod dmabuf;
pub(crate) mod eventfd;
pub(crate) mod fault;
pub(crate) mod gate;
pub(crate) mod global;
pub(crate) mod layout;
pub(crate) mod memtype;
pub(crate) mod node;
pub(crate) mod notifier;
pub(crate) mod p2pdma;
pub(crate) mod pagemap;
pub(crate) mod pci;
pub(crate) mod pool;
pub(crate) mod recovery;
pub(crate) mod trace;
pub(crate) mod vendor;
pub(crate) mod vma;

mod shim;
