// SPDX-License-Identifier: MIT OR Apache-2.0

//! Making a buffer of a provider's memory.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use barbuf_sys::*;
use nix::errno::Errno;
use nix::libc;

use crate::buffer::Buffer;
use crate::device::{Device, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::values::{Access, Backing, Cache, PageSize};

/// An export in the making. [`Device::export`] starts it, [`build`](Export::build) carries it out.
///
/// Unless told otherwise: region 0, pfn backing, uncached, read-write, exclusive, with the largest
/// pages that the place allows. Either [`any`](Export::any) or [`range`](Export::range) must be
/// called.
#[derive(Debug)]
#[must_use = "nothing is exported before `build`"]
pub struct Export<'d> {
    device: &'d Device,
    region: u32,
    ranges: Vec<barbuf_range>,
    any: bool,
    backing: Backing,
    cache: Cache,
    access: Access,
    page: Option<PageSize>,
    flags: u32,
    event: Option<BorrowedFd<'d>>,
}

impl<'d> Export<'d> {
    pub(crate) fn new(device: &'d Device) -> Self {
        Export {
            device,
            region: 0,
            ranges: Vec::new(),
            any: false,
            backing: Backing::Pfn,
            cache: Cache::Uncached,
            access: Access::ReadWrite,
            page: None,
            flags: 0,
            event: None,
        }
    }

    /// Of which region, by [`Region::index`](crate::Region::index).
    pub fn region(mut self, index: u32) -> Self {
        self.region = index;
        self
    }

    /// `length` bytes, a multiple of 4 KiB, wherever the kernel finds them at the best alignment.
    pub fn any(mut self, length: u64) -> Self {
        self.any = true;
        self.ranges = vec![barbuf_range { offset: 0, length }];
        self
    }

    /// These bytes of the region, on 4 KiB pages. Called several times, the buffer consists of
    /// those ranges in that order.
    pub fn range(mut self, range: Range<u64>) -> Self {
        if self.any {
            self.any = false;
            self.ranges.clear();
        }
        self.ranges.push(barbuf_range {
            offset: range.start,
            length: range.end.saturating_sub(range.start),
        });
        self
    }

    /// What stands behind the bytes.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// How the CPU accesses them.
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// What may be done to the buffer, by CPUs and importing devices, through whatever descriptor.
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// A limit for the pages of mappings and, with page backing, the size of the compound pages.
    pub fn largest_page(mut self, page: PageSize) -> Self {
        self.page = Some(page);
        self
    }

    /// Whether other buffers that say the same may cover the same bytes.
    pub fn shared(self, shared: bool) -> Self {
        self.flag(BARBUF_EXPORT_SHARED, shared)
    }

    /// Whether the bytes are zero before anybody can see them. Regions without control registers
    /// only.
    pub fn zero(self, zero: bool) -> Self {
        self.flag(BARBUF_EXPORT_ZERO, zero)
    }

    /// Whether the buffer is revoked when the [`Device`] that exports it is closed, however the
    /// process ends.
    pub fn revoke_on_close(self, revoke: bool) -> Self {
        self.flag(BARBUF_EXPORT_REVOKE_ON_CLOSE, revoke)
    }

    /// Whether importers are let in that cannot be told to stop: devices that attach without
    /// peer-to-peer support or without invalidation (the kernel's NPU drivers, devmem TCP), and the
    /// kernel's own CPU mapping.
    ///
    /// The price: revoking, and so unbinding or releasing the provider, waits until they let go.
    pub fn static_import(self, allowed: bool) -> Self {
        self.flag(BARBUF_EXPORT_STATIC_IMPORT, allowed)
    }

    /// An eventfd that is signalled when the buffer is revoked: a [`Watch`](crate::Watch), or any
    /// other. The kernel keeps a reference of its own.
    pub fn watch(mut self, event: &'d impl AsFd) -> Self {
        self.event = Some(event.as_fd());
        self
    }

    fn flag(mut self, flag: u32, on: bool) -> Self {
        self.flags = if on {
            self.flags | flag
        } else {
            self.flags & !flag
        };
        self
    }

    /// Exports. The buffer's descriptor is not inherited over `execve()`.
    ///
    /// # Errors
    ///
    /// `EBUSY` if another buffer holds some of the bytes, `ENOSPC` if nothing of that length is
    /// free, `EPERM` if the region may hold control registers and `CAP_SYS_RAWIO` is missing,
    /// `EOPNOTSUPP` if region or kernel do not offer the backing, cache mode or zeroing, `EINVAL`
    /// for ranges that are empty, unaligned, outside of the region or overlap, `ENODEV` if the
    /// provider has gone.
    pub fn build(self) -> Result<Buffer> {
        let mut ranges = self.ranges;
        if ranges.is_empty() || ranges.len() > BARBUF_MAX_RANGES as usize {
            return Err(Error::new("BARBUF_EXPORT", ErrorKind::Invalid)
                .of(format!("of {} ranges", ranges.len()))
                .hinted("say which bytes by any() or range(), in 1 to 64 ranges"));
        }
        let mode = match self.access {
            Access::ReadOnly => libc::O_RDONLY,
            Access::ReadWrite => libc::O_RDWR,
        };
        let mut raw = barbuf_export {
            flags: self.flags | if self.any { BARBUF_EXPORT_ANY } else { 0 },
            region: self.region,
            backing: self.backing.to_raw(),
            cache: self.cache.to_raw(),
            open_flags: (mode | libc::O_CLOEXEC) as u32,
            eventfd: self.event.map_or(-1, |event| event.as_raw_fd()),
            page_shift: self.page.map_or(0, PageSize::shift),
            ranges: ranges.as_mut_ptr() as u64,
            nr_ranges: ranges.len() as u32,
            ..barbuf_export::new()
        };
        // SAFETY: The array has that many elements and may be written to.
        unsafe { self.device.calls.export(self.device.node.as_fd(), &mut raw) }.map_err(explain)?;
        // SAFETY: The call has succeeded, so that this is a descriptor that it made for us.
        let fd = unsafe { OwnedFd::from_raw_fd(raw.out_fd) };
        Ok(Buffer::exported(fd, &raw, &ranges, self.access))
    }
}

fn explain(errno: Errno) -> Error {
    let error = failed("BARBUF_EXPORT", errno);
    match errno {
        Errno::EPERM => error.hinted(
            "the region may hold control registers, which needs CAP_SYS_RAWIO and a kernel that is not locked down",
        ),
        Errno::EOPNOTSUPP => error.hinted(
            "look at the region's backings, caches and memory_only for what it offers",
        ),
        Errno::EBUSY => error.hinted(
            "another buffer holds some of these bytes, or has them with another backing, cache mode or page size",
        ),
        Errno::ENOSPC => error.hinted("nothing of that length is free; Device::info() tells what is"),
        Errno::EINVAL => error.hinted(
            "ranges are whole 4 KiB pages inside of the region and do not overlap; a pool takes only any()",
        ),
        _ => error,
    }
}
