// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a test is given: the promised machine, the host, and somebody to tell.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use barbuf_guest::modules::Modules;
use barbuf_guest::protocol::{
    BOOT_SPEC, BootSpec, Device, FromTest, HostOp, HostReply, TEST_FD, Topology, from_hex, to_hex,
};
use barbuf_guest::sysfs;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv, send};
use serde_json::Value;

#[derive(Debug)]
pub(crate) struct Ctx {
    spec: BootSpec,
    modules: Modules,
    init: OwnedFd,
    /// The test says of itself that it unplugs devices.
    hotplug: bool,
}

/// The error that makes a test skipped instead of failed.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// XXH3, 64 bits: what the host computes for [`Ctx::host_hash`].
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

#[allow(
    dead_code,
    reason = "what the present suites do not need, the next ones will"
)]
impl Ctx {
    /// The context that init has prepared.
    pub(crate) fn from_init(hotplug: bool) -> io::Result<Self> {
        let spec: BootSpec = serde_json::from_str(&sysfs::read(BOOT_SPEC)?)?;
        // SAFETY: Init hands this descriptor to each test for this purpose, and this function is
        // called once, before anything else opens or closes descriptors.
        let init = unsafe { OwnedFd::from_raw_fd(TEST_FD) };
        fcntl(&init, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(Ctx {
            modules: Modules(spec.modules.clone()),
            spec,
            init,
            hotplug,
        })
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.spec.topology
    }

    /// `stock`, `debug` or `base`.
    pub(crate) fn kernel(&self) -> &str {
        &self.spec.kernel
    }

    /// By how much everything is slower than on the stock kernel without KVM.
    pub(crate) fn time_scale(&self) -> u32 {
        self.spec.time_scale
    }

    /// The modules of the initramfs: `ctx.modules().load("vfio_pci", "")`.
    pub(crate) fn modules(&self) -> &Modules {
        &self.modules
    }

    /// The module under test.
    pub(crate) fn product(&self) -> &str {
        &self.spec.product
    }

    /// The device with this id.
    pub(crate) fn device(&self, id: &str) -> Result<&Device> {
        let found = self
            .spec
            .topology
            .devices
            .iter()
            .find(|device| device.id == id);
        found.with_context(|| format!("topology {} has no {id}", self.spec.topology.name))
    }

    pub(crate) fn npu(&self, index: usize) -> Result<&Device> {
        self.device(&format!("npu{index}"))
    }

    pub(crate) fn nvme(&self, index: usize) -> Result<&Device> {
        self.device(&format!("nvme{index}"))
    }

    pub(crate) fn edu(&self) -> Result<&Device> {
        self.device("edu0")
    }

    /// Ends the test as skipped: `return ctx.skip("...")`.
    pub(crate) fn skip<T>(&self, why: &str) -> Result<T> {
        Err(Skipped(why.into()).into())
    }

    /// Prints lines for the person at the host, whatever the outcome.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        for line in text.as_ref().lines() {
            self.tell(&FromTest::Say(line.into()));
        }
    }

    /// Keeps a line that is shown if the test fails.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.tell(&FromTest::Note(text.into()));
    }

    /// Asks the host for something; its refusal fails the test.
    pub(crate) fn host(&self, op: HostOp) -> Result<Value> {
        if matches!(op, HostOp::DeviceDel { .. }) && !self.hotplug {
            bail!("a test that unplugs a device must be listed with .hotplug()");
        }
        let reply = self
            .ask(&op)
            .with_context(|| format!("asking the host for {op:?}"))?;
        match reply {
            HostReply::Ok(value) => Ok(value),
            HostReply::Error(why) => bail!("the host on {op:?}: {why}"),
        }
    }

    /// Bytes of an NPU's memory, or of a drive, as the host sees them.
    pub(crate) fn host_read(&self, id: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        let value = self.host(HostOp::Read {
            id: id.into(),
            offset,
            len,
        })?;
        value
            .as_str()
            .and_then(from_hex)
            .with_context(|| format!("the host answered {value}"))
    }

    pub(crate) fn host_write(&self, id: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let hex = to_hex(bytes);
        self.host(HostOp::Write {
            id: id.into(),
            offset,
            hex,
        })
        .map(drop)
    }

    /// The [`hash`] of a stretch as the host sees it.
    pub(crate) fn host_hash(&self, id: &str, offset: u64, len: u64) -> Result<u64> {
        let value = self.host(HostOp::Hash {
            id: id.into(),
            offset,
            len,
        })?;
        let hash = value
            .as_str()
            .and_then(|text| u64::from_str_radix(text, 16).ok());
        hash.with_context(|| format!("the host answered {value}"))
    }

    pub(crate) fn send(&self, message: &FromTest) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        send(self.init.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// What is told is a courtesy: when init is gone, so is the guest.
    fn tell(&self, message: &FromTest) {
        if let Err(error) = self.send(message) {
            eprintln!("suites: {error}");
        }
    }

    fn ask(&self, op: &HostOp) -> io::Result<HostReply> {
        self.send(&FromTest::Host(op.clone()))?;
        let mut buffer = vec![0; 64 * 1024];
        let count = recv(self.init.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        Ok(serde_json::from_slice(&buffer[..count])?)
    }
}
