// SPDX-License-Identifier: MIT OR Apache-2.0

//! device-dax over the BAR of an NPU: the other way in which the kernel maps compound device pages, as another
//! baseline. A driver for tests, `bar_dax`, makes the BAR a dax device.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context as _, Result};
use barbuf_guest::protocol::Device;
use barbuf_guest::sysfs;

use super::pci::{Function, Lent};
use crate::support::Ctx;

/// The driver of the PCI function.
pub(crate) const DRIVER: &str = "bar_dax";

/// The memory of an NPU as a dax device, until this is dropped.
#[derive(Debug)]
pub(crate) struct Dax {
    /// Closed before the driver is unbound.
    file: File,
    lent: Lent,
}

impl Dax {
    /// Whether this kernel came with what is needed.
    pub(crate) fn exists(ctx: &Ctx) -> bool {
        ["device_dax", DRIVER]
            .iter()
            .all(|name| ctx.modules().has(name))
    }

    /// Makes a dax device of BAR 2, with pages of one size.
    pub(crate) fn register(ctx: &Ctx, device: &Device, page: u64) -> Result<Dax> {
        for name in ["device_dax", DRIVER] {
            ctx.modules().load(name, "")?;
        }
        sysfs::write(
            format!("/sys/module/{DRIVER}/parameters/align"),
            &page.to_string(),
        )?;
        let lent = Lent::to(Function::of(device)?, DRIVER)?;
        let file = open(lent.function())?;
        Ok(Dax { file, lent })
    }

    pub(crate) fn function(&self) -> &Function {
        self.lent.function()
    }
}

impl AsFd for Dax {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens the dax device below a function: `dax<region>.0`.
fn open(function: &Function) -> Result<File> {
    let names = fs::read_dir(function.dir())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let name = names
        .into_iter()
        .find(|name| name.starts_with("dax") && name.contains('.'))
        .context("the function has no dax device")?;
    let path = format!("/dev/{name}");
    let file = OpenOptions::new().read(true).write(true).open(&path);
    file.with_context(|| format!("cannot open {path}"))
}
