// SPDX-License-Identifier: MIT OR Apache-2.0

//! What devices keep outside of the guest, and what the guest may ask of the host.
//!
//! The memory of an NPU is a memfd of this process, which QEMU maps: it outlives an unplugged
//! device, and the host can read and change it without the guest's help.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, id};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use barbuf_guest::protocol::{HostOp, HostReply, MAX_TRANSFER, from_hex, to_hex};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

use super::machine::{Backend, Device};
use super::qmp::Qmp;
use super::topology::LATENCY_NS;

/// How long a guest may take to let go of a device, before the time scale.
const UNPLUG_WITHIN: Duration = Duration::from_secs(40);

/// A device's contents.
#[derive(Debug)]
struct Store {
    device: Device,
    file: Option<File>,
    plugged: bool,
}

/// The contents of all devices of a guest.
#[derive(Debug)]
pub(crate) struct Stores {
    stores: Vec<Store>,
    dir: PathBuf,
    scale: u32,
}

impl Stores {
    /// Makes memory and drives, in the boot's own directory.
    pub(crate) fn create(devices: Vec<Device>, dir: &Path, scale: u32) -> Result<Self> {
        let stores = devices.into_iter().map(|device| {
            let file = match &device.backend {
                Backend::None | Backend::Memory { sparse: true, .. } | Backend::Zeros { .. } => {
                    None
                }
                Backend::Memory { id, bytes, .. } => {
                    let file = File::from(memfd_create(id.as_str(), MFdFlags::MFD_CLOEXEC)?);
                    file.set_len(*bytes)
                        .with_context(|| format!("no memory file of {bytes} bytes"))?;
                    Some(file)
                }
                Backend::Disk {
                    mib, ext4, files, ..
                } => {
                    let path = disk_path(dir, &device);
                    Some(disk(&path, *mib, *ext4, files.as_deref())?)
                }
            };
            Ok(Store {
                device,
                file,
                plugged: true,
            })
        });
        let stores = stores.collect::<Result<_>>()?;
        Ok(Stores {
            stores,
            dir: dir.to_owned(),
            scale,
        })
    }

    /// What QEMU's command line says of them: backends, then devices.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for store in &self.stores {
            match &store.device.backend {
                Backend::None => {}
                Backend::Memory { .. } => {
                    arguments.extend(["-object".into(), store.memory_object().to_string()]);
                }
                Backend::Disk { id, .. } => {
                    let node = json!({
                        "driver": "raw",
                        "node-name": id,
                        "file": { "driver": "file", "filename": disk_path(&self.dir, &store.device) },
                    });
                    arguments.extend(["-blockdev".into(), node.to_string()]);
                }
                Backend::Zeros { id, mib } => {
                    let node = json!({
                        "driver": "null-co",
                        "node-name": id,
                        "size": u64::from(*mib) << 20,
                        "latency-ns": LATENCY_NS,
                        "read-zeroes": true,
                    });
                    arguments.extend(["-blockdev".into(), node.to_string()]);
                }
            }
        }
        for store in &self.stores {
            arguments.extend(["-device".into(), store.device.json.to_string()]);
        }
        arguments
    }

    /// Does what the guest asks.
    pub(crate) fn serve(&mut self, op: &HostOp, qmp: &mut Qmp) -> HostReply {
        match self.perform(op, qmp) {
            Ok(value) => HostReply::Ok(value),
            Err(error) => HostReply::Error(format!("{error:#}")),
        }
    }

    fn perform(&mut self, op: &HostOp, qmp: &mut Qmp) -> Result<Value> {
        match op {
            HostOp::DeviceDel { id } => {
                let limit = UNPLUG_WITHIN * self.scale;
                let store = self.store(id)?;
                ensure!(store.device.guest.hotpluggable, "{id} is not hotpluggable");
                ensure!(store.plugged, "{id} is not plugged in");
                qmp.forget_events();
                qmp.execute("device_del", json!({ "id": id }))?;
                let events = ["DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"];
                match qmp.wait_event(&events, id, limit)?.as_str() {
                    "DEVICE_DELETED" => store.plugged = false,
                    event => bail!("{event} for {id}"),
                }
                Ok(Value::Null)
            }
            HostOp::DeviceAdd { id } => {
                let store = self.store(id)?;
                ensure!(!store.plugged, "{id} is plugged in");
                if let Backend::Memory { id, .. } = &store.device.backend {
                    // QEMU leaves the memory of an unplugged ivshmem registered under the name of
                    // its slot, and aborts when the next one registers it again. A new object
                    // over the same memfd has the same contents.
                    qmp.execute("object-del", json!({ "id": id }))?;
                    qmp.execute("object-add", store.memory_object())?;
                }
                qmp.execute("device_add", store.device.json.clone())?;
                store.plugged = true;
                Ok(Value::Null)
            }
            HostOp::Read { id, offset, len } => {
                ensure!(
                    *len <= MAX_TRANSFER,
                    "{len} bytes are more than {MAX_TRANSFER}"
                );
                let mut bytes = vec![0; *len];
                self.store(id)?.file()?.read_exact_at(&mut bytes, *offset)?;
                Ok(to_hex(&bytes).into())
            }
            HostOp::Write { id, offset, hex } => {
                let bytes = from_hex(hex).context("these are no hexadecimal digits")?;
                ensure!(
                    bytes.len() <= MAX_TRANSFER,
                    "more than {MAX_TRANSFER} bytes"
                );
                let file = self.store(id)?.file()?;
                let end = offset
                    .checked_add(bytes.len() as u64)
                    .context("no such offset")?;
                ensure!(end <= file.metadata()?.len(), "beyond the end of {id}");
                file.write_all_at(&bytes, *offset)?;
                Ok(Value::Null)
            }
            HostOp::Hash { id, offset, len } => {
                let hash = hash(self.store(id)?.file()?, *offset, *len)?;
                Ok(format!("{hash:016x}").into())
            }
            HostOp::Screendump { name } => {
                let plain = name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
                ensure!(
                    plain && !name.is_empty(),
                    "{name:?} is no name for a picture"
                );
                let path = self.dir.join(format!("{name}.png"));
                qmp.execute("screendump", json!({ "filename": path, "format": "png" }))?;
                let picture = std::fs::read(&path)?;
                ensure!(picture.starts_with(b"\x89PNG"), "QEMU made no picture");
                Ok(path.to_string_lossy().into())
            }
            HostOp::Qmp { execute, arguments } => qmp.execute(execute, arguments.clone()),
        }
    }

    fn store(&mut self, id: &str) -> Result<&mut Store> {
        let found = self
            .stores
            .iter_mut()
            .find(|store| store.device.guest.id == id);
        found.with_context(|| format!("this machine has no {id}"))
    }
}

impl Store {
    fn file(&self) -> Result<&File> {
        self.file
            .as_ref()
            .with_context(|| format!("{} holds nothing", self.device.guest.id))
    }

    /// The object through which QEMU maps the memory.
    fn memory_object(&self) -> Value {
        let Backend::Memory {
            id: name, bytes, ..
        } = &self.device.backend
        else {
            return Value::Null;
        };
        let Some(file) = &self.file else {
            // A page that is read and was never written is the page of zeros, where the memory is nobody else's.
            return json!({
                "qom-type": "memory-backend-ram",
                "id": name,
                "size": bytes,
                "share": false,
                "reserve": false,
            });
        };
        json!({
            "qom-type": "memory-backend-file",
            "id": name,
            "mem-path": format!("/proc/{}/fd/{}", id(), file.as_raw_fd()),
            "size": bytes,
            "share": true,
            "reserve": false,
        })
    }
}

fn disk_path(dir: &Path, device: &Device) -> PathBuf {
    dir.join(format!("{}.img", device.guest.id))
}

/// A sparse file, with a file system if wanted, and with files in that.
fn disk(path: &Path, mib: u32, ext4: bool, files: Option<&Path>) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    let file = file.with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(u64::from(mib) << 20)?;
    if ext4 {
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4"]);
        if let Some(files) = files {
            mke2fs.arg("-d").arg(files);
        }
        let output = mke2fs
            .arg(path)
            .stdin(Stdio::null())
            .output()
            .context("cannot run mke2fs")?;
        ensure!(
            output.status.success(),
            "mke2fs {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(file)
}

/// XXH3 of a stretch of a file.
fn hash(file: &File, mut offset: u64, mut len: u64) -> Result<u64> {
    /// A hash of more would keep the guest waiting for too long.
    const MOST: u64 = 8 << 30;
    ensure!(len <= MOST, "{len} bytes are more than {MOST}");
    let started = Instant::now();
    let mut state = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    while len > 0 {
        ensure!(
            started.elapsed() < Duration::from_secs(60),
            "hashing takes more than a minute"
        );
        let part = &mut buffer[..len.min(1 << 20) as usize];
        file.read_exact_at(part, offset)?;
        state.update(part);
        offset += part.len() as u64;
        len -= part.len() as u64;
    }
    Ok(state.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_what_lies_there() {
        let file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(3 << 20).unwrap();
        file.write_all_at(b"hello", (1 << 20) - 2).unwrap();
        let mut bytes = vec![0; 3 << 20];
        bytes[(1 << 20) - 2..(1 << 20) + 3].copy_from_slice(b"hello");
        let expected = xxhash_rust::xxh3::xxh3_64(&bytes[7..]);
        assert_eq!(hash(&file, 7, (3 << 20) - 7).unwrap(), expected);
        assert!(hash(&file, 7, 3 << 20).is_err());
    }
}
