// SPDX-License-Identifier: MIT OR Apache-2.0

//! What sysfs tells of the PCI functions of this machine, and of their memory.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

#[cfg(test)]
#[path = "sysfs_tree.rs"]
pub(crate) mod tree;

// include/linux/ioport.h
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_UNSET: u64 = 0x2000_0000;

/// What the kernel calls a PCI function, `0000:03:00.0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bdf(String);

impl Bdf {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Bdf {
    type Err = String;

    /// With or without the domain.
    fn from_str(text: &str) -> Result<Bdf, String> {
        let wrong = || format!("{text:?} is no PCI function: write 0000:03:00.0 or 03:00.0");
        let (rest, function) = text.split_once('.').ok_or_else(wrong)?;
        let parts: Vec<&str> = rest.split(':').collect();
        let (domain, bus, device) = match parts[..] {
            [bus, device] => ("0000", bus, device),
            [domain, bus, device] => (domain, bus, device),
            _ => return Err(wrong()),
        };
        let hex = |text: &str, digits: std::ops::RangeInclusive<usize>, most: u32| {
            let plain = digits.contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit());
            let number = u32::from_str_radix(text, 16).ok()?;
            (plain && number <= most).then_some(number)
        };
        // A domain has four digits, or five behind a VMD.
        let domain = hex(domain, 1..=5, 0xf_ffff).ok_or_else(wrong)?;
        let bus = hex(bus, 1..=2, 0xff).ok_or_else(wrong)?;
        let device = hex(device, 1..=2, 0x1f).ok_or_else(wrong)?;
        let function = hex(function, 1..=1, 7).ok_or_else(wrong)?;
        Ok(Bdf(format!(
            "{domain:04x}:{bus:02x}:{device:02x}.{function}"
        )))
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Bdf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The file systems of the kernel, below a root that is `/` except in tests.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    pub fn new(root: &Path) -> Sysfs {
        Sysfs {
            root: root.to_owned(),
        }
    }

    /// A path below the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// What a file says, without white space around it; nothing if it cannot be read.
    pub fn read(&self, path: &str) -> Option<String> {
        read(&self.path(path))
    }

    /// All PCI functions, by address.
    ///
    /// # Errors
    ///
    /// There is no sysfs.
    pub fn functions(&self) -> Result<Vec<Function>> {
        let dir = self.path("sys/bus/pci/devices");
        let entries = fs::read_dir(&dir).map_err(|error| Error::io("list", &dir, &error))?;
        let mut functions: Vec<Function> = entries
            .flatten()
            .filter_map(|entry| {
                let bdf = entry.file_name().to_str()?.parse().ok()?;
                Some(self.at(bdf))
            })
            .collect();
        functions.sort_by(|a, b| a.bdf.cmp(&b.bdf));
        Ok(functions)
    }

    /// The function of this name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn function(&self, bdf: &Bdf) -> Result<Function> {
        let function = self.at(bdf.clone());
        if function.dir.is_dir() {
            return Ok(function);
        }
        Err(Error::not_found(format!("there is no PCI function {bdf}"))
            .hint("`barbuf list` shows what there is"))
    }

    fn at(&self, bdf: Bdf) -> Function {
        Function {
            dir: self.path("sys/bus/pci/devices").join(bdf.as_str()),
            node: self.path("dev/barbuf").join(bdf.as_str()),
            bdf,
        }
    }
}

/// A PCI function.
#[derive(Clone, Debug)]
pub struct Function {
    pub bdf: Bdf,
    /// Its directory in sysfs.
    pub dir: PathBuf,
    /// Its node, if it is a provider.
    pub node: PathBuf,
}

/// One of the six BARs, with an address or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    pub index: u32,
    pub start: u64,
    pub length: u64,
    flags: u64,
}

impl Bar {
    pub fn is_io(&self) -> bool {
        self.flags & IORESOURCE_IO != 0
    }

    pub fn is_memory(&self) -> bool {
        self.flags & IORESOURCE_MEM != 0
    }

    pub fn is_prefetchable(&self) -> bool {
        self.flags & IORESOURCE_PREFETCH != 0
    }

    pub fn is_unassigned(&self) -> bool {
        self.start == 0 || self.flags & IORESOURCE_UNSET != 0
    }
}

/// The pool of p2pmem that a function's driver has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    pub size: u64,
    pub available: u64,
    pub published: bool,
}

impl Function {
    /// What an attribute says.
    pub fn attribute(&self, name: &str) -> Option<String> {
        read(&self.dir.join(name))
    }

    /// The number that an attribute is, with or without `0x`.
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.attribute(name)?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }

    pub fn driver(&self) -> Option<String> {
        link_name(&self.dir.join("driver"))
    }

    pub fn iommu_group(&self) -> Option<String> {
        link_name(&self.dir.join("iommu_group"))
    }

    /// The NUMA node; a function of no node in particular has none.
    pub fn numa_node(&self) -> Option<u32> {
        self.attribute("numa_node")?.parse().ok()
    }

    /// `1af4:1110`
    pub fn id(&self) -> String {
        let part = |name| self.number(name).unwrap_or_default();
        format!("{:04x}:{:04x}", part("vendor"), part("device"))
    }

    /// Class, subclass and programming interface, as one number.
    pub fn class(&self) -> u64 {
        self.number("class").unwrap_or_default()
    }

    pub fn is_nvme(&self) -> bool {
        self.class() >> 8 == 0x0108
    }

    /// A bridge, by the type of its header where that can be read, or by its class.
    pub fn is_bridge(&self) -> bool {
        match fs::read(self.dir.join("config")) {
            Ok(config) if config.len() > 0x0e => config[0x0e] & 0x7f != 0,
            // PCI-to-PCI and CardBus bridges; a host bridge has an ordinary header.
            _ => matches!(self.class() >> 8, 0x0604 | 0x0607 | 0x0609),
        }
    }

    /// The BARs that exist.
    pub fn bars(&self) -> Vec<Bar> {
        self.attribute("resource")
            .map_or(Vec::new(), |text| bars_in(&text))
    }

    pub fn pool(&self) -> Option<Pool> {
        Some(Pool {
            size: self.number("p2pmem/size")?,
            available: self.number("p2pmem/available")?,
            published: self.number("p2pmem/published")? != 0,
        })
    }

    /// The BAR and the length of an NVMe drive's controller memory buffer, as its driver tells them.
    pub fn cmb(&self) -> Option<(u32, u64)> {
        let controllers = fs::read_dir(self.dir.join("nvme")).ok()?;
        let found = controllers
            .flatten()
            .find_map(|entry| read(&entry.path().join("cmb")));
        cmb_in(&found?)
    }
}

/// The first six lines are the BARs: start, end and flags.
fn bars_in(resource: &str) -> Vec<Bar> {
    let number = |text: Option<&str>| u64::from_str_radix(text?.strip_prefix("0x")?, 16).ok();
    let lines = (0..6u32).zip(resource.lines());
    let bars = lines.filter_map(|(index, line)| {
        let mut fields = line.split_whitespace();
        let start = number(fields.next())?;
        let end = number(fields.next())?;
        let flags = number(fields.next())?;
        (flags & (IORESOURCE_IO | IORESOURCE_MEM) != 0).then(|| Bar {
            index,
            start,
            length: end
                .checked_sub(start)
                .map_or(0, |less| less.saturating_add(1)),
            flags,
        })
    });
    bars.collect()
}

/// The registers CMBLOC and CMBSZ (NVMe base specification, 3.1.4.11 and 3.1.4.12).
fn cmb_in(text: &str) -> Option<(u32, u64)> {
    let register = |name: &str| {
        let value = text.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found.trim() == name).then(|| value.trim())
        })?;
        u32::from_str_radix(value.strip_prefix("0x")?, 16).ok()
    };
    let location = register("cmbloc")?;
    let size = register("cmbsz")?;
    let unit = 1u64.checked_shl(12 + 4 * ((size >> 8) & 0xf))?;
    let length = u64::from(size >> 12).checked_mul(unit)?;
    (length > 0).then_some((location & 7, length))
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn link_name(path: &Path) -> Option<String> {
    let link = fs::read_link(path).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_addresses_with_and_without_a_domain() {
        let read = |text: &str| text.parse::<Bdf>().map(|bdf| bdf.to_string());
        assert_eq!(read("0000:03:00.0"), Ok("0000:03:00.0".into()));
        assert_eq!(read("3:0.7"), Ok("0000:03:00.7".into()));
        assert_eq!(read("10000:AB:1f.1"), Ok("10000:ab:1f.1".into()));
        for text in [
            "",
            "03:00",
            "03:20.0",
            "03:00.8",
            "0:0:0:0.0",
            "+3:00.0",
            "../3:0.0",
            "3:0.0/",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_a_resource_file() {
        let bars = bars_in(
            "0x00000000fe400000 0x00000000fe4000ff 0x0000000000040200\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x000000e000000000 0x000000e7ffffffff 0x000000000014220c\n\
             0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
             0x0000000000000000 0x0000000000000fff 0x0000000020000200\n\
             garbage\n\
             0x0000000000000000 0x00000000000fffff 0x0000000000000200\n",
        );
        assert_eq!(
            bars.iter().map(|bar| bar.index).collect::<Vec<_>>(),
            [0, 2, 3, 4]
        );
        assert_eq!((bars[0].length, bars[1].length), (256, 32 << 30));
        assert!(bars[1].is_prefetchable() && bars[1].is_memory() && !bars[0].is_prefetchable());
        assert!(bars[2].is_io() && bars[3].is_unassigned());
    }

    #[test]
    fn reads_the_cmb_registers() {
        // What QEMU shows for cmb_size_mb=64: BAR 2, 64 units of 1 MiB.
        assert_eq!(
            cmb_in("cmbloc : 0x00000002\ncmbsz  : 0x0004021f\n"),
            Some((2, 64 << 20))
        );
        assert_eq!(cmb_in("cmbloc : 0x00000000\ncmbsz  : 0x00000000\n"), None);
        assert_eq!(cmb_in("cmbloc : x\n"), None);
    }

    proptest! {
        #[test]
        fn nothing_in_sysfs_makes_it_panic(text in "[0-9a-fx: \n]{0,200}") {
            bars_in(&text);
            cmb_in(&text);
            let _ = text.parse::<Bdf>();
        }

        #[test]
        fn addresses_read_back(domain in 0u32..0x10_0000, bus in 0u32..256, device in 0u32..32, function in 0u32..8) {
            let text = format!("{domain:04x}:{bus:02x}:{device:02x}.{function}");
            prop_assert_eq!(text.parse::<Bdf>().unwrap().to_string(), text);
        }
    }
}
