// SPDX-License-Identifier: MIT OR Apache-2.0

//! The other design, compound pages for p2pmem in sysfs: that its variants do what they are
//! compared for. compound-sysfs/README.md says what they are.

use crate::kit::p2pmem::{P2pmem, Variant};
use crate::kit::prelude::*;

pub(crate) const SUITE: Suite = Suite {
    name: "p2pmem",
    tests: &[test!(pages_as_linux_has_them).kernels(&["stock", "base"])],
};

/// Fills, maps again, and looks where the bytes are.
fn works(ctx: &Ctx, variant: Variant, len: u64) -> Result<()> {
    let memory = P2pmem::register(ctx, ctx.npu(0)?, variant)?;
    let free = memory.available()?;
    let first = memory.map(len)?;
    let second = memory.map(len)?;
    ensure_eq!(memory.available()?, free - 2 * len);
    for at in [0, PAGE, len / 2 - 8, len / 2, len - 8] {
        ensure_eq!(first.store(at, 0x5eed_0000 | at), Ok(()));
        ensure_eq!(second.store(at, 0x5eee_0000 | at), Ok(()));
    }
    for at in [0, PAGE, len / 2 - 8, len / 2, len - 8] {
        ensure_eq!(first.load(at), Ok(0x5eed_0000 | at));
        ensure_eq!(second.load(at), Ok(0x5eee_0000 | at));
    }
    drop(first);
    ensure_eq!(memory.available()?, free - len);
    drop(second);
    ensure_eq!(memory.available()?, free);
    Ok(())
}

fn pages_as_linux_has_them(ctx: &Ctx) -> Result<()> {
    works(ctx, Variant::Base, 8 * MIB)
}
