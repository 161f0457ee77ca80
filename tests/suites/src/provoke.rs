// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tests that misbehave, so that the runner can prove that it notices. Its own test of itself
//! (`userspace/xtask/src/vm/selftest.rs`) says what must come of each.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use barbuf_guest::protocol::{CHANNEL, HostOp};
use barbuf_guest::sysfs;
use nix::unistd::{ForkResult, fork};
use serde_json::json;

use crate::kit::pci::Function;
use crate::support::{Ctx, Suite, ensure_eq, test};

pub(crate) const SUITE: Suite = Suite {
    name: "provoke",
    tests: &[
        test!(passes).on(&["minimal"]),
        test!(fails).on(&["minimal"]),
        test!(is_skipped).on(&["minimal"]),
        test!(crashes).on(&["minimal"]),
        test!(runs_out_of_time).on(&["minimal"]).timeout(1),
        test!(leaves_a_process).on(&["minimal"]),
        test!(unloads_the_module).on(&["minimal"]),
        test!(unbinds_a_drive),
        test!(warns).on(&["minimal"]),
        test!(taints).on(&["minimal"]),
        test!(repeats_a_number).on(&["minimal"]),
        test!(panics_the_kernel).on(&["minimal"]),
        test!(hangs_the_guest).on(&["minimal"]).timeout(2),
        test!(powers_off).on(&["minimal"]),
    ],
};

fn passes(_: &Ctx) -> Result<()> {
    Ok(())
}

fn fails(_: &Ctx) -> Result<()> {
    ensure_eq!(2 + 2, 5);
    Ok(())
}

fn is_skipped(ctx: &Ctx) -> Result<()> {
    ctx.skip("to show that it can be")
}

fn crashes(_: &Ctx) -> Result<()> {
    std::process::abort()
}

fn runs_out_of_time(_: &Ctx) -> Result<()> {
    sleep(Duration::from_secs(3600));
    Ok(())
}

fn leaves_a_process(_: &Ctx) -> Result<()> {
    // SAFETY: A test has one thread.
    if let ForkResult::Child = unsafe { fork() }? {
        sleep(Duration::from_secs(3600));
    }
    Ok(())
}

fn unloads_the_module(ctx: &Ctx) -> Result<()> {
    barbuf_guest::modules::unload(ctx.product())?;
    Ok(())
}

fn unbinds_a_drive(ctx: &Ctx) -> Result<()> {
    Function::of(ctx.nvme(0)?)?.unbind()
}

fn warns(_: &Ctx) -> Result<()> {
    let mut log = OpenOptions::new().write(true).open("/dev/kmsg")?;
    log.write_all(b"<4>WARNING: CPU: 0 PID: 1 at mm/provoked.c:1 provoked+0x0/0x0\n")?;
    Ok(())
}

fn taints(_: &Ctx) -> Result<()> {
    // TAINT_WARN, as a WARN would have set it.
    sysfs::write("/proc/sys/kernel/tainted", "512")?;
    Ok(())
}

/// Forges a result on the channel: its number comes twice.
fn repeats_a_number(_: &Ctx) -> Result<()> {
    File::options()
        .write(true)
        .open(CHANNEL)?
        .write_all(b"  ok 1 forged\n")?;
    Ok(())
}

fn panics_the_kernel(_: &Ctx) -> Result<()> {
    sysfs::write("/proc/sysrq-trigger", "c")?;
    Ok(())
}

/// Stops every virtual CPU, as a guest that hangs with interrupts off.
fn hangs_the_guest(ctx: &Ctx) -> Result<()> {
    ctx.host(HostOp::Qmp {
        execute: "stop".into(),
        arguments: json!({}),
    })?;
    sleep(Duration::from_secs(3600));
    Ok(())
}

fn powers_off(_: &Ctx) -> Result<()> {
    let error = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    ensure!(error.is_ok(), "{error:?}");
    Ok(())
}
