// SPDX-License-Identifier: MIT OR Apache-2.0

//! A driver that goes, or takes back what it registered, while its memory is in use.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::Vendor;
use crate::kit::pattern::word;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::process::{PROMPT, within};
use crate::kit::vendor::{self, Region};

/// The module goes while its memory is mapped and exported.
pub(super) fn unloading_the_driver_revokes(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
    let (paged, paged_map) = vendor.buffer(BARBUF_BACKING_PAGE)?;
    // An open file of its own device keeps the module, as for any driver.
    ensure!(
        vendor::unload().is_err(),
        "the module went with its device open"
    );
    ensure!(map.load(0) == Ok(word(4, 0)));
    let Vendor {
        provider: kept,
        sample,
        _loaded: loaded,
    } = vendor;
    drop(sample);
    within(PROMPT, "unloading", vendor::unload)??;
    for (buffer, map) in [(&buffer, &map), (&paged, &paged_map)] {
        ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
        let raw = Node::control()?.query(buffer)?.raw;
        ensure_eq!(raw.out_state, BARBUF_STATE_REVOKED);
    }
    ensure!(kept.node.info().map(drop) == Err(Errno::ENODEV));
    ensure!(!Path::new(&kept.function.node_path()).exists());
    drop(kept);
    drop(loaded);
    // And all again.
    let vendor = Vendor::new(ctx)?;
    ensure!(vendor.buffer(BARBUF_BACKING_PAGE)?.1.load(0).is_ok());
    ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
    Ok(())
}

/// Unregistering while four threads fault: each gets its value or SIGBUS, and nobody waits.
pub(super) fn unregistering_in_a_storm_of_faults(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let whole = [Region::new(0, vendor.provider.function.bar(2)?.len)];
    for round in 0..10 {
        let node = vendor.node()?;
        let backing = [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE][round % 2];
        let buffer = node.export(&Export::at(0, GIB).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, word(4, 0)) == Ok(()));
        let faults = AtomicU64::new(0);
        thread::scope(|scope| {
            let storm = || {
                loop {
                    let small = Mapping::new(&buffer, Window::new(0, GIB), READ, Place::Congruent);
                    let small = match small {
                        Ok(small) => small,
                        Err(Errno::ENODEV) => return Ok(()),
                        Err(error) => bail!("mmap: {error}"),
                    };
                    let value = small.load(0);
                    let fine = value == Ok(word(4, 0)) || value == Err(Fault::bus(small.at(0)));
                    ensure!(fine, "{value:x?}");
                    faults.fetch_add(1, Ordering::Relaxed);
                }
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(storm)).collect();
            wait_until("faults", || faults.load(Ordering::Relaxed) > 20)?;
            within(PROMPT, "unregistering", || vendor.sample.unregister())??;
            for thread in threads {
                thread.join().expect("a thread of the storm")?;
            }
            anyhow::Ok(())
        })?;
        ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
        vendor.sample.register(&whole, true)?;
    }
    Ok(())
}
