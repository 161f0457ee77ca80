// SPDX-License-Identifier: GPL-2.0

//! Reading and writing structs that begin with their size, carried out on real bytes.

use barbuf_pure_tests::pure::{
    errno::Errno,
    size_first::{self, Read},
};
use proptest::prelude::*;

mod common;

/// Reads `user` as the driver does: the kernel's struct, or the errno.
fn carry_out(user: &[u8], kernel: usize, min: usize) -> Result<Vec<u8>, Errno> {
    let plan = size_first::read(user.len(), kernel, min, |from, len| {
        assert_eq!((from, from + len), (kernel, user.len()));
        Ok(user[from..].iter().all(|byte| *byte == 0))
    })?;
    let mut known = user[..plan.copy].to_vec();
    known.resize(plan.copy + plan.zero, 0);
    Ok(known)
}

#[test]
fn a_fault_in_the_tail_is_reported() {
    assert_eq!(
        size_first::read(64, 32, 16, |_, _| Err(Errno::EFAULT)),
        Err(Errno::EFAULT)
    );
}

#[test]
fn the_tail_is_not_looked_at_without_need() {
    let never = |_, _| -> Result<bool, Errno> { panic!("asked for a tail that is not there") };
    assert_eq!(
        size_first::read(32, 32, 16, never),
        Ok(Read { copy: 32, zero: 0 })
    );
    assert_eq!(
        size_first::read(20, 32, 16, never),
        Ok(Read { copy: 20, zero: 12 })
    );
    assert_eq!(size_first::read(15, 32, 16, never), Err(Errno::EINVAL));
    assert_eq!(size_first::read(0, 32, 16, never), Err(Errno::EINVAL));
    assert_eq!(size_first::read(4097, 32, 16, never), Err(Errno::E2BIG));
    assert_eq!(
        size_first::read(usize::MAX, 32, 16, never),
        Err(Errno::E2BIG)
    );
    assert_eq!(
        size_first::read(4096, 32, 16, |_, _| Ok(true)),
        Ok(Read { copy: 32, zero: 0 })
    );
}

proptest! {
    #![proptest_config(common::cases(20_000))]

    #[test]
    fn reading(
        user in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..64),
        min in 0usize..32,
        more in 0usize..16,
    ) {
        let kernel = min + more;
        let expected = if user.len() < min {
            Err(Errno::EINVAL)
        } else if user.iter().skip(kernel).any(|byte| *byte != 0) {
            Err(Errno::E2BIG)
        } else {
            let mut bytes = user.clone();
            bytes.resize(kernel, 0);
            Ok(bytes)
        };
        prop_assert_eq!(carry_out(&user, kernel, min), expected);
    }

    #[test]
    fn writing(user in 0usize..64, kernel in prop::collection::vec(any::<u8>(), 0..64)) {
        let plan = size_first::write(user, kernel.len());
        // User memory holds other things behind the struct, and garbage in it.
        let mut memory = vec![0xaa; 128];
        memory[..plan.copy].copy_from_slice(&kernel[..plan.copy]);
        memory[plan.copy..plan.copy + plan.zero].fill(0);
        for (at, byte) in memory.into_iter().enumerate() {
            let expected = match kernel.get(at) {
                _ if at >= user => 0xaa,
                Some(known) => *known,
                None => 0,
            };
            prop_assert_eq!(byte, expected);
        }
    }
}
