// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a device sits, told without bus numbers.
//!
//! Firmware and kernel number the buses behind bridges as they like, so that an address such as
//! `0000:04:00.0` cannot be promised. The slots on the way from the root complex can.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const ROOT: &str = "/sys/devices/pci0000:00";

/// The slot on bus 0, then the slot behind each bridge: `03.0/00.0/01.0/00.0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Place(pub Vec<String>);

impl Place {
    /// The device's directory below /sys/devices, if the device is there now.
    pub fn find(&self) -> Option<PathBuf> {
        self.find_below(Path::new(ROOT))
    }

    fn find_below(&self, root: &Path) -> Option<PathBuf> {
        self.0.iter().try_fold(root.to_owned(), |dir, slot| {
            let entries = fs::read_dir(dir).ok()?;
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| is_slot(path, slot))
        })
    }
}

/// Whether a directory is a PCI function (`dddd:bb:ss.f`) in this slot.
fn is_slot(path: &Path, slot: &str) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    matches!(
        name.split(':').collect::<Vec<_>>()[..],
        [domain, bus, here] if domain.len() == 4 && bus.len() == 2 && here == slot
    )
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_past_bus_numbers() {
        let root = std::env::temp_dir().join(format!("barbuf-place-{}", std::process::id()));
        let device = root.join("0000:00:03.0/0000:01:00.0/0000:02:01.0/0000:09:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(root.join("0000:00:03.0/power")).unwrap();
        let slots = |text: &str| Place(text.split('/').map(str::to_owned).collect());
        let found = slots("03.0/00.0/01.0/00.0").find_below(&root);
        assert_eq!(found, Some(device));
        assert_eq!(slots("03.0/00.0/00.0/00.0").find_below(&root), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
