// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a mapping lies: at an address where the largest pages fit.
//!
//! A page table entry of a given size can be used only where the virtual address equals the
//! physical one modulo that size. A dma-buf cannot choose the address of its own mapping, and
//! memmap2 takes no address. So address space is reserved, and the mapping put over the place in
//! it that is congruent.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc::off_t;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A mapping of a file in a place of its own, unmapped when it goes.
#[derive(Debug)]
pub(crate) struct Placed {
    start: NonNull<c_void>,
    len: usize,
}

impl Placed {
    /// Maps `len` bytes from `offset` on, at an address that equals `class` modulo `alignment`, a
    /// power of two that is not below a page. Both `len` and `offset` are whole pages.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        prot: ProtFlags,
        class: u64,
        alignment: usize,
    ) -> Result<Self, Errno> {
        let offset = off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let total = len.checked_add(alignment).ok_or(Errno::ENOMEM)?;
        let mut room = Room::reserve(total)?;
        let start = room.at.as_ptr().wrapping_byte_add(distance(
            room.at.as_ptr() as u64,
            class,
            alignment as u64,
        ) as usize);
        // SAFETY: The place lies inside of the room, which belongs to us and has nothing in it.
        let found = unsafe {
            mmap(
                NonZeroUsize::new(start as usize),
                NonZeroUsize::new(len).ok_or(Errno::EINVAL)?,
                prot,
                MapFlags::MAP_SHARED | MapFlags::MAP_FIXED,
                fd,
                offset,
            )
        }?;
        room.keep(found, len);
        Ok(Placed { start: found, len })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // SAFETY: Mapped in `new`, and nobody has a reference to it: there are none to such memory.
        // Whoever kept a raw pointer has promised not to use it any more.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

/// How far it is from `at` to the next address that equals `class` modulo `alignment`.
fn distance(at: u64, class: u64, alignment: u64) -> u64 {
    class.wrapping_sub(at) & (alignment - 1)
}

/// Reserved address space, given back when it goes.
struct Room {
    at: NonNull<c_void>,
    len: usize,
}

impl Room {
    fn reserve(len: usize) -> Result<Self, Errno> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        let len_or_einval = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: A new mapping at an address that the kernel chooses.
        let at = unsafe { mmap_anonymous(None, len_or_einval, ProtFlags::PROT_NONE, flags) }?;
        Ok(Room { at, len })
    }

    /// Gives back what lies before and behind a part of it, and forgets that part.
    fn keep(&mut self, start: NonNull<c_void>, len: usize) {
        let head = start.as_ptr() as usize - self.at.as_ptr() as usize;
        let tail = self.len - head - len;
        let behind = start.as_ptr().wrapping_byte_add(len);
        for (at, len) in [(self.at.as_ptr(), head), (behind, tail)] {
            if let (Some(at), 1..) = (NonNull::new(at), len) {
                // SAFETY: This part of the room has nothing in it.
                let _ = unsafe { munmap(at, len) };
            }
        }
        self.len = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: The room belongs to us and has nothing in it.
            let _ = unsafe { munmap(self.at, self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;
    use proptest::prelude::*;
    use std::os::fd::AsFd as _;

    proptest! {
        #[test]
        fn the_next_congruent_address(at in 0u64..1 << 47, class: u64, shift in 12u32..31) {
            let alignment = 1 << shift;
            let found = at + distance(at, class, alignment);
            prop_assert_eq!(found % alignment, class % alignment);
            prop_assert!(found < at + alignment);
        }
    }

    #[test]
    fn the_address_is_congruent_and_nothing_stays() {
        let file = memfd_create(c"place", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 3 << 20).unwrap();
        for (class, alignment) in [(0, 1 << 12), (0x5000, 1 << 21), (0x1234_5000, 1 << 30)] {
            let placed = Placed::new(
                file.as_fd(),
                4096,
                2 << 20,
                ProtFlags::PROT_READ,
                class,
                alignment,
            )
            .unwrap();
            let start = placed.as_ptr() as u64;
            assert_eq!(start % alignment as u64, class % alignment as u64);
            let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
            let line = format!("{start:x}-{:x} r--s", start + (2 << 20));
            assert!(maps().contains(&line), "{line}\n{}", maps());
            drop(placed);
            assert!(!maps().contains("memfd:place"));
        }
    }

    /// What was reserved goes when the mapping fails. The two kinds of descriptor fail there.
    #[test]
    fn a_failure_gives_the_room_back() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let before = statm();
        for _ in 0..64 {
            // 16 GiB of address space each: 64 of them would be 1 TiB.
            let error = Placed::new(null.as_fd(), 0, 16 << 30, ProtFlags::PROT_READ, 0, 1 << 30);
            assert!(error.is_err());
        }
        assert!(statm() < before + (16 << 30) / 4096);
    }

    /// Pages of address space of this process.
    fn statm() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }
}
