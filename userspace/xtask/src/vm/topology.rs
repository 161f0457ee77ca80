// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machines that tests run on, as types, and how QEMU is told to build them.
//!
//! Every device has an id that never changes and a slot that is known before the boot, so that a
//! test can say `npu0` and find it wherever firmware and kernel put its bus. Devices are kept as
//! the JSON that both `-device` and `device_add` take: what is plugged in again is the same.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use barbuf_guest::place::Place;
use barbuf_guest::protocol as guest;
use serde_json::{Value, json};

use crate::kernel::Flavour;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The slots of the root complex below this one are QEMU's own.
const FIRST_ROOT_SLOT: usize = 3;
/// How long the host lets pass before a drive that holds nothing answers.
pub(crate) const LATENCY_NS: u64 = 10_000_000;
/// What QEMU's default processor can address, less the room that everything else takes.
const FITS_40_BITS: u64 = 256 * GIB;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cpu {
    /// All that the accelerator can do.
    Max,
    /// A processor whose root ports the kernel trusts with P2P DMA between them.
    Epyc,
}

/// A drive, with a controller memory buffer if `cmb_mib` is not 0.
#[derive(Clone, Debug)]
pub(crate) struct Nvme {
    pub(crate) cmb_mib: u32,
    pub(crate) disk_mib: u32,
    pub(crate) ext4: bool,
    /// A directory whose files the file system holds.
    pub(crate) files: Option<PathBuf>,
    /// It holds nothing but zeros, and takes [`LATENCY_NS`] for every answer.
    pub(crate) empty: bool,
    pub(crate) behind_switch: bool,
}

/// An ivshmem device, whose BAR 2 stands for the memory of an accelerator.
#[derive(Clone, Debug)]
pub(crate) struct Npu {
    pub(crate) bar_bytes: u64,
    pub(crate) behind_switch: bool,
    pub(crate) hotpluggable: bool,
    /// Reading what was never written costs the host nothing; but the host cannot look at it.
    pub(crate) sparse: bool,
}

/// QEMU's teaching device, with a DMA engine that reaches as far as the mask.
#[derive(Clone, Debug)]
pub(crate) struct Edu {
    pub(crate) dma_mask: u64,
    pub(crate) behind_switch: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Topology {
    pub(crate) name: &'static str,
    /// What it is for, in a few words.
    pub(crate) purpose: &'static str,
    pub(crate) cpu: Cpu,
    pub(crate) memory_mib: u32,
    pub(crate) smp: u32,
    pub(crate) nvme: Vec<Nvme>,
    pub(crate) npus: Vec<Npu>,
    pub(crate) edu: Option<Edu>,
    pub(crate) iommu: bool,
    /// The IOMMU translates for VFIO only.
    pub(crate) passthrough: bool,
    /// Guest time counts guest instructions, 1 ns each.
    pub(crate) icount: bool,
    /// A screen, for pictures of it.
    pub(crate) display: bool,
}

impl Topology {
    fn new(name: &'static str, purpose: &'static str) -> Self {
        Topology {
            name,
            purpose,
            cpu: Cpu::Max,
            memory_mib: 3072,
            smp: 2,
            nvme: Vec::new(),
            npus: Vec::new(),
            edu: None,
            iommu: false,
            passthrough: false,
            icount: false,
            display: false,
        }
    }

    /// The machine with guest time made of instructions, which needs a single processor.
    pub(crate) fn with_icount(mut self) -> Self {
        self.icount = true;
        self.smp = 1;
        self
    }

    /// The machine without its drives. They answer when the host gets to it, which is never at the same instruction
    /// twice; all other devices answer at once, or by the guest's own time.
    pub(crate) fn without_drives(mut self) -> Self {
        self.nvme.clear();
        self
    }

    /// The machine with drives that hold nothing and are slow, so that whoever reads has gone to sleep when the answer
    /// comes.
    pub(crate) fn with_empty_drives(mut self) -> Self {
        for nvme in &mut self.nvme {
            nvme.empty = true;
        }
        self
    }

    /// The machine with these files on the drives that have a file system.
    pub(crate) fn with_files(mut self, dir: &Path) -> Self {
        for nvme in self.nvme.iter_mut().filter(|nvme| nvme.ext4) {
            nvme.files = Some(dir.to_owned());
        }
        self
    }

    fn with_npu(mut self, bar_bytes: u64, behind_switch: bool) -> Self {
        self.npus.push(Npu {
            bar_bytes,
            behind_switch,
            hotpluggable: true,
            sparse: false,
        });
        self
    }

    /// The same machine as this kernel is given it: on the debug kernel, which keeps books about each
    /// struct page, the largest NPUs have 8 GiB, or making those for 4 KiB pages takes a minute.
    pub(crate) fn for_kernel(mut self, flavour: Flavour) -> Self {
        if flavour == Flavour::Debug {
            for npu in &mut self.npus {
                npu.bar_bytes = npu.bar_bytes.min(8 * GIB);
            }
        }
        self
    }

    /// NPUs of many sizes, to be read from end to end. They stay where they are.
    fn with_sparse_npus(mut self, gib: &[u64]) -> Self {
        self.npus.extend(gib.iter().map(|gib| Npu {
            bar_bytes: gib * GIB,
            behind_switch: true,
            hotpluggable: false,
            sparse: true,
        }));
        self
    }

    fn with_nvme(mut self, cmb_mib: u32, ext4: bool, behind_switch: bool) -> Self {
        self.nvme.push(Nvme {
            cmb_mib,
            disk_mib: 512,
            ext4,
            files: None,
            empty: false,
            behind_switch,
        });
        self
    }

    fn with_edu(mut self, behind_switch: bool) -> Self {
        self.edu = Some(Edu {
            dma_mask: u64::MAX,
            behind_switch,
        });
        self
    }
}

/// All topologies that a test can name.
pub(crate) fn presets() -> Vec<Topology> {
    let minimal = Topology {
        memory_mib: 1024,
        display: true,
        ..Topology::new("minimal", "no device of interest")
    };
    let npu_cmb = Topology::new(
        "npu-cmb",
        "NPU of 32 GiB, NVMe with CMB, drive with ext4, edu, one switch",
    )
    .with_nvme(64, false, true)
    .with_nvme(0, true, true)
    .with_npu(32 * GIB, true)
    .with_edu(true);
    let two_root_ports = Topology {
        cpu: Cpu::Epyc,
        ..Topology::new("two-root-ports", "no switch, a trusted root complex")
    }
    .with_nvme(64, false, false)
    .with_npu(32 * GIB, false)
    .with_edu(false);
    let iommu = Topology {
        iommu: true,
        ..Topology::new("iommu", "as npu-cmb, behind an IOMMU")
    }
    .with_nvme(64, false, true)
    .with_npu(32 * GIB, true)
    .with_edu(true);
    let no_route = Topology::new("no-route", "no switch, a root complex that nobody trusts")
        .with_nvme(64, false, false)
        .with_npu(4 * GIB, false)
        .with_edu(false);
    let iommu_root_ports = Topology {
        cpu: Cpu::Epyc,
        iommu: true,
        ..Topology::new("iommu-root-ports", "as two-root-ports, behind an IOMMU")
    }
    .with_nvme(64, false, false)
    .with_npu(32 * GIB, false)
    .with_edu(false);
    let small_npu = Topology::new("small-npu", "NPUs of 1 GiB, 2 MiB and 1 MiB")
        .with_npu(GIB, true)
        .with_npu(2 * MIB, true)
        .with_npu(MIB, true);
    let icount = Topology {
        iommu: true,
        ..Topology::new("icount", "as npu-cmb, for figures")
    }
    .with_nvme(64, false, true)
    .with_npu(32 * GIB, true)
    .with_edu(true)
    .with_icount();
    let icount_root_ports = Topology {
        cpu: Cpu::Epyc,
        iommu: true,
        ..Topology::new(
            "icount-root-ports",
            "as iommu-root-ports, for figures of imports",
        )
    }
    .with_npu(32 * GIB, false)
    .with_edu(false)
    .with_icount();
    // The drives have ports of their own: what vfio-pci takes must not share an IOMMU group with them.
    let compare = Topology {
        cpu: Cpu::Epyc,
        // The struct pages of 128 GiB are 2 GiB, if they are of 4 KiB.
        memory_mib: 4608,
        iommu: true,
        passthrough: true,
        ..Topology::new("compare", "NPUs of 1 to 128 GiB, for the comparison")
    }
    .with_nvme(64, false, false)
    .with_nvme(0, false, false)
    .with_sparse_npus(&[1, 2, 4, 8, 16, 32, 128])
    .with_edu(true);
    vec![
        minimal,
        npu_cmb,
        two_root_ports,
        no_route,
        iommu,
        iommu_root_ports,
        small_npu,
        icount,
        icount_root_ports,
        compare,
    ]
}

pub(crate) fn find(name: &str) -> Result<Topology> {
    let mut all = presets();
    match all.iter().position(|topology| topology.name == name) {
        Some(index) => Ok(all.swap_remove(index)),
        None => {
            let names: Vec<&str> = all.iter().map(|topology| topology.name).collect();
            bail!(
                "there is no topology {name}\nhint: there are {}",
                names.join(", ")
            )
        }
    }
}

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
            let none = Backend::None;
            devices.push(layout.device("edu0".into(), kind, edu.behind_switch, true, json, none));
        }
        Machine {
            bridges: layout.bridges,
            devices,
        }
    }

    /// What the guest is told.
    pub(crate) fn for_guest(&self) -> guest::Topology {
        guest::Topology {
            name: self.name.into(),
            devices: self
                .machine()
                .devices
                .into_iter()
                .map(|device| device.guest)
                .collect(),
            iommu: self.iommu,
            icount: self.icount,
        }
    }

    /// The processor, with addresses wide enough for the BARs.
    ///
    /// Page tables have four levels, as on most machines. With five, an interrupt during
    /// `identify_cpu()`, which an emulated CPU is slow enough to get, finds the feature flags
    /// cleared, and KASAN then takes the direct map for wild addresses.
    pub(crate) fn cpu_argument(&self) -> String {
        let name = match self.cpu {
            Cpu::Max => "max,la57=off",
            Cpu::Epyc => "EPYC",
        };
        let bars: u64 = self.npus.iter().map(|npu| npu.bar_bytes).sum();
        if bars > FITS_40_BITS {
            format!("{name},phys-bits=46")
        } else {
            name.into()
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

    #[test]
    fn names_are_unique_and_found() {
        for topology in presets() {
            assert_eq!(find(topology.name).unwrap().name, topology.name);
            assert!(!topology.purpose.is_empty());
        }
        let error = find("nonsense").unwrap_err().to_string();
        assert!(
            error.contains("no topology nonsense") && error.contains("npu-cmb"),
            "{error}"
        );
    }

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

    #[test]
    fn large_bars_widen_the_addresses() {
        assert_eq!(find("npu-cmb").unwrap().cpu_argument(), "max,la57=off");
        let large = Topology::new("large", "").with_npu(512 * GIB, false);
        assert_eq!(large.cpu_argument(), "max,la57=off,phys-bits=46");
    }
}
