// SPDX-License-Identifier: MIT OR Apache-2.0

//! The device goes away for a while and comes back: function and bus resets, system sleep, failed
//! links. And what an adopted function, whose driver does not tell anybody, does in a reset.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use barbuf_guest::protocol::HostOp;
use barbuf_guest::sysfs;
use serde_json::json;

use crate::adopt::the_drive_is_back;
use crate::hardware::Deaf;
use crate::kit::klog::logged;
use crate::kit::pattern::word;
use crate::kit::pci::{Function, wait_until};
use crate::kit::prelude::*;
use crate::kit::process::{PROMPT, within};

pub(crate) const SUITE: Suite = Suite {
    name: "reset",
    tests: &[
        test!(a_bus_reset_brings_everything_back).timeout(60),
        test!(nobody_notices_a_reset_but_by_waiting).timeout(120),
        test!(a_revoked_buffer_stays_revoked_in_a_reset).timeout(60),
        test!(sleep_brings_everything_back).timeout(120),
        test!(a_function_reset_brings_everything_back).timeout(60),
        test!(a_failed_link_recovers).timeout(60),
        test!(a_link_that_fails_for_good).timeout(60),
        test!(an_adopted_function_is_not_told).timeout(60),
    ],
};

/// Resets a function by the way that the kernel offers for it, and says which.
pub(crate) fn reset(function: &Function) -> Result<String> {
    let method = sysfs::read(function.dir().join("reset_method")).unwrap_or_default();
    ensure!(
        !method.is_empty(),
        "the kernel knows no way to reset {}",
        function.bdf
    );
    sysfs::write(function.dir().join("reset"), "1")
        .with_context(|| format!("resetting {} ({method})", function.bdf))?;
    Ok(method)
}

/// Lets the kernel reset a function by its own means alone, until this is dropped. Of these machines'
/// devices only drives can (FLR); the NPU is reset with its bus.
pub(crate) struct ByFunction(PathBuf);

impl ByFunction {
    pub(crate) fn new(function: &Function) -> Result<ByFunction> {
        let file = function.dir().join("reset_method");
        sysfs::write(&file, "flr").context("a function reset")?;
        Ok(ByFunction(file))
    }
}

impl Drop for ByFunction {
    fn drop(&mut self) {
        if let Err(error) = sysfs::write(&self.0, "default") {
            eprintln!("cannot allow other resets again: {error}");
        }
    }
}

/// A mapped buffer of each backing, with a pattern in every leaf.
fn both(provider: &Provider) -> Result<[(Buffer, Mapping); 2]> {
    both_of(provider, GIB)
}

/// The same of two leaves of that size each.
fn both_of(provider: &Provider, size: u64) -> Result<[(Buffer, Mapping); 2]> {
    let make = |at, backing| {
        let buffer = provider
            .node
            .export(&Export::at(at, 2 * size).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        for leaf in 0..2 {
            ensure!(map.store(leaf * size, word(5, at + leaf)) == Ok(()));
        }
        Ok((buffer, map))
    };
    Ok([
        make(0, BARBUF_BACKING_PFN)?,
        make(2 * size, BARBUF_BACKING_PAGE)?,
    ])
}

/// The state, the generation and the number of large leaves that faults have put in place.
fn condition(provider: &Provider, buffer: &Buffer) -> Result<(u32, u64, u64)> {
    let raw = provider.node.query(buffer)?.raw;
    let leaves = raw.out_faults_1g + raw.out_faults_2m;
    Ok((raw.out_state, raw.out_generation, leaves))
}

/// Everything is as before, but in a later generation, and mapped anew.
fn is_back(provider: &Provider, buffers: &[(Buffer, Mapping)], generation: u64) -> Result<()> {
    for (at, (buffer, map)) in (0..).step_by(2).zip(buffers) {
        let size = buffer.size() / 2;
        let (state, now, leaves) = condition(provider, buffer)?;
        ensure!(
            (state, now) == (BARBUF_STATE_LIVE, generation),
            "state {state}, generation {now}, should be {generation}"
        );
        for leaf in 0..2 {
            let (is, should) = (map.load(leaf * size), word(5, at * size + leaf));
            ensure!(is == Ok(should), "leaf {leaf}: {is:x?} and not {should:#x}");
        }
        let after = condition(provider, buffer)?.2;
        ensure!(
            after == leaves + 2,
            "{leaves} leaves before the touch, {after} after: nothing had been unmapped"
        );
    }
    Ok(())
}

/// R5, R6: a reset through sysfs, twice, with mappings of both backings.
pub(crate) fn a_bus_reset_brings_everything_back(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both(&provider)?;
    let before = provider.function.bar(2)?;
    for generation in [2, 3] {
        let method = within(PROMPT, "the reset", || reset(&provider.function))??;
        ctx.note(format!("reset by {method}"));
        let after = provider.function.bar(2)?;
        ensure!(before.start == after.start, "{before:?} became {after:?}");
        is_back(&provider, &buffers, generation)?;
    }
    // And exports go on.
    let next = provider.node.export(&Export::any(GIB))?;
    ensure!(Mapping::whole(&next)?.load(0).is_ok());
    Ok(())
}

/// R5: the same for a function that the kernel can reset alone, by FLR.
fn a_function_reset_brings_everything_back(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.nvme(0)?)?;
    let buffers = both_of(&provider, 2 * MIB)?;
    let alone = ByFunction::new(&provider.function)?;
    for generation in [2, 3] {
        let method = within(PROMPT, "the reset", || reset(&provider.function))??;
        ensure_eq!(method.trim(), "flr");
        is_back(&provider, &buffers, generation)?;
    }
    drop(alone);
    drop(provider);
    the_drive_is_back(ctx)
}

/// A reset while four threads touch: none of them gets a signal or a wrong value, and the state was
/// seen as suspended.
pub(crate) fn nobody_notices_a_reset_but_by_waiting(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both(&provider)?;
    let (end, seen) = (AtomicBool::new(false), AtomicBool::new(false));
    let touches = AtomicU64::new(0);
    thread::scope(|scope| {
        let toucher = |index: usize| {
            let (at, (_, map)) = (index as u64 % 2, &buffers[index % 2]);
            while !end.load(Ordering::Relaxed) {
                for leaf in 0..2 {
                    let (is, should) = (map.load(leaf * GIB), word(5, 2 * at * GIB + leaf));
                    ensure!(is == Ok(should), "{is:x?} and not {should:#x}");
                    // A small part of it is mapped and unmapped by the way.
                    let window = Window::new(leaf * GIB, PAGE);
                    if at == 0 {
                        let small = Mapping::new(&buffers[0].0, window, READ, Place::Congruent)?;
                        let small = small.load(0);
                        ensure!(small == Ok(should), "{small:x?} and not {should:#x}");
                    }
                    touches.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        let threads: Vec<_> = (0..4)
            .map(|index| scope.spawn(move || toucher(index)))
            .collect();
        let watcher = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let (state, ..) = condition(&provider, &buffers[0].0)?;
                if state == BARBUF_STATE_SUSPENDED {
                    seen.store(true, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(2));
            }
            anyhow::Ok(())
        });
        let mut outcome = Ok(());
        for _ in 0..5 {
            outcome = within(PROMPT, "the reset", || reset(&provider.function).map(drop))
                .and_then(|result| result);
            if outcome.is_err() {
                break;
            }
            let before = touches.load(Ordering::Relaxed);
            outcome = wait_until("a touch after the reset", || {
                touches.load(Ordering::Relaxed) > before + 8
                    || threads.iter().any(|thread| thread.is_finished())
            });
        }
        end.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("a thread that touches")?;
        }
        watcher.join().expect("the thread that watches")?;
        outcome
    })?;
    ensure!(seen.into_inner(), "no QUERY saw the buffer suspended");
    ensure!(
        condition(&provider, &buffers[1].0)?.1 == 6,
        "the generation"
    );
    Ok(())
}

/// What is revoked before a reset, or bound anew after it, does not come back with it.
fn a_revoked_buffer_stays_revoked_in_a_reset(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let [(gone, gone_map), (kept, kept_map)] = both(&provider)?;
    provider.node.revoke(&gone)?;
    reset(&provider.function)?;
    ensure!(gone_map.load(0) == Err(Fault::bus(gone_map.at(0))));
    let (state, generation, _) = condition(&provider, &gone)?;
    ensure!((state, generation) == (BARBUF_STATE_REVOKED, 2));
    ensure!(kept_map.load(0) == Ok(word(5, 2 * GIB)));
    let (state, generation, _) = condition(&provider, &kept)?;
    ensure!((state, generation) == (BARBUF_STATE_LIVE, 2));
    provider.node.revoke(&kept)?;
    ensure!(kept_map.load(0) == Err(Fault::bus(kept_map.at(0))));
    Ok(())
}

/// Puts all devices to sleep and wakes them up again, 5 s later. Not possible on every kernel.
pub(crate) fn sleep() -> Result<bool> {
    let Ok(tests) = sysfs::read("/sys/power/pm_test") else {
        return Ok(false);
    };
    ensure!(tests.contains("devices"), "{tests}");
    sysfs::write("/sys/power/pm_test", "devices")?;
    let slept = sysfs::write("/sys/power/state", "freeze");
    sysfs::write("/sys/power/pm_test", "none")?;
    slept?;
    Ok(true)
}

/// A fatal error on the link above the NPU.
pub(crate) fn fail_the_link(ctx: &Ctx) -> Result<()> {
    let command = "pcie_aer_inject_error port-npu0 DLP";
    let answer = ctx.host(HostOp::Qmp {
        execute: "human-monitor-command".into(),
        arguments: json!({ "command-line": command }),
    })?;
    ctx.note(format!("{command}: {answer}"));
    Ok(())
}

/// R22: the devices are put to sleep and woken up again, as far as this machine can.
pub(crate) fn sleep_brings_everything_back(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both(&provider)?;
    if !sleep()? {
        return ctx.skip("this kernel has no /sys/power/pm_test");
    }
    is_back(&provider, &buffers, 2)
}

/// R33: a fatal error on the port above the function.
pub(crate) fn a_failed_link_recovers(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both(&provider)?;
    fail_the_link(ctx)?;
    wait_until("the recovery", || {
        condition(&provider, &buffers[0].0)
            .is_ok_and(|(state, generation, _)| state == BARBUF_STATE_REVOKED || generation == 2)
    })?;
    is_back(&provider, &buffers, 2)
}

/// R33: the link recovers and the function does not, because the configuration that is restored after the
/// reset decodes no memory. Whoever waited gets SIGBUS, and nobody comes in until it is bound anew.
pub(crate) fn a_link_that_fails_for_good(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffers = both(&provider)?;
    let bdf = provider.bdf().to_owned();
    let told = || logged(&bdf, "has failed");
    let before = told()?;
    let deaf = Deaf::new(&provider.function)?;
    // The kernel saves the configuration as it is now. Who drives the function is told that it is back, and
    // sees that it is not.
    reset(&provider.function)?;
    let state =
        |buffer: &Buffer| -> Result<u32> { Ok(Node::control()?.query(buffer)?.raw.out_state) };
    for (buffer, _) in &buffers {
        ensure_eq!(state(buffer)?, BARBUF_STATE_SUSPENDED);
    }
    thread::scope(|scope| {
        let waiter = scope.spawn(|| buffers[0].1.load(0));
        thread::sleep(Duration::from_millis(300));
        let waited = !waiter.is_finished();
        fail_the_link(ctx)?;
        let revoked = wait_until("the revocation", || {
            buffers
                .iter()
                .all(|(buffer, _)| state(buffer).is_ok_and(|is| is == BARBUF_STATE_REVOKED))
        });
        if revoked.is_err() {
            // Nobody else ends the wait.
            let _ = provider.function.unbind();
        }
        let touch = waiter.join().expect("the thread that touches");
        revoked?;
        ensure!(waited, "a fault did not wait: {touch:x?}");
        ensure_eq!(touch, Err(Fault::bus(buffers[0].1.at(0))));
        Ok(())
    })?;
    for (_, map) in &buffers {
        ensure_eq!(map.load(GIB), Err(Fault::bus(map.at(GIB))));
    }
    let export = provider.node.export(&Export::any(GIB)).map(drop);
    ensure_eq!(export, Err(Errno::ENODEV));
    ensure!(told()? > before, "the log does not say so");
    drop(provider);
    drop(deaf);
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(GIB))?;
    let map = Mapping::whole(&buffer)?;
    ensure!(map.store(0, 33) == Ok(()) && map.load(0) == Ok(33));
    Ok(())
}

/// An adopted function's driver handles its resets alone. What can be relied on: nothing breaks,
/// the buffer keeps its bytes' place in the pool, and mappings stay as they are.
fn an_adopted_function_is_not_told(ctx: &Ctx) -> Result<()> {
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let map = Mapping::whole(&buffer)?;
    ensure!(map.store(0, 0x5ca1ab1e) == Ok(()));
    let method = reset(&provider.function)?;
    let raw = provider.node.query(&buffer)?.raw;
    let (early, late) = (map.load(0), Mapping::whole(&buffer)?.load(0));
    ctx.say(format!(
        "adopted, reset by {method}: state {}, generation {}, old mapping {early:x?}, new {late:x?}",
        raw.out_state, raw.out_generation
    ));
    ensure!((raw.out_state, raw.out_generation) == (BARBUF_STATE_LIVE, 1));
    ensure!(
        early == late,
        "an old mapping shows {early:x?}, a new one {late:x?}"
    );
    ensure!(early.is_ok(), "{early:x?}");
    let _ = fs::metadata("/dev/barbuf")?;
    Ok(())
}
