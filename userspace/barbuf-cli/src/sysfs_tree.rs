// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine made of files, for tests.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::Sysfs;
use crate::bind::Kernel;

/// A root with sys, dev and run in it.
pub(crate) struct Tree {
    dir: TempDir,
    /// Drivers whose probe fails.
    pub(crate) failing: Vec<&'static str>,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        let tree = Tree {
            dir: TempDir::new().unwrap(),
            failing: Vec::new(),
        };
        for dir in [
            "sys/bus/pci/devices",
            "sys/bus/pci/drivers",
            "dev/barbuf",
            "run",
        ] {
            fs::create_dir_all(tree.path(dir)).unwrap();
        }
        tree.write("sys/bus/pci/drivers_probe", "");
        tree.add_driver("barbuf");
        tree
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        Sysfs::new(self.dir.path())
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) fn add_driver(&self, name: &str) {
        self.write(&format!("sys/bus/pci/drivers/{name}/unbind"), "");
        self.write(&format!("sys/bus/pci/drivers/{name}/bind"), "");
    }

    pub(crate) fn function(&self, bdf: &str, class: &str, driver: Option<&str>) {
        for (name, text) in [
            ("vendor", "0x1af4"),
            ("device", "0x1110"),
            ("class", class),
            ("numa_node", "-1"),
            ("driver_override", "(null)"),
            ("resource", ""),
        ] {
            self.write(&format!("sys/bus/pci/devices/{bdf}/{name}"), text);
        }
        self.driver(bdf, driver);
    }

    pub(crate) fn driver(&self, bdf: &str, driver: Option<&str>) {
        let link = self.path(&format!("sys/bus/pci/devices/{bdf}/driver"));
        let _ = fs::remove_file(&link);
        if let Some(driver) = driver {
            self.add_driver(driver);
            symlink(self.path(&format!("sys/bus/pci/drivers/{driver}")), link).unwrap();
        }
        if driver == Some("barbuf") {
            self.node(bdf);
        } else {
            let _ = fs::remove_file(self.path(&format!("dev/barbuf/{bdf}")));
        }
    }

    pub(crate) fn has_driver(&self, bdf: &str) -> Option<String> {
        self.sysfs()
            .function(&bdf.parse().unwrap())
            .unwrap()
            .driver()
    }

    /// BARs as index, start, length and flags.
    pub(crate) fn bars(&self, bdf: &str, bars: &[(usize, u64, u64, u64)]) {
        let mut lines = [(0, 0, 0); 6];
        for &(index, start, length, flags) in bars {
            lines[index] = (start, start + length - 1, flags);
        }
        let mut text = String::new();
        for (start, end, flags) in lines {
            text += &format!("0x{start:016x} 0x{end:016x} 0x{flags:016x}\n");
        }
        self.write(&format!("sys/bus/pci/devices/{bdf}/resource"), &text);
    }

    pub(crate) fn pool(&self, bdf: &str, size: u64, available: u64, published: bool) {
        for (name, value) in [
            ("size", size),
            ("available", available),
            ("published", published.into()),
        ] {
            self.write(
                &format!("sys/bus/pci/devices/{bdf}/p2pmem/{name}"),
                &value.to_string(),
            );
        }
    }

    pub(crate) fn cmb(&self, bdf: &str, location: u32, size: u32) {
        self.write(
            &format!("sys/bus/pci/devices/{bdf}/nvme/nvme0/cmb"),
            &format!("cmbloc : 0x{location:08x}\ncmbsz  : 0x{size:08x}\n"),
        );
    }

    pub(crate) fn node(&self, bdf: &str) {
        self.write(&format!("dev/barbuf/{bdf}"), "");
    }
}

/// What the kernel does when these files are written.
impl Kernel for Tree {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let text = text.trim();
        fs::OpenOptions::new().write(true).open(path)?;
        let name = path.file_name().unwrap().to_str().unwrap();
        let parent = || {
            path.parent()
                .unwrap()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        let probe = |bdf: &str, driver: &str| {
            if self.failing.contains(&driver) {
                return Err(io::Error::from_raw_os_error(nix::libc::EINVAL));
            }
            self.driver(bdf, Some(driver));
            Ok(())
        };
        match name {
            "driver_override" => fs::write(path, if text.is_empty() { "(null)" } else { text }),
            "unbind" => {
                self.driver(text, None);
                Ok(())
            }
            "bind" => probe(text, &parent()),
            "drivers_probe" => {
                let wanted = self.read(&format!("sys/bus/pci/devices/{text}/driver_override"));
                let native =
                    fs::read_to_string(self.path(&format!("sys/bus/pci/devices/{text}/native")));
                match (wanted.as_str(), native) {
                    ("(null)", Ok(driver)) => probe(text, &driver),
                    ("(null)", Err(_)) => Ok(()),
                    (driver, _) => probe(text, driver),
                }
            }
            _ => panic!("{} is not written", path.display()),
        }
    }
}
