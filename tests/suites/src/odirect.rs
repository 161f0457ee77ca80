// SPDX-License-Identifier: MIT OR Apache-2.0

//! File I/O straight between a drive and the accelerator's memory, by the in-box nvme driver.
//!
//! Page backing makes it possible; what arrives is compared on a path that has no part in it: the
//! host's own view of the memory and of the drive.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use nix::unistd::pipe;

use crate::kit::drive::{Aligned, Mounted, block_device, open_direct, read_into, write_from};
use crate::kit::pattern;
use crate::kit::prelude::*;
use crate::support::hash;

pub(crate) const SUITE: Suite = Suite {
    name: "odirect",
    tests: &[
        test!(raw_drive_to_memory)
            .on(&["npu-cmb", "two-root-ports"])
            .timeout(120),
        test!(memory_to_raw_drive)
            .on(&["npu-cmb", "two-root-ports"])
            .timeout(120),
        test!(ext4_to_memory_and_back).timeout(120),
        test!(smaller_pages_work_too).timeout(120),
        test!(without_struct_pages_it_is_efault).timeout(60),
        test!(without_struct_pages_ext4_says_efault).timeout(60),
        test!(a_read_only_buffer_is_not_written_to),
        test!(vmsplice_is_refused),
        test!(registered_buffers_are_refused),
    ],
};

const SIZES: [u64; 4] = [4 * KIB, 64 * KIB, MIB, 8 * MIB];

/// Where in a buffer of `len` bytes to try `size` bytes: at the start, across a border of 1 GiB, at
/// the end.
fn places(len: u64, size: u64) -> [u64; 3] {
    let across = GIB - (size / 2).max(PAGE);
    [0, across, len - size]
}

/// All of the accelerator's memory, page-backed, mapped.
struct All {
    _provider: Provider,
    _buffer: Buffer,
    map: Mapping,
    len: u64,
    /// Of byte 0 in what the host calls the device's memory.
    base: u64,
}

impl All {
    fn new(ctx: &Ctx) -> Result<All> {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let region = crate::export::main_region(&provider.node.info()?)?;
        let buffer = provider.node.export(&Export::at(0, region.length).page())?;
        let map = Mapping::whole(&buffer)?;
        Ok(All {
            map,
            len: region.length,
            base: region.offset,
            _buffer: buffer,
            _provider: provider,
        })
    }

    /// Whether memory, as the host sees it, holds these bytes.
    fn holds(&self, ctx: &Ctx, at: u64, bytes: &[u8]) -> Result<()> {
        let theirs = ctx.host_hash("npu0", self.base + at, bytes.len() as u64)?;
        ensure!(
            theirs == hash(bytes),
            "{:#x} bytes at {at:#x}: not what was sent",
            bytes.len()
        );
        Ok(())
    }
}

/// Puts a pattern into ordinary memory.
fn ordinary(seed: u64, len: u64) -> Result<Aligned> {
    let mut memory = Aligned::new(len)?;
    memory
        .bytes_mut()
        .copy_from_slice(&pattern::bytes(seed, 0, len as usize));
    Ok(memory)
}

/// One transfer in full, or an error that says which.
fn whole(what: &str, answer: Result<u64, Errno>, len: u64) -> Result<()> {
    match answer {
        Ok(done) if done == len => Ok(()),
        other => bail!("{what} of {len:#x} bytes: {other:?}"),
    }
}

/// Reads from the drive itself land in the memory at each place, in each size.
pub(crate) fn raw_drive_to_memory(ctx: &Ctx) -> Result<()> {
    let drive = open_direct(&block_device(ctx.nvme(0)?)?)?;
    let all = All::new(ctx)?;
    for size in SIZES {
        for at in places(all.len, size) {
            let seed = at ^ size;
            let sent = ordinary(seed, size)?;
            whole(
                "preparing the drive",
                write_from(&drive, sent.as_ptr(), size, MIB),
                size,
            )?;
            let answer = read_into(&drive, all.map.at(at), size, MIB);
            whole(&format!("pread to {at:#x}"), answer, size)?;
            all.holds(ctx, at, sent.bytes())?;
            // And as the process that asked for it sees it.
            for word in [0, size / 2, size - 8] {
                ensure!(
                    all.map.load(at + word) == Ok(pattern::word(seed, word)),
                    "{at:#x} + {word:#x}"
                );
            }
        }
    }
    Ok(())
}

/// Writes to the drive itself carry the memory's bytes.
pub(crate) fn memory_to_raw_drive(ctx: &Ctx) -> Result<()> {
    let drive = open_direct(&block_device(ctx.nvme(0)?)?)?;
    let all = All::new(ctx)?;
    for size in SIZES {
        for at in places(all.len, size) {
            fill(&all.map, at, size, at ^ size)?;
            let sent = pattern::bytes(at ^ size, at, size as usize);
            whole(
                &format!("pwrite from {at:#x}"),
                write_from(&drive, all.map.at(at), size, 2 * MIB),
                size,
            )?;
            let back = Aligned::new(size)?;
            whole(
                "reading back",
                read_into(&drive, back.as_ptr(), size, 2 * MIB),
                size,
            )?;
            ensure!(
                back.bytes() == sent,
                "{size:#x} bytes from {at:#x}: the drive has other bytes"
            );
            ensure!(
                ctx.host_hash("nvme0", 2 * MIB, size)? == hash(&sent),
                "the host's view of the drive"
            );
        }
    }
    Ok(())
}

/// The same through a file of ext4, piece by piece, in each size: one that was written in the ordinary
/// way, and back into another.
pub(crate) fn ext4_to_memory_and_back(ctx: &Ctx) -> Result<()> {
    let mounted = Mounted::ext4(ctx, &block_device(ctx.nvme(1)?)?, "/run/drive")?;
    let (source, copy) = (mounted.0.join("source"), mounted.0.join("copy"));
    let all = All::new(ctx)?;
    for size in SIZES {
        let len = (2 * size).max(MIB);
        let [start, across, _] = places(all.len, size);
        for at in [start, across, all.len - len] {
            let sent = pattern::bytes(at ^ size, 0, len as usize);
            fs::write(&source, &sent)?;
            let file = open_direct(&source)?;
            for part in (0..len).step_by(size as usize) {
                let answer = read_into(&file, all.map.at(at + part), size, part);
                whole(&format!("pread to {at:#x} + {part:#x}"), answer, size)?;
            }
            all.holds(ctx, at, &sent)?;
            File::create(&copy)?.set_len(len)?;
            let file = open_direct(&copy)?;
            for part in (0..len).step_by(size as usize) {
                let answer = write_from(&file, all.map.at(at + part), size, part);
                whole(&format!("pwrite from {at:#x} + {part:#x}"), answer, size)?;
            }
            drop(file);
            ensure!(
                fs::read(&copy)? == sent,
                "in pieces of {size:#x}, the copy from {at:#x} differs"
            );
            fs::remove_file(&copy)?;
        }
    }
    fs::remove_file(&source)?;
    Ok(())
}

/// Compound pages of 2 MiB, and single pages, carry the same I/O.
fn smaller_pages_work_too(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 8 * MIB;
    let drive = open_direct(&block_device(ctx.nvme(0)?)?)?;
    for shift in [BARBUF_PAGE_SHIFT_2M, BARBUF_PAGE_SHIFT_4K] {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider.node.export(&Export::any(LEN).page().leaf(shift))?;
        let map = Mapping::whole(&buffer)?;
        let sent = ordinary(u64::from(shift), LEN)?;
        whole(
            "preparing the drive",
            write_from(&drive, sent.as_ptr(), LEN, 0),
            LEN,
        )?;
        whole(
            &format!("pread with 2^{shift}"),
            read_into(&drive, map.at(0), LEN, 0),
            LEN,
        )?;
        verify(&map, 0, LEN, u64::from(shift))?;
        whole(
            &format!("pwrite with 2^{shift}"),
            write_from(&drive, map.at(0), LEN, LEN),
            LEN,
        )?;
        let back = Aligned::new(LEN)?;
        whole(
            "reading back",
            read_into(&drive, back.as_ptr(), LEN, LEN),
            LEN,
        )?;
        ensure!(back.bytes() == sent.bytes(), "with pages of 2^{shift}");
    }
    Ok(())
}

/// R16: without struct pages each size is EFAULT, both ways, and neither side has changed.
pub(crate) fn without_struct_pages_it_is_efault(ctx: &Ctx) -> Result<()> {
    let drive = open_direct(&block_device(ctx.nvme(0)?)?)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::at(0, 2 * GIB))?;
    let map = Mapping::whole(&buffer)?;
    for size in SIZES {
        let sent = ordinary(size, size)?;
        whole(
            "preparing the drive",
            write_from(&drive, sent.as_ptr(), size, 0),
            size,
        )?;
        for at in places(2 * GIB, size) {
            fill(&map, at, PAGE, 7)?;
            let read = read_into(&drive, map.at(at), size, 0);
            ensure!(
                read == Err(Errno::EFAULT),
                "pread of {size:#x} to {at:#x}: {read:?}"
            );
            verify(&map, at, PAGE, 7)?;
            let write = write_from(&drive, map.at(at), size, 0);
            ensure!(
                write == Err(Errno::EFAULT),
                "pwrite of {size:#x} from {at:#x}: {write:?}"
            );
        }
        ensure!(
            ctx.host_hash("nvme0", 0, size)? == hash(sent.bytes()),
            "the drive has changed"
        );
    }
    Ok(())
}

/// R16: ext4 says the same, and nothing else; the file has neither changed nor grown.
fn without_struct_pages_ext4_says_efault(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 8 * MIB;
    let mounted = Mounted::ext4(ctx, &block_device(ctx.nvme(1)?)?, "/run/drive")?;
    let path = mounted.0.join("file");
    let there = pattern::bytes(16, 0, LEN as usize);
    fs::write(&path, &there)?;
    let file = open_direct(&path)?;
    // What is still to be written would not come from the drive.
    file.sync_all()?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::at(0, 2 * GIB))?;
    let map = Mapping::whole(&buffer)?;
    for size in SIZES {
        for at in places(2 * GIB, size) {
            fill(&map, at, PAGE, 8)?;
            let answers = [
                read_into(&file, map.at(at), size, 0),
                write_from(&file, map.at(at), size, 0),
                write_from(&file, map.at(at), size, LEN),
            ];
            ensure!(
                answers == [Err(Errno::EFAULT); 3],
                "pread, pwrite, and pwrite at the end, of {size:#x} at {at:#x}: {answers:?}"
            );
            verify(&map, at, PAGE, 8)?;
        }
    }
    drop(file);
    ensure!(fs::read(&path)? == there, "the file is another one");
    Ok(fs::remove_file(&path)?)
}

/// A read-only buffer can be written from, but not read into.
fn a_read_only_buffer_is_not_written_to(ctx: &Ctx) -> Result<()> {
    let drive = open_direct(&block_device(ctx.nvme(0)?)?)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.export(&Export::at(0, GIB).page())?;
    fill(&Mapping::whole(&before)?, 0, 64 * KIB, 3)?;
    drop(before);
    let buffer = provider
        .node
        .export(&Export::at(0, GIB).page().read_only())?;
    let map = Mapping::new(&buffer, Window::new(0, GIB), READ, Place::Congruent)?;
    whole(
        "pwrite",
        write_from(&drive, map.at(0), 64 * KIB, 0),
        64 * KIB,
    )?;
    ensure!(ctx.host_hash("nvme0", 0, 64 * KIB)? == hash(&pattern::bytes(3, 0, 64 << 10)));
    let answer = read_into(&drive, map.at(0), 64 * KIB, MIB);
    ensure!(answer == Err(Errno::EFAULT), "pread: {answer:?}");
    verify(&map, 0, 64 * KIB, 3)
}

/// R16: vmsplice is refused: with struct pages as well, because pipes take no pages of devices. It
/// leaves no reference behind.
fn vmsplice_is_refused(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    for (backing, wanted) in [
        (BARBUF_BACKING_PFN, Errno::EFAULT),
        (BARBUF_BACKING_PAGE, Errno::EREMOTEIO),
    ] {
        let buffer = provider.node.export(&Export::any(GIB).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        fill(&map, 0, 2 * PAGE, 11)?;
        let (_read, write) = pipe()?;
        let part = libc::iovec {
            iov_base: map.at(0).cast(),
            iov_len: 2 * PAGE as usize,
        };
        // SAFETY: The memory is the device's, of which Rust knows nothing.
        let answer = Errno::result(unsafe { libc::vmsplice(write.as_raw_fd(), &part, 1, 0) });
        ensure!(answer == Err(wanted), "backing {backing}: {answer:?}");
        verify(&map, 0, 2 * PAGE, 11)?;
        drop((map, buffer));
        provider.wait_until_free(&before)?;
    }
    Ok(())
}

/// R16: io_uring's registered buffers are pinned for as long as the ring lives, which no memory that
/// can be revoked allows. No reference is left behind.
fn registered_buffers_are_refused(ctx: &Ctx) -> Result<()> {
    const REGISTER_BUFFERS: u32 = 0;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    // struct io_uring_params: 120 bytes, all zero for a ring with nothing special.
    let mut parameters = [0u64; 15];
    // SAFETY: The structure lives; what is returned is a new descriptor.
    let ring = unsafe {
        let fd = libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr());
        OwnedFd::from_raw_fd(Errno::result(fd).context("io_uring_setup")? as i32)
    };
    let register = |part: &libc::iovec| {
        // SAFETY: The element lives; the memory that it names is pinned at most.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring.as_raw_fd(),
                REGISTER_BUFFERS,
                std::ptr::from_ref(part),
                1,
            )
        })
        .map(drop)
    };
    for (backing, wanted) in [
        (BARBUF_BACKING_PFN, Errno::EFAULT),
        (BARBUF_BACKING_PAGE, Errno::EOPNOTSUPP),
    ] {
        let buffer = provider.node.export(&Export::any(GIB).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        fill(&map, 0, 2 * PAGE, 12)?;
        let answer = register(&libc::iovec {
            iov_base: map.at(0).cast(),
            iov_len: 2 * PAGE as usize,
        });
        ensure!(answer == Err(wanted), "backing {backing}: {answer:?}");
        verify(&map, 0, 2 * PAGE, 12)?;
        drop((map, buffer));
        provider.wait_until_free(&before)?;
    }
    // Ordinary memory can be registered: the refusal above is about the device's.
    let ordinary = Aligned::new(2 * PAGE)?;
    register(&libc::iovec {
        iov_base: ordinary.as_ptr().cast(),
        iov_len: 2 * PAGE as usize,
    })
    .context("registering ordinary memory")
}

/// A file on a drive, from which something is read while the buffer goes away.
pub(crate) fn prepared_drive(path: &Path, seed: u64, len: u64) -> Result<File> {
    let drive = open_direct(path)?;
    let sent = ordinary(seed, len)?;
    whole(
        "preparing the drive",
        write_from(&drive, sent.as_ptr(), len, 0),
        len,
    )?;
    Ok(drive)
}
