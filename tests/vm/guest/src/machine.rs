// SPDX-License-Identifier: MIT OR Apache-2.0

//! Making the machine ready: file systems, and the devices that the host promised.

use std::fs;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use barbuf_guest::protocol::{BootSpec, Device};
use barbuf_guest::sysfs;
use nix::mount::{MsFlags, mount};

/// How long drivers may take to settle, before the time scale.
const DEVICES_WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn mount_all() -> io::Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        fs::create_dir_all(target)?;
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|errno| sysfs::named(format!("cannot mount {kind} on {target}"), errno.into()))?;
    }
    Ok(())
}

/// Waits until each device is there and its own driver has bound.
pub(crate) fn wait_for_devices(spec: &BootSpec) -> io::Result<()> {
    let deadline = Instant::now() + DEVICES_WITHIN * spec.time_scale;
    for device in &spec.topology.devices {
        while !is_ready(device) {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "topology {}: {} at {} is {}",
                    spec.topology.name,
                    device.id,
                    device.place,
                    match device.place.find() {
                        Some(_) => "there, but its driver has not bound",
                        None => "not there",
                    }
                )));
            }
            sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn is_ready(device: &Device) -> bool {
    let Some(path) = device.place.find() else {
        return false;
    };
    match device.kind.native_driver() {
        None => true,
        Some("nvme") => driver_of(&path).as_deref() == Some("nvme") && has_namespace(&path),
        Some(driver) => driver_of(&path).as_deref() == Some(driver),
    }
}

/// The driver that is bound to a device.
pub(crate) fn driver_of(device: &Path) -> Option<String> {
    let link = fs::read_link(device.join("driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// Whether an NVMe controller has got as far as its block device.
fn has_namespace(device: &Path) -> bool {
    let Ok(controllers) = fs::read_dir(device.join("nvme")) else {
        return false;
    };
    controllers.flatten().any(|controller| {
        let name = controller.file_name();
        let name = name.to_string_lossy();
        Path::new(&format!("/dev/{name}n1")).exists()
    })
}
