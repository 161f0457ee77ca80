// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mappings at chosen addresses, and the model of which leaves they should have.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc::{self, c_int};

use super::GIB;
use super::node::{Buffer, Query};
use super::touch::{self, Fault};

pub(crate) const READ: c_int = libc::PROT_READ;
pub(crate) const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;

/// mmap(2) of a file.
///
/// # Safety
///
/// With MAP_FIXED, nothing that Rust relies on may live there.
pub(crate) unsafe fn mmap(
    address: usize,
    len: u64,
    prot: c_int,
    flags: c_int,
    fd: impl AsFd,
    offset: u64,
) -> Result<*mut u8, Errno> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: Promised by the caller.
    let found = unsafe {
        libc::mmap(
            address as *mut _,
            len as usize,
            prot,
            flags,
            fd,
            offset as i64,
        )
    };
    match found {
        libc::MAP_FAILED => Err(Errno::last()),
        found => Ok(found.cast()),
    }
}

/// Address space that belongs to a test, at first without access. All that is mapped into it goes
/// when it goes.
#[derive(Debug)]
pub(crate) struct Room {
    base: usize,
    total: u64,
    start: usize,
    len: u64,
}

impl Room {
    /// Room for `len` bytes whose start equals `class` modulo `alignment`, a power of two.
    pub(crate) fn new(len: u64, class: u64, alignment: u64) -> Result<Room, Errno> {
        let total = len + alignment;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: A new mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                total as usize,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let base = base as usize;
        let head = class.wrapping_sub(base as u64) & (alignment - 1);
        Ok(Room {
            base,
            total,
            start: base + head as usize,
            len,
        })
    }

    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        assert!(
            offset <= self.len,
            "byte {offset:#x} of a room of {:#x}",
            self.len
        );
        (self.start as u64 + offset) as *mut u8
    }

    /// Maps a file into the room.
    pub(crate) fn map(
        &self,
        at: u64,
        len: u64,
        prot: c_int,
        fd: impl AsFd,
        offset: u64,
    ) -> Result<(), Errno> {
        assert!(at + len <= self.len, "beyond the room");
        // SAFETY: The room is ours, and holds nothing but what tests map into it.
        let found = unsafe {
            mmap(
                self.at(at) as usize,
                len,
                prot,
                libc::MAP_SHARED | libc::MAP_FIXED,
                fd,
                offset,
            )
        }?;
        assert_eq!(found, self.at(at));
        Ok(())
    }

    /// Unmaps a part of it. The addresses are free for others then, but tests do not map meanwhile.
    pub(crate) fn unmap(&self, at: u64, len: u64) -> Result<(), Errno> {
        // SAFETY: As in `map`.
        Errno::result(unsafe { libc::munmap(self.at(at).cast(), len as usize) }).map(drop)
    }

    pub(crate) fn protect(&self, at: u64, len: u64, prot: c_int) -> Result<(), Errno> {
        // SAFETY: As in `map`.
        Errno::result(unsafe { libc::mprotect(self.at(at).cast(), len as usize, prot) }).map(drop)
    }

    pub(crate) fn advise(&self, at: u64, len: u64, advice: c_int) -> Result<(), Errno> {
        // SAFETY: As in `map`.
        Errno::result(unsafe { libc::madvise(self.at(at).cast(), len as usize, advice) }).map(drop)
    }

    /// Puts memory without access over a part of it.
    pub(crate) fn punch(&self, at: u64, len: u64) -> Result<(), Errno> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: As in `map`.
        let found = unsafe {
            libc::mmap(
                self.at(at).cast(),
                len as usize,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        match found {
            libc::MAP_FAILED => Err(Errno::last()),
            _ => Ok(()),
        }
    }

    /// mremap(2) of what is mapped at `at`, to a place in a room if `to` says one.
    pub(crate) fn remap(
        &self,
        at: u64,
        old_len: u64,
        new_len: u64,
        flags: c_int,
        to: Option<(&Room, u64)>,
    ) -> Result<*mut u8, Errno> {
        let old = self.at(at).cast();
        let (old_len, new_len) = (old_len as usize, new_len as usize);
        // SAFETY: As in `map`, for both places.
        let found = unsafe {
            match to {
                Some((room, at)) => {
                    let flags = flags | libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    libc::mremap(old, old_len, new_len, flags, room.at(at))
                }
                None => libc::mremap(old, old_len, new_len, flags),
            }
        };
        match found {
            libc::MAP_FAILED => Err(Errno::last()),
            found => Ok(found.cast()),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: The room is ours; whoever kept a pointer into it uses guarded accesses.
        unsafe { libc::munmap(self.base as *mut _, self.total as usize) };
    }
}

/// The part of a buffer that a mapping shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Window {
    pub(crate) fn new(offset: u64, len: u64) -> Self {
        Window { offset, len }
    }
}

/// Where a mapping goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The address equals the physical one modulo 1 GiB.
    Congruent,
    /// It is this many bytes off that.
    Off(u64),
}

/// A mapping of a buffer in a room of its own.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) room: Room,
    pub(crate) window: Window,
    phys_class: u64,
}

impl Mapping {
    pub(crate) fn new(
        buffer: &Buffer,
        window: Window,
        prot: c_int,
        place: Place,
    ) -> Result<Mapping, Errno> {
        Mapping::of(buffer, buffer.raw.out_phys_class, window, prot, place)
    }

    /// Of a descriptor whose physical class is known otherwise.
    pub(crate) fn of(
        fd: impl AsFd,
        phys_class: u64,
        window: Window,
        prot: c_int,
        place: Place,
    ) -> Result<Mapping, Errno> {
        let off = match place {
            Place::Congruent => 0,
            Place::Off(bytes) => bytes,
        };
        let phys_class = (phys_class + window.offset) % GIB;
        let room = Room::new(window.len, (phys_class + off) % GIB, GIB)?;
        room.map(0, window.len, prot, fd, window.offset)?;
        Ok(Mapping {
            room,
            window,
            phys_class,
        })
    }

    /// All of a buffer, congruent, for reading and writing.
    pub(crate) fn whole(buffer: &Buffer) -> Result<Mapping, Errno> {
        Mapping::new(
            buffer,
            Window::new(0, buffer.size()),
            READ_WRITE,
            Place::Congruent,
        )
    }

    pub(crate) fn len(&self) -> u64 {
        self.window.len
    }

    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        self.room.at(offset)
    }

    pub(crate) fn load(&self, offset: u64) -> Result<u64, Fault> {
        touch::load(self.at(offset))
    }

    pub(crate) fn store(&self, offset: u64, value: u64) -> Result<(), Fault> {
        // SAFETY: The room holds nothing of Rust's.
        unsafe { touch::store(self.at(offset), value) }
    }

    /// The offsets at which the leaves of this mapping begin, if none is larger than `1 <<
    /// max_shift` bytes.
    fn leaf_starts(&self, max_shift: u32) -> Vec<(u64, u32)> {
        leaf_starts(self.at(0) as u64, self.phys_class, self.len(), max_shift)
    }

    /// The leaves that this mapping should have once every byte was touched.
    pub(crate) fn model(&self, max_shift: u32) -> Leaves {
        self.leaf_starts(max_shift)
            .iter()
            .fold(Leaves::default(), |mut leaves, (_, shift)| {
                match shift {
                    30 => leaves.of_1g += 1,
                    21 => leaves.of_2m += 1,
                    _ => leaves.of_4k += 1,
                }
                leaves
            })
    }

    /// Touches each of those leaves once.
    pub(crate) fn touch_all(&self, max_shift: u32) -> Result<(), Fault> {
        self.leaf_starts(max_shift)
            .iter()
            .try_for_each(|(at, _)| self.load(*at).map(drop))
    }
}

/// Splits a mapping of contiguous memory into the largest leaves that address, physical address and
/// end allow.
fn leaf_starts(address: u64, physical: u64, len: u64, max_shift: u32) -> Vec<(u64, u32)> {
    let mut starts = Vec::new();
    let mut at = 0;
    while at < len {
        let fits = |shift: &u32| {
            let size = 1u64 << shift;
            (address + at) % size == 0 && (physical + at) % size == 0 && at + size <= len
        };
        let shift = [30, 21, 12]
            .into_iter()
            .filter(|shift| *shift <= max_shift)
            .find(fits);
        let shift = shift.expect("4 KiB always fits");
        starts.push((at, shift));
        at += 1 << shift;
    }
    starts
}

/// How many leaves of each size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaves {
    pub(crate) of_4k: u64,
    pub(crate) of_2m: u64,
    pub(crate) of_1g: u64,
}

impl Query {
    /// The leaves that faults have put in, since the export.
    pub(crate) fn leaves(&self) -> Leaves {
        Leaves {
            of_4k: self.raw.out_faults_4k,
            of_2m: self.raw.out_faults_2m,
            of_1g: self.raw.out_faults_1g,
        }
    }
}

impl std::ops::Sub for Leaves {
    type Output = Leaves;

    fn sub(self, before: Leaves) -> Leaves {
        Leaves {
            of_4k: self.of_4k - before.of_4k,
            of_2m: self.of_2m - before.of_2m,
            of_1g: self.of_1g - before.of_1g,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(address: u64, physical: u64, len: u64, max: u32) -> (usize, usize, usize) {
        let starts = leaf_starts(address, physical, len, max);
        let of = |shift| starts.iter().filter(|(_, s)| *s == shift).count();
        (of(12), of(21), of(30))
    }

    #[test]
    fn the_model_of_leaves() {
        let (m, g) = (1 << 20, GIB);
        assert_eq!(count(64 * g, 0, 2 * g, 30), (0, 0, 2));
        assert_eq!(count(64 * g, 0, 2 * g, 21), (0, 1024, 0));
        assert_eq!(count(64 * g + 2 * m, 2 * m, g, 30), (0, 512, 0));
        assert_eq!(count(64 * g - 4096, g - 4096, g + 8192, 30), (2, 0, 1));
        assert_eq!(count(64 * g, 4096, 2 * m, 30), (512, 0, 0));
    }
}
