// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ways to map the memory of a device, and what must be done before it can be mapped.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, OwnedFd};

use barbuf_guest::protocol::{Device, DeviceKind};
use barbuf_guest::sysfs;
use barbuf_measure::mapping::Target;

use crate::kit::dax::{self, Dax};
use crate::kit::p2pmem::{self, P2pmem, Variant};
use crate::kit::pci::Function;
use crate::kit::prelude::*;
use crate::kit::vfio::{DmaBufRequest, Vfio};

/// A way to map the memory of a device.
#[derive(Debug)]
pub(crate) struct Path {
    /// As the report has it.
    pub(crate) name: &'static str,
    /// Bytes of its page table entries.
    pub(crate) leaf: u64,
    pub(crate) how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// `p2pmem/allocate` in sysfs.
    Sysfs(Variant),
    /// barbuf, with one backing.
    Barbuf(u32),
    /// vfio-pci's own mmap.
    Vfio,
    /// device-dax over the BAR.
    Dax,
}

const fn path(name: &'static str, leaf: u64, how: How) -> Path {
    Path { name, leaf, how }
}

const PFN: How = How::Barbuf(BARBUF_BACKING_PFN);
const PAGES: How = How::Barbuf(BARBUF_BACKING_PAGE);

/// In the order of the report.
pub(crate) const PATHS: &[Path] = &[
    path("base sysfs 4K", PAGE, How::Sysfs(Variant::Base)),
    path("S 2M", 2 * MIB, How::Sysfs(Variant::S_2M)),
    path("S 1G", GIB, How::Sysfs(Variant::S_1G)),
    path("R 2M", 2 * MIB, How::Sysfs(Variant::R_2M)),
    path("R 1G", GIB, How::Sysfs(Variant::R_1G)),
    path("barbuf pfn 4K", PAGE, PFN),
    path("barbuf pfn 2M", 2 * MIB, PFN),
    path("barbuf pfn 1G", GIB, PFN),
    path("barbuf page 4K", PAGE, PAGES),
    path("barbuf page 2M", 2 * MIB, PAGES),
    path("barbuf page 1G", GIB, PAGES),
    path("vfio-pci", GIB, How::Vfio),
    path("device-dax 2M", 2 * MIB, How::Dax),
    path("device-dax 1G", GIB, How::Dax),
];

/// How much of a drive's CMB of 64 MiB is mapped: its driver needs a little for itself.
pub(crate) const OF_CMB: u64 = 32 * MIB;
/// The BAR of NPUs and of QEMU's drives that holds memory.
const MEMORY_BAR: usize = 2;

/// What a region is called in the report.
pub(crate) fn region(device: &Device) -> &'static str {
    match device.kind {
        DeviceKind::Nvme { .. } => "CMB",
        _ => "NPU",
    }
}

/// How many bytes of a device are mapped.
pub(crate) fn size(device: &Device) -> u64 {
    match device.kind {
        DeviceKind::Npu { bar_bytes } => bar_bytes,
        DeviceKind::Nvme { .. } => OF_CMB,
        DeviceKind::Edu { .. } => 0,
    }
}

/// The memory of a device, made available for one path, until this is dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    source: Source,
    len: u64,
    leaf: u64,
}

#[derive(Debug)]
enum Source {
    Barbuf {
        // Closed before the provider goes.
        buffer: Buffer,
        provider: Provider,
    },
    /// An NPU that a driver for this purpose has published.
    Npu(P2pmem),
    /// A drive's CMB, published by its own driver.
    Cmb(File),
    Dax(Dax),
    Vfio {
        vfio: Vfio,
        offset: u64,
    },
}

/// What a kernel with compound-sysfs/ has and no other.
const PATCHED: &str = "/sys/module/kernel/parameters/pud_repairs";

impl Path {
    /// Loads what [`Path::register`] needs, so that this is no part of its time.
    pub(crate) fn prepare(&self, ctx: &Ctx) -> Result<()> {
        match self.how {
            How::Vfio => {
                ctx.modules().load("vfio_iommu_type1", "")?;
                ctx.modules().load("vfio_pci", "")?;
            }
            How::Dax => {
                if !Dax::exists(ctx) {
                    return ctx.skip("this kernel is without device-dax, or its interface");
                }
            }
            How::Sysfs(Variant::Base) | How::Barbuf(_) => {}
            How::Sysfs(_) => {
                if !std::path::Path::new(PATCHED).exists() {
                    return ctx.skip("this kernel is without the patches of compound-sysfs/");
                }
            }
        }
        Ok(())
    }

    /// Whether the path can show this device's memory with its own page size.
    pub(crate) fn fits(&self, device: &Device) -> bool {
        match self.how {
            // Whatever page fits is taken.
            How::Vfio => true,
            // The drive's own driver has registered it, with pages of 4 KiB.
            How::Sysfs(Variant::Posted { .. }) if region(device) == "CMB" => false,
            How::Barbuf(BARBUF_BACKING_PAGE) if region(device) == "CMB" => self.leaf == PAGE,
            // And not as a dax device.
            How::Dax if region(device) == "CMB" => false,
            _ => self.leaf <= size(device),
        }
    }

    /// Makes the memory of a device available.
    pub(crate) fn register(&self, ctx: &Ctx, device: &Device) -> Result<Memory> {
        let len = size(device);
        let source = match (self.how, &device.kind) {
            (How::Barbuf(backing), DeviceKind::Nvme { .. }) => {
                let provider = Provider::adopt(device)?;
                let wanted = Export::any(len).backing(backing).leaf(self.leaf.ilog2());
                Source::Barbuf {
                    buffer: provider.node.export(&wanted)?,
                    provider,
                }
            }
            (How::Barbuf(backing), _) => {
                let provider = Provider::bind(device)?;
                let wanted = Export::at(0, len).backing(backing).leaf(self.leaf.ilog2());
                Source::Barbuf {
                    buffer: provider.node.export(&wanted)?,
                    provider,
                }
            }
            (How::Sysfs(variant), DeviceKind::Nvme { .. }) => {
                let dir = Function::of(device)?.dir().join("p2pmem");
                let limit = dir.join("max_page_size");
                if limit.exists() {
                    sysfs::write(&limit, &variant.page().to_string())?;
                }
                let path = dir.join("allocate");
                let file = OpenOptions::new().read(true).write(true).open(&path);
                Source::Cmb(file.with_context(|| format!("cannot open {}", path.display()))?)
            }
            (How::Sysfs(variant), _) => Source::Npu(P2pmem::register(ctx, device, variant)?),
            (How::Dax, _) => Source::Dax(Dax::register(ctx, device, self.leaf)?),
            (How::Vfio, _) => {
                let vfio = Vfio::open(ctx, device)?;
                let (offset, _) = vfio.bar(MEMORY_BAR)?;
                Source::Vfio { vfio, offset }
            }
        };
        let leaf = self.leaf.min(1 << len.trailing_zeros().min(30));
        // A BAR of 32 MiB has leaves of 2 MiB.
        let leaf = if leaf < GIB { leaf.min(2 * MIB) } else { leaf };
        Ok(Memory { source, len, leaf })
    }
}

impl Memory {
    /// What to map.
    pub(crate) fn target(&self) -> Target<'_> {
        let (file, offset, phys_class) = match &self.source {
            Source::Barbuf { buffer, .. } => (buffer.as_fd(), 0, buffer.raw.out_phys_class),
            Source::Npu(p2pmem) => (p2pmem.as_fd(), 0, 0),
            Source::Cmb(file) => (file.as_fd(), 0, 0),
            Source::Dax(dax) => (dax.as_fd(), 0, 0),
            Source::Vfio { vfio, offset } => (vfio.as_fd(), *offset, 0),
        };
        Target {
            file,
            offset,
            len: self.len,
            leaf: self.leaf,
            phys_class,
        }
    }

    /// The buffer and its provider, if it is barbuf's.
    pub(crate) fn barbuf(&self) -> Option<(&Provider, &Buffer)> {
        match &self.source {
            Source::Barbuf { buffer, provider } => Some((provider, buffer)),
            _ => None,
        }
    }

    /// A dma-buf of all of it, where there is such a thing.
    pub(crate) fn dma_buf(&self) -> Result<Option<OwnedFd>> {
        Ok(match &self.source {
            Source::Barbuf { buffer, .. } => Some(buffer.fd.try_clone()?),
            Source::Vfio { vfio, .. } => {
                Some(vfio.dma_buf(&DmaBufRequest::new(MEMORY_BAR, 0, self.len))?)
            }
            Source::Npu(_) | Source::Cmb(_) | Source::Dax(_) => None,
        })
    }

    /// The function and its driver, where binding that is all there is to making the memory available.
    pub(crate) fn driver(&self) -> Option<(&Function, &'static str)> {
        match &self.source {
            Source::Npu(p2pmem) => Some((p2pmem.function(), p2pmem::DRIVER)),
            Source::Dax(dax) => Some((dax.function(), dax::DRIVER)),
            _ => None,
        }
    }

    /// Whether a descriptor of it shows the same memory in every process.
    pub(crate) fn can_be_passed_on(&self) -> bool {
        // Each mapping of `p2pmem/allocate` is of memory that was free.
        !matches!(self.source, Source::Npu(_) | Source::Cmb(_))
    }

    /// The function whose driver can be unbound while the memory is mapped; None where that waits for the user.
    pub(crate) fn removable(&self) -> Option<&Function> {
        match &self.source {
            Source::Barbuf { provider, .. } => Some(&provider.function),
            Source::Npu(p2pmem) => Some(p2pmem.function()),
            Source::Dax(dax) => Some(dax.function()),
            Source::Cmb(_) | Source::Vfio { .. } => None,
        }
    }
}
