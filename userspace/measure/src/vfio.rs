// SPDX-License-Identifier: MIT OR Apache-2.0

//! vfio-pci, the kernel's own way to map a BAR, for whoever may open its group.
//!
//! Only the few calls that measuring needs. The numbers are those of `linux/vfio.h`.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::libc;

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
pub struct DmaBufRequest {
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
    pub fn new(bar: usize, offset: u64, length: u64) -> Self {
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

/// An open device.
#[derive(Debug)]
pub struct Vfio {
    // Closed in this order; only then the driver lets the device go.
    device: OwnedFd,
    _group: File,
    _container: File,
}

impl Vfio {
    /// Opens a function that vfio-pci drives, in an IOMMU group that nobody else has open.
    ///
    /// # Errors
    ///
    /// EBUSY if somebody has; what else the kernel says.
    pub fn open(address: &str, group: &str) -> Result<Vfio> {
        let open = |path: &str| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.with_context(|| format!("cannot open {path}"))
        };
        let container = open("/dev/vfio/vfio")?;
        let group = open(&format!("/dev/vfio/{group}"))?;
        let mut status = GroupStatus {
            argsz: size_of::<GroupStatus>() as u32,
            flags: 0,
        };
        let container_fd: RawFd = container.as_raw_fd();
        let name = std::ffi::CString::new(address)?;
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
        })
    }

    /// The offset in the device's file at which a BAR can be mapped, and its length.
    pub fn bar(&self, index: usize) -> Result<(u64, u64)> {
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
    pub fn dma_buf(&self, request: &DmaBufRequest) -> Result<OwnedFd, Errno> {
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
