// SPDX-License-Identifier: MIT OR Apache-2.0

//! Providers' nodes: what a function offers, exporting, revoking.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barbuf_sys::*;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::calls::{Calls, Kernel};
use crate::control::query_through;
use crate::error::{Error, ErrorKind, Result};
use crate::export::Export;
use crate::query::Query;
use crate::values::{Backing, Cache, Kind, PageSize, Reason, RouteKind, name_of};

/// Where the nodes are.
pub(crate) const DIRECTORY: &str = "/dev/barbuf";
/// How often [`Device::info`] asks again while the number of regions grows.
const ATTEMPTS: usize = 8;

/// An open provider: a PCI function whose memory can be exported.
///
/// Whoever may open its node may export and revoke. Buffers do not need it: they live on when it is
/// closed, unless they were exported with [`Export::revoke_on_close`].
///
/// ```no_run
/// # fn main() -> barbuf::Result<()> {
/// let device = barbuf::Device::open("0000:05:00.0")?;
/// for region in &device.info()?.regions {
///     println!("BAR {}: {} of {} bytes free", region.bar, region.free, region.length);
/// }
/// let buffer = device.export().any(1 << 30).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Device {
    pub(crate) node: OwnedFd,
    pub(crate) calls: Arc<dyn Calls>,
}

impl Device {
    /// Opens a provider by its PCI address, `0000:05:00.0`. The domain can be left out if it is 0.
    ///
    /// # Errors
    ///
    /// `ENOENT` if it is no provider, `EACCES` if its node is not for this user, `EINVAL` if the
    /// name is no PCI address.
    pub fn open(address: impl AsRef<str>) -> Result<Self> {
        let name = full_address(address.as_ref()).ok_or_else(|| {
            Error::new("open", ErrorKind::Invalid)
                .of(format!("{:?}", address.as_ref()))
                .hinted("a PCI address looks like 0000:05:00.0")
        })?;
        Self::open_path(Path::new(DIRECTORY).join(name))
    }

    /// Opens a provider by the path of its node.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open_path(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::from(open_node(path.as_ref())?))
    }

    /// The paths of all providers' nodes, sorted. None if the module is not loaded.
    ///
    /// # Errors
    ///
    /// Those of reading the directory, but for `ENOENT`.
    pub fn paths() -> Result<Vec<PathBuf>> {
        let failed = |error: std::io::Error| {
            Error::os(
                "readdir",
                Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            )
            .of(DIRECTORY)
        };
        let entries = match fs::read_dir(DIRECTORY) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let is_address = entry
                .file_name()
                .to_str()
                .is_some_and(|name| full_address(name).as_deref() == Some(name));
            if is_address {
                paths.push(entry.path());
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// What the provider offers now.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the provider has gone, `ENOTTY` if this is not the node of one.
    pub fn info(&self) -> Result<Info> {
        let mut room = 8;
        for _ in 0..ATTEMPTS {
            let mut regions = vec![barbuf_region_info::default(); room];
            let mut raw = barbuf_info {
                nr_regions: room as u32,
                region_stride: size_of::<barbuf_region_info>() as u32,
                regions: regions.as_mut_ptr() as u64,
                ..barbuf_info::new()
            };
            // SAFETY: The array has room for that many elements of that size.
            unsafe { self.calls.info(self.node.as_fd(), &mut raw) }
                .map_err(|errno| failed("BARBUF_INFO", errno))?;
            let found = raw.nr_regions as usize;
            if found <= room {
                regions.truncate(found);
                return Ok(Info::new(&raw, &regions));
            }
            room = found;
        }
        Err(Error::os("BARBUF_INFO", Errno::EAGAIN).hinted("the regions change all the time"))
    }

    /// Starts an export, which [`Export::build`] carries out.
    pub fn export(&self) -> Export<'_> {
        Export::new(self)
    }

    /// What a buffer of this provider is. [`Control::query`](crate::Control::query) answers for
    /// buffers of all providers, and needs no right to a node.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotOurs`] if it is another provider's or another driver's,
    /// [`ErrorKind::NotDmaBuf`] if it is no dma-buf.
    pub fn query(&self, buffer: impl AsFd) -> Result<Query> {
        query_through(&*self.calls, self.node.as_fd(), buffer.as_fd())
    }

    /// Takes a buffer back for good. When this returns, no CPU and no device reaches its bytes.
    ///
    /// Every touch of a mapping, in whatever process, raises `SIGBUS` from then on. The accesses of
    /// [`Mapping`](crate::Mapping) return an error instead.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Revoked`] (`EBADFD`) if it was revoked already, `ENODEV` if it is not this
    /// provider's, `EINVAL` if it is no dma-buf.
    pub fn revoke(&self, buffer: impl AsFd) -> Result<()> {
        let mut raw = barbuf_revoke {
            fd: buffer.as_fd().as_raw_fd(),
            ..barbuf_revoke::new()
        };
        self.calls
            .revoke(self.node.as_fd(), &mut raw)
            .map_err(|errno| match errno {
                Errno::EBADFD => Error::new("BARBUF_REVOKE", ErrorKind::Revoked)
                    .with_errno(errno)
                    .hinted("it was revoked before"),
                Errno::EINVAL => Error::new("BARBUF_REVOKE", ErrorKind::NotDmaBuf),
                Errno::ENODEV => Error::new("BARBUF_REVOKE", ErrorKind::NotOurs)
                    .hinted("the provider has gone, or the buffer is another's"),
                errno => failed("BARBUF_REVOKE", errno),
            })
    }
}

impl Device {
    /// Whether a PCI function can read and write the memory of a region by DMA, and how, or why
    /// not. Nothing is attached. [`Device::route_to`] asks the same for a buffer.
    ///
    /// A device whose route is good can still be refused at attach: see [`Export::static_import`].
    ///
    /// # Errors
    ///
    /// `ENODEV` if the provider has gone, `EINVAL` if there is no such region or the address is
    /// none.
    pub fn route(&self, region: u32, importer: impl AsRef<str>) -> Result<Route> {
        self.find_route(-1, region, importer.as_ref())
    }

    /// Whether a PCI function can read and write a buffer by DMA.
    ///
    /// # Errors
    ///
    /// Those of [`Device::route`], and `ENODEV` if the buffer is not this provider's.
    pub fn route_to(&self, buffer: impl AsFd, importer: impl AsRef<str>) -> Result<Route> {
        self.find_route(buffer.as_fd().as_raw_fd(), 0, importer.as_ref())
    }

    fn find_route(&self, fd: i32, region: u32, importer: &str) -> Result<Route> {
        let name = full_address(importer).ok_or_else(|| {
            Error::new("BARBUF_ROUTE", ErrorKind::Invalid)
                .of(format!("{importer:?}"))
                .hinted("a PCI address looks like 0000:04:00.0")
        })?;
        let mut raw = barbuf_route {
            fd,
            region,
            ..barbuf_route::new()
        };
        // `full_address` makes at most 16 bytes.
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        self.calls
            .route(self.node.as_fd(), &mut raw)
            .map_err(|errno| failed("BARBUF_ROUTE", errno))?;
        Ok(Route {
            kind: RouteKind::from_raw(raw.out_kind),
            reason: Reason::from_raw(raw.out_reason),
            distance: raw.out_distance,
            iommu: raw.out_flags & BARBUF_ROUTE_IOMMU != 0,
            dma_mask: match raw.out_flags & BARBUF_ROUTE_DMA_MASK_KNOWN {
                0 => None,
                _ => Some(raw.out_dma_mask),
            },
        })
    }
}

/// The answer of [`Device::route`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// How the device reaches the memory.
    pub kind: RouteKind,
    /// Why it cannot be an importer; [`Reason::None`] if it can.
    pub reason: Reason,
    /// Bridges and links between the two as the kernel counts them: 0 for the provider itself, 2
    /// for another function of it, 4 through one switch. 0 if there is no route.
    pub distance: u32,
    /// An IOMMU translates for the device.
    pub iommu: bool,
    /// The highest address that the device can form; `None` as long as it has no driver.
    pub dma_mask: Option<u64>,
}

impl Route {
    /// Whether the device can be an importer.
    pub fn is_good(&self) -> bool {
        self.kind != RouteKind::None && self.reason == Reason::None
    }
}

impl From<OwnedFd> for Device {
    /// Takes over an open node, for example one that was inherited.
    fn from(node: OwnedFd) -> Self {
        Device {
            node,
            calls: Arc::new(Kernel),
        }
    }
}

impl From<Device> for OwnedFd {
    fn from(device: Device) -> Self {
        device.node
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.as_fd()
    }
}

/// The answer of [`Device::info`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The provider's PCI address, `0000:05:00.0`.
    pub name: String,
    /// The version of the interface that the module speaks.
    pub abi: u32,
    /// How the function became a provider.
    pub kind: Kind,
    /// What module, kernel and processor can do.
    pub capabilities: Capabilities,
    /// The exportable stretches of its memory.
    pub regions: Vec<Region>,
}

impl Info {
    fn new(raw: &barbuf_info, regions: &[barbuf_region_info]) -> Self {
        Info {
            name: name_of(&raw.out_name),
            abi: raw.out_abi,
            kind: Kind::from_raw(raw.out_kind),
            capabilities: Capabilities(raw.out_capabilities),
            regions: regions.iter().map(Region::new).collect(),
        }
    }

    /// The region with most free bytes, if there is one with any.
    pub fn roomiest(&self) -> Option<&Region> {
        let with_room = self.regions.iter().filter(|region| region.free > 0);
        with_room.max_by_key(|region| region.free)
    }
}

/// What module, kernel and processor can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Buffers with struct pages can be made on this kernel.
    pub fn page_backing(self) -> bool {
        self.0 & BARBUF_CAP_PAGE_BACKING != 0
    }

    /// The largest page that a mapping can have.
    pub fn largest_page(self) -> PageSize {
        if self.0 & BARBUF_CAP_LEAF_1G != 0 {
            PageSize::Size1G
        } else if self.0 & BARBUF_CAP_LEAF_2M != 0 {
            PageSize::Size2M
        } else {
            PageSize::Size4K
        }
    }

    /// The bits of `linux/barbuf.h`, with those that this version does not know.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({:#x})", self.0)
    }
}

/// One exportable stretch of a provider's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Region {
    /// Names the region in [`Export::region`].
    pub index: u32,
    /// The BAR that it lies in, 0 to 5.
    pub bar: u32,
    /// Its first byte in that BAR.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that an exclusive export can still take, in pieces perhaps.
    pub free: u64,
    /// Physical address of the first byte modulo 1 GiB.
    pub phys_class: u64,
    /// The largest page that fits anywhere in it.
    pub largest_page: PageSize,
    /// The largest compound page that page backing can use here; `None` without page backing.
    pub largest_struct_page: Option<PageSize>,
    /// The backings that are possible.
    pub backings: Vec<Backing>,
    /// The cache modes that are possible.
    pub caches: Vec<Cache>,
    /// It holds no control registers: `CAP_SYS_RAWIO` is not needed, and zeroing is possible.
    pub memory_only: bool,
    /// The BAR is prefetchable.
    pub prefetchable: bool,
    /// Ranges come from a pool: only [`Export::any`].
    pub pool: bool,
    /// Live buffers of this region.
    pub buffers: u32,
}

impl Region {
    fn new(raw: &barbuf_region_info) -> Self {
        let numbers = |bits: u32| (0..u32::BITS).filter(move |bit| bits & (1 << bit) != 0);
        Region {
            index: raw.index,
            bar: raw.bar,
            offset: raw.offset,
            length: raw.length,
            free: raw.free,
            phys_class: raw.phys_class,
            largest_page: PageSize::at_most(raw.max_page_shift).unwrap_or(PageSize::Size4K),
            largest_struct_page: PageSize::at_most(raw.page_shift),
            backings: numbers(raw.backings).map(Backing::from_raw).collect(),
            caches: numbers(raw.caches).map(Cache::from_raw).collect(),
            memory_only: raw.flags & BARBUF_REGION_MEMORY_ONLY != 0,
            prefetchable: raw.flags & BARBUF_REGION_PREFETCHABLE != 0,
            pool: raw.flags & BARBUF_REGION_POOL != 0,
            buffers: raw.nr_buffers,
        }
    }
}

/// `05:00.0` and `0000:05:00.0` as the latter; `None` for what is no PCI address.
fn full_address(text: &str) -> Option<String> {
    let full = match text.matches(':').count() {
        1 => format!("0000:{text}"),
        _ => text.to_owned(),
    };
    let (domain, rest) = full.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let right = (4..=8).contains(&domain.len())
        && bus.len() == 2
        && slot.len() == 2
        && function.len() == 1
        && [domain, bus, slot, function].into_iter().all(is_hex)
        && u8::from_str_radix(slot, 16).ok()? < 32
        && u8::from_str_radix(function, 16).ok()? < 8;
    right.then_some(full)
}

pub(crate) fn open_node(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| {
        let error = Error::os("open", errno).of(path.display().to_string());
        match errno {
            Errno::ENOENT => error.hinted(
                "is the module loaded, and the function bound to barbuf or adopted? `barbuf list` shows it",
            ),
            Errno::EACCES | Errno::EPERM => {
                error.hinted("the node is root's; a udev rule can give it to a group")
            }
            _ => error,
        }
    })
}

/// The error of an ioctl, with a hint for the errno that it has.
pub(crate) fn failed(operation: &'static str, errno: Errno) -> Error {
    let error = Error::os(operation, errno);
    match errno {
        Errno::ENODEV => error
            .kinded(ErrorKind::Revoked)
            .hinted("the provider has gone: unbound, released or unplugged"),
        Errno::ENOTTY => error.hinted("this node has no such call: a provider's node has others than /dev/barbuf/control, and an older module has fewer"),
        Errno::E2BIG => error.hinted("the module is older than this program and does not know what it asks for"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, full) in [
            ("05:00.0", "0000:05:00.0"),
            ("0000:05:1f.7", "0000:05:1f.7"),
            ("10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(full_address(text).as_deref(), Some(full));
        }
        for text in [
            "",
            "control",
            "../mem",
            "0000:05:00",
            "0000:05:20.0",
            "0000:05:00.8",
            "5:0.0",
            "0000:05:00.0/",
            "0000:0G:00.0",
            "0000:05:00.0:1",
            "00000000f:05:00.0",
        ] {
            assert_eq!(full_address(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_name_that_is_no_address_is_refused_before_anything_is_opened() {
        let error = Device::open("../../etc/passwd").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.hint().unwrap().contains("0000:05:00.0"));
    }

    #[test]
    fn a_file_of_another_kind_says_enotty() {
        let device = Device::open_path("/dev/null").unwrap();
        let error = device.info().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOTTY as i32));
        assert_eq!(error.operation(), "BARBUF_INFO");
        assert!(error.hint().is_some());
    }
}
