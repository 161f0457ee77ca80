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
        test!(registers_of_a_drive_are_not_offered),
        test!(pages_with_msix_are_not_offered)
            .hotplug()
            .timeout(120),
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

/// The offset of a capability in configuration space, and all of that space.
fn capability(function: &Function, id: u8) -> Result<(usize, Vec<u8>)> {
    const POINTER: usize = 0x34;
    let config = std::fs::read(function.dir().join("config"))?;
    let byte = |at: usize| config.get(at).copied().context("configuration space");
    let mut at = byte(POINTER)? as usize & !3;
    // There is room for no more.
    for _ in 0..48 {
        ensure!(at != 0, "{} has no capability {id:#x}", function.bdf);
        if byte(at)? == id {
            return Ok((at, config));
        }
        at = byte(at + 1)? as usize & !3;
    }
    bail!("the capabilities of {} have no end", function.bdf)
}

/// The offset of the power management capability's control and status register.
fn power_register(function: &Function) -> Result<u64> {
    const POWER_MANAGEMENT: u8 = 1;
    Ok(capability(function, POWER_MANAGEMENT)?.0 as u64 + 4)
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
    let huge = json!({ "driver": "pci-testdev", "membar": 1u64 << 46 });
    with_another_device(ctx, huge, nothing_is_offered)
}

/// Does something while the accelerator's port has another device, `device` as QEMU takes it.
fn with_another_device(
    ctx: &Ctx,
    mut device: serde_json::Value,
    run: impl FnOnce(&Ctx) -> Result<()>,
) -> Result<()> {
    let npu = ctx.npu(0)?;
    let qmp = |execute: &str, arguments| {
        let execute = execute.to_owned();
        ctx.host(HostOp::Qmp { execute, arguments }).map(drop)
    };
    let is_there = || Function::of(npu).is_ok();
    ctx.host(HostOp::DeviceDel { id: "npu0".into() })?;
    wait_until("the device gone", || !is_there())?;
    device["id"] = "other0".into();
    device["bus"] = "port-npu0".into();
    qmp("device_add", device)?;
    let result = wait_until("the other device", is_there).and_then(|()| {
        // The function is in sysfs a moment before drivers can have it.
        sleep(Duration::from_secs(2));
        run(ctx)
    });
    qmp("device_del", json!({ "id": "other0" }))?;
    wait_until("the other device gone", || !is_there())?;
    // The guest lets go of a function before the port has.
    let plug = || {
        let id = "npu0".into();
        ctx.host(HostOp::DeviceAdd { id }).is_ok()
    };
    wait_until("the port free", plug)?;
    let binds = || Function::of(npu).is_ok_and(|function| function.bind("barbuf").is_ok());
    wait_until("the device back", binds)?;
    drop(Provider::bind(npu)?);
    result
}

/// Either the function cannot be bound at all, or the BAR is not among its regions.
fn nothing_is_offered(ctx: &Ctx) -> Result<()> {
    let function = Function::of(ctx.npu(0)?)?;
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

/// Bytes of a BAR.
type Stretch = (usize, std::ops::Range<u64>);

/// Where the function says that the MSI-X table and the pending bits are.
fn msix(function: &Function) -> Result<[Stretch; 2]> {
    const MSIX: u8 = 0x11;
    let (at, config) = capability(function, MSIX)?;
    let word = |at: usize| -> Result<u32> {
        let bytes = config.get(at..at + 4).context("configuration space")?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    };
    let vectors = u64::from((word(at)? >> 16) & 0x7ff) + 1;
    let stretch = |register: u32, len: u64| {
        let start = u64::from(register & !7);
        ((register & 7) as usize, start..start + len)
    };
    Ok([
        stretch(word(at + 4)?, vectors * 16),
        stretch(word(at + 8)?, vectors.div_ceil(64) * 8),
    ])
}

/// No region has a page with a byte of these, and behind each region there is nothing to export.
fn none_of_these_is_offered(provider: &Provider, private: &[Stretch]) -> Result<()> {
    let regions = provider.node.info()?.regions;
    for region in &regions {
        for (bar, bytes) in private {
            let pages = bytes.start / PAGE * PAGE..bytes.end.next_multiple_of(PAGE);
            let apart = region.offset + region.length <= pages.start || pages.end <= region.offset;
            ensure!(
                region.bar as usize != *bar || apart,
                "{region:x?} shows {bytes:x?} of BAR {bar}"
            );
        }
        for (offset, len) in [
            (region.length, PAGE),
            (region.length - PAGE, 2 * PAGE),
            (0u64.wrapping_sub(region.offset), PAGE),
            (0u64.wrapping_sub(PAGE), PAGE),
        ] {
            let wanted = Export::at(offset, len).with(|export| export.region = region.index);
            let answer = provider.node.export(&wanted).map(drop);
            // The region's own start, if it begins with the BAR.
            let wanted = if offset == 0 {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            };
            ensure!(answer == wanted, "{offset:#x} of {region:x?}: {answer:?}");
        }
    }
    for index in regions.len() as u32..16 {
        let wanted = Export::at(0, PAGE).with(|export| export.region = index);
        let answer = provider.node.export(&wanted).map(drop);
        ensure!(answer == Err(Errno::EINVAL), "region {index}: {answer:?}");
    }
    Ok(())
}

/// B7: a drive that barbuf is bound to offers its controller memory buffer and neither its registers,
/// its doorbells nor what is behind its interrupts.
fn registers_of_a_drive_are_not_offered(ctx: &Ctx) -> Result<()> {
    const DOORBELLS: u64 = 0x1000;
    let provider = Provider::bind(ctx.nvme(0)?)?;
    let [table, pending] = msix(&provider.function)?;
    ensure!(table.0 == 0, "the table is in BAR {}", table.0);
    let registers = (0, 0..DOORBELLS + PAGE);
    none_of_these_is_offered(&provider, &[registers, table, pending])?;
    let memory = crate::export::main_region(&provider.node.info()?)?;
    let bar = provider.function.bar(memory.bar as usize)?;
    ensure!(
        memory.bar != 0 && (memory.offset, memory.length) == (0, bar.len) && bar.len == 64 * MIB,
        "{memory:?} of {bar:x?}"
    );
    let buffer = provider
        .node
        .export(&Export::at(0, bar.len).with(|export| export.region = memory.index))?;
    let map = Mapping::whole(&buffer)?;
    ensure!(map.store(bar.len - 8, 4) == Ok(()) && map.load(bar.len - 8) == Ok(4));
    drop((map, buffer, provider));
    the_drive_is_back(ctx)
}

/// B7: a BAR that has registers and the MSI-X table offers the pages without the latter. A controller
/// for USB, which no driver wants here.
fn pages_with_msix_are_not_offered(ctx: &Ctx) -> Result<()> {
    with_another_device(ctx, json!({ "driver": "qemu-xhci" }), |ctx| {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let [table, pending] = msix(&provider.function)?;
        ensure!((table.0, pending.0) == (0, 0), "{table:x?} {pending:x?}");
        let bar = provider.function.bar(0)?;
        let first = table.1.start.min(pending.1.start);
        ensure!(0 < first && first < bar.len, "{table:x?} {pending:x?}");
        none_of_these_is_offered(&provider, &[table, pending])?;
        let regions = provider.node.info()?.regions;
        let region = regions.first().context("no region")?;
        ensure!(
            (region.bar, region.offset, region.length) == (0, 0, first / PAGE * PAGE),
            "{regions:x?}"
        );
        // The pages in front are those of the device: its version, and the length of what follows.
        let buffer = provider.node.export(&Export::at(0, region.length))?;
        let map = Mapping::new(&buffer, Window::new(0, PAGE), READ, Place::Congruent)?;
        let version = map.load(0).map(|word| word as u32);
        ensure!(version == Ok(0x0100_0040), "{version:x?}");
        Ok(())
    })
}
