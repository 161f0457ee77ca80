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
    sync: Sync,
}

/// What makes the call: the kernel, but in tests.
type Sync = fn(BorrowedFd<'_>, u64) -> nix::Result<()>;

impl<'b> CpuAccess<'b> {
    pub(crate) fn begin(fd: BorrowedFd<'b>, direction: Direction) -> Result<Self> {
        Self::begin_by(fd, direction, dmabuf::sync)
    }

    fn begin_by(fd: BorrowedFd<'b>, direction: Direction, sync: Sync) -> Result<Self> {
        sync(fd, abi::SYNC_START | direction.flags())
            .map_err(|errno| Error::os("DMA_BUF_IOCTL_SYNC", errno).of("START"))?;
        Ok(CpuAccess {
            fd,
            direction,
            open: true,
            sync,
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
        (self.sync)(self.fd, abi::SYNC_END | self.direction.flags())
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::cell::RefCell;
    use std::os::fd::AsFd as _;

    thread_local! {
        static CALLS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
        static FAILS: RefCell<Option<Errno>> = const { RefCell::new(None) };
    }

    fn record(_: BorrowedFd<'_>, flags: u64) -> nix::Result<()> {
        CALLS.with_borrow_mut(|calls| calls.push(flags));
        FAILS.with_borrow(|fails| fails.map_or(Ok(()), Err))
    }

    fn calls_of(run: impl FnOnce(CpuAccess<'_>)) -> Vec<u64> {
        let file = std::fs::File::open("/dev/null").unwrap();
        CALLS.take();
        run(CpuAccess::begin_by(file.as_fd(), Direction::ReadWrite, record).unwrap());
        CALLS.take()
    }

    const START: u64 = abi::SYNC_START | abi::SYNC_READ | abi::SYNC_WRITE;
    const END: u64 = abi::SYNC_END | abi::SYNC_READ | abi::SYNC_WRITE;

    #[test]
    fn one_end_for_one_start() {
        assert_eq!(calls_of(|access| drop(access)), [START, END]);
        assert_eq!(calls_of(|access| access.finish().unwrap()), [START, END]);
        let panicking = calls_of(|access| {
            let inside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _access = access;
                panic!("in the middle of an access");
            }));
            assert!(inside.is_err());
        });
        assert_eq!(panicking, [START, END]);
    }

    #[test]
    fn an_end_that_fails_is_seen_and_not_repeated() {
        let calls = calls_of(|access| {
            FAILS.set(Some(Errno::EIO));
            let error = access.finish().unwrap_err();
            FAILS.set(None);
            assert_eq!(error.errno(), Some(Errno::EIO as i32));
            assert!(error.to_string().contains("END"), "{error}");
        });
        assert_eq!(calls, [START, END]);
    }

    #[test]
    fn a_file_that_is_no_dma_buf_says_so() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = CpuAccess::begin(file.as_fd(), Direction::Read).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOTTY as i32));
    }
}
