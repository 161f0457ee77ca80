// SPDX-License-Identifier: MIT OR Apache-2.0

//! The BARs of a PCI function, as the kernel's `resource` file lists them.

use std::path::Path;

use anyhow::Result;
use barbuf_guest::sysfs;

/// IORESOURCE_IO, _MEM, _PREFETCH and _MEM_64 of the kernel.
const FLAG_MEMORY: u64 = 0x200;
const FLAG_PREFETCH: u64 = 0x2000;
const FLAG_64: u64 = 0x10_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) index: usize,
    pub(crate) start: u64,
    pub(crate) len: u64,
    flags: u64,
}

impl Bar {
    pub(crate) fn is_memory(&self) -> bool {
        self.flags & FLAG_MEMORY != 0
    }

    pub(crate) fn is_prefetchable(&self) -> bool {
        self.flags & FLAG_PREFETCH != 0
    }

    pub(crate) fn is_64_bit(&self) -> bool {
        self.flags & FLAG_64 != 0
    }
}

/// The BARs that exist, of the function with this directory.
pub(crate) fn bars_of(function: &Path) -> Result<Vec<Bar>> {
    Ok(bars_in(&sysfs::read(function.join("resource"))?))
}

/// The first six lines are the BARs: start, end and flags.
fn bars_in(resource: &str) -> Vec<Bar> {
    let number = |text: Option<&str>| u64::from_str_radix(text?.strip_prefix("0x")?, 16).ok();
    let bars = resource
        .lines()
        .take(6)
        .enumerate()
        .filter_map(|(index, line)| {
            let mut fields = line.split_whitespace();
            let start = number(fields.next())?;
            let end = number(fields.next())?;
            let flags = number(fields.next())?;
            (flags != 0).then(|| Bar {
                index,
                start,
                len: end - start + 1,
                flags,
            })
        });
    bars.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_resource_file() {
        let bars = bars_in(
            "0x00000000fe400000 0x00000000fe4000ff 0x0000000000040200\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x000000e000000000 0x000000e7ffffffff 0x000000000014220c\n",
        );
        assert_eq!(bars.len(), 2);
        assert_eq!((bars[0].index, bars[0].len), (0, 256));
        assert!(bars[0].is_memory() && !bars[0].is_prefetchable() && !bars[0].is_64_bit());
        assert_eq!((bars[1].index, bars[1].len), (2, 32 << 30));
        assert!(bars[1].is_prefetchable() && bars[1].is_64_bit());
    }
}
