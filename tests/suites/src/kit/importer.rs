// SPDX-License-Identifier: MIT OR Apache-2.0

//! The importer of `tests/kmod/importer/`: a device that really moves bytes, and a driver that behaves as it is told. The
//! numbers are those of `tests/kmod/importer/importer.h`.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use barbuf_guest::modules;
use nix::errno::Errno;
use nix::libc;

use super::pci::{Function, wait_until};
use crate::support::Ctx;

/// How an importer behaves.
pub(crate) const STATIC: u32 = 1 << 0;
pub(crate) const NO_PEER2PEER: u32 = 1 << 1;
pub(crate) const NO_INVALIDATE: u32 = 1 << 2;
pub(crate) const PIN: u32 = 1 << 3;
pub(crate) const REMAP: u32 = 1 << 4;
pub(crate) const NO_PCI: u32 = 1 << 5;
pub(crate) const CHILD: u32 = 1 << 6;

/// `enum dma_data_direction`, from the importing device's point of view.
pub(crate) const BIDIRECTIONAL: u32 = 0;
pub(crate) const TO_DEVICE: u32 = 1;
pub(crate) const FROM_DEVICE: u32 = 2;

/// Bytes that the engine moves at a time.
pub(crate) const ENGINE: usize = 4096;

#[repr(C)]
struct Attach {
    fd: i32,
    flags: u32,
    delay_ms: u32,
    reserved: u32,
}

/// What an importer was given.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    direction: u32,
    /// Entries of the scatterlist.
    pub(crate) nents: u32,
    /// Ranges of addresses that those make up.
    pub(crate) ranges: u32,
    /// Entries that do not begin on a multiple of 2 MiB.
    pub(crate) unaligned: u32,
    pub(crate) bytes: u64,
    /// The highest address.
    pub(crate) last: u64,
}

#[repr(C)]
struct Move {
    offset: u64,
    memory: u64,
    length: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct State {
    pub(crate) invalidations: u32,
    pub(crate) mapped: u32,
    pub(crate) remap_errno: u32,
    reserved: u32,
    pub(crate) unmapped_ns: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cycle {
    fd: i32,
    flags: u32,
    rounds: u32,
    /// Entries of the scatterlist.
    pub(crate) nents: u32,
    /// The shortest time of attach and map together.
    pub(crate) least_cycles: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    offset: u64,
    value: u64,
    is_iomem: u32,
    reserved: u32,
}

const WRITE: u64 = 1;
const READ: u64 = 2;

const fn number(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | ((b'i' as u64) << 8) | number
}

const ATTACH: u64 = number(WRITE, 0, size_of::<Attach>());
const DETACH: u64 = number(0, 1, 0);
const MAP: u64 = number(READ | WRITE, 2, size_of::<Map>());
const UNMAP: u64 = number(0, 3, 0);
const LOAD: u64 = number(WRITE, 4, size_of::<Move>());
const STORE: u64 = number(WRITE, 5, size_of::<Move>());
const STATE: u64 = number(READ, 6, size_of::<State>());
const MASK: u64 = number(0, 7, 0);
const CYCLE: u64 = number(READ | WRITE, 8, size_of::<Cycle>());
const FENCE: u64 = number(0, 9, 0);
const VMAP: u64 = number(0, 10, 0);
const VUNMAP: u64 = number(0, 11, 0);
const PEEK: u64 = number(READ | WRITE, 12, size_of::<Word>());
const POKE: u64 = number(READ | WRITE, 13, size_of::<Word>());

/// The driver, as long as this exists. Importers must be gone before.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) function: Function,
}

impl Engine {
    pub(crate) fn load(ctx: &Ctx) -> Result<Engine> {
        ctx.modules().load("importer", "")?;
        let engine = Engine {
            function: Function::of(ctx.edu()?)?,
        };
        wait_until("/dev/importer", || {
            std::path::Path::new("/dev/importer").exists()
        })?;
        Ok(engine)
    }

    /// Another importer.
    pub(crate) fn importer(&self) -> Result<Importer> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/importer");
        Ok(Importer(file.context("cannot open /dev/importer")?))
    }

    /// One that is attached, and behaves as usual.
    pub(crate) fn attached(&self, buffer: impl AsFd) -> Result<Importer> {
        let importer = self.importer()?;
        importer.attach(buffer, 0).context("attaching")?;
        Ok(importer)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A fence that has not ended holds the module.
        let gone = wait_until("unloading the importer", || {
            modules::unload("importer").is_ok()
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
    }
}

/// An importer: at most one attachment, and one mapping.
#[derive(Debug)]
pub(crate) struct Importer(File);

impl Importer {
    fn call<T>(&self, request: u64, argument: &mut T) -> Result<(), Errno> {
        self.call_raw(request, std::ptr::from_mut(argument) as u64)
    }

    fn call_raw(&self, request: u64, argument: u64) -> Result<(), Errno> {
        // SAFETY: Callers pass what the request takes.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, argument) }).map(drop)
    }

    pub(crate) fn attach(&self, buffer: impl AsFd, flags: u32) -> Result<(), Errno> {
        self.attach_delayed(buffer, flags, Duration::ZERO)
    }

    /// With so much time between an invalidation and the unmap that it asks for.
    pub(crate) fn attach_delayed(
        &self,
        buffer: impl AsFd,
        flags: u32,
        delay: Duration,
    ) -> Result<(), Errno> {
        let mut attach = Attach {
            fd: buffer.as_fd().as_raw_fd(),
            flags,
            delay_ms: delay.as_millis() as u32,
            reserved: 0,
        };
        self.call(ATTACH, &mut attach)
    }

    pub(crate) fn detach(&self) -> Result<(), Errno> {
        self.call_raw(DETACH, 0)
    }

    pub(crate) fn map(&self, direction: u32) -> Result<Map, Errno> {
        let mut map = Map {
            direction,
            ..Map::default()
        };
        self.call(MAP, &mut map)?;
        Ok(map)
    }

    pub(crate) fn unmap(&self) -> Result<(), Errno> {
        self.call_raw(UNMAP, 0)
    }

    fn transfer(&self, request: u64, offset: u64, memory: u64, length: usize) -> Result<(), Errno> {
        let mut transfer = Move {
            offset,
            memory,
            length: length as u32,
            reserved: 0,
        };
        self.call(request, &mut transfer)
    }

    /// DMA from the mapping into the engine.
    pub(crate) fn load(&self, offset: u64, length: usize) -> Result<(), Errno> {
        self.transfer(LOAD, offset, 0, length)
    }

    /// DMA out of the engine into the mapping.
    pub(crate) fn store(&self, offset: u64, length: usize) -> Result<(), Errno> {
        self.transfer(STORE, offset, 0, length)
    }

    /// DMA from ordinary memory into the engine.
    pub(crate) fn load_host(&self, bytes: &[u8]) -> Result<(), Errno> {
        self.transfer(LOAD, 0, bytes.as_ptr() as u64, bytes.len())
    }

    /// DMA out of the engine into ordinary memory.
    pub(crate) fn store_host(&self, bytes: &mut [u8]) -> Result<(), Errno> {
        self.transfer(STORE, 0, bytes.as_mut_ptr() as u64, bytes.len())
    }

    pub(crate) fn state(&self) -> Result<State, Errno> {
        let mut state = State::default();
        self.call(STATE, &mut state)?;
        Ok(state)
    }

    /// Limits the engine's addresses to so many bits.
    pub(crate) fn mask(&self, bits: u32) -> Result<(), Errno> {
        self.call_raw(MASK, u64::from(bits))
    }

    /// Attach, map, unmap and detach, so many times.
    pub(crate) fn cycle(&self, buffer: impl AsFd, flags: u32, rounds: u32) -> Result<Cycle, Errno> {
        let mut cycle = Cycle {
            fd: buffer.as_fd().as_raw_fd(),
            flags,
            rounds,
            nents: 0,
            least_cycles: 0,
        };
        self.call(CYCLE, &mut cycle)?;
        Ok(cycle)
    }

    /// Announces DMA that ends after so long.
    pub(crate) fn fence(&self, after: Duration) -> Result<(), Errno> {
        self.call_raw(FENCE, after.as_millis() as u64)
    }

    /// Maps a buffer for the kernel's CPUs.
    pub(crate) fn vmap(&self, buffer: impl AsFd) -> Result<(), Errno> {
        self.call_raw(VMAP, buffer.as_fd().as_raw_fd() as u64)
    }

    pub(crate) fn vunmap(&self) -> Result<(), Errno> {
        self.call_raw(VUNMAP, 0)
    }

    /// A word of that mapping, and whether it is I/O memory.
    pub(crate) fn peek(&self, offset: u64) -> Result<(u64, bool), Errno> {
        let mut word = Word {
            offset,
            ..Word::default()
        };
        self.call(PEEK, &mut word)?;
        Ok((word.value, word.is_iomem != 0))
    }

    pub(crate) fn poke(&self, offset: u64, value: u64) -> Result<(), Errno> {
        let mut word = Word {
            offset,
            value,
            ..Word::default()
        };
        self.call(POKE, &mut word)
    }
}

/// CLOCK_MONOTONIC in nanoseconds, which [`State::unmapped_ns`] is in.
pub(crate) fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    })
}
