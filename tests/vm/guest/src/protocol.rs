// SPDX-License-Identifier: MIT OR Apache-2.0

//! What host, init and tests say to each other.
//!
//! Three conversations, all in JSON or KTAP:
//!
//! - the host leaves a [`BootSpec`] in the initramfs;
//! - init reports over the second serial port: KTAP lines, and between them lines that begin with
//!   `@` ([`BEGIN`], [`SAY`], [`HOST`]); the host answers each `@host` line with a line of its own;
//! - a test talks to init over a socket of packets, one [`FromTest`] each.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::place::Place;

/// Where the initramfs holds the [`BootSpec`].
pub const BOOT_SPEC: &str = "/etc/barbuf-boot.json";
/// The serial port that carries results; the console has the first one.
pub const CHANNEL: &str = "/dev/ttyS1";
/// The program with the tests.
pub const SUITES: &str = "/suites";
/// The descriptor on which a test finds its socket to init.
pub const TEST_FD: i32 = 3;

/// `@begin SUITE TEST TIMEOUT_SECONDS`: a test, or an oracle, starts.
pub const BEGIN: &str = "@begin ";
/// `@say TEXT`: a line for the person at the host.
pub const SAY: &str = "@say ";
/// `@host JSON`: a [`HostOp`] that wants an answer.
pub const HOST: &str = "@host ";

/// The name under which the checks after a suite are reported, as one more test of it.
pub const ORACLES: &str = "oracles";
/// What precedes a test's name on the console when it begins and ends, so that a kernel message
/// can be charged to the test that provoked it.
pub const CONSOLE_BEGIN: &str = "barbuf-test: begin ";
pub const CONSOLE_END: &str = "barbuf-test: end ";

/// The most bytes that one [`HostOp::Read`] or [`HostOp::Write`] carries: the guest's serial port
/// holds 4 KiB of hexadecimal digits and has no flow control.
pub const MAX_TRANSFER: usize = 1024;

/// Everything that the guest is to know and to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BootSpec {
    pub topology: Topology,
    /// The name of the kernel's flavour.
    pub kernel: String,
    pub modules: Vec<ModuleFile>,
    /// Modules to load at boot, with what they need. The product comes last.
    pub load: Vec<String>,
    /// The module under test, reloaded after each suite.
    pub product: String,
    /// Every time limit is multiplied by this.
    pub time_scale: u32,
    pub job: Job,
}

/// What the guest is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Run these suites, report, power off.
    Run(Vec<SuitePlan>),
    /// Give the console to a person.
    Shell,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuitePlan {
    pub name: String,
    pub tests: Vec<TestPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestPlan {
    pub name: String,
    pub timeout_s: u32,
    /// The kernel must warn in it, which taints it.
    pub warns: bool,
}

/// A kernel module in the initramfs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModuleFile {
    /// As the kernel writes it, with underscores.
    pub name: String,
    pub path: String,
    /// All that must be loaded before, in that order.
    pub needs: Vec<String>,
}

/// The machine that the host promises.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Topology {
    pub name: String,
    pub devices: Vec<Device>,
    pub iommu: bool,
    pub icount: bool,
}

/// A device that tests use, under the id that QEMU knows it by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    pub id: String,
    pub place: Place,
    pub hotpluggable: bool,
    /// The id of the switch that it is below.
    pub switch: Option<String>,
    pub kind: DeviceKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// ivshmem: BAR 2 is memory that the host sees too.
    Npu { bar_bytes: u64 },
    /// A drive, raw or with an ext4 file system, and perhaps a controller memory buffer.
    Nvme { cmb_mib: u32, ext4: bool },
    /// QEMU's teaching device with its DMA engine.
    Edu { dma_mask: u64 },
}

impl DeviceKind {
    /// The BAR that holds the memory, for a device that has any.
    pub fn memory_bar(&self) -> Option<usize> {
        match self {
            DeviceKind::Npu { .. } | DeviceKind::Nvme { cmb_mib: 1.., .. } => Some(2),
            DeviceKind::Nvme { .. } | DeviceKind::Edu { .. } => None,
        }
    }

    /// The driver that binds without anybody's doing.
    pub fn native_driver(&self) -> Option<&'static str> {
        match self {
            DeviceKind::Nvme { .. } => Some("nvme"),
            DeviceKind::Npu { .. } | DeviceKind::Edu { .. } => None,
        }
    }
}

/// A line of `suites --list`: what a test is called and needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListedTest {
    pub suite: String,
    pub name: String,
    pub topology: String,
    /// The flavours of the kernel that it applies to.
    pub kernels: Vec<String>,
    pub timeout_s: u32,
    /// Console lines that it must provoke; such a test has a boot of its own.
    pub console: Vec<String>,
    /// The kernel is expected to panic in it.
    pub panics: bool,
    /// It unplugs devices, see `Test::hotplug`.
    pub hotplug: bool,
}

/// What a test can ask of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum HostOp {
    /// Unplugs a device and waits until the guest has let it go.
    DeviceDel { id: String },
    /// Plugs the same device into the same port again; an NPU keeps its contents.
    DeviceAdd { id: String },
    /// Reads an NPU's memory, or a drive, behind the guest's back. Answers hexadecimal digits.
    Read { id: String, offset: u64, len: usize },
    /// Writes hexadecimal digits there.
    Write {
        id: String,
        offset: u64,
        hex: String,
    },
    /// Answers the XXH3 of a stretch, 16 hexadecimal digits.
    Hash { id: String, offset: u64, len: u64 },
    /// Keeps a picture of the screen with the console log.
    Screendump { name: String },
    /// Any command of QEMU's machine protocol.
    Qmp { execute: String, arguments: Value },
}

/// The host's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostReply {
    Ok(Value),
    Error(String),
}

/// What a test says to init.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromTest {
    /// For the person at the host.
    Say(String),
    /// For whoever reads about a failure.
    Note(String),
    Host(HostOp),
    /// The last packet. A test that ends without it has crashed.
    End(Verdict),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Bytes from hexadecimal digits; None for anything else.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() % 2 != 0 || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_refuses_nonsense() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
        assert_eq!(from_hex("\u{fc}\u{fc}"), None);
    }

    #[test]
    fn host_ops_have_the_documented_form() {
        let op = HostOp::DeviceDel { id: "npu0".into() };
        let text = serde_json::to_string(&op).unwrap();
        assert_eq!(text, r#"{"op":"device_del","id":"npu0"}"#);
        let reply = serde_json::to_string(&HostReply::Error("no".into())).unwrap();
        assert_eq!(reply, r#"{"error":"no"}"#);
    }
}
