// SPDX-License-Identifier: MIT OR Apache-2.0

//! What to map and where.

use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags, madvise};
use nix::unistd::{SysconfVar, sysconf};

use super::access::Mapping;
use super::place::Placed;
use super::sigbus;
use crate::buffer::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::values::{Access, Backing, PageSize};

/// Where a mapping begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// Where the largest pages that the buffer allows fit, as far as is known of it: congruent to
    /// the physical address for a buffer of barbuf's, anywhere for others.
    #[default]
    Auto,
    /// Wherever the kernel likes. Such a mapping has 4 KiB pages, or larger ones by luck.
    Anywhere,
    /// Congruent to the physical address modulo this size if it is known, else at a multiple of it.
    To(PageSize),
}

/// A mapping in the making. [`Buffer::map`](crate::Buffer::map) starts it, [`build`](Self::build)
/// makes it.
///
/// Unless told otherwise: all of the buffer, with the access that it allows, where the largest pages
/// fit. A mapping of a buffer stays when the buffer's descriptor is closed.
#[derive(Debug)]
#[must_use = "nothing is mapped before `build`"]
pub struct MapOptions<'b> {
    buffer: &'b Buffer,
    range: Option<Range<u64>>,
    access: Option<Access>,
    alignment: Alignment,
    populate: bool,
    dont_fork: bool,
}

/// What a mapping is held by.
#[derive(Debug)]
pub(super) enum Held {
    Anywhere(MmapRaw),
    Placed(Placed),
}

impl<'b> MapOptions<'b> {
    pub(crate) fn new(buffer: &'b Buffer) -> Self {
        MapOptions {
            buffer,
            range: None,
            access: None,
            alignment: Alignment::Auto,
            populate: false,
            dont_fork: false,
        }
    }

    /// Which bytes of the buffer: whole 4 KiB pages, and with page backing whole pages of
    /// [`Buffer::largest_page`](crate::Buffer::largest_page) bytes.
    pub fn range(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// What may be done through the mapping.
    pub fn access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    /// Where it begins.
    pub fn alignment(mut self, alignment: Alignment) -> Self {
        self.alignment = alignment;
        self
    }

    /// Whether to fill the page tables now, by reading a word of each part that one page fault
    /// fills, instead of when the memory is first used. Not for registers, whose reading may do
    /// something.
    pub fn populate(mut self, populate: bool) -> Self {
        self.populate = populate;
        self
    }

    /// Whether children that are forked lack the mapping.
    pub fn dont_fork(mut self, dont_fork: bool) -> Self {
        self.dont_fork = dont_fork;
        self
    }

    /// Maps.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Revoked`] if the buffer was revoked, [`ErrorKind::OutOfBounds`] if it does not
    /// have those bytes, [`ErrorKind::ReadOnly`] if it is read-only, `EINVAL` if the range is not
    /// of whole pages, `ENOMEM` if there is not that much address space.
    pub fn build(self) -> Result<Mapping> {
        let facts = self.buffer.facts();
        let size = self.buffer.size()?;
        let range = self.range.clone().unwrap_or(0..size);
        if range.start >= range.end {
            return Err(Error::new("mmap", ErrorKind::Invalid)
                .of(format!("{range:?}"))
                .hinted("the range is empty"));
        }
        if range.end > size {
            return Err(Error::new("mmap", ErrorKind::OutOfBounds)
                .of(format!("{range:?}"))
                .hinted(format!("the buffer has {size} bytes")));
        }
        let granted = facts.map_or_else(|| granted_by_open(self.buffer), |facts| facts.access);
        let access = self.access.unwrap_or(granted);
        if (access, granted) == (Access::ReadWrite, Access::ReadOnly) {
            return Err(Error::new("mmap", ErrorKind::ReadOnly)
                .hinted("it was exported read-only; ask for Access::ReadOnly"));
        }
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| Error::os("mmap", Errno::ENOMEM))?;

        sigbus::watch().map_err(|errno| Error::os("sigaction", errno).of("SIGBUS"))?;
        let class = facts.map_or(0, |facts| facts.phys_class.wrapping_add(range.start));
        let congruent = match self.alignment {
            Alignment::Anywhere => None,
            Alignment::To(page) => Some(page),
            // Below a page of that size there is nothing to be won, except that page backing
            // insists on it.
            Alignment::Auto => facts.map(|facts| match facts.backing {
                Backing::Page => facts.page,
                _ => facts.page.min(fitting(len as u64)),
            }),
        };
        let failed = |errno| {
            explain(
                errno,
                &range,
                facts.is_some_and(|f| f.backing == Backing::Page),
            )
        };
        let held = match congruent {
            Some(page) if page > PageSize::Size4K => {
                let prot = match access {
                    Access::ReadOnly => ProtFlags::PROT_READ,
                    Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                };
                let pages = len.next_multiple_of(page_bytes());
                let alignment = page.bytes() as usize;
                let fd = self.buffer.as_fd();
                Held::Placed(
                    Placed::new(fd, range.start, pages, prot, class, alignment).map_err(failed)?,
                )
            }
            _ => {
                let mut options = MmapOptions::new();
                options.offset(range.start).len(len);
                let fd = self.buffer.as_fd().as_raw_fd();
                let mapped = match access {
                    Access::ReadOnly => options.map_raw_read_only(fd),
                    Access::ReadWrite => options.map_raw(fd),
                };
                Held::Anywhere(
                    mapped.map_err(|error| {
                        failed(Errno::from_raw(error.raw_os_error().unwrap_or(0)))
                    })?,
                )
            }
        };
        let mapping = Mapping::new(held, range, len, access);
        if self.dont_fork {
            // SAFETY: Changes nothing for this process.
            unsafe { madvise(mapping.base(), len, MmapAdvise::MADV_DONTFORK) }
                .map_err(|errno| Error::os("madvise", errno).of("MADV_DONTFORK"))?;
        }
        if self.populate {
            // Of a buffer of barbuf's one fault fills a whole table, the smallest of which covers
            // 2 MiB. Of others nothing is known.
            mapping.populate(match facts {
                Some(_) => PageSize::Size2M.bytes(),
                None => PageSize::Size4K.bytes(),
            })?;
        }
        Ok(mapping)
    }
}

/// The largest page that is not longer than this.
fn fitting(len: u64) -> PageSize {
    PageSize::at_most(len.checked_ilog2().unwrap_or(0)).unwrap_or(PageSize::Size4K)
}

fn page_bytes() -> usize {
    match sysconf(SysconfVar::PAGE_SIZE) {
        Ok(Some(bytes)) => bytes as usize,
        _ => PageSize::Size4K.bytes() as usize,
    }
}

/// What the descriptor itself was opened for.
fn granted_by_open(buffer: &Buffer) -> Access {
    use nix::fcntl::{FcntlArg, fcntl};
    match fcntl(buffer, FcntlArg::F_GETFL) {
        Ok(flags) => crate::query::access_of(flags as u32),
        Err(_) => Access::ReadWrite,
    }
}

fn explain(errno: Errno, range: &Range<u64>, pages: bool) -> Error {
    let error = Error::os("mmap", errno).of(format!("{range:?}"));
    match errno {
        Errno::ENODEV => error.kinded(ErrorKind::Revoked),
        Errno::EACCES => error
            .kinded(ErrorKind::ReadOnly)
            .hinted("it is read-only; ask for Access::ReadOnly"),
        Errno::EINVAL if pages => error.hinted(
            "with page backing, address, offset and length are whole pages of the buffer: leave the alignment at Auto",
        ),
        Errno::EINVAL => error.hinted("offset and length are whole 4 KiB pages"),
        Errno::ENOMEM => error.hinted("there is not that much address space left"),
        _ => error,
    }
}
