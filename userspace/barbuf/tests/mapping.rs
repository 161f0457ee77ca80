// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mappings: every access against a model, bounds, signals.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use barbuf::{Access, Alignment, Buffer, ErrorKind, Mapping, PageSize};
use common::{buffer, memfd};
use nix::unistd::ftruncate;
use proptest::prelude::*;

const PAGE: u64 = 4096;

/// A mapping of two pages and what they should hold.
struct Modelled {
    map: Mapping,
    model: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Operation {
    Write(usize, Vec<u8>),
    Read(usize, usize),
    Fill(usize, usize, u8),
    Copy(usize, usize, usize),
    Store(u8, usize, u64),
    Load(u8, usize),
}

/// Offsets and lengths that are mostly right, often at the edges, and sometimes beyond the end.
fn operations() -> impl Strategy<Value = Operation> {
    let offset = prop_oneof![
        0usize..64,
        4060usize..4130,
        8100usize..8200,
        Just(usize::MAX)
    ];
    let len = prop_oneof![0usize..40, 4000usize..4200, 8180usize..8200];
    prop_oneof![
        (offset.clone(), prop::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(at, bytes)| Operation::Write(at, bytes)),
        (offset.clone(), len.clone()).prop_map(|(at, len)| Operation::Read(at, len)),
        (offset.clone(), len.clone(), any::<u8>())
            .prop_map(|(at, len, value)| Operation::Fill(at, len, value)),
        (offset.clone(), offset.clone(), len)
            .prop_map(|(from, to, len)| Operation::Copy(from, to, len)),
        (0u8..4, offset.clone(), any::<u64>())
            .prop_map(|(width, at, value)| Operation::Store(width, at, value)),
        (0u8..4, offset).prop_map(|(width, at)| Operation::Load(width, at)),
    ]
}

impl Modelled {
    fn new() -> Self {
        let map = buffer(2 * PAGE).map().build().unwrap();
        let model = vec![0; map.len()];
        Modelled { map, model }
    }

    fn within(&self, at: usize, len: usize) -> bool {
        at.checked_add(len)
            .is_some_and(|end| end <= self.model.len())
    }

    /// What an access should say: `Ok`, or the kind of its error.
    fn wanted(&self, at: usize, len: usize) -> Result<(), ErrorKind> {
        self.within(at, len)
            .then_some(())
            .ok_or(ErrorKind::OutOfBounds)
    }

    fn wanted_word(&self, at: usize, width: usize) -> Result<(), ErrorKind> {
        self.wanted(at, width)?;
        (at % width == 0).then_some(()).ok_or(ErrorKind::Misaligned)
    }

    fn apply(&mut self, operation: &Operation) {
        let kind = |error: barbuf::Error| error.kind();
        match operation.clone() {
            Operation::Write(at, bytes) => {
                let wanted = self.wanted(at, bytes.len());
                assert_eq!(self.map.write_from(at, &bytes).map_err(kind), wanted);
                if wanted.is_ok() {
                    self.model[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            Operation::Read(at, len) => {
                let wanted = self
                    .wanted(at, len)
                    .map(|()| self.model[at..at + len].to_vec());
                assert_eq!(self.map.read_to_vec(at, len).map_err(kind), wanted);
            }
            Operation::Fill(at, len, value) => {
                let wanted = self.wanted(at, len);
                assert_eq!(self.map.fill(at, len, value).map_err(kind), wanted);
                if wanted.is_ok() {
                    self.model[at..at + len].fill(value);
                }
            }
            Operation::Copy(from, to, len) => {
                let wanted = self.wanted(from, len).and_then(|()| self.wanted(to, len));
                let found = self.map.copy_to(from, &self.map, to, len);
                assert_eq!(found.map_err(kind), wanted);
                if wanted.is_ok() {
                    self.model.copy_within(from..from + len, to);
                }
            }
            Operation::Store(width, at, value) => {
                let wanted = self.wanted_word(at, 1 << width);
                let found = match width {
                    0 => self.map.write_u8(at, value as u8),
                    1 => self.map.write_u16(at, value as u16),
                    2 => self.map.write_u32(at, value as u32),
                    _ => self.map.write_u64(at, value),
                };
                assert_eq!(found.map_err(kind), wanted);
                if wanted.is_ok() {
                    let bytes = value.to_le_bytes();
                    self.model[at..at + (1 << width)].copy_from_slice(&bytes[..1 << width]);
                }
            }
            Operation::Load(width, at) => {
                let wanted = self.wanted_word(at, 1 << width).map(|()| {
                    let mut bytes = [0; 8];
                    bytes[..1 << width].copy_from_slice(&self.model[at..at + (1 << width)]);
                    u64::from_le_bytes(bytes)
                });
                let found = match width {
                    0 => self.map.read_u8(at).map(u64::from),
                    1 => self.map.read_u16(at).map(u64::from),
                    2 => self.map.read_u32(at).map(u64::from),
                    _ => self.map.read_u64(at),
                };
                assert_eq!(found.map_err(kind), wanted);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// The model is of a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn every_access_does_what_a_slice_would(
        operations in prop::collection::vec(operations(), 1..40),
    ) {
        let mut modelled = Modelled::new();
        for operation in &operations {
            modelled.apply(operation);
        }
        let all = modelled.map.read_to_vec(0, modelled.map.len()).unwrap();
        prop_assert_eq!(all, modelled.model);
    }
}

#[test]
fn ranges_and_access_are_checked() {
    let buffer = buffer(4 * PAGE);
    let kind = |options: barbuf::MapOptions<'_>| options.build().map(drop).map_err(|e| e.kind());
    assert_eq!(
        kind(buffer.map().range(PAGE..PAGE)),
        Err(ErrorKind::Invalid)
    );
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let reversed = buffer.map().range(2 * PAGE..PAGE);
    assert_eq!(kind(reversed), Err(ErrorKind::Invalid));
    assert_eq!(
        kind(buffer.map().range(0..5 * PAGE)),
        Err(ErrorKind::OutOfBounds)
    );
    buffer
        .map()
        .build()
        .unwrap()
        .write_u8(PAGE as usize, 9)
        .unwrap();
    let part = buffer.map().range(PAGE..3 * PAGE).build().unwrap();
    assert_eq!(part.len() as u64, 2 * PAGE);
    assert_eq!(part.range(), PAGE..3 * PAGE);
    assert_eq!(part.read_u8(0).unwrap(), 9);

    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&buffer))
    );
    let read_only = Buffer::from(std::os::fd::OwnedFd::from(
        std::fs::File::open(path).unwrap(),
    ));
    let map = read_only.map().build().unwrap();
    assert_eq!(map.access(), Access::ReadOnly);
    assert_eq!(map.read_u8(PAGE as usize).unwrap(), 9);
    for error in [
        map.write_u8(0, 1).unwrap_err(),
        map.write_from(0, b"x").unwrap_err(),
        map.fill(0, 1, 1).unwrap_err(),
        part.copy_to(0, &map, 0, 8).unwrap_err(),
        read_only
            .map()
            .access(Access::ReadWrite)
            .build()
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    }
}

/// memmap2 takes no address, so that alignment is this crate's own.
#[test]
fn alignment_is_kept() {
    let buffer = buffer(8 << 20);
    for page in [PageSize::Size2M, PageSize::Size1G] {
        let map = buffer.map().alignment(Alignment::To(page)).build().unwrap();
        assert_eq!(map.as_ptr() as u64 % page.bytes(), 0);
        map.write_u64((8 << 20) - 8, 1).unwrap();
    }
    for alignment in [Alignment::Anywhere, Alignment::To(PageSize::Size4K)] {
        let map = buffer.map().alignment(alignment).build().unwrap();
        assert_eq!(map.read_u64((8 << 20) - 8).unwrap(), 1);
    }
}

#[test]
fn populating_touches_every_page() {
    let buffer = buffer(16 * PAGE);
    let rss = |map: &Mapping| {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", map.as_ptr() as usize);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            << 10
    };
    let lazy = buffer.map().build().unwrap();
    assert_eq!(rss(&lazy), 0);
    let eager = buffer.map().populate(true).build().unwrap();
    assert_eq!(rss(&eager), 16 * PAGE);
}

/// A slice is 8 bytes wide at a time only where the device's address allows it.
#[test]
fn a_copy_reaches_every_byte_at_every_alignment() {
    let map = buffer(2 * PAGE).map().build().unwrap();
    let bytes: Vec<u8> = (1..=40).collect();
    for offset in 0..9 {
        for len in 0..bytes.len() {
            map.fill(0, 64, 0).unwrap();
            map.write_from(offset, &bytes[..len]).unwrap();
            assert_eq!(map.read_to_vec(offset, len).unwrap(), bytes[..len]);
            let around = map.read_to_vec(0, 64).unwrap();
            assert!(
                around[..offset]
                    .iter()
                    .chain(&around[offset + len..])
                    .all(|b| *b == 0)
            );
        }
    }
}

/// A file that is cut off raises the same signal as a buffer that is revoked.
#[test]
fn the_end_of_the_memory_is_an_error_and_no_signal() {
    if !barbuf::GUARDED {
        return;
    }
    let file = memfd(4 * PAGE);
    let buffer = Buffer::from(file.try_clone().unwrap());
    let map = buffer.map().build().unwrap();
    map.fill(0, map.len(), 1).unwrap();
    ftruncate(&file, PAGE as i64).unwrap();
    let mut bytes = vec![0; 3 * PAGE as usize];
    let errors = [
        map.read_u8(2 * PAGE as usize).unwrap_err(),
        map.read_u16(2 * PAGE as usize).unwrap_err(),
        map.read_u32(2 * PAGE as usize).unwrap_err(),
        map.read_u64(2 * PAGE as usize).unwrap_err(),
        map.write_u8(2 * PAGE as usize, 0).unwrap_err(),
        map.write_u16(2 * PAGE as usize, 0).unwrap_err(),
        map.write_u32(2 * PAGE as usize, 0).unwrap_err(),
        map.write_u64(2 * PAGE as usize, 0).unwrap_err(),
        map.read_into(8, &mut bytes).unwrap_err(),
        map.write_from(8, &bytes).unwrap_err(),
        map.fill(8, bytes.len(), 0).unwrap_err(),
        map.copy_to(0, &map, 2 * PAGE as usize, 64).unwrap_err(),
        buffer
            .map()
            .range(0..PAGE)
            .build()
            .unwrap()
            .copy_to(0, &map, PAGE as usize, 8)
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Revoked, "{error}");
        assert_eq!(error.errno(), Some(nix::libc::ENODEV));
    }
    // What is still there still works, and what was copied before the fault was copied.
    assert_eq!(map.read_u64(0).unwrap(), 0x0101_0101_0101_0101);
    assert_eq!(bytes[..PAGE as usize - 8], vec![1; PAGE as usize - 8][..]);
}

/// Recovery belongs to the thread that faulted: many at once, each its own error.
#[test]
fn many_threads_fault_at_once() {
    if !barbuf::GUARDED {
        return;
    }
    let file = memfd(64 * PAGE);
    let map = Buffer::from(file.try_clone().unwrap())
        .map()
        .build()
        .unwrap();
    let gone = AtomicBool::new(false);
    let barrier = Barrier::new(9);
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (map, gone, barrier) = (&map, &gone, &barrier);
            scope.spawn(move || {
                let mut bytes = [0; 4096];
                barrier.wait();
                let mut errors = 0;
                while errors < 100 {
                    let at = 4096 * (thread + 8 * (errors % 8));
                    match map.read_into(at, &mut bytes) {
                        Ok(()) => {}
                        Err(error) => {
                            assert!(error.is_revoked(), "{error}");
                            assert!(gone.load(Ordering::SeqCst), "an error before the end");
                            errors += 1;
                        }
                    }
                }
            });
        }
        barrier.wait();
        gone.store(true, Ordering::SeqCst);
        ftruncate(&file, 0).unwrap();
    });
}

#[test]
fn a_mapping_outlives_its_buffer() {
    let map = {
        let buffer = buffer(PAGE);
        buffer.map().dont_fork(true).build().unwrap()
    };
    map.write_u32(0, 5).unwrap();
    assert_eq!(map.read_u32(0).unwrap(), 5);
}
