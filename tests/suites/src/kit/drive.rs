// SPDX-License-Identifier: MIT OR Apache-2.0

//! NVMe drives, for file I/O past the page cache.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use barbuf_guest::protocol::Device;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount, umount};

use super::pci::{Function, wait_until};
use crate::support::Ctx;

/// The block device of a drive, `/dev/nvme0n1`.
pub(crate) fn block_device(device: &Device) -> Result<PathBuf> {
    let function = Function::of(device)?;
    let controllers = function.dir().join("nvme");
    let find = || {
        let name = fs::read_dir(&controllers)
            .ok()?
            .flatten()
            .next()?
            .file_name();
        let path = PathBuf::from(format!("/dev/{}n1", name.to_str()?));
        // The path is there before the disk can be opened.
        File::open(&path).is_ok().then_some(path)
    };
    wait_until("the drive's block device", || find().is_some())?;
    find().context("the drive's block device has gone")
}

/// Opens for O_DIRECT.
pub(crate) fn open_direct(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    file.with_context(|| format!("cannot open {} with O_DIRECT", path.display()))
}

/// pread(2) of a file into any memory; all of it or an error.
pub(crate) fn read_into(file: &File, memory: *mut u8, len: u64, at: u64) -> Result<u64, Errno> {
    // SAFETY: The kernel checks the memory itself; callers pass mappings that hold nothing of
    // Rust's.
    let done = unsafe { libc::pread(file.as_raw_fd(), memory.cast(), len as usize, at as i64) };
    Errno::result(done).map(|bytes| bytes as u64)
}

/// pwrite(2) of any memory to a file.
pub(crate) fn write_from(file: &File, memory: *const u8, len: u64, at: u64) -> Result<u64, Errno> {
    // SAFETY: As in `read_into`.
    let done = unsafe { libc::pwrite(file.as_raw_fd(), memory.cast(), len as usize, at as i64) };
    Errno::result(done).map(|bytes| bytes as u64)
}

/// Ordinary memory that O_DIRECT takes: on a page, in whole pages.
#[derive(Debug)]
pub(crate) struct Aligned {
    memory: *mut u8,
    len: usize,
}

impl Aligned {
    pub(crate) fn new(len: u64) -> Result<Aligned> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: A new mapping.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize,
                super::map::READ_WRITE,
                flags,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(Errno::last().into());
        }
        Ok(Aligned {
            memory: memory.cast(),
            len: len as usize,
        })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.memory
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: The memory is ours, initialised to zero by the kernel, and written through `&mut`
        // or the kernel only.
        unsafe { std::slice::from_raw_parts(self.memory, self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: As in `bytes`, and `self` is borrowed for all of it.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: Made in `new`, and no slice is left.
        unsafe { libc::munmap(self.memory.cast(), self.len) };
    }
}

/// A mounted file system, until this is dropped.
#[derive(Debug)]
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn ext4(ctx: &Ctx, device: &Path, at: &str) -> Result<Mounted> {
        // Where it is not built into the kernel.
        if ctx.modules().has("ext4") {
            ctx.modules().load("ext4", "")?;
        }
        fs::create_dir_all(at)?;
        mount(
            Some(device),
            at,
            Some("ext4"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount {} as ext4", device.display()))?;
        Ok(Mounted(at.into()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.0) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}
