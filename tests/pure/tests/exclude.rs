// SPDX-License-Identifier: GPL-2.0

//! What is cut out of a BAR, against a model that looks at every page.

use barbuf_pure_tests::pure::{
    exclude::{self, Bar, Function, Registers, WhyNot},
    range::{Range, PAGE_SIZE},
};
use proptest::prelude::*;

mod common;

const BAR: Bar = Bar {
    index: 2,
    memory: true,
    assigned: true,
    mappable: true,
    start: 0x38_0000_0000,
    len: 32 << 30,
};

const PLAIN: Function = Function {
    header_type: 0,
    registers: [None; 3],
};

fn registers(bar: u32, start: u64, len: u64) -> Option<Registers> {
    Some(Registers {
        bar,
        range: Range::new(start, len).unwrap(),
    })
}

#[test]
fn reasons_to_refuse_a_bar() {
    let why = |function: Function, bar: Bar| exclude::divide(&function, &bar).err();
    assert_eq!(why(PLAIN, BAR), None);
    assert_eq!(
        why(
            Function {
                header_type: 0x80,
                ..PLAIN
            },
            BAR
        ),
        None
    );
    assert_eq!(
        why(
            Function {
                header_type: 1,
                ..PLAIN
            },
            BAR
        ),
        Some(WhyNot::Bridge)
    );
    assert_eq!(
        why(
            Function {
                header_type: 0x82,
                ..PLAIN
            },
            BAR
        ),
        Some(WhyNot::Bridge)
    );
    for index in [6, 7, 12, 13, u32::MAX] {
        assert_eq!(why(PLAIN, Bar { index, ..BAR }), Some(WhyNot::NotABar));
    }
    let cases = [
        (Bar { len: 0, ..BAR }, WhyNot::Absent),
        (
            Bar {
                memory: false,
                ..BAR
            },
            WhyNot::IoPorts,
        ),
        (
            Bar {
                assigned: false,
                ..BAR
            },
            WhyNot::Unassigned,
        ),
        (Bar { start: 0, ..BAR }, WhyNot::Unassigned),
        (
            Bar {
                start: u64::MAX - 4095,
                len: 8192,
                ..BAR
            },
            WhyNot::Unassigned,
        ),
        (
            Bar {
                mappable: false,
                ..BAR
            },
            WhyNot::NotMappable,
        ),
        (Bar { len: 256, ..BAR }, WhyNot::SubPage),
        (Bar { len: 4095, ..BAR }, WhyNot::SubPage),
        (
            Bar {
                start: 0xfe00_0800,
                len: 4096,
                ..BAR
            },
            WhyNot::Unaligned,
        ),
        (
            Bar {
                len: 4096 + 512,
                ..BAR
            },
            WhyNot::Unaligned,
        ),
    ];
    for (bar, reason) in cases {
        assert_eq!(why(PLAIN, bar), Some(reason), "{bar:?}");
    }
    // Every reason can be told from every other by its text.
    for (index, reason) in WhyNot::ALL.into_iter().enumerate() {
        assert!(WhyNot::ALL[..index]
            .iter()
            .all(|other| other.text() != reason.text()));
    }
}

/// QEMU's NVMe controller: registers and doorbells first, the MSI-X table at 8 KiB, its pending
/// bits at 12 KiB.
#[test]
fn an_nvme_controller() {
    let [table, pba] = exclude::msix(64, 0x2000, 0x3000);
    assert_eq!(table, registers(0, 0x2000, 65 * 16));
    assert_eq!(pba, registers(0, 0x3000, 16));
    let doorbells = exclude::nvme(0, 65);
    assert_eq!(doorbells, registers(0, 0, 0x1000 + 65 * 8));
    let function = Function {
        header_type: 0,
        registers: [table, pba, doorbells],
    };
    let bar = Bar {
        index: 0,
        len: 0x4000,
        ..BAR
    };
    assert_eq!(
        exclude::divide(&function, &bar).err(),
        Some(WhyNot::OnlyRegisters)
    );
    // Another BAR of the same function is whole.
    let cmb = Bar {
        len: 64 << 20,
        ..BAR
    };
    let division = exclude::divide(&function, &cmb).unwrap();
    assert!(division.excluded.as_slice().is_empty());
    assert_eq!(
        division.regions.as_slice(),
        [Range::new(0, 64 << 20).unwrap()]
    );
}

/// ivshmem's BAR 1 is nothing but its MSI-X table.
#[test]
fn a_bar_of_its_own_for_msix() {
    let [table, pba] = exclude::msix(0, 1, 0x801);
    let function = Function {
        header_type: 0,
        registers: [table, pba, None],
    };
    let bar = Bar {
        index: 1,
        len: 4096,
        ..BAR
    };
    assert_eq!(
        exclude::divide(&function, &bar).err(),
        Some(WhyNot::OnlyRegisters)
    );
}

#[test]
fn three_cuts_make_four_regions() {
    let function = Function {
        header_type: 0,
        registers: [
            registers(2, 9 * PAGE_SIZE + 8, 8),
            registers(2, PAGE_SIZE, 1),
            registers(2, 5 * PAGE_SIZE - 1, 2),
        ],
    };
    let division = exclude::divide(
        &function,
        &Bar {
            len: 12 * PAGE_SIZE,
            ..BAR
        },
    )
    .unwrap();
    let pages = |ranges: &exclude::Ranges| -> Vec<(u64, u64)> {
        ranges
            .as_slice()
            .iter()
            .map(|range| (range.start() / PAGE_SIZE, range.end() / PAGE_SIZE))
            .collect()
    };
    assert_eq!(pages(&division.excluded), [(1, 2), (4, 6), (9, 10)]);
    assert_eq!(pages(&division.regions), [(0, 1), (2, 4), (6, 9), (10, 12)]);
}

/// Whatever the order in which they are known, cuts that touch or overlap are one.
#[test]
fn a_chain_of_cuts_is_one() {
    let page = |first, pages| registers(2, first * PAGE_SIZE, pages * PAGE_SIZE);
    let chain = [page(2, 2), page(3, 3), page(6, 1)];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let function = Function {
            header_type: 0,
            registers: order.map(|index| chain[index]),
        };
        let bar = Bar {
            len: 8 * PAGE_SIZE,
            ..BAR
        };
        let division = exclude::divide(&function, &bar).unwrap();
        let one = Range::new(2 * PAGE_SIZE, 5 * PAGE_SIZE).unwrap();
        assert_eq!(division.excluded.as_slice(), [one], "{order:?}");
    }
}

#[test]
fn doorbells_of_a_controller_that_nobody_asked() {
    // The widest stride and the most queues: nothing of a BAR up to 16 GiB is left.
    let most = exclude::nvme(15, 65_536).unwrap();
    assert_eq!(most.range.len(), 0x1000 + (16 << 30));
    assert_eq!(exclude::nvme(u32::MAX, 65_536), Some(most));
    assert_eq!(exclude::nvme(0, 0), registers(0, 0, 0x1000));
    assert!(exclude::nvme(u32::MAX, u32::MAX).is_some());
}

#[test]
fn msix_of_the_largest_table() {
    let [table, pba] = exclude::msix(u16::MAX, 0xffff_fff8 | 4, 7);
    assert_eq!(table, registers(4, 0xffff_fff8, 2048 * 16));
    assert_eq!(pba, registers(7, 0, 2048 / 8));
}

proptest! {
    #![proptest_config(common::cases(20_000))]

    #[test]
    fn pages_with_registers_are_cut_out(
        registers in prop::array::uniform3(prop::option::of((0u32..3, 0u64..24 * 8, 1u64..48))),
        pages in 1u64..24,
    ) {
        let registers = registers.map(|one| {
            one.map(|(bar, start, len)| Registers {
                bar,
                range: Range::new(start * 512, len * 512).unwrap(),
            })
        });
        let bar = Bar { index: 1, len: pages * PAGE_SIZE, ..BAR };
        let function = Function { header_type: 0, registers };
        let is_register = |page: u64| {
            let page = Range::new(page * PAGE_SIZE, PAGE_SIZE).unwrap();
            registers.iter().flatten().any(|one| one.bar == 1 && one.range.overlaps(page))
        };
        match exclude::divide(&function, &bar) {
            Err(why) => {
                prop_assert_eq!(why, WhyNot::OnlyRegisters);
                prop_assert!((0..pages).all(is_register));
            }
            Ok(division) => {
                for page in 0..24 {
                    let inside = |ranges: &exclude::Ranges| {
                        ranges.as_slice().iter().filter(|range| range.contains(page * PAGE_SIZE)).count()
                    };
                    let exists = page < pages;
                    prop_assert_eq!(inside(&division.excluded), usize::from(exists && is_register(page)));
                    prop_assert_eq!(inside(&division.regions), usize::from(exists && !is_register(page)));
                }
                for ranges in [division.excluded, division.regions] {
                    let ranges = ranges.as_slice();
                    prop_assert!(ranges.iter().all(|range| range.is_page_aligned()));
                    // Sorted, and what touches is one range.
                    prop_assert!(ranges.windows(2).all(|two| two[0].end() < two[1].start()));
                }
            }
        }
    }

    #[test]
    fn any_facts_at_all(
        header_type in prop_oneof![Just(0u8), any::<u8>()],
        registers in prop::array::uniform3(prop::option::of((0u32..8, any::<u64>(), 1..u64::MAX))),
        index in 0u32..8,
        start in any::<u64>(),
        len in any::<u64>(),
        page_aligned in any::<bool>(),
    ) {
        let registers = registers.map(|one| {
            let (bar, start, len) = one?;
            Some(Registers { bar, range: Range::new(start, len).ok()? })
        });
        let mask = if page_aligned { !4095 } else { !0 };
        let bar = Bar { index, start: start & mask, len: len & mask, ..BAR };
        if let Ok(division) = exclude::divide(&Function { header_type, registers }, &bar) {
            let regions = division.regions.as_slice();
            prop_assert!(!regions.is_empty());
            prop_assert!(regions.iter().all(|region| region.end() <= bar.len && region.is_page_aligned()));
            for one in registers.iter().flatten().filter(|one| one.bar == index) {
                prop_assert!(!regions.iter().any(|region| region.overlaps(one.range)));
            }
        }
    }
}
