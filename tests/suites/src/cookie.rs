// SPDX-License-Identifier: MIT OR Apache-2.0

//! The second door: mmap of a provider's node at a buffer's cookie, for programs that only know
//! paths.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

use crate::kit::drive::{block_device, read_into, write_from};
use crate::kit::map::{Room, mmap};
use crate::kit::pattern::{self, word};
use crate::kit::prelude::*;
use crate::kit::process::Child;
use crate::kit::touch;
use crate::map::{SHAPES, unless_pages_do_not_fit};
use crate::support::hash;

pub(crate) const SUITE: Suite = Suite {
    name: "cookie",
    tests: &[
        test!(the_node_maps_at_a_cookie),
        test!(the_node_aligns_by_itself),
        test!(a_cookie_ends_with_its_buffer),
        test!(a_program_that_only_knows_a_path),
        test!(offset_0_is_the_first_buffer),
        test!(fio_reads_and_writes_at_offset_0).timeout(60),
    ],
};

/// The second door: the node shows a buffer, or a part of it, at its cookie, for whoever opened the
/// node.
pub(crate) fn the_node_maps_at_a_cookie(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let other = provider.reopen()?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        // Struct pages of one size at a time.
        let export = |len| Export::any(len).backing(backing).leaf(BARBUF_PAGE_SHIFT_4K);
        let first = provider.node.export(&export(4 * MIB))?;
        let second = provider.node.export(&export(8 * PAGE))?;
        ensure!(first.raw.out_cookie != second.raw.out_cookie && first.raw.out_cookie % PAGE == 0);
        for buffer in [&first, &second] {
            let direct = Mapping::whole(buffer)?;
            fill(&direct, 0, 2 * PAGE, buffer.raw.out_cookie)?;
            for node in [&provider.node, &other] {
                let cookie = buffer.raw.out_cookie;
                let class = buffer.raw.out_phys_class;
                let all = Window::new(cookie, buffer.size());
                // The class of `Mapping` counts from offset 0.
                let base = class.wrapping_sub(cookie) % GIB;
                let map = Mapping::of(node, base, all, READ_WRITE, Place::Congruent)?;
                verify(&map, 0, 2 * PAGE, cookie)?;
                let part = Mapping::of(
                    node,
                    base,
                    Window::new(cookie + PAGE, PAGE),
                    READ,
                    Place::Congruent,
                );
                if let Some(part) = unless_pages_do_not_fit(backing, part)? {
                    ensure!(part.load(0) == Ok(word(cookie, PAGE)), "a part of it");
                }
            }
        }
    }
    Ok(())
}

/// Programs that only know paths do not choose addresses: the node's own choice allows the largest
/// leaves.
fn the_node_aligns_by_itself(ctx: &Ctx) -> Result<()> {
    for (backing, shift, len) in SHAPES {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider
            .node
            .export(&Export::any(len).backing(backing).leaf(shift))?;
        // SAFETY: At an address that the kernel chooses.
        let at = unsafe {
            mmap(
                0,
                len,
                READ_WRITE,
                libc::MAP_SHARED,
                &provider.node,
                buffer.raw.out_cookie,
            )
        }?;
        let off = (at as u64).wrapping_sub(buffer.raw.out_phys_class) % (1 << shift);
        ensure!(off == 0, "2^{shift}: {at:?} is {off:#x} off");
        for leaf in (0..len).step_by(1 << shift) {
            ensure!(touch::load(at.wrapping_add(leaf as usize)).is_ok());
        }
        let leaves = provider.node.query(&buffer)?.leaves();
        let count = [leaves.of_4k, leaves.of_2m, leaves.of_1g];
        ensure!(
            count.iter().sum::<u64>() == len >> shift,
            "2^{shift}: {leaves:?}"
        );
        // SAFETY: Mapped above, and nothing of Rust's is there.
        Errno::result(unsafe { libc::munmap(at.cast(), len as usize) })?;
    }
    Ok(())
}

/// A cookie says nothing once its buffer is gone or revoked, and is not given to the next one.
fn a_cookie_ends_with_its_buffer(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let room = Room::new(PAGE, 0, PAGE)?;
    let map = |cookie: u64| room.map(0, PAGE, READ, &provider.node, cookie);
    let buffer = provider.node.export(&Export::any(PAGE))?;
    let old = buffer.raw.out_cookie;
    ensure!(map(old) == Ok(()));
    room.punch(0, PAGE)?;
    drop(buffer);
    ensure!(
        map(old) == Err(Errno::ENODEV),
        "the buffer is gone: {:?}",
        map(old)
    );
    let next = provider.node.export(&Export::any(PAGE))?;
    ensure!(next.raw.out_cookie != old, "the cookie was given again");
    provider.node.revoke(&next)?;
    let answer = map(next.raw.out_cookie);
    ensure!(
        answer == Err(Errno::ENODEV),
        "the buffer is revoked: {answer:?}"
    );
    Ok(())
}

/// A program that has never heard of barbuf: busybox's devmem, which maps `/dev/mem` at an offset
/// that it is given. Here the node lies there, in a mount namespace of its own.
fn a_program_that_only_knows_a_path(ctx: &Ctx) -> Result<()> {
    const AT: u64 = 3 * PAGE + 8;
    let provider = Provider::bind(ctx.npu(0)?)?;
    for (backing, shift) in [
        (BARBUF_BACKING_PFN, BARBUF_PAGE_SHIFT_1G),
        (BARBUF_BACKING_PFN, BARBUF_PAGE_SHIFT_4K),
        (BARBUF_BACKING_PAGE, BARBUF_PAGE_SHIFT_4K),
    ] {
        let wanted = Export::at(GIB, GIB).backing(backing).leaf(shift);
        let buffer = provider.node.export(&wanted)?;
        let (before, after) = (word(7, shift.into()), word(8, shift.into()));
        ctx.host_write("npu0", GIB + AT, &before.to_le_bytes())?;
        Child::start(|| {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            let node = provider.function.node_path();
            mount(Some(&*node), "/dev/mem", none, MsFlags::MS_BIND, none)?;
            let devmem = |more: &[&str]| -> Result<String> {
                let address = format!("{:#x}", buffer.raw.out_cookie + AT);
                let output = Command::new("/bin/busybox")
                    .args(["devmem", &address, "64"])
                    .args(more)
                    .output()
                    .context("cannot run busybox")?;
                ensure!(output.status.success(), "devmem: {output:?}");
                Ok(String::from_utf8(output.stdout)?.trim().to_owned())
            };
            ensure_eq!(devmem(&[])?, format!("{before:#018X}").replace("0X", "0x"));
            devmem(&[&format!("{after:#x}")])?;
            Ok(())
        })?
        .join()
        .with_context(|| format!("backing {backing}, leaves of 2^{shift}"))?;
        let seen = ctx.host_read("npu0", GIB + AT, 8)?;
        ensure!(
            seen == after.to_le_bytes(),
            "the host sees {seen:x?} and not {after:#x}"
        );
    }
    Ok(())
}

/// A program that maps at offset 0, whatever there is, reaches the first buffer, and nothing once that
/// is gone.
fn offset_0_is_the_first_buffer(ctx: &Ctx) -> Result<()> {
    let room = Room::new(PAGE, 0, PAGE)?;
    for round in 0..2 {
        // Bound anew, a function begins at 0 again.
        let provider = Provider::bind(ctx.npu(0)?)?;
        let map = || room.map(0, PAGE, READ_WRITE, &provider.node, 0);
        ensure!(map() == Err(Errno::ENODEV), "without a buffer: {:?}", map());
        let first = provider.node.export(&Export::any(PAGE))?;
        let second = provider.node.export(&Export::any(PAGE))?;
        ensure!(first.raw.out_cookie == 0 && second.raw.out_cookie != 0);
        ensure!(Mapping::whole(&first)?.store(0, word(9, round)) == Ok(()));
        map()?;
        ensure!(touch::load(room.at(0)) == Ok(word(9, round)));
        room.punch(0, PAGE)?;
        drop(first);
        let third = provider.node.export(&Export::any(PAGE))?;
        ensure!(third.raw.out_cookie != 0 && map() == Err(Errno::ENODEV));
    }
    Ok(())
}

/// A job of fio's with `mem=mmapshared:PATH`, as alloc_mem_mmap(), init_io_u_buffers() and psync of
/// fio 3 go about it.
struct Fio {
    memory: *mut u8,
    /// What is unmapped in the end: a page less than was mapped, with `direct=1`.
    orig_buffer_size: u64,
    block: u64,
}

impl Fio {
    /// `bs=`, `iodepth=` and `direct=`.
    fn start(path: &str, block: u64, depth: u64, direct: bool) -> Result<Fio, Errno> {
        const PAGE_MASK: u64 = PAGE - 1;
        let slack = if direct { PAGE_MASK } else { 0 };
        let orig_buffer_size = block * depth + slack;
        let total = orig_buffer_size + slack;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT;
        let file = nix::fcntl::open(path, flags, Mode::from_bits_truncate(0o644))?;
        // SAFETY: At an address that the kernel chooses.
        let memory = unsafe { mmap(0, total, READ_WRITE, libc::MAP_SHARED, &file, 0) }?;
        Ok(Fio {
            memory,
            orig_buffer_size,
            block,
        })
    }

    /// The buffer of unit `index`.
    fn buffer(&self, index: u64) -> *mut u8 {
        let first = (self.memory as u64).next_multiple_of(PAGE);
        (first + index * self.block) as *mut u8
    }

    fn end(self) -> Result<()> {
        let memory = self.memory.cast();
        // SAFETY: Mapped in `start`; what is left of it goes with the process.
        Errno::result(unsafe { libc::munmap(memory, self.orig_buffer_size as usize) })?;
        Ok(())
    }
}

/// fio's job file does not change for the node: `filename=` is a drive, `mem=mmapshared:` the node.
fn fio_reads_and_writes_at_offset_0(ctx: &Ctx) -> Result<()> {
    const BLOCK: u64 = 512 * KIB;
    const DEPTH: u64 = 4;
    let disk = block_device(ctx.nvme(0)?)?;
    let all = pattern::bytes(10, 0, (BLOCK * DEPTH) as usize);
    let (pfn, page) = (BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE);
    // What `direct=1` maps is two pages longer than the buffers, so it is never whole large pages.
    let cases = [
        (page, BARBUF_PAGE_SHIFT_4K, true, Ok(())),
        (page, BARBUF_PAGE_SHIFT_2M, true, Err(Errno::EINVAL)),
        (page, BARBUF_PAGE_SHIFT_1G, true, Err(Errno::EINVAL)),
        (page, BARBUF_PAGE_SHIFT_2M, false, Ok(())),
        (page, BARBUF_PAGE_SHIFT_1G, false, Err(Errno::EINVAL)),
        (pfn, BARBUF_PAGE_SHIFT_1G, true, Ok(())),
        (pfn, BARBUF_PAGE_SHIFT_1G, false, Ok(())),
    ];
    for (backing, shift, direct, mapped) in cases {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let wanted = Export::at(GIB, GIB).backing(backing).leaf(shift);
        let _buffer = provider.node.export(&wanted)?;
        fs::write(&disk, &all)?;
        Child::start(|| {
            let fio = Fio::start(&provider.function.node_path(), BLOCK, DEPTH, direct);
            let fio = match (fio, mapped) {
                (Ok(fio), Ok(())) => fio,
                (Err(errno), Err(wanted)) if errno == wanted => return Ok(()),
                (other, _) => bail!("mmap: {:?} and not {mapped:?}", other.map(drop)),
            };
            let flags = if direct { libc::O_DIRECT } else { 0 };
            let drive = File::options()
                .read(true)
                .write(true)
                .custom_flags(flags)
                .open(&disk)?;
            // Without struct pages the drive cannot reach it, but the kernel can copy there.
            let moved = match (backing, direct) {
                (BARBUF_BACKING_PFN, true) => Err(Errno::EFAULT),
                _ => Ok(BLOCK),
            };
            for unit in 0..DEPTH {
                let answer = read_into(&drive, fio.buffer(unit), BLOCK, unit * BLOCK);
                ensure!(answer == moved, "rw=read: {answer:?}");
                // Into another place, with the units turned round.
                let to = 8 * MIB + (DEPTH - 1 - unit) * BLOCK;
                let answer = write_from(&drive, fio.buffer(unit), BLOCK, to);
                ensure!(answer == moved, "rw=write: {answer:?}");
            }
            drive.sync_all()?;
            fio.end()
        })?
        .join()
        .with_context(|| format!("backing {backing}, 2^{shift}, direct={direct}"))?;
        if mapped.is_err() || backing == pfn && direct {
            continue;
        }
        let seen = ctx.host_hash("npu0", GIB, BLOCK * DEPTH)?;
        ensure!(seen == hash(&all), "the memory");
        for unit in 0..DEPTH {
            let from = (unit * BLOCK) as usize;
            let seen = ctx.host_hash("nvme0", 8 * MIB + (DEPTH - 1 - unit) * BLOCK, BLOCK)?;
            ensure!(seen == hash(&all[from..][..BLOCK as usize]), "the drive");
        }
    }
    Ok(())
}
