// SPDX-License-Identifier: MIT OR Apache-2.0

//! What must hold after every test, and after every suite: the definition of "survived".
//!
//! The console is the host's part. Here is what only the guest can see: taint, references to the
//! module, living dma-bufs, drivers bound as before, memory leaks, traces of an unloaded module.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use barbuf_guest::modules::{self, Modules};
use barbuf_guest::protocol::BootSpec;
use barbuf_guest::sysfs;

use crate::machine::driver_of;

/// How long counts may take to come back, before the time scale: files and modules are let go
/// of by workers after the process has died.
const SETTLE: Duration = Duration::from_secs(3);
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";
/// kmemleak reports no object younger than five seconds.
const KMEMLEAK_AGE: Duration = Duration::from_millis(5500);

/// The state of the machine that tests must come back to.
#[derive(Debug)]
pub(crate) struct Oracles<'a> {
    spec: &'a BootSpec,
    modules: &'a Modules,
    taint: u64,
    dma_bufs: Option<u64>,
    drivers: BTreeMap<&'a str, Option<String>>,
    descriptors: usize,
}

impl<'a> Oracles<'a> {
    /// Takes the present state for the good one.
    pub(crate) fn new(spec: &'a BootSpec, modules: &'a Modules) -> io::Result<Self> {
        if Path::new(KMEMLEAK).exists() {
            // What the kernel has leaked by itself until now.
            sysfs::write(KMEMLEAK, "clear")?;
        }
        let drivers = spec.topology.devices.iter().map(|device| {
            let driver = device.place.find().and_then(|path| driver_of(&path));
            (device.id.as_str(), driver)
        });
        Ok(Oracles {
            spec,
            modules,
            taint: sysfs::taint()?,
            // A kernel without debugfs cannot tell.
            dma_bufs: sysfs::dma_buf_count().ok(),
            drivers: drivers.collect(),
            descriptors: open_descriptors()?,
        })
    }

    /// A warning is what the test is about.
    pub(crate) fn expect_warning(&mut self) {
        self.taint |= sysfs::TAINT_WARN;
    }

    /// After a test: says what is wrong, and repairs it so that the next test has a chance.
    pub(crate) fn after_test(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        self.check_taint(&mut wrong);
        self.check_drivers(&mut wrong);
        self.check_dma_bufs(&mut wrong);
        self.check_module(&mut wrong);
        wrong
    }

    /// After a suite: the slower checks; after the last one of a boot, the slowest.
    pub(crate) fn after_suite(&mut self, last: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        if last {
            // Before the module goes, and with it the names of its functions.
            match check_leaks() {
                Ok(leaks) => wrong.extend(leaks),
                Err(error) => wrong.push(format!("kmemleak: {error}")),
            }
        }
        if let Err(error) = self.reload(&self.spec.product) {
            wrong.push(error.to_string());
        }
        match open_descriptors() {
            Ok(now) if now == self.descriptors => {}
            now => wrong.push(format!(
                "init has {now:?} open files, {} before",
                self.descriptors
            )),
        }
        wrong.extend(self.after_test());
        wrong
    }

    fn check_taint(&mut self, wrong: &mut Vec<String>) {
        match sysfs::taint() {
            Ok(now) if now == self.taint => {}
            Ok(now) => {
                let (was, is) = (sysfs::taint_letters(self.taint), sysfs::taint_letters(now));
                wrong.push(format!("the kernel's taint went from {was} to {is}"));
                self.taint = now;
            }
            Err(error) => wrong.push(error.to_string()),
        }
    }

    fn check_drivers(&self, wrong: &mut Vec<String>) {
        for device in &self.spec.topology.devices {
            let Some(path) = device.place.find() else {
                wrong.push(format!("{} is gone", device.id));
                let _ = sysfs::write("/sys/bus/pci/rescan", "1");
                continue;
            };
            let (is, was) = (driver_of(&path), self.drivers[device.id.as_str()].clone());
            if is == was {
                continue;
            }
            let name = |driver: &Option<String>| driver.clone().unwrap_or("no driver".into());
            wrong.push(format!(
                "{} has {}, had {}",
                device.id,
                name(&is),
                name(&was)
            ));
            // What cannot be repaired shows again after the next test.
            let _ = sysfs::write(path.join("driver_override"), "\n");
            if let (Some(driver), Some(bdf)) = (&is, path.file_name().and_then(|n| n.to_str())) {
                let _ = sysfs::write(format!("/sys/bus/pci/drivers/{driver}/unbind"), bdf);
            }
            if let (Some(_), Some(bdf)) = (&was, path.file_name().and_then(|n| n.to_str())) {
                let _ = sysfs::write("/sys/bus/pci/drivers_probe", bdf);
            }
        }
    }

    fn check_dma_bufs(&mut self, wrong: &mut Vec<String>) {
        let Some(was) = self.dma_bufs else {
            return;
        };
        if !self.settles(|| sysfs::dma_buf_count().is_ok_and(|now| now == was)) {
            let now = sysfs::dma_buf_count();
            wrong.push(format!("{now:?} dma-bufs are alive, {was} before"));
            self.dma_bufs = now.ok();
        }
    }

    fn check_module(&self, wrong: &mut Vec<String>) {
        let product = &self.spec.product;
        if !modules::is_loaded(product) {
            wrong.push(format!("{product} is not loaded any more"));
            if let Err(error) = self.modules.load(product, "") {
                wrong.push(error.to_string());
            }
        } else if !self.settles(|| modules::references(product).is_ok_and(|count| count == 0)) {
            let count = modules::references(product);
            wrong.push(format!("{product} is still in use, references: {count:?}"));
        }
    }

    /// Unloads the module, looks for traces of it, loads it again.
    fn reload(&self, product: &str) -> io::Result<()> {
        if is_locked_down() {
            // It would load no module without a signature again.
            return Ok(());
        }
        modules::unload(product)?;
        let iomem = sysfs::iomem_lines_of(product)?;
        let files = [
            "/dev",
            "/sys/kernel/debug",
            "/sys/bus/pci/drivers",
            "/sys/module",
        ]
        .map(|dir| format!("{dir}/{product}"));
        let files = files.into_iter().filter(|path| Path::new(path).exists());
        let traces: Vec<String> = iomem.into_iter().chain(files).collect();
        self.modules.load(product, "")?;
        if traces.is_empty() {
            Ok(())
        } else {
            Err(io::Error::other(format!(
                "after unloading {product}: {}",
                traces.join(", ")
            )))
        }
    }

    fn settles(&self, holds: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + SETTLE * self.spec.time_scale;
        loop {
            if holds() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

/// Whether a test has locked the kernel down, for which it had to mount this.
fn is_locked_down() -> bool {
    sysfs::read("/sys/kernel/security/lockdown").is_ok_and(|text| !text.starts_with("[none]"))
}

fn open_descriptors() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// On a kernel with kmemleak: the records that name a module or a dma-buf.
///
/// It scans twice, as an object counts as leaked only if its contents stood still between scans.
fn check_leaks() -> io::Result<Vec<String>> {
    if !Path::new(KMEMLEAK).exists() {
        return Ok(Vec::new());
    }
    sleep(KMEMLEAK_AGE);
    sysfs::write(KMEMLEAK, "scan")?;
    sysfs::write(KMEMLEAK, "scan")?;
    Ok(leaks_in(&fs::read_to_string(KMEMLEAK)?))
}

fn leaks_in(report: &str) -> Vec<String> {
    let mut records: Vec<String> = Vec::new();
    for line in report.lines() {
        if line.starts_with("unreferenced object") {
            records.push(String::new());
        }
        if let Some(record) = records.last_mut() {
            record.push_str(line.trim());
            record.push_str("; ");
        }
    }
    // A symbol of a module is followed by its name in brackets.
    records.retain(|record| record.contains(" [") || record.contains("dma_buf"));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leaks_of_modules_and_dma_bufs_count() {
        let ours = "unreferenced object 0xffff888003a1 (size 64):\n  comm \"suites\"\n  \
                    backtrace (crc 0):\n    kmalloc+0x1/0x2\n    export+0x9/0x20 [barbuf]\n";
        let other = "unreferenced object 0xffff888003b1 (size 8):\n    acpi_ns_one+0x1/0x2\n";
        let found = leaks_in(&format!("{other}{ours}{other}"));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("[barbuf]"), "{found:?}");
        assert!(leaks_in("").is_empty());
    }
}
