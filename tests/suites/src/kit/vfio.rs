// SPDX-License-Identifier: MIT OR Apache-2.0

//! vfio-pci, what barbuf is measured against: giving it devices, and taking them back. Its calls are in
//! `barbuf_measure::vfio`.

use std::fs;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context as _, Result};
use barbuf_guest::protocol::Device;
use barbuf_guest::{modules, sysfs};
pub(crate) use barbuf_measure::vfio::DmaBufRequest;

use super::pci::Function;
use crate::support::Ctx;

/// A device that vfio-pci drives until this is dropped. Mappings of it must be gone by then.
#[derive(Debug)]
pub(crate) struct Vfio {
    // Closed before the driver is to let the device go.
    open: barbuf_measure::vfio::Vfio,
    _borrowed: Borrowed,
}

impl Vfio {
    /// Takes the device from whoever has it. Needs an IOMMU.
    pub(crate) fn open(ctx: &Ctx, device: &Device) -> Result<Vfio> {
        let borrowed = Borrowed::for_vfio(ctx, device)?;
        Ok(Vfio {
            open: barbuf_measure::vfio::Vfio::open(&borrowed.function.bdf, &borrowed.group)?,
            _borrowed: borrowed,
        })
    }
}

impl Deref for Vfio {
    type Target = barbuf_measure::vfio::Vfio;

    fn deref(&self) -> &Self::Target {
        &self.open
    }
}

impl AsFd for Vfio {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.open.as_fd()
    }
}

/// A function bound to vfio-pci, and its neighbours in the IOMMU group without their drivers, until this is dropped.
#[derive(Debug)]
pub(crate) struct Borrowed {
    pub(crate) function: Function,
    pub(crate) group: String,
    neighbours: Vec<Function>,
}

impl Borrowed {
    /// Makes a device ready for whoever opens it.
    pub(crate) fn for_vfio(ctx: &Ctx, device: &Device) -> Result<Borrowed> {
        // Not again: the kernel reads all of a module before it says that it has it.
        for module in ["vfio_iommu_type1", "vfio_pci"] {
            if !modules::is_loaded(module) {
                ctx.modules().load(module, "")?;
            }
        }
        // QEMU's IOMMU remaps no interrupts.
        sysfs::write(
            "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
            "1",
        )?;
        Borrowed::take(Function::of(device)?)
    }

    fn take(function: Function) -> Result<Borrowed> {
        let link = fs::read_link(function.dir().join("iommu_group"));
        let link = link.with_context(|| format!("{} has no IOMMU group", function.bdf))?;
        let group = link
            .file_name()
            .and_then(|name| name.to_str())
            .context("an IOMMU group's name")?;
        let mut borrowed = Borrowed {
            function,
            group: group.to_owned(),
            neighbours: Vec::new(),
        };
        for entry in fs::read_dir(borrowed.function.dir().join("iommu_group/devices"))? {
            let bdf = entry?.file_name().into_string().unwrap_or_default();
            let neighbour = Function { bdf };
            let driver = neighbour.driver();
            // VFIO lets ports of bridges keep their driver.
            if neighbour.bdf == borrowed.function.bdf
                || driver.is_none_or(|name| name == "pcieport")
            {
                continue;
            }
            neighbour.unbind()?;
            borrowed.neighbours.push(neighbour);
        }
        borrowed.function.unbind()?;
        borrowed.function.bind("vfio-pci")?;
        Ok(borrowed)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut results = vec![self.function.unbind(), self.function.restore()];
        results.extend(self.neighbours.iter().map(Function::restore));
        for error in results.into_iter().filter_map(Result::err) {
            eprintln!("cannot undo vfio-pci: {error:#}");
        }
    }
}
