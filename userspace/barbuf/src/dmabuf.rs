// SPDX-License-Identifier: MIT OR Apache-2.0

//! What works on every dma-buf, whoever exported it: the ioctls of `linux/dma-buf.h`, and fdinfo.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;

/// The numbers and structures of `linux/dma-buf.h`.
pub(crate) mod abi {
    use nix::{ioctl_readwrite, ioctl_write_ptr};

    pub(crate) const SYNC_READ: u64 = 1;
    pub(crate) const SYNC_WRITE: u64 = 2;
    pub(crate) const SYNC_START: u64 = 0;
    pub(crate) const SYNC_END: u64 = 4;
    /// Bytes of a name, with the final NUL.
    pub(crate) const NAME_LEN: usize = 32;

    const BASE: u8 = b'b';

    #[derive(Debug)]
    #[repr(C)]
    pub(crate) struct Sync {
        pub(crate) flags: u64,
    }

    #[derive(Debug)]
    #[repr(C)]
    pub(crate) struct SyncFile {
        pub(crate) flags: u32,
        pub(crate) fd: i32,
    }

    ioctl_write_ptr!(sync, BASE, 0, Sync);
    // DMA_BUF_SET_NAME_B, whose number has the size of a u64; the argument is a string.
    ioctl_write_ptr!(set_name, BASE, 1, u64);
    ioctl_readwrite!(export_sync_file, BASE, 2, SyncFile);
    ioctl_write_ptr!(import_sync_file, BASE, 3, SyncFile);
}

/// Repeats a call that must be restarted. The kernel's documentation asks for that with `EINTR` and
/// `EAGAIN`; the latter is barbuf's answer for as long as a reset takes, so that it is no busy loop.
pub(crate) fn restart<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => sleep(Duration::from_millis(1)),
            other => return other,
        }
    }
}

pub(crate) fn sync(fd: BorrowedFd<'_>, flags: u64) -> nix::Result<()> {
    let argument = abi::Sync { flags };
    // SAFETY: The structure lives.
    restart(|| unsafe { abi::sync(fd.as_raw_fd(), &argument) }).map(drop)
}

pub(crate) fn set_name(fd: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    // SAFETY: The kernel reads up to the NUL. The type says u64 because the number wants it.
    restart(|| unsafe { abi::set_name(fd.as_raw_fd(), name.as_ptr().cast()) }).map(drop)
}

pub(crate) fn export_sync_file(fd: BorrowedFd<'_>, flags: u32) -> nix::Result<OwnedFd> {
    let mut argument = abi::SyncFile { flags, fd: -1 };
    // SAFETY: The structure lives.
    restart(|| unsafe { abi::export_sync_file(fd.as_raw_fd(), &mut argument) })?;
    // SAFETY: The call has succeeded, so that this is a descriptor that it made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(argument.fd) })
}

pub(crate) fn import_sync_file(
    fd: BorrowedFd<'_>,
    flags: u32,
    file: BorrowedFd<'_>,
) -> nix::Result<()> {
    let argument = abi::SyncFile {
        flags,
        fd: file.as_raw_fd(),
    };
    // SAFETY: The structure lives.
    restart(|| unsafe { abi::import_sync_file(fd.as_raw_fd(), &argument) }).map(drop)
}

/// What `/proc/self/fdinfo` says of a dma-buf.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FdInfo {
    /// Bytes.
    pub size: u64,
    /// References to the buffer, without that of the reader.
    pub count: u64,
    /// The driver that exported it.
    pub exporter: String,
    /// The name that somebody gave it.
    pub name: Option<String>,
}

impl FdInfo {
    /// `None` if the descriptor is no dma-buf's.
    pub(crate) fn read(fd: BorrowedFd<'_>) -> std::io::Result<Option<Self>> {
        let text = fs::read(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
        };
        Some(FdInfo {
            size: value("size")?.parse().ok()?,
            count: value("count")?.parse().ok()?,
            exporter: value("exp_name")?.to_owned(),
            name: value("name")
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::os::fd::AsFd as _;

    #[test]
    fn fdinfo_of_a_dma_buf() {
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t7\nsize:\t1073741824\ncount:\t1\nexp_name:\tbarbuf\nname:\tweights 1\n";
        let info = FdInfo::parse(text).unwrap();
        assert_eq!((info.size, info.count), (1 << 30, 1));
        assert_eq!(info.exporter, "barbuf");
        assert_eq!(info.name.as_deref(), Some("weights 1"));
        let nameless = FdInfo::parse(text.strip_suffix("name:\tweights 1\n").unwrap()).unwrap();
        assert_eq!(nameless.name, None);
    }

    #[test]
    fn fdinfo_of_another_file() {
        let file = fs::File::open("/dev/null").unwrap();
        assert_eq!(FdInfo::read(file.as_fd()).unwrap(), None);
    }

    /// The numbers and structures against the C header.
    #[test]
    fn the_header_agrees() {
        use nix::{request_code_readwrite, request_code_write};
        let sync_file = size_of::<abi::SyncFile>();
        let facts = [
            (
                "DMA_BUF_IOCTL_SYNC",
                request_code_write!(b'b', 0, size_of::<abi::Sync>()),
            ),
            ("DMA_BUF_SET_NAME_B", request_code_write!(b'b', 1, 8)),
            (
                "DMA_BUF_IOCTL_EXPORT_SYNC_FILE",
                request_code_readwrite!(b'b', 2, sync_file),
            ),
            (
                "DMA_BUF_IOCTL_IMPORT_SYNC_FILE",
                request_code_write!(b'b', 3, sync_file),
            ),
            ("DMA_BUF_NAME_LEN", abi::NAME_LEN as u64),
            ("DMA_BUF_SYNC_READ", abi::SYNC_READ),
            ("DMA_BUF_SYNC_WRITE", abi::SYNC_WRITE),
            ("DMA_BUF_SYNC_START", abi::SYNC_START),
            ("DMA_BUF_SYNC_END", abi::SYNC_END),
            (
                "offsetof(struct dma_buf_export_sync_file, fd)",
                std::mem::offset_of!(abi::SyncFile, fd) as u64,
            ),
        ];
        let mut source = String::from("#include <stddef.h>\n#include <linux/dma-buf.h>\n");
        for (name, value) in facts {
            source += &format!("_Static_assert({name} == {value}ull, \"{name}\");\n");
        }
        let compiles = |source: &str| {
            use std::io::Write as _;
            use std::process::{Command, Stdio};
            let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
                .args(["-std=gnu11", "-fsyntax-only", "-x", "c", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("a C compiler");
            cc.stdin
                .take()
                .unwrap()
                .write_all(source.as_bytes())
                .unwrap();
            cc.wait().unwrap().success()
        };
        assert!(compiles(&source), "{source}");
        assert!(!compiles(
            &source.replace("NAME_LEN == 32", "NAME_LEN == 33")
        ));
    }

    /// Neither of the two older crates does this.
    #[test]
    fn interrupted_calls_are_restarted() {
        let calls = Cell::new(0);
        let result = restart(|| {
            calls.set(calls.get() + 1);
            match calls.get() {
                1 => Err(Errno::EINTR),
                2 => Err(Errno::EAGAIN),
                _ => Ok(7),
            }
        });
        assert_eq!((result, calls.get()), (Ok(7), 3));
        assert_eq!(restart(|| Err::<(), _>(Errno::ENOTTY)), Err(Errno::ENOTTY));
    }
}
