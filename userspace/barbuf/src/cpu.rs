// SPDX-License-Identifier: MIT OR Apache-2.0

//! The stretch of time during which the CPU accesses a dma-buf.

use std::os::fd::BorrowedFd;

use crate::dmabuf::{self, abi};
use crate::error::{Error, Result};

/// What is done during an access, or what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
}

impl Direction {
    pub(crate) fn flags(self) -> u64 {
        match self {
            Direction::Read => abi::SYNC_READ,
            Direction::Write => abi::SYNC_WRITE,
            Direction::ReadWrite => abi::SYNC_READ | abi::SYNC_WRITE,
        }
    }
}

/// An access by the CPU: `DMA_BUF_IOCTL_SYNC` has said `START`, and will say `END` when this goes,
/// also when the thread panics. See [`Buffer::cpu_access`](crate::Buffer::cpu_access).
///
/// [`finish`](CpuAccess::finish) says `END` and returns its error, which a drop can only ignore.
/// Both calls are repeated for as long as the kernel asks for it (`EINTR`, `EAGAIN`).
///
/// ```no_run
/// # fn main() -> barbuf::Result<()> {
/// use barbuf::{Access, Device, Direction};
///
/// let buffer = Device::open("0000:05:00.0")?.export().any(4096).build()?;
/// let map = buffer.map().build()?;
/// let access = buffer.cpu_access(Direction::Write)?;
/// map.write_from(0, b"hello")?;
/// access.finish()?; // the bytes are in the device's memory
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "the access ends when this is dropped"]
pub struct CpuAccess<'b> {
    fd: BorrowedFd<'b>,
    direction: Direction,
    open: bool,
}

impl<'b> CpuAccess<'b> {
    pub(crate) fn begin(fd: BorrowedFd<'b>, direction: Direction) -> Result<Self> {
        dmabuf::sync(fd, abi::SYNC_START | direction.flags())
            .map_err(|errno| Error::os("DMA_BUF_IOCTL_SYNC", errno).of("START"))?;
        Ok(CpuAccess {
            fd,
            direction,
            open: true,
        })
    }

    /// Ends the access. After one that writes, the stores have arrived at the device.
    ///
    /// # Errors
    ///
    /// Those of `DMA_BUF_IOCTL_SYNC`.
    pub fn finish(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // One END for one START, whatever it answers.
        self.open = false;
        dmabuf::sync(self.fd, abi::SYNC_END | self.direction.flags())
            .map_err(|errno| Error::os("DMA_BUF_IOCTL_SYNC", errno).of("END"))
    }
}

impl Drop for CpuAccess<'_> {
    fn drop(&mut self) {
        if self.open {
            let _ = self.end();
        }
    }
}
