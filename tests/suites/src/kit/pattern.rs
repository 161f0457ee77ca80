// SPDX-License-Identifier: MIT OR Apache-2.0

//! Contents that tell where they belong: a different word at every place, a different set for every
//! seed.

use anyhow::{Result, ensure};

use super::map::Mapping;

/// The word at byte `offset` of a pattern. (The finalizer of splitmix64: every bit depends on every
/// other.)
pub(crate) fn word(seed: u64, offset: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ offset;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bytes of a pattern from `offset` on.
pub(crate) fn bytes(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    (0..len as u64 / 8)
        .flat_map(|i| word(seed, offset + i * 8).to_le_bytes())
        .collect()
}

/// Writes the pattern over `len` bytes of a mapping, counted from the mapping's start.
pub(crate) fn fill(map: &Mapping, offset: u64, len: u64, seed: u64) -> Result<()> {
    for at in (offset..offset + len).step_by(8) {
        if let Err(fault) = map.store(at, word(seed, at)) {
            anyhow::bail!("writing byte {at:#x} of the mapping: {fault:?}");
        }
    }
    Ok(())
}

/// Reads it back and compares.
pub(crate) fn verify(map: &Mapping, offset: u64, len: u64, seed: u64) -> Result<()> {
    for at in (offset..offset + len).step_by(8) {
        match map.load(at) {
            Ok(found) => {
                let wanted = word(seed, at);
                ensure!(
                    found == wanted,
                    "byte {at:#x} of the mapping: found {found:#x}, wanted {wanted:#x}"
                );
            }
            Err(fault) => anyhow::bail!("reading byte {at:#x} of the mapping: {fault:?}"),
        }
    }
    Ok(())
}
