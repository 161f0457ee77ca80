// SPDX-License-Identifier: MIT OR Apache-2.0

//! Being told that a buffer was revoked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::buffer::wait;
use crate::error::{Error, Result};

/// An eventfd that the kernel signals once when a buffer is revoked.
///
/// It is given to an export by [`Export::watch`](crate::Export::watch), and can travel with the
/// buffer to another process. Looking at it takes nothing away: it stays signalled, so that any
/// number of threads and processes can watch the same one. Whoever holds it can also signal it; a
/// process that must be sure asks [`Buffer::query`](crate::Buffer::query).
///
/// ```no_run
/// # fn main() -> barbuf::Result<()> {
/// let watch = barbuf::Watch::new()?;
/// let device = barbuf::Device::open("0000:05:00.0")?;
/// let buffer = device.export().any(1 << 30).watch(&watch).build()?;
/// watch.wait(None)?; // until the device is unplugged, or somebody revokes the buffer
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// A new one, not signalled.
    ///
    /// # Errors
    ///
    /// Those of eventfd(2).
    pub fn new() -> Result<Self> {
        EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|event| Watch(event.into()))
            .map_err(|errno| Error::os("eventfd", errno))
    }

    /// Whether the buffer was revoked.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn is_revoked(&self) -> Result<bool> {
        self.wait(Some(Duration::ZERO))
    }

    /// Waits until the buffer is revoked; `false` if it was not after `timeout`. Without a timeout
    /// for ever.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        wait(self.as_fd(), PollFlags::POLLIN, timeout)
    }

    /// Waits until the buffer is revoked.
    ///
    /// # Errors
    ///
    /// Those of registering the eventfd with the runtime.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O enabled.
    #[cfg(feature = "tokio")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
    pub async fn revoked(&self) -> Result<()> {
        use tokio::io::Interest;
        use tokio::io::unix::AsyncFd;

        let failed = |error: std::io::Error| {
            Error::os("epoll", Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        };
        // SAFETY: The borrowed descriptor stays open, and the same, as long as it is registered.
        let fd = unsafe { AsyncFd::register_with_interest(self.0.as_fd(), Interest::READABLE) }
            .map_err(|error| failed(error.into()))?;
        // It is not read, and stays signalled for others.
        fd.readable().await.map(drop).map_err(failed)
    }

    /// Another descriptor of the same eventfd.
    ///
    /// # Errors
    ///
    /// `EMFILE` if no descriptor is free.
    pub fn try_clone(&self) -> Result<Self> {
        self.0
            .try_clone()
            .map(Watch)
            .map_err(|error| Error::os("fcntl", Errno::from_raw(error.raw_os_error().unwrap_or(0))))
    }
}

impl From<OwnedFd> for Watch {
    /// Takes over an eventfd, for example one that was received.
    fn from(fd: OwnedFd) -> Self {
        Watch(fd)
    }
}

impl From<Watch> for OwnedFd {
    fn from(watch: Watch) -> Self {
        watch.0
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(watch: &Watch) {
        assert_eq!(nix::unistd::write(watch, &1u64.to_ne_bytes()), Ok(8));
    }

    #[test]
    fn a_signal_stays() {
        let watch = Watch::new().unwrap();
        let other = watch.try_clone().unwrap();
        assert!(!watch.is_revoked().unwrap());
        assert!(!watch.wait(Some(Duration::from_millis(5))).unwrap());
        signal(&watch);
        for _ in 0..2 {
            assert!(watch.is_revoked().unwrap());
            assert!(other.wait(None).unwrap());
        }
    }

    #[cfg(feature = "tokio")]
    #[test]
    fn a_task_is_woken() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let watch = Watch::new().unwrap();
            let early = tokio::time::timeout(Duration::from_millis(5), watch.revoked()).await;
            assert!(early.is_err(), "woken without a signal");
            let other = watch.try_clone().unwrap();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                signal(&other);
            });
            let limit = Duration::from_secs(20);
            tokio::time::timeout(limit, watch.revoked())
                .await
                .unwrap()
                .unwrap();
            // And again, because nobody has read it.
            tokio::time::timeout(limit, watch.revoked())
                .await
                .unwrap()
                .unwrap();
            thread.join().unwrap();
        });
    }
}
