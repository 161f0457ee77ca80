// SPDX-License-Identifier: MIT OR Apache-2.0

//! A pool of more than one piece of memory, as a driver makes it that gives the kernel several ranges of
//! its BARs.

use crate::export::main_region;
use crate::kit::p2pmem::DRIVER;
use crate::kit::pattern;
use crate::kit::pci::{Function, Lent};
use crate::kit::prelude::*;

use barbuf_guest::sysfs;

pub(crate) const SUITE: Suite = Suite {
    name: "pool",
    tests: &[test!(one_piece_is_offered_and_the_other_kept_out).timeout(60)],
};

const SIZES: [u64; 2] = [8 * MIB, 16 * MIB];

/// The region is the piece that the pool gives from. Memory of the other one, which the pool gives when
/// that is used up, is no memory of the region, and goes back.
fn one_piece_is_offered_and_the_other_kept_out(ctx: &Ctx) -> Result<()> {
    let [first, second] = SIZES;
    let pieces = format!("size={first} second={second}");
    ctx.modules().load(DRIVER, &pieces)?;
    let lent = Lent::to(Function::of(ctx.npu(0)?)?, DRIVER)?;
    let dir = lent.function().dir();
    let available = || -> Result<u64> { Ok(sysfs::read(dir.join("p2pmem/available"))?.parse()?) };
    ensure_eq!(available()?, first + second);

    let provider = Provider::adopt(ctx.npu(0)?)?;
    let region = main_region(&provider.node.info()?)?;
    ensure!(SIZES.contains(&region.length), "{region:?}");
    let mut buffers = Vec::new();
    let errno = loop {
        match provider.node.export(&Export::any(MIB)) {
            Ok(buffer) => buffers.push(buffer),
            Err(errno) => break errno,
        }
        ensure!(buffers.len() as u64 <= (first + second) / MIB);
    };
    ensure_eq!(
        (errno, buffers.len() as u64),
        (Errno::ENOSPC, region.length / MIB)
    );
    ensure_eq!(available()?, first + second - region.length);
    for (seed, buffer) in (0..).zip(&buffers) {
        let range = buffer.ranges[0];
        ensure!(
            range.offset + range.length <= region.length,
            "{range:x?} is not in {region:x?}"
        );
        fill(&Mapping::whole(buffer)?, 0, PAGE, seed)?;
        let there = ctx.host_read("npu0", region.offset + range.offset, 64)?;
        ensure!(there == pattern::bytes(seed, 0, 64), "{range:x?}");
    }
    drop(buffers);
    ensure_eq!(available()?, first + second);
    Ok(())
}
