// SPDX-License-Identifier: MIT OR Apache-2.0

//! A dma-buf: made by an export, inherited, or received from another process.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use barbuf_sys::{barbuf_export, barbuf_range};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek64};

use crate::control::Control;
use crate::cpu::{CpuAccess, Direction};
use crate::dmabuf::{self, FdInfo, abi};
use crate::error::{Error, ErrorKind, Result};
use crate::map::MapOptions;
use crate::query::Query;
use crate::values::{Access, Backing, PageSize};

/// The name that barbuf's dma-bufs have as their exporter in fdinfo.
const EXPORTER: &str = "barbuf";

/// A dma-buf, as an open file descriptor.
///
/// It lives as long as its descriptors, mappings and attachments, in all processes. A buffer that
/// was exported with [`Export::revoke_on_close`](crate::Export::revoke_on_close) also needs its
/// exporter.
///
/// `Buffer::from(fd)` takes any descriptor without asking; [`Buffer::import`] and
/// [`Control::import`] find out what it is.
#[derive(Debug)]
pub struct Buffer {
    fd: OwnedFd,
    /// What a mapping has to know, once somebody has asked.
    facts: OnceLock<Option<Facts>>,
}

/// What never changes about a buffer of barbuf's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) phys_class: u64,
    pub(crate) page: PageSize,
    pub(crate) backing: Backing,
    pub(crate) access: Access,
    pub(crate) cookie: u64,
    /// The offset in the region, of a buffer of one range. Known right after the export only.
    pub(crate) place: Option<u64>,
}

/// Where a dma-buf comes from, as far as can be known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// It is barbuf's, and this is what the kernel says of it.
    Barbuf(Box<Query>),
    /// Another driver exported it (udmabuf, a dma-heap, a GPU): its fdinfo is all there is.
    Foreign(FdInfo),
}

/// Tells two buffers apart, whatever descriptors and processes hold them.
///
/// Two descriptors of one buffer have equal `device` and `inode`. The kernel gives no inode number
/// twice while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BufferId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// How often the buffer was away: see [`Query::generation`]. 0 for dma-bufs of others.
    pub generation: u64,
}

/// What to wait for: see [`Buffer::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Devices have finished writing, so that its bytes can be read.
    Readable,
    /// Devices have finished reading and writing, so that its bytes can be written.
    Writable,
}

impl Buffer {
    /// Takes a descriptor that came from another process and finds out what it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotDmaBuf`] if it is none. A dma-buf of another driver is no error; see
    /// [`Buffer::origin`].
    pub fn import(fd: impl Into<OwnedFd>) -> Result<Self> {
        let buffer = Buffer::from(fd.into());
        match buffer.fdinfo()? {
            info if info.exporter == EXPORTER => Control::open()?.learn(&buffer)?,
            _ => drop(buffer.facts.set(None)),
        }
        Ok(buffer)
    }

    pub(crate) fn exported(
        fd: OwnedFd,
        raw: &barbuf_export,
        ranges: &[barbuf_range],
        access: Access,
    ) -> Self {
        let facts = Facts {
            phys_class: raw.out_phys_class,
            page: PageSize::at_most(raw.out_page_shift).unwrap_or(PageSize::Size4K),
            backing: Backing::from_raw(raw.backing),
            access,
            cookie: raw.out_cookie,
            place: match ranges {
                [only] => Some(only.offset),
                _ => None,
            },
        };
        Buffer {
            fd,
            facts: OnceLock::from(Some(facts)),
        }
    }

    /// Where it comes from.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotDmaBuf`] if it is none; those of opening `/dev/barbuf/control` if it is
    /// barbuf's.
    pub fn origin(&self) -> Result<Origin> {
        let info = self.fdinfo()?;
        if info.exporter != EXPORTER {
            return Ok(Origin::Foreign(info));
        }
        Ok(Origin::Barbuf(Box::new(self.query()?)))
    }

    /// What the kernel says of a buffer of barbuf's. [`Control::query`] is the same for whoever
    /// asks often.
    ///
    /// # Errors
    ///
    /// Those of [`Control::open`] and [`Control::query`].
    pub fn query(&self) -> Result<Query> {
        Control::open()?.query(self)
    }

    /// What is known without failing: from the export, from an import, or asked now.
    pub(crate) fn facts(&self) -> Option<&Facts> {
        self.facts
            .get_or_init(|| self.query().ok().map(|query| Facts::of(&query)))
            .as_ref()
    }

    /// The offset at which the provider's node maps this buffer, for programs that know only paths.
    /// `None` if it is not barbuf's.
    pub fn cookie(&self) -> Option<u64> {
        self.facts().map(|facts| facts.cookie)
    }

    /// The largest page that a mapping can have. `None` if the buffer is not barbuf's.
    pub fn largest_page(&self) -> Option<PageSize> {
        self.facts().map(|facts| facts.page)
    }

    /// The offset of its bytes in their region, if this process exported it as one range: where
    /// [`Export::any`](crate::Export::any) has found room. [`Buffer::query`] knows it for all.
    pub fn place(&self) -> Option<u64> {
        self.facts.get()?.as_ref()?.place
    }

    /// Bytes, as lseek(2) tells them.
    ///
    /// # Errors
    ///
    /// Those of lseek(2).
    pub fn size(&self) -> Result<u64> {
        let failed = |errno| Error::os("lseek", errno);
        let end = lseek64(&self.fd, 0, Whence::SeekEnd).map_err(failed)?;
        // A dma-buf has no position, other files do.
        lseek64(&self.fd, 0, Whence::SeekSet).map_err(failed)?;
        u64::try_from(end).map_err(|_| failed(Errno::EOVERFLOW))
    }

    /// Which buffer it is.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub fn id(&self) -> Result<BufferId> {
        let stat = fstat(&self.fd).map_err(|errno| Error::os("fstat", errno))?;
        // Those that are not barbuf's never have one, so that nobody has to be asked again.
        let ours = self.facts().is_some();
        Ok(BufferId {
            device: stat.st_dev,
            inode: stat.st_ino,
            generation: match ours {
                true => self.query().map_or(0, |query| query.generation),
                false => 0,
            },
        })
    }

    /// Gives it a name, which fdinfo and the kernel's list of all dma-bufs show.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if the name is 32 bytes or longer or has a NUL in it, `ENOTTY` if
    /// this is no dma-buf.
    pub fn set_name(&self, name: &str) -> Result<()> {
        let refuse = || {
            Error::new("DMA_BUF_SET_NAME", ErrorKind::Invalid)
                .of(format!("{name:?}"))
                .hinted("a name has at most 31 bytes and no NUL")
        };
        let text = CString::new(name).map_err(|_| refuse())?;
        if name.len() >= abi::NAME_LEN {
            return Err(refuse());
        }
        dmabuf::set_name(self.as_fd(), &text).map_err(|errno| Error::os("DMA_BUF_SET_NAME", errno))
    }

    /// What `/proc/self/fdinfo` says of it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotDmaBuf`] if it is none.
    pub fn fdinfo(&self) -> Result<FdInfo> {
        let info = FdInfo::read(self.as_fd()).map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            Error::os("read", errno).of("/proc/self/fdinfo")
        })?;
        info.ok_or_else(|| Error::new("import", ErrorKind::NotDmaBuf))
    }

    /// Waits until devices have finished with it; `false` if they have not after `timeout`. Without
    /// a timeout for ever.
    ///
    /// A buffer that no device has put fences on is always ready. Its revocation is no event here:
    /// that is what a [`Watch`](crate::Watch) is for.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn poll(&self, interest: Interest, timeout: Option<Duration>) -> Result<bool> {
        let flag = match interest {
            Interest::Readable => PollFlags::POLLIN,
            Interest::Writable => PollFlags::POLLOUT,
        };
        wait(self.as_fd(), flag, timeout)
    }

    /// A sync file that is signalled when devices have finished with it, for APIs with explicit
    /// synchronisation.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if this is no dma-buf.
    pub fn export_sync_file(&self, direction: Direction) -> Result<OwnedFd> {
        dmabuf::export_sync_file(self.as_fd(), direction.flags() as u32)
            .map_err(|errno| Error::os("DMA_BUF_IOCTL_EXPORT_SYNC_FILE", errno))
    }

    /// Makes everybody who waits for this buffer wait for a sync file too.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `file` is no sync file, `ENOTTY` if this is no dma-buf.
    pub fn import_sync_file(&self, direction: Direction, file: impl AsFd) -> Result<()> {
        dmabuf::import_sync_file(self.as_fd(), direction.flags() as u32, file.as_fd())
            .map_err(|errno| Error::os("DMA_BUF_IOCTL_IMPORT_SYNC_FILE", errno))
    }

    /// Begins an access by the CPU, which lasts until the guard is dropped or finished.
    ///
    /// The end of an access that writes makes sure that the stores have arrived at the device.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if this is no dma-buf.
    pub fn cpu_access(&self, direction: Direction) -> Result<CpuAccess<'_>> {
        CpuAccess::begin(self.as_fd(), direction)
    }

    /// Starts a mapping, which [`MapOptions::build`] makes.
    pub fn map(&self) -> MapOptions<'_> {
        MapOptions::new(self)
    }

    /// Another descriptor of the same buffer.
    ///
    /// # Errors
    ///
    /// `EMFILE` if no descriptor is free.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|error| {
            Error::os("fcntl", Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        })?;
        Ok(Buffer {
            fd,
            facts: self.facts.clone(),
        })
    }
}

impl Control {
    /// [`Buffer::import`] for whoever has the control node open.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotDmaBuf`] if it is none. A dma-buf of another driver is no error.
    pub fn import(&self, fd: impl Into<OwnedFd>) -> Result<Buffer> {
        let buffer = Buffer::from(fd.into());
        self.learn(&buffer)?;
        Ok(buffer)
    }

    fn learn(&self, buffer: &Buffer) -> Result<()> {
        let facts = match self.query(buffer) {
            Ok(query) => Some(Facts::of(&query)),
            Err(error) if error.kind() == ErrorKind::NotOurs => None,
            Err(error) => return Err(error),
        };
        // Nobody else knows of the buffer yet.
        let _ = buffer.facts.set(facts);
        Ok(())
    }
}

impl Facts {
    fn of(query: &Query) -> Self {
        Facts {
            phys_class: query.phys_class,
            page: query.largest_page,
            backing: query.backing,
            access: query.access,
            cookie: query.cookie,
            place: match &query.ranges[..] {
                [only] => Some(only.start),
                _ => None,
            },
        }
    }
}

/// poll(2) of one descriptor, whatever signals come.
pub(crate) fn wait(fd: BorrowedFd<'_>, flag: PollFlags, timeout: Option<Duration>) -> Result<bool> {
    let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(std::time::Instant::now()));
        let limit = match left {
            None => PollTimeout::NONE,
            // Not a moment too early: a fraction of a millisecond counts as one.
            Some(left) => {
                PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = [PollFd::new(fd, flag)];
        match poll(&mut fds, limit) {
            Ok(0)
                if left.is_some_and(|left| left > Duration::from_secs(i32::MAX as u64 / 1000)) => {}
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("poll", errno).of(fd.as_raw_fd().to_string())),
        }
    }
}

impl From<OwnedFd> for Buffer {
    /// Takes the descriptor as it is. What it is of is found out when that matters.
    fn from(fd: OwnedFd) -> Self {
        Buffer {
            fd,
            facts: OnceLock::new(),
        }
    }
}

impl From<Buffer> for OwnedFd {
    fn from(buffer: Buffer) -> Self {
        buffer.fd
    }
}

impl AsFd for Buffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
