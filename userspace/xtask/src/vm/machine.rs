// SPDX-License-Identifier: MIT OR Apache-2.0

//! A topology with every slot assigned: where each device is, and how QEMU is told to build it.
//!
//! Devices are kept as the JSON that both `-device` and `device_add` take: what is plugged in again is
//! the same.

use std::path::PathBuf;

use barbuf_guest::place::Place;
use barbuf_guest::protocol as guest;
use serde_json::{Value, json};

use super::topology::Topology;

/// The slots of the root complex below this one are QEMU's own.
const FIRST_ROOT_SLOT: usize = 3;

/// A device that tests use.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) guest: guest::Device,
    /// What `-device` and `device_add` take.
    pub(crate) json: Value,
    pub(crate) backend: Backend,
}

/// Where a device's contents are kept outside of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    None,
    /// Memory that host and guest share.
    Memory {
        id: String,
        bytes: u64,
        /// The guest's alone.
        sparse: bool,
    },
    Disk {
        id: String,
        mib: u32,
        ext4: bool,
        files: Option<PathBuf>,
    },
    /// Zeros, and what is written is lost.
    Zeros {
        id: String,
        mib: u32,
    },
}

/// A topology with every slot assigned.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Bridges, from the root down, as JSON for `-device`.
    pub(crate) bridges: Vec<Value>,
    pub(crate) devices: Vec<Device>,
}

/// The free ports of a machine that is being laid out.
#[derive(Default)]
struct Layout {
    bridges: Vec<Value>,
    switch_slot: Option<String>,
    downstream_ports: usize,
    root_ports: usize,
}

impl Topology {
    /// Gives every device its port.
    pub(crate) fn machine(&self) -> Machine {
        let mut layout = Layout::default();
        let mut devices = Vec::new();
        for (index, nvme) in self.nvme.iter().enumerate() {
            let id = format!("nvme{index}");
            let disk = format!("{id}-disk");
            let backend = match nvme.empty {
                true => Backend::Zeros {
                    id: disk,
                    mib: nvme.disk_mib,
                },
                false => Backend::Disk {
                    id: disk,
                    mib: nvme.disk_mib,
                    ext4: nvme.ext4,
                    files: nvme.files.clone(),
                },
            };
            let mut json = json!({
                "driver": "nvme",
                "drive": format!("{id}-disk"),
                "serial": id,
            });
            if nvme.cmb_mib > 0 {
                json["cmb_size_mb"] = nvme.cmb_mib.into();
            }
            let kind = guest::DeviceKind::Nvme {
                cmb_mib: nvme.cmb_mib,
                ext4: nvme.ext4,
            };
            devices.push(layout.device(id, kind, nvme.behind_switch, true, json, backend));
        }
        for (index, npu) in self.npus.iter().enumerate() {
            let id = format!("npu{index}");
            let memory = format!("{id}-memory");
            let json = json!({ "driver": "ivshmem-plain", "memdev": memory });
            let backend = Backend::Memory {
                id: memory,
                bytes: npu.bar_bytes,
                sparse: npu.sparse,
            };
            let kind = guest::DeviceKind::Npu {
                bar_bytes: npu.bar_bytes,
            };
            let hotpluggable = npu.hotpluggable;
            devices.push(layout.device(id, kind, npu.behind_switch, hotpluggable, json, backend));
        }
        if let Some(edu) = &self.edu {
            let json = json!({ "driver": "edu", "dma_mask": edu.dma_mask });
            let kind = guest::DeviceKind::Edu {
                dma_mask: edu.dma_mask,
            };
            let (id, none) = ("edu0".to_owned(), Backend::None);
            let npu = devices.iter_mut().find(|device| device.guest.id == "npu0");
            let edu = match npu {
                Some(npu) if edu.beside_npu => npu.with_second(id, kind, json),
                _ => layout.device(id, kind, edu.behind_switch, true, json, none),
            };
            devices.push(edu);
        }
        Machine {
            bridges: layout.bridges,
            devices,
        }
    }
}

impl Device {
    /// A second function below the port of this one.
    fn with_second(&mut self, id: String, kind: guest::DeviceKind, mut json: Value) -> Device {
        self.json["multifunction"] = true.into();
        json["id"] = id.clone().into();
        json["bus"] = self.json["bus"].clone();
        json["addr"] = "0.1".into();
        let mut place = self.guest.place.clone();
        place.0.pop();
        place.0.push("00.1".into());
        let guest = guest::Device {
            id,
            place,
            hotpluggable: false,
            switch: self.guest.switch.clone(),
            kind,
        };
        Device {
            guest,
            json,
            backend: Backend::None,
        }
    }
}

impl Layout {
    fn device(
        &mut self,
        id: String,
        kind: guest::DeviceKind,
        behind_switch: bool,
        hotpluggable: bool,
        mut json: Value,
        backend: Backend,
    ) -> Device {
        let (bus, mut place) = if behind_switch {
            self.downstream_port(&id)
        } else {
            self.root_port(&format!("port-{id}"))
        };
        place.push("00.0".into());
        json["id"] = id.clone().into();
        json["bus"] = bus.into();
        let switch = behind_switch.then(|| "switch".to_owned());
        let guest = guest::Device {
            id,
            place: Place(place),
            hotpluggable,
            switch,
            kind,
        };
        Device {
            guest,
            json,
            backend,
        }
    }

    /// A root port, and where it is.
    fn root_port(&mut self, id: &str) -> (String, Vec<String>) {
        let slot = FIRST_ROOT_SLOT + self.root_ports;
        self.root_ports += 1;
        self.bridges.push(json!({
            "driver": "pcie-root-port",
            "id": id,
            "addr": format!("{slot:x}.0"),
            // Chassis and slot name the port in the guest: they must differ.
            "chassis": slot,
            "slot": slot,
        }));
        (id.into(), vec![format!("{slot:02x}.0")])
    }

    /// A port of the switch, which is made when its first port is asked for.
    fn downstream_port(&mut self, device: &str) -> (String, Vec<String>) {
        let root = match &self.switch_slot {
            Some(slot) => slot.clone(),
            None => {
                let (bus, place) = self.root_port("port-switch");
                self.bridges
                    .push(json!({ "driver": "x3130-upstream", "id": "switch", "bus": bus }));
                let slot = place.concat();
                self.switch_slot = Some(slot.clone());
                slot
            }
        };
        let slot = self.downstream_ports;
        self.downstream_ports += 1;
        let id = format!("port-{device}");
        self.bridges.push(json!({
            "driver": "xio3130-downstream",
            "id": id,
            "bus": "switch",
            "addr": format!("{slot:x}.0"),
            "chassis": 100 + slot,
            "slot": 100 + slot,
        }));
        (id, vec![root, "00.0".into(), format!("{slot:02x}.0")])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::topology::{find, presets};

    #[test]
    fn npu_cmb_is_below_one_switch() {
        let machine = find("npu-cmb").unwrap().machine();
        let places: Vec<String> = machine
            .devices
            .iter()
            .map(|device| device.guest.place.to_string())
            .collect();
        assert_eq!(
            places,
            [
                "03.0/00.0/00.0/00.0",
                "03.0/00.0/01.0/00.0",
                "03.0/00.0/02.0/00.0",
                "03.0/00.0/03.0/00.0"
            ]
        );
        assert!(
            machine
                .devices
                .iter()
                .all(|device| device.guest.switch.is_some())
        );
        assert_eq!(machine.bridges.len(), 2 + 4);
    }

    #[test]
    fn without_a_switch_each_device_has_a_root_port() {
        let machine = find("two-root-ports").unwrap().machine();
        let places: Vec<String> = machine
            .devices
            .iter()
            .map(|device| device.guest.place.to_string())
            .collect();
        assert_eq!(places, ["03.0/00.0", "04.0/00.0", "05.0/00.0"]);
    }

    #[test]
    fn two_functions_share_a_port() {
        let machine = find("one-port").unwrap().machine();
        let [npu, edu] = &machine.devices[..] else {
            panic!("{machine:?}");
        };
        assert_eq!(npu.guest.place.to_string(), "03.0/00.0");
        assert_eq!(edu.guest.place.to_string(), "03.0/00.1");
        assert_eq!(npu.json["bus"], edu.json["bus"]);
        assert_eq!(npu.json["multifunction"], true);
        assert_eq!(machine.bridges.len(), 1);
    }

    #[test]
    fn no_two_ports_share_a_name() {
        for topology in presets() {
            let bridges = topology.machine().bridges;
            let key = |bridge: &Value, name: &str| bridge[name].to_string();
            for name in ["id", "chassis"] {
                let mut keys: Vec<String> = bridges
                    .iter()
                    .filter(|bridge| bridge.get(name).is_some())
                    .map(|bridge| key(bridge, name))
                    .collect();
                let count = keys.len();
                keys.sort();
                keys.dedup();
                assert_eq!(keys.len(), count, "{} in {}", name, topology.name);
            }
        }
    }
}
