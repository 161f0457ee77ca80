// SPDX-License-Identifier: MIT OR Apache-2.0

//! A device that is away for a while: who waits, and what ends the wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::Vendor;
use crate::hardware::Deaf;
use crate::kit::drive;
use crate::kit::pattern::word;
use crate::kit::prelude::*;
use crate::kit::process::{Child, PROMPT, within};
use crate::reset::reset;

/// How long something that waits is watched not to go on.
const A_WHILE: Duration = Duration::from_millis(300);

/// A fault during a suspension neither fails nor holds up the rest of its process.
pub(super) fn a_fault_waits_for_the_end_of_a_suspension(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let (buffer, map) = vendor.buffer(backing)?;
        vendor.sample.suspend()?;
        vendor.sample.suspend()?;
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_SUSPENDED, 1));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let toucher = scope.spawn(|| {
                let value = map.load(0);
                done.store(true, Ordering::SeqCst);
                value
            });
            let outcome = (|| {
                for _ in 0..20 {
                    thread::sleep(A_WHILE / 20);
                    // The lock of the address space is free: this needs it for writing.
                    let other = within(PROMPT, "mmap", || {
                        Mapping::new(&buffer, Window::new(0, GIB), READ, Place::Congruent).map(drop)
                    })?;
                    ensure_eq!(other, Ok(()));
                }
                ensure!(!done.load(Ordering::SeqCst), "the fault did not wait");
                Ok(())
            })();
            vendor.sample.resume()?;
            let value = toucher.join().expect("the thread that touches");
            ensure!(value == Ok(word(4, 0)), "{value:x?}");
            outcome
        })?;
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 2));
        vendor.sample.resume()?;
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 2));
    }
    Ok(())
}

pub(super) fn a_waiting_fault_can_be_killed(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let (buffer, map) = vendor.buffer(backing)?;
        vendor.sample.suspend()?;
        let mut child = Child::start(|| {
            let value = map.load(0);
            bail!("the fault returned {value:x?}")
        })?;
        thread::sleep(A_WHILE);
        child.signal(Signal::SIGKILL)?;
        let end = within(PROMPT, "the end of the child", || child.wait())??;
        ensure!(
            matches!(end, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
            "{end:?}"
        );
        vendor.sample.resume()?;
        ensure!(map.load(0) == Ok(word(4, 0)));
        drop(buffer);
    }
    Ok(())
}

/// A device that never comes back: REVOKE, unregistering and unbinding free those who wait.
pub(super) fn whatever_ends_the_buffer_ends_the_wait(ctx: &Ctx) -> Result<()> {
    type End = fn(&Vendor, &Buffer) -> Result<()>;
    let ends: [(&str, End); 4] = [
        ("REVOKE", |vendor, buffer| {
            Ok(vendor.provider.node.revoke(buffer)?)
        }),
        ("revoke_all", |vendor, _| Ok(vendor.sample.revoke_all()?)),
        ("unregister", |vendor, _| Ok(vendor.sample.unregister()?)),
        ("unbind", |vendor, _| vendor.provider.function.unbind()),
    ];
    for (what, end) in ends {
        let vendor = Vendor::new(ctx)?;
        let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
        vendor.sample.suspend()?;
        thread::scope(|scope| {
            let toucher = scope.spawn(|| map.load(0));
            thread::sleep(A_WHILE);
            let ended = within(PROMPT, what, || end(&vendor, &buffer)).and_then(|result| result);
            if ended.is_err() {
                let _ = vendor.sample.resume();
            }
            let value = toucher.join().expect("the thread that touches");
            ended?;
            ensure!(value == Err(Fault::bus(map.at(0))), "{what}: {value:x?}");
            Ok(())
        })?;
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_REVOKED, 2));
    }
    Ok(())
}

/// get_user_pages() by a write(2) with O_DIRECT out of a suspended mapping.
pub(super) fn file_input_waits_too(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (_buffer, map) = vendor.buffer(BARBUF_BACKING_PAGE)?;
    let file = drive::open_direct(&drive::block_device(ctx.nvme(1)?)?)?;
    let before = drive::Aligned::new(PAGE)?;
    ensure_eq!(drive::read_into(&file, before.as_ptr(), PAGE, 0)?, PAGE);
    vendor.sample.suspend()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let answer = drive::read_into(&file, map.at(0), PAGE, 0);
            done.store(true, Ordering::SeqCst);
            answer
        });
        thread::sleep(A_WHILE);
        let waited = !done.load(Ordering::SeqCst);
        vendor.sample.resume()?;
        let answer = reader.join().expect("the thread that reads");
        ensure!(waited, "the read did not wait: {answer:?}");
        ensure_eq!(answer, Ok(PAGE));
        Ok(())
    })?;
    let first = u64::from_le_bytes(before.bytes()[..8].try_into()?);
    ensure!(map.load(0) == Ok(first));
    Ok(())
}

/// An export of user space comes back when the device does, fails with the provider, or dies.
pub(super) fn exports_wait_too(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let node = &vendor.provider.node;
    let export = || node.export(&Export::any(GIB)).map(drop);
    let waits = |end: &dyn Fn() -> Result<()>, answer: Result<(), Errno>| {
        vendor.sample.suspend()?;
        thread::scope(|scope| {
            let exporter = scope.spawn(export);
            thread::sleep(A_WHILE);
            let waited = !exporter.is_finished();
            within(PROMPT, "the end of the wait", end)??;
            ensure_eq!(exporter.join().expect("the thread that exports"), answer);
            ensure!(waited, "the export did not wait");
            Ok(())
        })
    };
    waits(&|| Ok(vendor.sample.resume()?), Ok(()))?;
    // Other requests do not wait.
    vendor.sample.suspend()?;
    within(PROMPT, "INFO", || node.info())??;
    let mut child = Child::start(|| bail!("the export returned {:?}", export()))?;
    thread::sleep(A_WHILE);
    child.signal(Signal::SIGKILL)?;
    let end = within(PROMPT, "the end of the child", || child.wait())??;
    ensure!(
        matches!(end, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
        "{end:?}"
    );
    vendor.sample.resume()?;
    waits(&|| Ok(vendor.sample.unregister()?), Err(Errno::ENODEV))
}

/// L5: a thousand times away and back, with a revocation now and then, and one more of each.
pub(super) fn a_thousand_suspensions(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let node = &vendor.provider.node;
    let mut cycles = 0;
    for round in 0..100u64 {
        let backing = [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE][round as usize % 2];
        let (buffer, map) = vendor.buffer(backing)?;
        for _ in 0..10 {
            vendor.sample.suspend()?;
            vendor.sample.resume()?;
            cycles += 1;
            ensure!(map.load(0) == Ok(word(4, 0)), "after {cycles} cycles");
        }
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 11));
        if round % 2 == 0 {
            vendor.sample.suspend()?;
        }
        node.revoke(&buffer)?;
        ensure_eq!(node.revoke(&buffer), Err(Errno::EBADFD));
        vendor.sample.resume()?;
        ensure!(
            map.load(0) == Err(Fault::bus(map.at(0))),
            "a revoked buffer came back"
        );
        ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_REVOKED, 12));
    }
    let counters = vendor.sample.counters()?;
    ensure_eq!((counters.first_exports, counters.last_releases), (100, 100));
    Ok(())
}

pub(super) fn resets_go_through_the_driver(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
    for round in 1..=2 {
        reset(&vendor.provider.function)?;
        let counters = vendor.sample.counters()?;
        ensure_eq!(
            (counters.resets_prepared, counters.resets_done),
            (round, round)
        );
        ensure!(map.load(0) == Ok(word(4, 0)));
        ensure_eq!(
            vendor.state(&buffer)?,
            (BARBUF_STATE_LIVE, 1 + u64::from(round))
        );
    }
    Ok(())
}

/// Resuming a device that does not decode its memory fails, and nothing is let in.
pub(super) fn a_device_that_does_not_come_back(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
    vendor.sample.suspend()?;
    let deaf = Deaf::new(&vendor.provider.function)?;
    ensure_eq!(vendor.sample.resume(), Err(Errno::EIO));
    ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_SUSPENDED, 1));
    drop(deaf);
    vendor.sample.resume()?;
    ensure!(map.load(0) == Ok(word(4, 0)));
    ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 2));
    Ok(())
}
