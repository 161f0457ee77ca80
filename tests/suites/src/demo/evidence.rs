// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel itself has counted: host memory that a drive was given for its DMA.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use barbuf_guest::sysfs;

/// The event of every mapping of host memory for DMA. Memory of another device below the same switch
/// is addressed on the bus directly, and is not mapped.
const EVENT: &str = "/sys/kernel/tracing/events/dma/dma_map_phys";
const SUMS: &str = "hist:keys=device:vals=size";

/// Counts, for each device, the bytes of host memory that are mapped for its DMA.
#[derive(Debug)]
pub(super) struct HostDma {
    event: PathBuf,
}

impl HostDma {
    pub(super) fn start() -> Result<HostDma> {
        let event = PathBuf::from(EVENT);
        sysfs::write(event.join("trigger"), SUMS)
            .context("the kernel cannot sum up DMA mappings")?;
        Ok(HostDma { event })
    }

    /// Bytes so far.
    pub(super) fn of(&self, bdf: &str) -> Result<u64> {
        Ok(sum_in(&sysfs::read(self.event.join("hist"))?, bdf))
    }
}

impl Drop for HostDma {
    fn drop(&mut self) {
        if let Err(error) = sysfs::write(self.event.join("trigger"), &format!("!{SUMS}")) {
            eprintln!("cannot stop counting: {error}");
        }
    }
}

/// `{ device: 0000:04:00.0   } hitcount:   10  size:   40960`
fn sum_in(hist: &str, bdf: &str) -> u64 {
    let line = hist.lines().find(|line| {
        line.strip_prefix("{ device: ")
            .is_some_and(|rest| rest.split_whitespace().next() == Some(bdf))
    });
    let value = line.and_then(|line| line.rsplit_once("size:")?.1.trim().parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_histogram() {
        let text = "# event histogram\n#\n\
            { device: 0000:03:00.0                                      } hitcount:          3  size:      12288\n\
            { device: 0000:04:00.0                                      } hitcount:       1042  size:   16777216\n\
            \nTotals:\n    Hits: 1045\n";
        assert_eq!(sum_in(text, "0000:04:00.0"), 16_777_216);
        assert_eq!(sum_in(text, "0000:03:00.0"), 12_288);
        assert_eq!(sum_in(text, "0000:05:00.0"), 0);
    }
}
