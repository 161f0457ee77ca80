// SPDX-License-Identifier: MIT OR Apache-2.0

//! The second door: mmap of a provider's node at a buffer's cookie, for programs that only know
//! paths.

use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::kit::map::{Room, mmap};
use crate::kit::pattern::word;
use crate::kit::prelude::*;
use crate::kit::process::Child;
use crate::kit::touch;
use crate::map::{SHAPES, unless_pages_do_not_fit};

pub(crate) const SUITE: Suite = Suite {
    name: "cookie",
    tests: &[
        test!(the_node_maps_at_a_cookie),
        test!(the_node_aligns_by_itself),
        test!(a_cookie_ends_with_its_buffer),
        test!(a_program_that_only_knows_a_path),
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
