// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loads, stores, copies and fills.

use std::ffi::c_void;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

use nix::libc;

use super::guarded::{self, Fault, Word};
use super::options::Held;
use crate::error::{Error, ErrorKind, Result};
use crate::values::Access;

/// Bytes of the accesses that bulk copies consist of.
const WORD: usize = size_of::<u64>();

/// A part of a buffer in the address space of this process, until it is dropped.
///
/// The memory belongs to a device, and others may be changing it. So there are no slices and no
/// references into it, and nothing is assumed about what was read before:
///
/// - [`read_u32`](Self::read_u32) and its like are one access of exactly that width, which is not
///   merged with others, split or left out. The offset is a multiple of the width.
/// - [`read_into`](Self::read_into), [`write_from`](Self::write_from), [`fill`](Self::fill) and
///   [`copy_to`](Self::copy_to) access every byte once, in ascending order, by accesses of 64 bits
///   where the device's address allows it, and of 8 bits before and behind.
///
/// All of them check bounds and return an error when the buffer was revoked or the device is gone
/// ([`ErrorKind::Revoked`]), if [`GUARDED`](crate::GUARDED) is true. What a copy has done until then
/// stays done. Several threads may use a mapping at once; how their accesses mix is for the device to
/// say.
///
/// For stores to be sure to have arrived, put them into a
/// [`cpu_access`](crate::Buffer::cpu_access).
///
/// # Signals
///
/// The first mapping of a process installs a handler for `SIGBUS`, which passes on what is not its
/// own. A program that installs a handler of its own does that before, or passes on as well.
pub struct Mapping {
    held: Held,
    len: usize,
    /// The part of the buffer.
    range: Range<u64>,
    access: Access,
}

// SAFETY: The mapping belongs to the process and not to a thread, and goes by munmap(2), which any
// thread may call.
unsafe impl Send for Mapping {}
// SAFETY: Nothing here hands out a reference to the memory, and all accesses are single instructions
// or volatile: they race with each other as they race with the device, which is no data race in the
// sense of the language, because no Rust object lies there.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(held: Held, range: Range<u64>, len: usize, access: Access) -> Self {
        Mapping {
            held,
            len,
            range,
            access,
        }
    }

    pub(super) fn base(&self) -> NonNull<c_void> {
        NonNull::new(self.as_mut_ptr().cast()).unwrap_or(NonNull::dangling())
    }

    /// Bytes. Never 0.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The part of the buffer that is mapped.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// What may be done through it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The address of the first byte, for whatever this type does not offer: file I/O into a buffer
    /// with page backing, other instructions, foreign code.
    ///
    /// Using it is `unsafe`, and these are the terms:
    ///
    /// - It is valid for [`len`](Self::len) bytes as long as the mapping lives.
    /// - Only volatile accesses, and no references: the compiler may not assume that nobody else
    ///   changes the memory.
    /// - A touch after revocation raises `SIGBUS` (`BUS_ADRERR`) in the thread that touches, and
    ///   ends the process unless it has a handler. System calls get `EFAULT`.
    /// - A store through a read-only mapping raises `SIGSEGV`.
    pub fn as_ptr(&self) -> *const u8 {
        self.as_mut_ptr()
    }

    /// The same for writing.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        match &self.held {
            Held::Anywhere(map) => map.as_mut_ptr(),
            Held::Placed(map) => map.as_ptr(),
        }
    }

    /// Reads a byte.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Revoked`].
    pub fn read_u8(&self, offset: usize) -> Result<u8> {
        self.load(offset)
    }

    /// Reads 16 bits, in the processor's byte order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Misaligned`], [`ErrorKind::Revoked`].
    pub fn read_u16(&self, offset: usize) -> Result<u16> {
        self.load(offset)
    }

    /// Reads 32 bits, in the processor's byte order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Misaligned`], [`ErrorKind::Revoked`].
    pub fn read_u32(&self, offset: usize) -> Result<u32> {
        self.load(offset)
    }

    /// Reads 64 bits, in the processor's byte order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Misaligned`], [`ErrorKind::Revoked`].
    pub fn read_u64(&self, offset: usize) -> Result<u64> {
        self.load(offset)
    }

    /// Writes a byte.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::ReadOnly`], [`ErrorKind::Revoked`].
    pub fn write_u8(&self, offset: usize, value: u8) -> Result<()> {
        self.store(offset, value)
    }

    /// Writes 16 bits, in the processor's byte order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Misaligned`], [`ErrorKind::ReadOnly`],
    /// [`ErrorKind::Revoked`].
    pub fn write_u16(&self, offset: usize, value: u16) -> Result<()> {
        self.store(offset, value)
    }

    /// Writes 32 bits, in the processor's byte order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Misaligned`], [`ErrorKind::ReadOnly`],
    /// [`ErrorKind::Revoked`].
    pub fn write_u32(&self, offset: usize, value: u32) -> Result<()> {
        self.store(offset, value)
    }

    /// Writes 64 bits, in the processor's byte order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Misaligned`], [`ErrorKind::ReadOnly`],
    /// [`ErrorKind::Revoked`].
    pub fn write_u64(&self, offset: usize, value: u64) -> Result<()> {
        self.store(offset, value)
    }

    /// Reads bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Revoked`]. `to` is then undefined in part, but
    /// initialised.
    pub fn read_into(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        let at = self.check("read_into", offset, to.len())?;
        let (head, words) = split(at as usize, to.len());
        let (head, rest) = to.split_at_mut(head);
        let (bulk, tail) = rest.split_at_mut(words * WORD);
        // SAFETY: Checked to be inside of the mapping, and words are aligned by the split.
        let copied = unsafe {
            let words_at = at.wrapping_add(head.len());
            load_bytes(at, head)
                .and_then(|()| guarded::copy_from(words_at.cast(), bulk.as_mut_ptr(), words))
                .and_then(|()| load_bytes(words_at.wrapping_add(bulk.len()), tail))
        };
        copied.map_err(|fault| failed("read_into", fault))
    }

    /// Reads `len` bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::Revoked`].
    pub fn read_to_vec(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        // Before that much memory is taken.
        self.check("read_to_vec", offset, len)?;
        let mut bytes = vec![0; len];
        self.read_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::ReadOnly`], [`ErrorKind::Revoked`].
    pub fn write_from(&self, offset: usize, from: &[u8]) -> Result<()> {
        let at = self.check_write("write_from", offset, from.len())?;
        let (head, words) = split(at as usize, from.len());
        let (head, rest) = from.split_at(head);
        let (bulk, tail) = rest.split_at(words * WORD);
        // SAFETY: Checked to be inside of the mapping, which can be written to, and words are
        // aligned by the split.
        let copied = unsafe {
            let words_at = at.wrapping_add(head.len());
            store_bytes(at, head)
                .and_then(|()| guarded::copy_to(words_at.cast(), bulk.as_ptr(), words))
                .and_then(|()| store_bytes(words_at.wrapping_add(bulk.len()), tail))
        };
        copied.map_err(|fault| failed("write_from", fault))
    }

    /// Sets `len` bytes from `offset` on to `value`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::ReadOnly`], [`ErrorKind::Revoked`].
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<()> {
        let at = self.check_write("fill", offset, len)?;
        let (head, words) = split(at as usize, len);
        let pattern = [value; WORD];
        let tail = len - head - words * WORD;
        // SAFETY: As in `write_from`. Head and tail are shorter than a word.
        let filled = unsafe {
            let words_at = at.wrapping_add(head);
            store_bytes(at, &pattern[..head])
                .and_then(|()| guarded::fill(words_at.cast(), u64::from_ne_bytes(pattern), words))
                .and_then(|()| store_bytes(words_at.wrapping_add(words * WORD), &pattern[..tail]))
        };
        filled.map_err(|fault| failed("fill", fault))
    }

    /// Copies `len` bytes to another mapping, or to another place in this one, through the
    /// processor. Places that overlap are copied as if by way of a third.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfBounds`], [`ErrorKind::ReadOnly`], [`ErrorKind::Revoked`].
    pub fn copy_to(&self, offset: usize, to: &Mapping, at: usize, len: usize) -> Result<()> {
        const PIECE: usize = 4096;
        let from = self.check("copy_to", offset, len)?;
        let target = to.check_write("copy_to", at, len)?;
        let mut piece = [0; PIECE];
        let pieces = (0..len).step_by(PIECE);
        let mut copy = |done: usize| {
            let bytes = &mut piece[..PIECE.min(len - done)];
            self.read_into(offset + done, bytes)?;
            to.write_from(at + done, bytes)
        };
        // Bytes that lie behind their target are copied before they are overwritten, and the other
        // way round.
        if (from as usize) < target as usize {
            pieces.rev().try_for_each(&mut copy)
        } else {
            let mut pieces = pieces;
            pieces.try_for_each(&mut copy)
        }
    }

    /// Reads one byte of every `step` bytes.
    pub(super) fn populate(&self, step: u64) -> Result<()> {
        let step = step as usize;
        let start = self.as_ptr() as usize;
        // Faults fill aligned parts, and the first is short unless the mapping begins with one.
        let first = (start + 1).next_multiple_of(step) - start;
        let spots = std::iter::once(0).chain((first..self.len).step_by(step));
        for offset in spots {
            self.load::<u8>(offset)
                .map_err(|error| error.of("while populating"))?;
        }
        Ok(())
    }

    fn load<T: Word>(&self, offset: usize) -> Result<T> {
        let at = self.check("read", offset, size_of::<T>())?.cast::<T>();
        if !at.is_aligned() {
            return Err(misaligned("read", offset, size_of::<T>()));
        }
        // SAFETY: Inside of the mapping, and aligned.
        unsafe { T::load(at) }.map_err(|fault| failed("read", fault))
    }

    fn store<T: Word>(&self, offset: usize, value: T) -> Result<()> {
        let at = self
            .check_write("write", offset, size_of::<T>())?
            .cast::<T>();
        if !at.is_aligned() {
            return Err(misaligned("write", offset, size_of::<T>()));
        }
        // SAFETY: Inside of the mapping, which can be written to, and aligned.
        unsafe { T::store(at, value) }.map_err(|fault| failed("write", fault))
    }

    /// The address of `len` bytes at `offset`.
    fn check(&self, operation: &'static str, offset: usize, len: usize) -> Result<*mut u8> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.as_mut_ptr().wrapping_add(offset)),
            _ => Err(Error::new(operation, ErrorKind::OutOfBounds)
                .of(format!("{len} bytes at {offset:#x}"))
                .hinted(format!("the mapping has {:#x} bytes", self.len))),
        }
    }

    fn check_write(&self, operation: &'static str, offset: usize, len: usize) -> Result<*mut u8> {
        match self.access {
            Access::ReadWrite => self.check(operation, offset, len),
            Access::ReadOnly => Err(Error::new(operation, ErrorKind::ReadOnly)),
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("address", &self.as_ptr())
            .field("range", &self.range)
            .field("access", &self.access)
            .finish()
    }
}

/// Of `len` bytes at `address`: how many come before the first whole word, and how many words there
/// are.
fn split(address: usize, len: usize) -> (usize, usize) {
    let head = (address.wrapping_neg() % WORD).min(len);
    (head, (len - head) / WORD)
}

/// # Safety
///
/// As for [`Word::load`], for as many bytes.
unsafe fn load_bytes(from: *const u8, to: &mut [u8]) -> Result<(), Fault> {
    for (n, byte) in to.iter_mut().enumerate() {
        // SAFETY: Promised by the caller.
        *byte = unsafe { u8::load(from.wrapping_add(n)) }?;
    }
    Ok(())
}

/// # Safety
///
/// As for [`Word::store`], for as many bytes.
unsafe fn store_bytes(to: *mut u8, from: &[u8]) -> Result<(), Fault> {
    for (n, byte) in from.iter().enumerate() {
        // SAFETY: Promised by the caller.
        unsafe { u8::store(to.wrapping_add(n), *byte) }?;
    }
    Ok(())
}

fn misaligned(operation: &'static str, offset: usize, width: usize) -> Error {
    Error::new(operation, ErrorKind::Misaligned).of(format!("{width} bytes at {offset:#x}"))
}

fn failed(operation: &'static str, Fault(code): Fault) -> Error {
    match code {
        libc::BUS_MCEERR_AR | libc::BUS_MCEERR_AO => Error::new(operation, ErrorKind::Poisoned),
        _ => Error::new(operation, ErrorKind::Revoked),
    }
}
