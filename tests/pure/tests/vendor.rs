// SPDX-License-Identifier: GPL-2.0

//! What drivers may register.

use barbuf_pure_tests::pure::{
    errno::Errno,
    exclude::{self, Bar, Function, Registers},
    range::{Range, PAGE_SIZE},
    vendor::{allows_write_combining, check, WhyNot, Wish, MEMORY_ONLY, PAGES},
};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

const BAR: Bar = Bar {
    index: 2,
    memory: true,
    assigned: true,
    mappable: true,
    start: 0x38_0000_0000,
    len: 64 * MIB,
};

/// The MSI-X table is in the page at 1 MiB of BAR 2.
const FUNCTION: Function = Function {
    header_type: 0,
    registers: [
        Some(Registers {
            bar: 2,
            range: match Range::between(MIB + 16, MIB + 64) {
                Some(range) => range,
                None => panic!(),
            },
        }),
        None,
        None,
    ],
};

const WISH: Wish = Wish {
    bar: 2,
    flags: MEMORY_ONLY | PAGES,
    offset: 2 * MIB,
    len: 8 * MIB,
    caches: 0b11,
    reserved: 0,
};

fn why(wish: Wish) -> Option<WhyNot> {
    check(&FUNCTION, &BAR, true, &wish, &[]).err()
}

#[test]
fn each_reason_to_refuse() {
    assert_eq!(
        check(&FUNCTION, &BAR, true, &WISH, &[]),
        Ok(Range::new(2 * MIB, 8 * MIB).unwrap())
    );
    assert_eq!(why(Wish { flags: 4, ..WISH }), Some(WhyNot::Flags));
    assert_eq!(
        why(Wish {
            reserved: 1,
            ..WISH
        }),
        Some(WhyNot::Flags)
    );
    assert_eq!(
        why(Wish {
            caches: 0b10,
            ..WISH
        }),
        Some(WhyNot::Caches)
    );
    assert_eq!(
        why(Wish {
            caches: 0b101,
            ..WISH
        }),
        Some(WhyNot::Caches)
    );
    assert_eq!(why(Wish { len: 0, ..WISH }), Some(WhyNot::Unaligned));
    assert_eq!(why(Wish { len: 100, ..WISH }), Some(WhyNot::Unaligned));
    assert_eq!(why(Wish { offset: 8, ..WISH }), Some(WhyNot::Unaligned));
    assert_eq!(
        why(Wish {
            len: 63 * MIB,
            ..WISH
        }),
        Some(WhyNot::Outside)
    );
    assert_eq!(
        why(Wish {
            offset: u64::MAX & !4095,
            ..WISH
        }),
        Some(WhyNot::Outside)
    );
    assert_eq!(
        why(Wish {
            offset: MIB,
            len: PAGE_SIZE,
            ..WISH
        }),
        Some(WhyNot::Registers)
    );
    assert_eq!(
        why(Wish {
            offset: 0,
            len: 2 * MIB,
            ..WISH
        }),
        Some(WhyNot::Registers)
    );
    assert_eq!(
        why(Wish {
            offset: 0,
            len: MIB,
            ..WISH
        }),
        None
    );
    assert_eq!(
        check(&FUNCTION, &BAR, false, &WISH, &[]).err(),
        Some(WhyNot::NotPrefetchable)
    );
    assert!(check(&FUNCTION, &BAR, false, &Wish { caches: 1, ..WISH }, &[]).is_ok());
}

#[test]
fn regions_exclude_each_other_within_a_bar() {
    let at = |bar, offset| Wish {
        bar,
        offset,
        len: MIB,
        ..WISH
    };
    let others = [at(2, 4 * MIB), at(4, 2 * MIB)];
    let check = |offset| check(&FUNCTION, &BAR, true, &at(2, offset), &others).err();
    assert_eq!(check(2 * MIB), None);
    assert_eq!(check(3 * MIB + PAGE_SIZE), Some(WhyNot::Overlap));
    assert_eq!(check(4 * MIB), Some(WhyNot::Overlap));
    assert_eq!(check(5 * MIB - PAGE_SIZE), Some(WhyNot::Overlap));
    assert_eq!(check(5 * MIB), None);
}

#[test]
fn what_the_bar_is_comes_as_enodev() {
    let absent = check(&FUNCTION, &Bar { len: 0, ..BAR }, true, &WISH, &[]).err();
    assert_eq!(absent, Some(WhyNot::Bar(exclude::WhyNot::Absent)));
    assert_eq!(absent.unwrap().errno(), Errno::ENODEV);
    assert_eq!(WhyNot::Overlap.errno(), Errno::EINVAL);
    assert!(allows_write_combining(&WISH) && !allows_write_combining(&Wish { caches: 1, ..WISH }));
}

proptest! {
    /// Whatever is let in lies in the BAR, on pages, and touches neither registers nor another.
    #[test]
    fn nothing_bad_gets_in(
        bar in 0u32..4, flags in 0u32..8, offset in 0u64..70 * MIB, len in 0u64..70 * MIB,
        caches in 0u32..8, reserved in 0u32..2, rough in 0u64..4, other in 0u64..64 * MIB,
    ) {
        let page = |value: u64| value & !(PAGE_SIZE - 1);
        let wish = Wish {
            bar, flags, caches, reserved,
            offset: page(offset) + u64::from(rough == 1),
            len: page(len) + u64::from(rough == 2),
        };
        let other = Wish { bar, offset: page(other), len: MIB, ..WISH };
        if let Ok(range) = check(&FUNCTION, &BAR, true, &wish, &[other]) {
            prop_assert!(range.end() <= BAR.len && range.start() % PAGE_SIZE == 0);
            prop_assert!(range.len() % PAGE_SIZE == 0 && range.len() != 0);
            let table = FUNCTION.registers[0].unwrap().range;
            prop_assert!(!range.overlaps(table));
            prop_assert!(!range.overlaps(Range::new(other.offset, MIB).unwrap()));
            prop_assert!(flags < 4 && caches & 1 == 1 && caches < 4 && reserved == 0);
        }
    }
}
