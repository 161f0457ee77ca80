// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machines that tests run on, as types. `machine.rs` builds them.
//!
//! Every device has an id that never changes and a slot that is known before the boot, so that a
//! test can say `npu0` and find it wherever firmware and kernel put its bus.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use barbuf_guest::protocol as guest;

use crate::kernel::Flavour;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
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
    /// A second function of the first NPU, below the same port.
    pub(crate) beside_npu: bool,
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
    /// Parameters of the kernel, for drivers that are built in.
    pub(crate) parameters: &'static str,
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
            parameters: "",
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

    /// The machine with drives whose CMB has pages of 2 MiB, on a kernel that can be told so.
    pub(crate) fn with_compound_cmb(mut self) -> Self {
        self.parameters = "nvme.cmb_devmap_align=2097152";
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
            beside_npu: false,
        });
        self
    }

    /// The machine with edu in the port of the first NPU, which neither is then plugged out of.
    fn with_edu_beside_npu(mut self) -> Self {
        self = self.with_edu(false);
        if let Some(edu) = &mut self.edu {
            edu.beside_npu = true;
        }
        for npu in &mut self.npus {
            npu.hotpluggable = false;
        }
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
    let one_port = Topology::new("one-port", "NPU and edu below one root port, which has ACS")
        .with_npu(4 * GIB, false)
        .with_edu_beside_npu();
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
    let compound_cmb = Topology::new("compound-cmb", "a drive whose CMB has pages of 2 MiB")
        .with_nvme(64, false, false)
        .with_compound_cmb();
    vec![
        minimal,
        npu_cmb,
        two_root_ports,
        no_route,
        iommu,
        iommu_root_ports,
        one_port,
        small_npu,
        icount,
        icount_root_ports,
        compare,
        compound_cmb,
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

impl Topology {
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
    fn large_bars_widen_the_addresses() {
        assert_eq!(find("npu-cmb").unwrap().cpu_argument(), "max,la57=off");
        let large = Topology::new("large", "").with_npu(512 * GIB, false);
        assert_eq!(large.cpu_argument(), "max,la57=off,phys-bits=46");
    }
}
