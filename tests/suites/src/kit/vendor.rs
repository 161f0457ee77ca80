// SPDX-License-Identifier: MIT OR Apache-2.0

//! tests/kmod/npu_sample.c, a driver that keeps its device and registers its memory.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, Result};
use barbuf_guest::modules;
use barbuf_sys::{BARBUF_CACHE_UC, BARBUF_CACHE_WC};
use nix::errno::Errno;
use nix::libc;

use super::pci::Function;
use crate::support::Ctx;

/// The driver's name, and its module's.
pub(crate) const DRIVER: &str = "npu_sample";

pub(crate) const MEMORY_ONLY: u32 = 1 << 0;
pub(crate) const PAGES: u32 = 1 << 1;
const MAX_REGIONS: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) bar: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) caches: u32,
    pub(crate) reserved: u32,
}

impl Region {
    /// Memory of BAR 2, with all that it can have.
    pub(crate) fn new(offset: u64, length: u64) -> Region {
        Region {
            bar: 2,
            flags: MEMORY_ONLY | PAGES,
            offset,
            length,
            caches: (1 << BARBUF_CACHE_UC) | (1 << BARBUF_CACHE_WC),
            reserved: 0,
        }
    }
}

#[repr(C)]
struct Register {
    nr_regions: u32,
    request: u32,
    regions: [Region; MAX_REGIONS],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) region: u32,
    pub(crate) flags: u32,
    pub(crate) backing: u32,
    pub(crate) cache: u32,
    pub(crate) open_flags: u32,
    pub(crate) out_fd: i32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) first_exports: u32,
    pub(crate) last_releases: u32,
    pub(crate) refusals: u32,
    pub(crate) resets_prepared: u32,
    pub(crate) resets_done: u32,
    pub(crate) in_use: u32,
}

nix::ioctl_write_ptr!(npu_register, b'N', 0, Register);
nix::ioctl_readwrite!(npu_export, b'N', 2, Wanted);
nix::ioctl_read!(npu_counters, b'N', 8, Counters);
nix::ioctl_readwrite!(npu_export_dmabuf, b'N', 9, Wanted);

/// The driver's own character device.
#[derive(Debug)]
pub(crate) struct Sample(File);

impl Sample {
    pub(crate) fn open() -> Result<Sample> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/npu_sample");
        Ok(Sample(file.context("/dev/npu_sample")?))
    }

    /// An ioctl that takes a number.
    fn plain(&self, number: u8, argument: u64) -> Result<(), Errno> {
        let request = nix::request_code_none!(b'N', number);
        // SAFETY: The argument is no pointer.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, argument) }).map(drop)
    }

    pub(crate) fn register(&self, regions: &[Region], request: bool) -> Result<(), Errno> {
        let mut wanted = Register {
            nr_regions: regions.len() as u32,
            request: request.into(),
            regions: [Region::new(0, 0); MAX_REGIONS],
        };
        wanted.regions[..regions.len()].copy_from_slice(regions);
        // SAFETY: The structure lives.
        unsafe { npu_register(self.0.as_raw_fd(), &wanted) }.map(drop)
    }

    pub(crate) fn unregister(&self) -> Result<(), Errno> {
        self.plain(1, 0)
    }

    /// Exports from kernel code, read-write.
    pub(crate) fn export(&self, wanted: Wanted) -> Result<OwnedFd, Errno> {
        self.export_by(npu_export, wanted)
    }

    /// The same by way of a dma-buf.
    pub(crate) fn export_dmabuf(&self, wanted: Wanted) -> Result<OwnedFd, Errno> {
        self.export_by(npu_export_dmabuf, wanted)
    }

    fn export_by(
        &self,
        call: unsafe fn(libc::c_int, *mut Wanted) -> nix::Result<libc::c_int>,
        wanted: Wanted,
    ) -> Result<OwnedFd, Errno> {
        let mut wanted = Wanted {
            open_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
            ..wanted
        };
        // SAFETY: The structure lives, and the descriptor is new and ours.
        unsafe {
            call(self.0.as_raw_fd(), &mut wanted)?;
            Ok(OwnedFd::from_raw_fd(wanted.out_fd))
        }
    }

    pub(crate) fn revoke(&self, fd: i32) -> Result<(), Errno> {
        self.plain(3, fd as u64)
    }

    pub(crate) fn revoke_all(&self) -> Result<(), Errno> {
        self.plain(4, 0)
    }

    pub(crate) fn suspend(&self) -> Result<(), Errno> {
        self.plain(5, 0)
    }

    pub(crate) fn resume(&self) -> Result<(), Errno> {
        self.plain(6, 0)
    }

    /// The next first export fails with this; 0 lets it pass.
    pub(crate) fn refuse(&self, errno: i32) -> Result<(), Errno> {
        self.plain(7, errno as u64)
    }

    pub(crate) fn counters(&self) -> Result<Counters, Errno> {
        let mut counters = Counters::default();
        // SAFETY: The structure lives.
        unsafe { npu_counters(self.0.as_raw_fd(), &mut counters) }?;
        Ok(counters)
    }
}

/// The module, loaded until this is dropped.
#[derive(Debug)]
pub(crate) struct Loaded(());

impl Loaded {
    pub(crate) fn new(ctx: &Ctx) -> Result<Loaded> {
        ctx.modules().load(DRIVER, "")?;
        Ok(Loaded(()))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = unload() {
            eprintln!("cannot unload {DRIVER}: {error}");
        }
    }
}

/// Unloads the module, which unbinds it.
pub(crate) fn unload() -> std::io::Result<()> {
    if modules::is_loaded(DRIVER) {
        modules::unload(DRIVER)?;
    }
    Ok(())
}

static STEPS_IN: AtomicBool = AtomicBool::new(false);

/// Whether a test that asks for a bound provider of an NPU gets a registered one.
pub(crate) fn steps_in() -> bool {
    STEPS_IN.load(Relaxed)
}

/// Runs a test that was written for bound providers on what the sample driver registers.
pub(crate) fn instead(ctx: &Ctx, test: fn(&Ctx) -> Result<()>) -> Result<()> {
    let _loaded = Loaded::new(ctx)?;
    STEPS_IN.store(true, Relaxed);
    let result = test(ctx);
    STEPS_IN.store(false, Relaxed);
    // Whatever the test left bound goes with the module; the override must not stay.
    if let Ok(function) = Function::of(ctx.npu(0)?) {
        if function.driver().as_deref() == Some(DRIVER) {
            function.restore()?;
        }
    }
    result
}
