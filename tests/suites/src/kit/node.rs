// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ioctls, each as one call that returns what the kernel said.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, Result};
use barbuf_sys::*;
use nix::errno::Errno;
use nix::libc;

pub(crate) const CONTROL: &str = "/dev/barbuf/control";

/// An open node, of a provider or the control node.
#[derive(Debug)]
pub(crate) struct Node(File);

/// The answer of BARBUF_INFO.
#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) raw: barbuf_info,
    pub(crate) regions: Vec<barbuf_region_info>,
}

/// The answer of BARBUF_QUERY.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) raw: barbuf_query,
    pub(crate) ranges: Vec<barbuf_range>,
}

/// A buffer that this process has exported.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) fd: OwnedFd,
    pub(crate) raw: barbuf_export,
    pub(crate) ranges: Vec<barbuf_range>,
}

/// What to export.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) raw: barbuf_export,
    pub(crate) ranges: Vec<barbuf_range>,
}

impl Export {
    fn new(flags: u32, ranges: Vec<barbuf_range>) -> Self {
        let raw = barbuf_export {
            flags,
            open_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
            ..barbuf_export::new()
        };
        Export { raw, ranges }
    }

    /// `length` bytes wherever the kernel finds them.
    pub(crate) fn any(length: u64) -> Self {
        Export::new(BARBUF_EXPORT_ANY, vec![barbuf_range { offset: 0, length }])
    }

    /// One fixed range.
    pub(crate) fn at(offset: u64, length: u64) -> Self {
        Export::new(0, vec![barbuf_range { offset, length }])
    }

    /// Several fixed ranges.
    pub(crate) fn ranges(ranges: &[(u64, u64)]) -> Self {
        let ranges = ranges
            .iter()
            .map(|&(offset, length)| barbuf_range { offset, length });
        Export::new(0, ranges.collect())
    }

    /// Page backing.
    pub(crate) fn page(self) -> Self {
        self.backing(BARBUF_BACKING_PAGE)
    }

    pub(crate) fn backing(mut self, backing: u32) -> Self {
        self.raw.backing = backing;
        self
    }

    pub(crate) fn cache(mut self, cache: u32) -> Self {
        self.raw.cache = cache;
        self
    }

    /// The largest leaf to use.
    pub(crate) fn leaf(mut self, shift: u32) -> Self {
        self.raw.page_shift = shift;
        self
    }

    pub(crate) fn flag(mut self, flag: u32) -> Self {
        self.raw.flags |= flag;
        self
    }

    pub(crate) fn shared(self) -> Self {
        self.flag(BARBUF_EXPORT_SHARED)
    }

    pub(crate) fn open_flags(mut self, flags: libc::c_int) -> Self {
        self.raw.open_flags = flags as u32;
        self
    }

    pub(crate) fn read_only(self) -> Self {
        self.open_flags(libc::O_RDONLY | libc::O_CLOEXEC)
    }

    pub(crate) fn eventfd(mut self, fd: RawFd) -> Self {
        self.raw.eventfd = fd;
        self
    }

    /// Any other change, for what is said once.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut barbuf_export)) -> Self {
        change(&mut self.raw);
        self
    }
}

impl Node {
    pub(crate) fn open(path: &str) -> Result<Node> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.map(Node)
            .with_context(|| format!("cannot open {path}"))
    }

    pub(crate) fn control() -> Result<Node> {
        Node::open(CONTROL)
    }

    /// Any ioctl, with whatever argument.
    ///
    /// # Safety
    ///
    /// The kernel writes to what the argument points to, which must be memory that is there for it.
    pub(crate) unsafe fn raw_ioctl(&self, request: u64, argument: u64) -> Result<i32, Errno> {
        // SAFETY: Promised by the caller.
        Errno::result(unsafe { libc::ioctl(self.as_raw_fd(), request as _, argument) })
    }

    pub(crate) fn info(&self) -> Result<Info, Errno> {
        let mut regions = vec![barbuf_region_info::default(); 8];
        let mut raw = barbuf_info {
            nr_regions: regions.len() as u32,
            region_stride: size_of::<barbuf_region_info>() as u32,
            regions: regions.as_mut_ptr() as u64,
            ..barbuf_info::new()
        };
        // SAFETY: The structure and the array live, with the sizes said.
        Errno::result(unsafe { ioctl::info(self.as_raw_fd(), &mut raw) })?;
        regions.truncate(raw.nr_regions as usize);
        Ok(Info { raw, regions })
    }

    pub(crate) fn export(&self, wanted: &Export) -> Result<Buffer, Errno> {
        let mut ranges = wanted.ranges.clone();
        let mut raw = wanted.raw;
        raw.ranges = ranges.as_mut_ptr() as u64;
        raw.nr_ranges = ranges.len() as u32;
        // SAFETY: The structure and the array live, with the sizes said.
        Errno::result(unsafe { ioctl::export(self.as_raw_fd(), &mut raw) })?;
        // SAFETY: The kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(raw.out_fd) };
        Ok(Buffer { fd, raw, ranges })
    }

    pub(crate) fn query(&self, fd: impl AsFd) -> Result<Query, Errno> {
        self.query_raw(fd.as_fd().as_raw_fd())
    }

    /// The same for a number that may be no descriptor.
    pub(crate) fn query_raw(&self, fd: RawFd) -> Result<Query, Errno> {
        let mut ranges = vec![barbuf_range::default(); BARBUF_MAX_RANGES as usize];
        let mut raw = barbuf_query {
            fd,
            nr_ranges: ranges.len() as u32,
            ranges: ranges.as_mut_ptr() as u64,
            ..barbuf_query::new()
        };
        // SAFETY: The structure and the array live, with the sizes said.
        Errno::result(unsafe { ioctl::query(self.as_raw_fd(), &mut raw) })?;
        ranges.truncate(raw.nr_ranges as usize);
        Ok(Query { raw, ranges })
    }

    /// How many devices are attached, and all of them.
    pub(crate) fn attachments(
        &self,
        fd: impl AsFd,
    ) -> Result<(u32, Vec<barbuf_attachment_info>), Errno> {
        self.attachments_in(fd, 16)
    }

    /// The same with room for so many.
    pub(crate) fn attachments_in(
        &self,
        fd: impl AsFd,
        room: usize,
    ) -> Result<(u32, Vec<barbuf_attachment_info>), Errno> {
        let mut list = vec![barbuf_attachment_info::default(); room];
        let mut raw = barbuf_query {
            fd: fd.as_fd().as_raw_fd(),
            nr_attachments: room as u32,
            attachment_stride: size_of::<barbuf_attachment_info>() as u32,
            attachments: list.as_mut_ptr() as u64,
            ..barbuf_query::new()
        };
        // SAFETY: The structure and the array live, with the sizes said.
        Errno::result(unsafe { ioctl::query(self.as_raw_fd(), &mut raw) })?;
        list.truncate(raw.nr_attachments as usize);
        Ok((raw.nr_attachments, list))
    }

    /// How the function called `bdf` reaches a buffer.
    pub(crate) fn route(
        &self,
        fd: impl AsFd,
        region: u32,
        bdf: &str,
    ) -> Result<barbuf_route, Errno> {
        self.route_raw(fd.as_fd().as_raw_fd(), region, bdf)
    }

    /// The same for a number that may be no descriptor; -1 for a region.
    pub(crate) fn route_raw(
        &self,
        fd: RawFd,
        region: u32,
        bdf: &str,
    ) -> Result<barbuf_route, Errno> {
        let mut raw = barbuf_route {
            fd,
            region,
            ..barbuf_route::new()
        };
        raw.name[..bdf.len()].copy_from_slice(bdf.as_bytes());
        // SAFETY: The structure lives.
        Errno::result(unsafe { ioctl::route(self.as_raw_fd(), &mut raw) })?;
        Ok(raw)
    }

    pub(crate) fn revoke(&self, fd: impl AsFd) -> Result<(), Errno> {
        self.revoke_raw(fd.as_fd().as_raw_fd())
    }

    /// The same for a number that may be no descriptor.
    pub(crate) fn revoke_raw(&self, fd: RawFd) -> Result<(), Errno> {
        let mut raw = barbuf_revoke {
            fd,
            ..barbuf_revoke::new()
        };
        // SAFETY: The structure lives. What faults after this are mappings that tests guard.
        Errno::result(unsafe { ioctl::revoke(self.as_raw_fd(), &mut raw) }).map(drop)
    }

    pub(crate) fn adopt(&self, bdf: &str) -> Result<(), Errno> {
        let mut raw = adopt_of(bdf);
        // SAFETY: The structure lives.
        Errno::result(unsafe { ioctl::adopt(self.as_raw_fd(), &mut raw) }).map(drop)
    }

    pub(crate) fn release(&self, bdf: &str) -> Result<(), Errno> {
        let mut raw = adopt_of(bdf);
        // SAFETY: The structure lives. What faults after this are mappings that tests guard.
        Errno::result(unsafe { ioctl::release(self.as_raw_fd(), &mut raw) }).map(drop)
    }
}

fn adopt_of(bdf: &str) -> barbuf_adopt {
    let mut raw = barbuf_adopt::new();
    raw.name[..bdf.len()].copy_from_slice(bdf.as_bytes());
    raw
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Node {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Buffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Buffer {
    pub(crate) fn size(&self) -> u64 {
        self.raw.out_size
    }

    pub(crate) fn number(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Info {
    pub(crate) fn has(&self, capability: u64) -> bool {
        self.raw.out_capabilities & capability != 0
    }
}

/// A NUL-padded name as text.
pub(crate) fn name(bytes: &[u8; BARBUF_NAME_LEN]) -> &str {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).unwrap_or("not UTF-8")
}
