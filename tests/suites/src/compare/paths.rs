// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ways to map the memory of a device, and what must be done before it can be mapped.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, OwnedFd};

use barbuf_guest::protocol::{Device, DeviceKind};
use barbuf_guest::sysfs;
use barbuf_measure::mapping::Target;

use crate::kit::dax::{self, Dax};
use crate::kit::p2pmem::{self, P2pmem, Repairs, Variant};
use crate::kit::pci::Function;
use crate::kit::prelude::*;
use crate::kit::vfio::{Borrowed, DmaBufRequest, Vfio};

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

/// Bytes of the pages that the in-box driver makes of a CMB.
fn page_of_cmb() -> u64 {
    let told = sysfs::read("/sys/module/nvme/parameters/cmb_devmap_align");
    told.ok().and_then(|text| text.parse().ok()).unwrap_or(PAGE)
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

/// A device whose memory was available once, so that it can be made so again.
#[derive(Debug)]
pub(crate) enum Ready {
    /// The driver can be unbound and bound while this is there.
    Memory(Memory),
    Vfio(Borrowed),
    /// Everything is to be done again.
    Nothing,
}

impl Ready {
    /// The function and its driver, where binding that is all there is to it.
    pub(crate) fn driver(&self) -> Option<(&Function, &'static str)> {
        match self {
            Ready::Memory(memory) => memory.driver(),
            Ready::Vfio(borrowed) => Some((&borrowed.function, "vfio-pci")),
            Ready::Nothing => None,
        }
    }
}

/// What a kernel with compound-sysfs/ has and no other.
const PATCHED: &str = "/sys/module/kernel/parameters/pud_repairs";

impl Path {
    /// Loads what [`Path::register`] needs, so that this is no part of its time. Until the answer is dropped mm is as
    /// the path has it: as it is today for all but R.
    pub(crate) fn prepare(&self, ctx: &Ctx) -> Result<Repairs> {
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
        Repairs::set(matches!(self.how, How::Sysfs(variant) if variant.is_repaired()))
    }

    /// Whether the path can show this device's memory with its own page size.
    pub(crate) fn fits(&self, device: &Device) -> bool {
        match self.how {
            // The drive's own driver has registered it, at boot. That of compound pages is a boot for S alone.
            How::Sysfs(Variant::Posted { page }) if region(device) == "CMB" => {
                page == page_of_cmb()
            }
            _ if page_of_cmb() > PAGE => false,
            // Whatever page fits is taken.
            How::Vfio => true,
            How::Barbuf(BARBUF_BACKING_PAGE) if region(device) == "CMB" => self.leaf == PAGE,
            // And not as a dax device.
            How::Dax if region(device) == "CMB" => false,
            _ => self.leaf <= size(device),
        }
    }

    /// What registering again needs.
    pub(crate) fn ready(&self, ctx: &Ctx, device: &Device) -> Result<Ready> {
        if self.how == How::Vfio {
            return Ok(Ready::Vfio(Borrowed::for_vfio(ctx, device)?));
        }
        let memory = self.register(ctx, device)?;
        Ok(match self.how {
            How::Barbuf(_) => Ready::Nothing,
            _ => Ready::Memory(memory),
        })
    }

    /// Whom to ask for a buffer of barbuf's, and what for.
    pub(crate) fn provider(&self, device: &Device, backing: u32) -> Result<(Provider, Export)> {
        let len = size(device);
        let (provider, wanted) = match device.kind {
            DeviceKind::Nvme { .. } => (Provider::adopt(device)?, Export::any(len)),
            _ => (Provider::bind(device)?, Export::at(0, len)),
        };
        Ok((provider, wanted.backing(backing).leaf(self.leaf.ilog2())))
    }

    /// Makes the memory of a device available.
    pub(crate) fn register(&self, ctx: &Ctx, device: &Device) -> Result<Memory> {
        let len = size(device);
        let source = match (self.how, &device.kind) {
            (How::Barbuf(backing), _) => {
                let (provider, wanted) = self.provider(device, backing)?;
                Source::Barbuf {
                    buffer: provider.node.export(&wanted)?,
                    provider,
                }
            }
            (How::Sysfs(variant), DeviceKind::Nvme { .. }) => {
                let dir = Function::of(device)?.dir().join("p2pmem");
                let limit = dir.join("max_page_size");
                if limit.exists() && !matches!(variant, Variant::Posted { .. }) {
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

    fn driver(&self) -> Option<(&Function, &'static str)> {
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
