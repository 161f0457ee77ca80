// SPDX-License-Identifier: MIT OR Apache-2.0

//! Starting QEMU: the accelerator that really works, and the command line of a guest.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use serde_json::json;

use super::backing::Stores;
use super::topology::Topology;
use crate::cmd::die_with_us;

const QEMU: &str = "qemu-system-x86_64";
/// How long the firmware of a probe boot may take.
const PROBE_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    /// Emulation, for this reason.
    Tcg(&'static str),
}

impl Accelerator {
    /// KVM if the processor has it, the device opens, and a guest gets through its firmware:
    /// /dev/kvm alone proves nothing inside of another hypervisor.
    pub(crate) fn probe() -> &'static Accelerator {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        FOUND.get_or_init(|| {
            let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            if !has_virtualization(&cpuinfo) {
                return Accelerator::Tcg("the processor has neither vmx nor svm");
            }
            if File::options()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_err()
            {
                return Accelerator::Tcg("/dev/kvm cannot be opened");
            }
            if firmware_runs() {
                Accelerator::Kvm
            } else {
                Accelerator::Tcg("a guest under KVM does not get through its firmware")
            }
        })
    }
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Accelerator::Kvm => f.write_str("KVM"),
            Accelerator::Tcg(why) => write!(f, "TCG, because {why}"),
        }
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| {
        line.split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    })
}

/// Boots nothing under KVM and waits for the firmware to say so on its debug port.
fn firmware_runs() -> bool {
    let child = Command::new(QEMU)
        .args([
            "-accel",
            "kvm",
            "-machine",
            "q35",
            "-cpu",
            "max",
            "-m",
            "64",
            "-nodefaults",
        ])
        .args(["-display", "none", "-no-reboot", "-debugcon", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        return false;
    };
    let Some(mut output) = child.stdout.take() else {
        return false;
    };
    let reader = thread::spawn(move || {
        let (mut text, mut buffer) = (Vec::new(), [0; 512]);
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            text.extend_from_slice(&buffer[..count]);
            if String::from_utf8_lossy(&text).contains("No bootable device") {
                return true;
            }
        }
        false
    });
    let deadline = Instant::now() + PROBE_WITHIN;
    while !reader.is_finished() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    // It has ended by itself, or says nothing more of interest.
    let _ = child.kill();
    let _ = child.wait();
    reader.join().unwrap_or(false)
}

/// A guest as it is to be started.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// Further kernel parameters.
    pub(crate) parameters: String,
    pub(crate) memory_mib: u32,
}

/// The host's ends of a guest's lines.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) console: File,
    /// What the guest says, and what it is answered.
    pub(crate) channel: File,
    pub(crate) answers: File,
    pub(crate) qmp: UnixStream,
}

/// How much a guest may say before this process has read any of it. A line that is full keeps the guest waiting, for as
/// long as it is not read: a socket is full with a few hundred bytes that come one by one.
const PIPE_BYTES: i32 = 1 << 20;

/// A pipe: the end to read from, the end to write to.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // Where that is too much for a user, the usual 64 KiB do almost always.
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok((read, write))
}

impl Guest<'_> {
    fn arguments(&self, stores: &Stores) -> Vec<String> {
        let topology = self.topology;
        let mut list: Vec<String> = Vec::new();
        let mut add = |option: &str, value: String| list.extend([option.to_owned(), value]);
        let split = if topology.iommu {
            ",kernel-irqchip=split"
        } else {
            ""
        };
        add("-machine", format!("q35{split}"));
        match Accelerator::probe() {
            _ if topology.icount => {
                add("-accel", "tcg,thread=single".into());
                // Idle time passes as fast as the host's clock, or not at all where nothing but that time is waited for:
                // a drive's driver would see its answers time out.
                let sleep = if topology.nvme.is_empty() {
                    ",sleep=off"
                } else {
                    ""
                };
                add("-icount", format!("shift=0{sleep}"));
                // What else would differ from boot to boot: random numbers, the date.
                add("-seed", "1".into());
                add("-rtc", "base=2026-01-01,clock=vm".into());
            }
            Accelerator::Kvm => add("-accel", "kvm".into()),
            Accelerator::Tcg(_) => add("-accel", "tcg,thread=multi".into()),
        }
        add("-cpu", topology.cpu_argument());
        add("-smp", topology.smp.to_string());
        add("-m", format!("{}M", self.memory_mib));
        add("-display", "none".into());
        // Native hotplug for every port: with ACPI's, a switch port has none.
        add(
            "-global",
            "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off".into(),
        );
        if topology.iommu {
            add(
                "-device",
                json!({ "driver": "intel-iommu", "aw-bits": 48 }).to_string(),
            );
        }
        if topology.display {
            add("-device", json!({ "driver": "VGA" }).to_string());
        }
        for bridge in topology.machine().bridges {
            add("-device", bridge.to_string());
        }
        list.extend(stores.arguments());
        list.extend(["-nodefaults", "-no-reboot", "-no-user-config"].map(str::to_owned));
        let mut add = |option: &str, value: String| list.extend([option.to_owned(), value]);
        add("-kernel", self.kernel.to_string_lossy().into());
        add("-initrd", self.initramfs.to_string_lossy().into());
        add("-append", self.command_line());
        list
    }

    fn command_line(&self) -> String {
        let mut line = String::from("console=ttyS0 oops=panic panic=-1 printk.devkmsg=on");
        if self.topology.iommu {
            line += " intel_iommu=on";
        }
        if self.topology.passthrough {
            line += " iommu=pt";
        }
        if self.topology.icount {
            line += " nokaslr norandmaps";
        }
        let parameters = self.parameters.trim();
        if !parameters.is_empty() {
            line += " ";
            line += parameters;
        }
        line
    }

    /// Starts a guest whose console, report and QMP come to this process.
    pub(crate) fn start(&self, stores: &Stores, log: &Path) -> Result<(Child, Lines)> {
        let mut arguments = self.arguments(stores);
        let (console, console_end) = pipe()?;
        let (channel, channel_end) = pipe()?;
        let (answers_end, answers) = pipe()?;
        let (qmp, qmp_end) = UnixStream::pair()?;
        // By number: a path could be too long for a socket, and outlive a crash.
        let ends = [console_end, channel_end, answers_end, qmp_end.into()];
        let mappings = (3..).zip(ends).map(|(child_fd, parent_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        for chardev in [
            "file,id=console,path=/dev/fd/3",
            "file,id=channel,path=/dev/fd/4,input-path=/dev/fd/5",
            "socket,id=qmp,fd=6",
        ] {
            arguments.extend(["-chardev", chardev].map(str::to_owned));
        }
        for name in ["console", "channel"] {
            arguments.extend(["-serial".into(), format!("chardev:{name}")]);
        }
        let monitor = json!({ "qom-type": "monitor-qmp", "id": "monitor", "chardev": "qmp" });
        arguments.extend(["-object".into(), monitor.to_string()]);
        let output =
            File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = Command::new(QEMU);
        command
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .fd_mappings(mappings.collect())?;
        let child = die_with_us(&mut command)
            .spawn()
            .with_context(|| format!("cannot run {QEMU}"))?;
        // Ends of QEMU's that stayed open here would hide its death.
        drop(command);
        Ok((
            child,
            Lines {
                console: console.into(),
                channel: channel.into(),
                answers: answers.into(),
                qmp,
            },
        ))
    }

    /// Starts a guest whose console is this terminal.
    pub(crate) fn start_interactive(&self, stores: &Stores) -> Result<Child> {
        let mut arguments = self.arguments(stores);
        arguments.extend(["-serial", "mon:stdio", "-serial", "null"].map(str::to_owned));
        let mut command = Command::new(QEMU);
        let child = die_with_us(command.args(&arguments)).spawn();
        child.with_context(|| format!("cannot run {QEMU}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::topology;

    fn arguments(name: &str) -> String {
        let topology = topology::find(name).unwrap();
        let guest = Guest {
            topology: &topology,
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            parameters: "quiet".into(),
            memory_mib: 512,
        };
        // Disks are files: leave them out.
        let stores = Stores::create(Vec::new(), Path::new("/nonexistent"), 1).unwrap();
        guest.arguments(&stores).join(" ")
    }

    #[test]
    fn the_iommu_comes_before_all_devices() {
        let line = arguments("iommu");
        let iommu = line.find("intel-iommu").unwrap();
        assert!(iommu < line.find("pcie-root-port").unwrap(), "{line}");
        assert!(
            line.contains("kernel-irqchip=split") && line.contains("intel_iommu=on"),
            "{line}"
        );
        assert!(!arguments("minimal").contains("iommu"));
    }

    #[test]
    fn icount_has_one_thread() {
        let line = arguments("icount");
        assert!(
            line.contains("-accel tcg,thread=single -icount shift=0"),
            "{line}"
        );
        assert!(line.contains("-smp 1 "), "{line}");
    }

    #[test]
    fn kvm_needs_a_flag_of_the_processor() {
        assert!(has_virtualization("flags\t\t: fpu vmx sse\n"));
        assert!(!has_virtualization("flags\t\t: fpu sse vmxoff\n"));
        assert!(!has_virtualization(""));
    }
}
