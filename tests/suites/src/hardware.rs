// SPDX-License-Identifier: MIT OR Apache-2.0

//! Hardware that is not as it should be: a BAR without an address, memory decode switched off
//! behind the module's back, power management.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use barbuf_guest::modules;
use barbuf_guest::protocol::HostOp;
use barbuf_guest::sysfs;
use serde_json::json;

use crate::adopt::the_drive_is_back;
use crate::kit::pci::{Function, wait_until};
use crate::kit::prelude::*;

pub(crate) const SUITE: Suite = Suite {
    name: "hardware",
    tests: &[
        test!(memory_decode_switched_off),
        test!(runtime_power_management),
        test!(put_to_sleep_behind_the_modules_back),
        test!(a_bar_without_an_address_is_not_offered)
            .hotplug()
            .timeout(120),
        test!(a_bar_that_somebody_holds_is_not_offered),
    ],
};

/// The offset of the command register in configuration space, and its bit for memory decode.
const COMMAND: u64 = 4;
const MEMORY: u16 = 2;

/// Clears the bit in a function's command register until it is dropped.
pub(crate) struct Deaf {
    config: File,
    before: u16,
}

impl Deaf {
    pub(crate) fn new(function: &Function) -> Result<Deaf> {
        let config = File::options()
            .read(true)
            .write(true)
            .open(function.dir().join("config"))?;
        let mut bytes = [0; 2];
        config.read_exact_at(&mut bytes, COMMAND)?;
        let before = u16::from_le_bytes(bytes);
        ensure!(before & MEMORY != 0, "memory is not decoded: {before:#x}");
        config.write_all_at(&(before & !MEMORY).to_le_bytes(), COMMAND)?;
        Ok(Deaf { config, before })
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        let bytes = self.before.to_le_bytes();
        if let Err(error) = self.config.write_all_at(&bytes, COMMAND) {
            eprintln!("cannot switch memory decode on again: {error}");
        }
    }
}

/// R20: while the function decodes no memory, a first touch is SIGBUS. A mapping that has its
/// leaves reads what the bus answers, without a signal. Afterwards both work.
pub(crate) fn memory_decode_switched_off(ctx: &Ctx) -> Result<()> {
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider.node.export(&Export::any(GIB).backing(backing))?;
        let (early, late) = (Mapping::whole(&buffer)?, Mapping::whole(&buffer)?);
        ensure!(early.store(8, 20) == Ok(()));
        let deaf = Deaf::new(&provider.function)?;
        let touch = late.load(8);
        ensure!(
            touch == Err(Fault::bus(late.at(8))),
            "a first touch: {touch:x?}"
        );
        ensure!(early.load(8).is_ok(), "a signal where a leaf is in place");
        drop(deaf);
        ensure!(
            (early.load(8), late.load(8)) == (Ok(20), Ok(20)),
            "backing {backing}"
        );
    }
    Ok(())
}

/// R21: a function that barbuf drives stays awake, also when asked to sleep when idle.
fn runtime_power_management(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let power = provider.function.dir().join("power");
    if !power.join("control").exists() {
        return ctx.skip("this kernel has no runtime power management (CONFIG_PM)");
    }
    let buffer = provider.node.export(&Export::any(GIB))?;
    let map = Mapping::whole(&buffer)?;
    ensure!(map.store(0, 21) == Ok(()));
    sysfs::write(power.join("control"), "auto")?;
    sleep(Duration::from_millis(500));
    let status = sysfs::read(power.join("runtime_status"));
    sysfs::write(power.join("control"), "on")?;
    let status = status?;
    ensure!(status == "active" || status == "unsupported", "{status}");
    ensure!(map.load(0) == Ok(21));
    Ok(())
}

/// The offset of the power management capability's control and status register.
fn power_register(function: &Function) -> Result<u64> {
    const POINTER: usize = 0x34;
    const POWER_MANAGEMENT: u8 = 1;
    let config = std::fs::read(function.dir().join("config"))?;
    let byte = |at: usize| config.get(at).copied().context("configuration space");
    let mut at = byte(POINTER)? as usize & !3;
    // There is room for no more.
    for _ in 0..48 {
        ensure!(at != 0, "{} has no power management", function.bdf);
        if byte(at)? == POWER_MANAGEMENT {
            return Ok(at as u64 + 4);
        }
        at = byte(at + 1)? as usize & !3;
    }
    bail!("the capabilities of {} have no end", function.bdf)
}

/// R21: somebody writes D3hot into the function's power state, as `setpci` can. A first touch is
/// SIGBUS until it is in D0 again; a mapping that has its leaves gets no signal.
fn put_to_sleep_behind_the_modules_back(ctx: &Ctx) -> Result<()> {
    // The accelerator of these machines has no power management, and a drive has.
    let provider = Provider::bind(ctx.nvme(0)?)?;
    let at = power_register(&provider.function)?;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        let buffer = provider
            .node
            .export(&Export::any(4 * MIB).backing(backing))?;
        let (early, late) = (Mapping::whole(&buffer)?, Mapping::whole(&buffer)?);
        ensure!(early.store(8, 21) == Ok(()));
        let config = File::options()
            .read(true)
            .write(true)
            .open(provider.function.dir().join("config"))?;
        let mut state = [0; 2];
        config.read_exact_at(&mut state, at)?;
        ensure!(state[0] & 3 == 0, "not in D0: {state:x?}");
        config.write_all_at(&[state[0] | 3, state[1]], at)?;
        let touches = (late.load(8), early.load(8));
        config.write_all_at(&state, at)?;
        sleep(Duration::from_millis(20));
        ensure!(
            touches.0 == Err(Fault::bus(late.at(8))),
            "a first touch: {touches:x?}"
        );
        ensure!(touches.1.is_ok(), "where a leaf is in place: {touches:x?}");
        ensure!(late.load(8).is_ok(), "in D0 again");
        ensure!(late.store(8, 22) == Ok(()) && early.load(8) == Ok(22));
    }
    drop(provider);
    the_drive_is_back(ctx)
}

/// L7: a BAR for which the kernel finds no address. The accelerator's port gets a device whose BAR
/// is larger than all that the machine can address.
fn a_bar_without_an_address_is_not_offered(ctx: &Ctx) -> Result<()> {
    let device = ctx.npu(0)?;
    let qmp = |execute: &str, arguments| {
        let execute = execute.to_owned();
        ctx.host(HostOp::Qmp { execute, arguments }).map(drop)
    };
    let is_there = || Function::of(device).is_ok();
    ctx.host(HostOp::DeviceDel { id: "npu0".into() })?;
    wait_until("the device gone", || !is_there())?;
    let huge = json!({
        "driver": "pci-testdev",
        "id": "huge0",
        "bus": "port-npu0",
        "membar": 1u64 << 46,
    });
    qmp("device_add", huge)?;
    let result = wait_until("the other device", is_there).and_then(|()| nothing_is_offered(ctx));
    qmp("device_del", json!({ "id": "huge0" }))?;
    wait_until("the other device gone", || !is_there())?;
    // The guest lets go of a function before the port has.
    let plug = || {
        let id = "npu0".into();
        ctx.host(HostOp::DeviceAdd { id }).is_ok()
    };
    wait_until("the port free", plug)?;
    let binds = || Function::of(device).is_ok_and(|function| function.bind("barbuf").is_ok());
    wait_until("the device back", binds)?;
    drop(Provider::bind(device)?);
    result
}

/// Either the function cannot be bound at all, or the BAR is not among its regions.
fn nothing_is_offered(ctx: &Ctx) -> Result<()> {
    let function = Function::of(ctx.npu(0)?)?;
    // The function is in sysfs a moment before drivers can have it.
    sleep(Duration::from_secs(2));
    let bars = crate::support::bars_of(&function.dir())?;
    let large = bars.iter().find(|bar| bar.len >= 1 << 40);
    ensure!(
        large.is_none_or(|bar| bar.start == 0),
        "the BAR has an address: {large:x?}"
    );
    if function.bind("barbuf").is_err() {
        ensure!(
            !Path::new(&function.node_path()).exists(),
            "a node without a driver"
        );
        return Ok(());
    }
    let provider = Provider::bind(ctx.npu(0)?)?;
    for region in provider.node.info()?.regions {
        let bar = provider.function.bar(region.bar as usize)?;
        ensure!(
            bar.start != 0 && region.length <= bar.len,
            "{region:?} of {bar:x?}"
        );
    }
    Ok(())
}

/// L7: a BAR that something else in the kernel has claimed (`tests/kmod/busy.c`). The function cannot
/// be bound; nothing of it is left behind, and once the BAR is free it can.
fn a_bar_that_somebody_holds_is_not_offered(ctx: &Ctx) -> Result<()> {
    let function = Function::of(ctx.npu(0)?)?;
    function.unbind()?;
    ctx.modules().load("busy", "")?;
    let answer = function.bind("barbuf");
    let (driver, node) = (function.driver(), Path::new(&function.node_path()).exists());
    let ours = sysfs::iomem_lines_of("barbuf");
    modules::unload("busy")?;
    function.restore()?;
    ensure!(answer.is_err() && driver.is_none(), "bound to {driver:?}");
    ensure!(!node, "a node without a driver");
    let ours = ours?;
    ensure!(ours.is_empty(), "left in /proc/iomem: {ours:?}");
    let provider = Provider::bind(ctx.npu(0)?)?;
    drop(provider.node.export(&Export::any(GIB))?);
    Ok(())
}
