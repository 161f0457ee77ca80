// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine is as promised, and the module comes and goes.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use barbuf_guest::modules::{self, is_loaded};
use barbuf_guest::protocol::{Device, DeviceKind, HostOp};
use barbuf_guest::sysfs;
use nix::libc;

use crate::kit::map::{READ_WRITE, Room};
use crate::kit::pci::{Function, rescan, wait_until};
use crate::kit::{GIB, MIB, PAGE, pattern, touch};
use crate::support::{Bar, Ctx, Suite, bars_of, ensure_eq, hash, test};

const EVERY_TOPOLOGY: &[&str] = &[
    "minimal",
    "npu-cmb",
    "two-root-ports",
    "no-route",
    "iommu",
    "iommu-root-ports",
    "small-npu",
    "icount",
    "icount-root-ports",
];

pub(crate) const SUITE: Suite = Suite {
    name: "smoke",
    tests: &[
        test!(module_comes_and_goes).on(&["minimal"]).timeout(60),
        test!(module_taints_only_as_out_of_tree).on(&["minimal"]),
        test!(kunit_tests_pass).on(&["minimal"]).kernels(&["debug"]),
        test!(parameters_are_taken_or_refused).on(&["minimal"]),
        test!(screen_can_be_pictured).on(&["minimal"]),
        test!(machine_is_as_promised).on(EVERY_TOPOLOGY),
        test!(cmb_is_published_as_p2pmem),
        test!(npu_memory_is_shared_with_the_host).on(&["npu-cmb", "small-npu"]),
        test!(edu_answers),
        test!(npu_is_removed_and_found_again),
        test!(npu_is_unplugged_and_plugged_again)
            .on(&["npu-cmb", "two-root-ports"])
            .timeout(60)
            .hotplug(),
        test!(drive_is_unplugged_and_plugged_again)
            .timeout(60)
            .hotplug(),
    ],
};

fn module_comes_and_goes(ctx: &Ctx) -> Result<()> {
    let product = ctx.product();
    // Where KUnit is, it runs at each load.
    let times = if ctx.kernel() == "debug" { 3 } else { 10 };
    for _ in 0..times {
        modules::unload(product)?;
        ensure!(!is_loaded(product), "{product} is still loaded");
        let left = sysfs::iomem_lines_of(product)?;
        ensure!(left.is_empty(), "left in /proc/iomem: {left:?}");
        ctx.modules().load(product, "")?;
        ensure!(is_loaded(product), "{product} is not loaded");
        ensure_eq!(modules::references(product)?, 0);
    }
    Ok(())
}

/// O and E: built out of tree, and not signed. P would mean a wrong license. KUnit, where the
/// kernel has it, adds N, for tests.
fn module_taints_only_as_out_of_tree(ctx: &Ctx) -> Result<()> {
    let module = sysfs::read(format!("/sys/module/{}/taint", ctx.product()))?;
    let kernel = sysfs::taint_letters(sysfs::taint()?);
    for taint in [module, kernel] {
        ensure_eq!(taint.trim_end_matches('N'), "OE");
    }
    Ok(())
}

/// The same files that the host tests, inside of the kernel, when the module was loaded.
fn kunit_tests_pass(ctx: &Ctx) -> Result<()> {
    let mut suites = 0;
    for entry in fs::read_dir("/sys/kernel/debug/kunit")?.flatten() {
        if !entry
            .file_name()
            .to_string_lossy()
            .starts_with(ctx.product())
        {
            continue;
        }
        let results = sysfs::read(entry.path().join("results"))?;
        ensure!(!results.contains("not ok"), "{results}");
        ensure!(results.contains("    ok 1 "), "no test ran: {results}");
        suites += 1;
    }
    ensure!(suites > 0, "{} has no KUnit suite", ctx.product());
    Ok(())
}

fn parameters_are_taken_or_refused(ctx: &Ctx) -> Result<()> {
    let (product, modules) = (ctx.product(), ctx.modules());
    modules::unload(product)?;
    // Whatever comes of it, the module is back when the test ends.
    let outcome = (|| {
        for wrong in ["max_buffers=many", "max_buffers=", "fault_around=perhaps"] {
            let errno = modules
                .load(product, wrong)
                .err()
                .as_ref()
                .and_then(sysfs::errno);
            ensure!(errno == Some(libc::EINVAL), "{wrong}: errno {errno:?}");
            ensure!(!is_loaded(product), "{wrong}: loaded all the same");
        }
        modules.load(
            product,
            "max_buffers=4 max_buffers_per_file=2 fault_around=0",
        )?;
        Ok(modules::unload(product)?)
    })();
    modules.load(product, "")?;
    outcome
}

fn machine_is_as_promised(ctx: &Ctx) -> Result<()> {
    for device in &ctx.topology().devices {
        let function = Function::of(device)?;
        ensure_eq!(function.driver().as_deref(), device.kind.native_driver());
        match device.kind {
            DeviceKind::Npu { bar_bytes } => {
                let bar = memory(device)?;
                ensure_eq!(bar.len, bar_bytes);
                ensure!(bar.start % bar_bytes.min(GIB) == 0, "not aligned: {bar:x?}");
                ensure!(
                    bar.is_memory() && bar.is_64_bit() && bar.is_prefetchable(),
                    "{bar:x?}"
                );
            }
            DeviceKind::Nvme { cmb_mib: 0, .. } => {
                ensure!(bar(device, 2).is_err(), "a CMB that was not asked for");
            }
            DeviceKind::Nvme { cmb_mib, .. } => {
                ensure_eq!(memory(device)?.len, u64::from(cmb_mib) * MIB);
            }
            DeviceKind::Edu { .. } => ensure_eq!(bar(device, 0)?.len, MIB),
        }
    }
    let groups = fs::read_dir("/sys/kernel/iommu_groups")?.count();
    ensure_eq!(groups > 0, ctx.topology().iommu);
    Ok(())
}

fn screen_can_be_pictured(ctx: &Ctx) -> Result<()> {
    let name = "smoke".to_owned();
    let picture = ctx.host(HostOp::Screendump { name })?;
    ctx.note(format!("the host has {picture}"));
    let outside = ctx.host(HostOp::Screendump {
        name: "../x".into(),
    });
    ensure!(outside.is_err(), "the host wrote {outside:?}");
    Ok(())
}

fn cmb_is_published_as_p2pmem(ctx: &Ctx) -> Result<()> {
    let nvme = ctx.nvme(0)?;
    let p2pmem = Function::of(nvme)?.dir().join("p2pmem");
    let size: u64 = sysfs::read(p2pmem.join("size"))?.parse()?;
    ensure_eq!(size, memory(nvme)?.len);
    ensure_eq!(sysfs::read(p2pmem.join("published"))?, "1");
    let available: u64 = sysfs::read(p2pmem.join("available"))?.parse()?;
    // The driver has taken its submission queues from it.
    ensure!(
        (MIB..size).contains(&available),
        "{available} of {size} bytes are free"
    );
    Ok(())
}

fn npu_memory_is_shared_with_the_host(ctx: &Ctx) -> Result<()> {
    let npu = ctx.npu(0)?;
    let (len, words) = (memory(npu)?.len, 512);
    enable(npu, true)?;
    for offset in [0, len / 2, len - MIB] {
        let view = Room::new(MIB, 0, PAGE)?;
        view.map(0, MIB, READ_WRITE, resource(npu, 2)?, offset)?;
        let bytes = pattern::bytes(offset, 0, 8 * words);
        for at in (0..bytes.len() as u64).step_by(8) {
            // SAFETY: The room holds nothing of Rust's.
            let stored = unsafe { touch::store(view.at(at), pattern::word(offset, at)) };
            ensure!(stored.is_ok(), "{stored:?}");
        }
        ensure_eq!(
            ctx.host_hash("npu0", offset, bytes.len() as u64)?,
            hash(&bytes)
        );
        ctx.host_write("npu0", offset + 64, b"from out")?;
        ensure_eq!(
            touch::load(view.at(64)).ok(),
            Some(u64::from_ne_bytes(*b"from out"))
        );
        ensure_eq!(ctx.host_read("npu0", offset + 64, 16)?[8..], bytes[72..80]);
    }
    enable(npu, false)
}

/// Its identification, and the register that inverts what is written to it.
fn edu_answers(ctx: &Ctx) -> Result<()> {
    let edu = ctx.edu()?;
    enable(edu, true)?;
    let view = Room::new(PAGE, 0, PAGE)?;
    view.map(0, PAGE, READ_WRITE, resource(edu, 0)?, 0)?;
    let register = |at| view.at(at).cast::<u32>();
    // SAFETY: Registers of edu, which takes reads and writes of four bytes there.
    let (identification, inverted) = unsafe {
        register(4).write_volatile(0x1234_5678);
        (register(0).read_volatile(), register(4).read_volatile())
    };
    ensure_eq!(identification & 0xff, 0xed);
    ensure_eq!(inverted, !0x1234_5678);
    enable(edu, false)
}

fn npu_is_removed_and_found_again(ctx: &Ctx) -> Result<()> {
    let npu = ctx.npu(0)?;
    let before = memory(npu)?;
    Function::of(npu)?.remove()?;
    ensure!(npu.place.find().is_none(), "the NPU is still there");
    rescan()?;
    ensure_eq!(memory(npu)?, before);
    Ok(())
}

/// The module is loaded all the time, and the memory keeps its contents.
fn npu_is_unplugged_and_plugged_again(ctx: &Ctx) -> Result<()> {
    ensure!(is_loaded(ctx.product()), "the module is not loaded");
    let npu = ctx.npu(0)?;
    let before = memory(npu)?;
    ctx.host_write("npu0", 4096, b"kept")?;
    replug(ctx, npu)?;
    // sysfs shows it as soon as it is found, and that is before it has addresses.
    wait_until("assignment of the BAR", || {
        memory(npu).is_ok_and(|bar| bar.start != 0)
    })?;
    ensure_eq!(memory(npu)?, before);
    enable(npu, true)?;
    let view = Room::new(PAGE, 0, PAGE)?;
    view.map(0, PAGE, READ_WRITE, resource(npu, 2)?, 4096)?;
    ensure_eq!(
        touch::load(view.at(0)).map(|word| word as u32),
        Ok(u32::from_ne_bytes(*b"kept"))
    );
    enable(npu, false)
}

fn drive_is_unplugged_and_plugged_again(ctx: &Ctx) -> Result<()> {
    let nvme = ctx.nvme(0)?;
    replug(ctx, nvme)?;
    wait_until("publication of the CMB", || {
        let published = nvme
            .place
            .find()
            .map(|path| sysfs::read(path.join("p2pmem/published")));
        published.is_some_and(|text| text.is_ok_and(|text| text == "1"))
    })
}

/// Takes 6 s, of which the guest waits 5 for an operator to change her mind.
fn replug(ctx: &Ctx, device: &Device) -> Result<()> {
    let id = || device.id.clone();
    ctx.host(HostOp::DeviceDel { id: id() })?;
    ensure!(
        device.place.find().is_none(),
        "{} is unplugged but still there",
        id()
    );
    // Linux ignores what comes within a second of turning a slot's power off.
    std::thread::sleep(Duration::from_secs(1));
    ctx.host(HostOp::DeviceAdd { id: id() })?;
    wait_until("appearance of the device", || device.place.find().is_some())
}

fn bar(device: &Device, index: usize) -> Result<Bar> {
    let path = device.place.find().context("not plugged in")?;
    let found = bars_of(&path)?.into_iter().find(|bar| bar.index == index);
    found.with_context(|| format!("{} has no BAR {index}", device.id))
}

/// The BAR that holds the memory which is exported.
fn memory(device: &Device) -> Result<Bar> {
    let index = device
        .kind
        .memory_bar()
        .context("a device without memory")?;
    bar(device, index)
}

/// A BAR through the kernel's own file.
fn resource(device: &Device, index: usize) -> Result<File> {
    let path = Function::of(device)?.dir().join(format!("resource{index}"));
    Ok(File::options().read(true).write(true).open(path)?)
}

/// Memory decoding, for a device without a driver.
fn enable(device: &Device, on: bool) -> Result<()> {
    Ok(sysfs::write(
        Function::of(device)?.dir().join("enable"),
        if on { "1" } else { "0" },
    )?)
}
