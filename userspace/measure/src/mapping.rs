// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mappings of device memory at a fixed address: what each step of their life costs.
//!
//! Every mapping is made at [`ADDRESS`], in a page table that exists already. Otherwise the place that the program was
//! loaded to would decide whether one has to be allocated.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;

use crate::GIB;
use crate::clock::Clock;
use crate::memory::page_table_bytes;
use crate::report::Metric;

/// Where every measured mapping begins: a multiple of 1 GiB, far from where the kernel puts anything by itself.
pub const ADDRESS: u64 = 0x6000_0000_0000;

const PAGE: u64 = 4096;
const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// What is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub file: BorrowedFd<'a>,
    /// Of the first byte in the file.
    pub offset: u64,
    pub len: u64,
    /// Bytes of the page table entries that the mapping should have. One byte of each is touched.
    pub leaf: u64,
    /// The physical address of the first byte modulo 1 GiB. The mapping's address is made congruent to it.
    pub phys_class: u64,
}

impl Target<'_> {
    /// Where it is mapped.
    pub fn address(&self) -> u64 {
        ADDRESS + self.phys_class % GIB
    }

    /// mmap(2), for reading and writing.
    ///
    /// # Errors
    ///
    /// What the kernel says; EEXIST also if something is mapped there.
    pub fn map(&self) -> Result<Mapped, Errno> {
        let address = self.address();
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE: the mapping takes nobody's place.
        let found = unsafe {
            libc::mmap(
                address as *mut _,
                self.len as usize,
                READ_WRITE,
                flags,
                self.file.as_raw_fd(),
                self.offset as i64,
            )
        };
        match found {
            libc::MAP_FAILED => Err(Errno::last()),
            _ => Ok(Mapped {
                address,
                len: self.len,
                leaf: self.leaf,
            }),
        }
    }
}

/// A mapping, unmapped when it is dropped.
#[derive(Debug)]
pub struct Mapped {
    address: u64,
    len: u64,
    leaf: u64,
}

impl Mapped {
    pub fn at(&self, offset: u64) -> *mut u8 {
        (self.address + offset) as *mut u8
    }

    /// Reads a byte of every leaf. A leaf that cannot be had ends the process with SIGBUS, but for
    /// [`guarded`](crate::guard::guarded).
    pub fn touch(&self) {
        let (mut at, end) = (self.at(0), self.at(self.len));
        while at < end {
            // SAFETY: Inside of the mapping. Device memory holds nothing of Rust's, and any byte is a u8.
            unsafe { at.read_volatile() };
            at = at.wrapping_add(self.leaf as usize);
        }
    }

    /// munmap(2).
    pub fn unmap(self) -> Result<(), Errno> {
        let (address, len) = (self.address, self.len);
        std::mem::forget(self);
        // SAFETY: The mapping is ours, and gone with `self`.
        Errno::result(unsafe { libc::munmap(address as *mut _, len as usize) }).map(drop)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: As in `unmap`.
        unsafe { libc::munmap(self.address as *mut _, self.len as usize) };
    }
}

/// A touched page behind a mapping, in the same 512 GiB of address space, whose page table then exists already, as it
/// does for most mappings of a process. Tables of less than that are the mapping's own.
#[derive(Debug)]
pub struct Anchor {
    at: u64,
}

impl Anchor {
    pub fn behind(target: &Target<'_>) -> Result<Anchor> {
        const TABLE: u64 = 512 * GIB;
        ensure!(
            target.len <= TABLE - 2 * GIB,
            "{} bytes are too many",
            target.len
        );
        let at = (target.address() + target.len).next_multiple_of(GIB);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE: the mapping takes nobody's place.
        let found = unsafe { libc::mmap(at as *mut _, PAGE as usize, READ_WRITE, flags, -1, 0) };
        if found as u64 != at {
            bail!("no room at {at:#x}: {}", Errno::last());
        }
        // SAFETY: Mapped above, and nobody else knows of it.
        unsafe { found.cast::<u8>().write_volatile(1) };
        Ok(Anchor { at })
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        // SAFETY: Mapped in `new`.
        unsafe { libc::munmap(self.at as *mut _, PAGE as usize) };
    }
}

/// The life of a mapping, in nanoseconds of each run.
#[derive(Clone, Debug, Default)]
pub struct Life {
    pub mmap: Vec<u64>,
    /// A byte of every leaf.
    pub touch: Vec<u64>,
    /// Both, as one stretch.
    pub mmap_touch: Vec<u64>,
    /// The same bytes again.
    pub retouch: Vec<u64>,
    pub munmap: Vec<u64>,
    /// Bytes of page tables that the touched mapping takes. Of the first run alone: asking for it makes the kernel
    /// allocate and free memory, which the next munmap would pay for.
    pub page_tables: Vec<u64>,
}

impl Life {
    /// As the report calls them.
    pub fn into_samples(self) -> [(Metric, Vec<u64>); 6] {
        [
            (Metric::Mmap, self.mmap),
            (Metric::Touch, self.touch),
            (Metric::MmapTouch, self.mmap_touch),
            (Metric::Retouch, self.retouch),
            (Metric::Munmap, self.munmap),
            (Metric::PageTables, self.page_tables),
        ]
    }
}

/// Maps, touches twice, unmaps; several times.
pub fn life(clock: Clock, target: &Target<'_>) -> Result<Life> {
    let _anchor = Anchor::behind(target)?;
    let mut life = Life::default();
    clock.repeat(|| {
        let is_first = life.page_tables.is_empty();
        let before = if is_first { page_table_bytes()? } else { 0 };
        let start = clock.now();
        let mapped = target.map()?;
        let is_mapped = clock.now();
        mapped.touch();
        let touched = clock.now();
        mapped.touch();
        let retouched = clock.now();
        if is_first {
            life.page_tables
                .push(page_table_bytes()?.saturating_sub(before));
        }
        let (unmap, result) = clock.time(|| mapped.unmap());
        result?;
        life.mmap.push(is_mapped - start);
        life.touch.push(touched - is_mapped);
        life.mmap_touch.push(touched - start);
        life.retouch.push(retouched - touched);
        life.munmap.push(unmap);
        Ok(())
    })?;
    Ok(life)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsFd as _, FromRawFd as _};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// There is one [`ADDRESS`], and tests run in threads.
    pub(crate) fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file in memory.
    pub(crate) fn file(len: u64) -> File {
        // SAFETY: The name is a C string; the descriptor is new and ours.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn a_life_is_measured_and_leaves_nothing() {
        let _alone = alone();
        let file = file(1 << 20);
        let target = Target {
            file: file.as_fd(),
            offset: 4096,
            len: 64 << 10,
            leaf: 4096,
            phys_class: 4096,
        };
        assert_eq!(target.address(), ADDRESS + 4096);
        let life = life(Clock::Wall, &target).unwrap();
        for samples in [&life.mmap, &life.touch, &life.retouch, &life.munmap] {
            assert_eq!(samples.len(), crate::clock::RUNS);
        }
        assert!(matches!(life.page_tables[..], [bytes] if bytes >= 4096));
        drop(target.map().expect("the address is free again"));
    }

    #[test]
    fn what_is_mapped_already_stays() {
        let _alone = alone();
        let file = file(1 << 20);
        let target = Target {
            file: file.as_fd(),
            offset: 0,
            len: 4096,
            leaf: 4096,
            phys_class: 0,
        };
        let _first = target.map().unwrap();
        assert_eq!(target.map().unwrap_err(), Errno::EEXIST);
    }
}
