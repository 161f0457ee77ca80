// SPDX-License-Identifier: MIT OR Apache-2.0

//! `/init` of the test guest: mounts, loads modules, runs the tests as child processes, watches
//! over the kernel between them, reports over the second serial port, powers off.
//!
//! It is process 1. Should it ever panic, the kernel does too, and the host says so.

mod channel;
mod child;
mod machine;
mod oracles;
mod run;

use std::io;
use std::process::Command;

use barbuf_guest::modules::Modules;
use barbuf_guest::protocol::{BOOT_SPEC, BootSpec, Job};
use barbuf_guest::sysfs;
use nix::sys::reboot::{RebootMode, reboot};

use channel::Channel;

fn main() {
    if let Err(error) = boot() {
        // The kernel's log is the one place that needs nothing to work.
        println!("init: {error}");
        let _ = Channel::open().and_then(|mut channel| channel.line(&format!("Bail out! {error}")));
    }
    nix::unistd::sync();
    let error = reboot(RebootMode::RB_POWER_OFF);
    panic!("cannot power off: {error:?}");
}

fn boot() -> io::Result<()> {
    machine::mount_all()?;
    let spec: BootSpec = serde_json::from_str(&sysfs::read(BOOT_SPEC)?)?;
    sysfs::write("/proc/sys/kernel/sysrq", "1")?;
    let modules = Modules(spec.modules.clone());
    for name in &spec.load {
        modules.load(name, "")?;
    }
    machine::wait_for_devices(&spec)?;
    match &spec.job {
        Job::Run(suites) => run::run(&spec, &modules, suites, Channel::open()?),
        Job::Shell => shell(&spec),
    }
}

/// Gives the console to a person until the shell ends.
fn shell(spec: &BootSpec) -> io::Result<()> {
    let busybox = "/bin/busybox";
    Command::new(busybox)
        .args(["--install", "-s", "/bin"])
        .status()?;
    println!(
        "\nbarbuf test guest, {} kernel, topology {}",
        spec.kernel, spec.topology.name
    );
    for device in &spec.topology.devices {
        let address = device.place.find();
        let address = address.as_deref().and_then(|path| path.file_name());
        let address = address.map_or("absent".into(), |name| name.to_string_lossy());
        println!("  {:<8} {address}  {:?}", device.id, device.kind);
    }
    println!("`exit` or `poweroff -f` ends the guest, Ctrl-A X kills it.\n");
    // A login shell of its own session, so that Ctrl-C reaches what it runs.
    Command::new(busybox)
        .args(["setsid", "-c", busybox, "sh", "-l"])
        .env("PATH", "/bin:/sbin")
        .env("HOME", "/")
        .env("PS1", "guest# ")
        .status()?;
    Ok(())
}
