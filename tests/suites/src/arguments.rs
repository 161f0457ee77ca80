// SPDX-License-Identifier: MIT OR Apache-2.0

//! The memory that arguments lie in: too short, longer than known, unreadable, unwritable; and no
//! room for what a call returns.

use std::mem::offset_of;

use barbuf_guest::sysfs;
use barbuf_sys::ioctl::{
    BARBUF_ADOPT, BARBUF_EXPORT, BARBUF_INFO, BARBUF_QUERY, BARBUF_RELEASE, BARBUF_REVOKE,
    BARBUF_ROUTE,
};

use crate::errors::call;
use crate::kit::map::Room;
use crate::kit::prelude::*;
use crate::kit::process::{CAP_SYS_ADMIN, Child, drop_capability, no_fd_leaks, without_free_fds};

pub(crate) const SUITE: Suite = Suite {
    name: "arguments",
    tests: &[
        test!(sizes_below_and_beyond_are_told_apart),
        test!(an_older_query_gets_what_it_knows),
        test!(unreadable_arguments_are_efault),
        test!(unwritable_arguments_leak_nothing),
        test!(no_free_descriptor_leaks_nothing),
        test!(no_free_file_leaks_nothing),
    ],
};

/// A right argument of every request, with the node that takes it.
fn right_arguments(
    provider: &Provider,
    control: &Node,
    buffer: &Buffer,
    ranges: &mut [barbuf_range; 1],
    mut check: impl FnMut(&Node, u32, &[u8]) -> Result<()>,
) -> Result<()> {
    fn bytes<T>(value: &T) -> &[u8] {
        // SAFETY: The structures of the interface have no padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
    }
    let export = barbuf_export {
        ranges: ranges.as_mut_ptr() as u64,
        nr_ranges: 1,
        ..Export::any(PAGE).raw
    };
    check(
        &provider.node,
        BARBUF_INFO,
        bytes(&barbuf_info {
            region_stride: 64,
            ..barbuf_info::new()
        }),
    )?;
    check(&provider.node, BARBUF_EXPORT, bytes(&export))?;
    check(
        &provider.node,
        BARBUF_QUERY,
        bytes(&barbuf_query {
            fd: buffer.number(),
            ..barbuf_query::new()
        }),
    )?;
    check(
        &provider.node,
        BARBUF_REVOKE,
        bytes(&barbuf_revoke {
            fd: buffer.number(),
            ..barbuf_revoke::new()
        }),
    )?;
    let mut route = barbuf_route {
        fd: -1,
        ..barbuf_route::new()
    };
    route.name[..12].copy_from_slice(b"ffff:ff:1f.7");
    check(&provider.node, BARBUF_ROUTE, bytes(&route))?;
    // No such function: ENODEV is the answer to an argument that is well formed.
    let mut adopt = barbuf_adopt::new();
    adopt.name[..12].copy_from_slice(b"ffff:ff:1f.7");
    check(control, BARBUF_ADOPT, bytes(&adopt))?;
    check(control, BARBUF_RELEASE, bytes(&adopt))
}

/// The length that a request's structure was first published with, of which `now` is the length
/// today.
fn first_published(request: u32, now: usize) -> usize {
    match request {
        BARBUF_QUERY => offset_of!(barbuf_query, nr_attachments),
        _ => now,
    }
}

/// R31, the part about lengths: too short is EINVAL, longer with zeros works, longer with more is
/// E2BIG.
fn sizes_below_and_beyond_are_told_apart(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let control = Node::control()?;
    let buffer = provider.node.export(&Export::any(PAGE))?;
    let mut ranges = [barbuf_range {
        offset: 0,
        length: PAGE,
    }];
    let place = std::ptr::from_mut(&mut ranges);
    right_arguments(
        &provider,
        &control,
        &buffer,
        &mut ranges,
        |node, request, right| {
            let with_size = |size: usize, tail: u8| {
                let mut room = vec![0u64; 1024];
                let start = room.as_mut_ptr().cast::<u8>();
                // SAFETY: The room is larger than any argument. The range is reset, because EXPORT
                // writes to it.
                unsafe {
                    start.copy_from(right.as_ptr(), right.len());
                    start.cast::<u32>().write(size as u32);
                    start
                        .add(size.max(right.len()))
                        .sub(usize::from(tail != 0))
                        .write(tail);
                    place.write([barbuf_range {
                        offset: 0,
                        length: PAGE,
                    }]);
                    let answer = node.raw_ioctl(u64::from(request), start as u64);
                    if request == BARBUF_EXPORT && answer.is_ok() {
                        let fd = start.cast::<barbuf_export>().read().out_fd;
                        nix::unistd::close(fd).expect("the new descriptor");
                    }
                    answer.map(drop)
                }
            };
            let first = first_published(request, right.len());
            for size in 0..first {
                let answer = with_size(size, 0);
                ensure!(
                    answer == Err(Errno::EINVAL),
                    "{request:#x}, {size} bytes: {answer:?}"
                );
            }
            for size in [right.len() + 1, right.len() + 8, 4096] {
                let answer = with_size(size, 1);
                ensure!(
                    answer == Err(Errno::E2BIG),
                    "{request:#x}, {size} bytes, not zero: {answer:?}"
                );
            }
            for size in [1 << 20, u32::MAX as usize] {
                let answer = {
                    let mut room = vec![0u64; 1024];
                    let start = room.as_mut_ptr().cast::<u8>();
                    // SAFETY: The room is larger than the argument; a size beyond it reads no more
                    // than a page.
                    unsafe {
                        start.copy_from(right.as_ptr(), right.len());
                        start.cast::<u32>().write(size as u32);
                        node.raw_ioctl(u64::from(request), start as u64).map(drop)
                    }
                };
                // Longer than a page is never looked at; before that, memory may end.
                ensure!(
                    matches!(answer, Err(Errno::E2BIG | Errno::EFAULT)),
                    "{request:#x}, {size} bytes: {answer:?}"
                );
            }
            let wanted = match request {
                BARBUF_ADOPT | BARBUF_RELEASE => Err(Errno::ENODEV),
                _ => Ok(()),
            };
            // REVOKE works once, so that it gets the one that is longer.
            let sizes = if request == BARBUF_REVOKE {
                vec![right.len() + 8]
            } else {
                vec![first, right.len(), right.len() + 8, 4096]
            };
            for size in sizes {
                let answer = with_size(size, 0);
                ensure!(
                    answer == wanted,
                    "{request:#x}, {size} bytes, zero: {answer:?}"
                );
            }
            Ok(())
        },
    )
}

/// A program that was built before QUERY grew: what it knows is filled in, nothing behind that is
/// written, and a length in between is taken too.
fn an_older_query_gets_what_it_knows(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(2 * PAGE))?;
    let first = offset_of!(barbuf_query, nr_attachments);
    for size in first..size_of::<barbuf_query>() {
        let mut query = barbuf_query {
            size: size as u32,
            fd: buffer.number(),
            ..barbuf_query::new()
        };
        let bytes = std::ptr::from_mut(&mut query).cast::<u8>();
        // SAFETY: Writes to members behind what the kernel may write to, which are integers.
        unsafe {
            bytes
                .add(size)
                .write_bytes(0xaa, size_of::<barbuf_query>() - size);
        }
        let answer = call(&provider.node, BARBUF_QUERY, &mut query);
        ensure!(answer == Ok(()), "{size} bytes: {answer:?}");
        ensure!(
            query.out_size == 2 * PAGE,
            "{size} bytes: {}",
            query.out_size
        );
        // SAFETY: A structure without padding.
        let tail = unsafe {
            std::slice::from_raw_parts(bytes.add(size), size_of::<barbuf_query>() - size)
        };
        ensure!(
            tail.iter().all(|byte| *byte == 0xaa),
            "{size} bytes: the kernel wrote beyond"
        );
    }
    Ok(())
}

/// Two pages of which the second has no access.
struct Cliff(Room);

impl Cliff {
    fn new() -> Result<Cliff> {
        let room = Room::new(2 * PAGE, 0, PAGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: The room is ours.
        let page =
            unsafe { libc::mmap(room.at(0).cast(), PAGE as usize, READ_WRITE, flags, -1, 0) };
        ensure!(page != libc::MAP_FAILED, "{}", Errno::last());
        Ok(Cliff(room))
    }

    /// Puts bytes in front of the edge, `missing` of them lie behind it and are not written.
    fn put(&self, bytes: &[u8], missing: usize) -> *mut u8 {
        let start = self.0.at(PAGE).wrapping_sub(bytes.len() - missing);
        // SAFETY: What is written lies in the first page.
        unsafe { start.copy_from(bytes.as_ptr(), bytes.len() - missing) };
        start
    }
}

/// EFAULT where an argument cannot be read, wherever it ends.
fn unreadable_arguments_are_efault(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let control = Node::control()?;
    let buffer = provider.node.export(&Export::any(PAGE))?;
    let cliff = Cliff::new()?;
    let mut ranges = [barbuf_range {
        offset: 0,
        length: PAGE,
    }];
    right_arguments(
        &provider,
        &control,
        &buffer,
        &mut ranges,
        |node, request, right| {
            for missing in [1, 4, right.len() - 4, right.len() - 1] {
                let start = cliff.put(right, missing);
                // SAFETY: Nothing of Rust's is there.
                let call = || unsafe { node.raw_ioctl(u64::from(request), start as u64) };
                let answer = no_fd_leaks(call)?;
                ensure!(
                    answer == Err(Errno::EFAULT),
                    "{request:#x} without its last {missing} bytes: {answer:?}"
                );
            }
            for address in [0, 1, 0x7fff_ffff_f000, 0xffff_8880_0000_0000, u64::MAX] {
                // SAFETY: Nothing is there.
                let call = || unsafe { node.raw_ioctl(u64::from(request), address) };
                let answer = no_fd_leaks(call)?;
                ensure!(
                    answer == Err(Errno::EFAULT),
                    "{request:#x} at {address:#x}: {answer:?}"
                );
            }
            Ok(())
        },
    )?;
    // The array of ranges, in front of the edge and behind it.
    let one = barbuf_range {
        offset: 0,
        length: PAGE,
    };
    // SAFETY: A structure without padding.
    let bytes =
        unsafe { std::slice::from_raw_parts((&raw const one).cast::<u8>(), size_of_val(&one)) };
    let start = cliff.put(bytes, 1);
    for (at, count) in [
        (start as u64, 1),
        (start as u64 - 15, 2),
        (0, 1),
        (u64::MAX - 15, 2),
    ] {
        let mut export = barbuf_export {
            ranges: at,
            nr_ranges: count,
            ..Export::at(0, PAGE).raw
        };
        let answer = no_fd_leaks(|| call(&provider.node, BARBUF_EXPORT, &mut export))?;
        ensure!(
            answer == Err(Errno::EFAULT),
            "{count} ranges at {at:#x}: {answer:?}"
        );
    }
    Ok(())
}

/// L1, R24: an answer that cannot be written leaks no descriptor and takes no bytes.
fn unwritable_arguments_leak_nothing(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    let cliff = Cliff::new()?;
    let mut ranges = [barbuf_range {
        offset: 0,
        length: 2 * MIB,
    }];

    // First the structure, then the array that EXPORT with ANY writes the offset to.
    let export = barbuf_export {
        ranges: ranges.as_mut_ptr() as u64,
        nr_ranges: 1,
        ..Export::any(0).raw
    };
    // SAFETY: A structure without padding.
    let bytes = unsafe {
        std::slice::from_raw_parts((&raw const export).cast::<u8>(), size_of_val(&export))
    };
    let structure = cliff.put(bytes, 0);
    cliff.0.protect(0, PAGE, READ)?;
    for _ in 0..100 {
        // SAFETY: The kernel must find out that it cannot write there.
        let answer = no_fd_leaks(|| unsafe {
            provider
                .node
                .raw_ioctl(BARBUF_EXPORT.into(), structure as u64)
        })?;
        ensure!(answer == Err(Errno::EFAULT), "{answer:?}");
    }
    cliff.0.protect(0, PAGE, READ_WRITE)?;
    // SAFETY: A structure without padding.
    let bytes =
        unsafe { std::slice::from_raw_parts(ranges.as_ptr().cast::<u8>(), size_of_val(&ranges)) };
    let array = cliff.put(bytes, 0);
    cliff.0.protect(0, PAGE, READ)?;
    let mut export = barbuf_export {
        ranges: array as u64,
        ..export
    };
    for _ in 0..100 {
        let answer = no_fd_leaks(|| call(&provider.node, BARBUF_EXPORT, &mut export))?;
        ensure!(answer == Err(Errno::EFAULT), "the array: {answer:?}");
    }
    ensure!(provider.node.info()?.regions == before, "bytes were taken");

    let mut info = barbuf_info {
        nr_regions: 1,
        region_stride: 64,
        regions: cliff.0.at(0) as u64,
        ..barbuf_info::new()
    };
    ensure!(call(&provider.node, BARBUF_INFO, &mut info) == Err(Errno::EFAULT));
    let buffer = provider.node.export(&Export::any(PAGE))?;
    let mut query = barbuf_query {
        fd: buffer.number(),
        nr_ranges: 1,
        ranges: cliff.0.at(0) as u64,
        ..barbuf_query::new()
    };
    ensure!(call(&provider.node, BARBUF_QUERY, &mut query) == Err(Errno::EFAULT));
    Ok(())
}

/// L2, R30: without a free descriptor EXPORT is EMFILE, a hundred times, and leaves nothing behind.
fn no_free_descriptor_leaks_nothing(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    for export in [Export::any(2 * MIB), Export::any(GIB).page()] {
        let answers: Vec<_> = without_free_fds(|| {
            (0..100)
                .map(|_| provider.node.export(&export).map(drop))
                .collect()
        })?;
        ensure!(
            answers.iter().all(|answer| *answer == Err(Errno::EMFILE)),
            "{answers:?}"
        );
    }
    ensure!(provider.node.info()?.regions == before, "bytes were taken");
    Ok(())
}

/// The system's limit on open files, until this is dropped.
struct FileMax(String);

impl FileMax {
    const PATH: &str = "/proc/sys/fs/file-max";

    fn lower() -> Result<FileMax> {
        let before = FileMax(sysfs::read(Self::PATH)?);
        // The kernel first looks at a rough count, which is 0 where few files are open.
        sysfs::write(Self::PATH, "0")?;
        Ok(before)
    }
}

impl Drop for FileMax {
    fn drop(&mut self) {
        if let Err(error) = sysfs::write(Self::PATH, self.0.trim()) {
            eprintln!("file-max stays low: {error}");
        }
    }
}

/// The dma-buf's file comes after the bytes are claimed: where there is none for it, they go back.
fn no_free_file_leaks_nothing(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    let limit = FileMax::lower()?;
    let child = Child::start(|| {
        drop_capability(CAP_SYS_ADMIN)?;
        for export in [Export::any(2 * MIB), Export::any(GIB).page()] {
            for _ in 0..100 {
                let answer = provider.node.export(&export).map(drop);
                ensure!(answer == Err(Errno::ENFILE), "{answer:?}");
            }
        }
        Ok(())
    })?;
    let outcome = child.join();
    drop(limit);
    outcome?;
    ensure!(provider.node.info()?.regions == before, "bytes were taken");
    Ok(())
}
