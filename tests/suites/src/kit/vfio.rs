// SPDX-License-Identifier: MIT OR Apache-2.0

//! vfio-pci, the kernel's own way to map a BAR: what barbuf is measured against, and where the kernel's mistakes with
//! large leaves can be seen without barbuf.
//!
//! Only the few calls that tests need. The numbers are those of `linux/vfio.h`.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, Result, ensure};
use barbuf_guest::protocol::Device;
use barbuf_guest::{modules, sysfs};
use nix::errno::Errno;
use nix::libc;

use super::pci::Function;
use crate::support::Ctx;

/// `_IO(VFIO_TYPE, VFIO_BASE + n)`
const fn number(n: u64) -> u64 {
    ((b';' as u64) << 8) | (100 + n)
}

const SET_IOMMU: u64 = number(2);
const GROUP_GET_STATUS: u64 = number(3);
const GROUP_SET_CONTAINER: u64 = number(4);
const GROUP_GET_DEVICE_FD: u64 = number(6);
const DEVICE_GET_REGION_INFO: u64 = number(8);
const DEVICE_FEATURE: u64 = number(17);

const TYPE1_IOMMU: u64 = 1;
const GROUP_FLAGS_VIABLE: u32 = 1;
const REGION_INFO_FLAG_MMAP: u32 = 4;
const FEATURE_GET: u32 = 1 << 16;
const FEATURE_DMA_BUF: u32 = 11;

#[repr(C)]
#[derive(Default)]
struct GroupStatus {
    argsz: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

/// `struct vfio_device_feature` with a `struct vfio_device_feature_dma_buf` of one range as its data.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct DmaBufRequest {
    argsz: u32,
    flags: u32,
    region_index: u32,
    open_flags: u32,
    dma_buf_flags: u32,
    nr_ranges: u32,
    offset: u64,
    length: u64,
}

impl DmaBufRequest {
    pub(crate) fn new(bar: usize, offset: u64, length: u64) -> Self {
        DmaBufRequest {
            argsz: size_of::<DmaBufRequest>() as u32,
            flags: FEATURE_GET | FEATURE_DMA_BUF,
            region_index: bar as u32,
            open_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
            dma_buf_flags: 0,
            nr_ranges: 1,
            offset,
            length,
        }
    }
}

/// # Safety
///
/// The argument must be what the request takes.
unsafe fn ioctl(fd: impl AsFd, request: u64, argument: u64) -> Result<i32, Errno> {
    // SAFETY: Promised by the caller.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as _, argument) })
}

/// A device that vfio-pci drives until this is dropped. Mappings of it must be gone by then.
#[derive(Debug)]
pub(crate) struct Vfio {
    // Closed in this order; only then the driver lets the device go.
    device: OwnedFd,
    _group: File,
    _container: File,
    _borrowed: Borrowed,
}

impl Vfio {
    /// Takes the device from whoever has it. Needs an IOMMU.
    pub(crate) fn open(ctx: &Ctx, device: &Device) -> Result<Vfio> {
        let borrowed = Borrowed::for_vfio(ctx, device)?;

        let open = |path: &str| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.with_context(|| format!("cannot open {path}"))
        };
        let container = open("/dev/vfio/vfio")?;
        let group = open(&format!("/dev/vfio/{}", borrowed.group))?;
        let mut status = GroupStatus {
            argsz: size_of::<GroupStatus>() as u32,
            flags: 0,
        };
        let container_fd: RawFd = container.as_raw_fd();
        let name = std::ffi::CString::new(borrowed.function.bdf.as_str())?;
        // SAFETY: Each argument is of the request's type and lives. The last one returns a new descriptor.
        let device = unsafe {
            ioctl(&group, GROUP_GET_STATUS, &raw mut status as u64)
                .context("VFIO_GROUP_GET_STATUS")?;
            ensure!(
                status.flags & GROUP_FLAGS_VIABLE != 0,
                "the IOMMU group has other drivers in it"
            );
            ioctl(&group, GROUP_SET_CONTAINER, &raw const container_fd as u64)
                .context("VFIO_GROUP_SET_CONTAINER")?;
            ioctl(&container, SET_IOMMU, TYPE1_IOMMU).context("VFIO_SET_IOMMU")?;
            let fd = ioctl(&group, GROUP_GET_DEVICE_FD, name.as_ptr() as u64)
                .context("VFIO_GROUP_GET_DEVICE_FD")?;
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Vfio {
            device,
            _group: group,
            _container: container,
            _borrowed: borrowed,
        })
    }

    /// The offset in the device's file at which a BAR can be mapped, and its length.
    pub(crate) fn bar(&self, index: usize) -> Result<(u64, u64)> {
        let mut info = RegionInfo {
            argsz: size_of::<RegionInfo>() as u32,
            index: index as u32,
            ..RegionInfo::default()
        };
        // SAFETY: The structure lives.
        unsafe { ioctl(&self.device, DEVICE_GET_REGION_INFO, &raw mut info as u64) }
            .context("VFIO_DEVICE_GET_REGION_INFO")?;
        ensure!(
            info.flags & REGION_INFO_FLAG_MMAP != 0,
            "BAR {index} cannot be mapped"
        );
        Ok((info.offset, info.size))
    }

    /// A dma-buf of a range of a BAR.
    pub(crate) fn dma_buf(&self, request: &DmaBufRequest) -> Result<OwnedFd, Errno> {
        // SAFETY: The structure lives, and what is returned is a new descriptor.
        unsafe {
            let fd = ioctl(&self.device, DEVICE_FEATURE, request as *const _ as u64)?;
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

impl AsFd for Vfio {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// A function bound to vfio-pci, and its neighbours in the IOMMU group without their drivers, until this is dropped.
#[derive(Debug)]
pub(crate) struct Borrowed {
    pub(crate) function: Function,
    group: String,
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
