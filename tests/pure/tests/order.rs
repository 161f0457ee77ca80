// SPDX-License-Identifier: GPL-2.0

//! The choice of the page order, against a model that tries every page by its definition.

mod common;

use barbuf_pure_tests::pure::{
    order::{self, Around, PageOrder, TABLE_ENTRIES},
    order_kunit::CASES,
    range::{Range, PAGE_SIZE},
};
use proptest::prelude::*;

const ORDERS: [PageOrder; 3] = [PageOrder::Page4K, PageOrder::Pmd, PageOrder::Pud];

/// Whether a page fits, said in arithmetic of 128 bits and without a mask.
fn model_fits(order: PageOrder, va: u64, pa: u64, window: Range) -> bool {
    let size = 4096u128 << order.order();
    let (va, pa) = (u128::from(va), u128::from(pa));
    let start = va / size * size;
    va % size == pa % size
        && u128::from(window.start()) <= start
        && start + size <= u128::from(window.end())
}

/// The pages that a fault can fill, found by trying all 512 entries of the table one by one.
fn model_around(order: PageOrder, va: u64, pa: u64, window: Range) -> Option<Around> {
    if !model_fits(order, va, pa, window) {
        return None;
    }
    let size = 4096i128 << order.order();
    let (va, pa) = (i128::from(va), i128::from(pa));
    let own = va / size * size;
    let table = va / (size * 512) * (size * 512);
    let fitting: Vec<i128> = (0..512)
        .map(|entry| table + entry * size)
        .filter(|page| {
            i128::from(window.start()) <= *page && page + size <= i128::from(window.end())
        })
        .collect();
    let first = *fitting.first()?;
    // No memory lies below address 0 or beyond the last one: a window that says so is not a real
    // one.
    let first_pa = pa - pa % size - (own - first);
    u64::try_from(first_pa + fitting.len() as i128 * size).ok()?;
    Some(Around {
        first_va: first.try_into().ok()?,
        first_pa: first_pa.try_into().ok()?,
        count: fitting.len().try_into().ok()?,
        index: ((own - first) / size).try_into().ok()?,
    })
}

fn any_order() -> impl Strategy<Value = PageOrder> {
    prop::sample::select(&ORDERS[..])
}

/// A number that is often close to a multiple of a page size, and sometimes anything.
fn near_boundary() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0u64..2048, any_order(), -3i64..=3).prop_map(|(n, order, pages)| {
            (n << order.shift()).wrapping_add_signed(pages * 4096)
        }),
        1 => any::<u64>(),
        1 => (0u64..64).prop_map(|n| u64::MAX - n * 1024),
    ]
}

/// A window, an address in or near it and the physical address behind that address.
fn situation() -> impl Strategy<Value = (u64, u64, Range)> {
    (
        near_boundary(),
        near_boundary(),
        near_boundary(),
        near_boundary(),
        0u64..4,
    )
        .prop_filter_map("a window is not empty", |(a, b, at, pa, how)| {
            let window = Range::between(a.min(b), a.max(b))?;
            let va = if how == 0 {
                at
            } else {
                window.start() + at % window.len()
            };
            // Mostly the same place inside of some page, so that all three orders come up.
            let pa = match how {
                0 | 1 => pa,
                2 => PageOrder::Pud.align_down(pa) | (va & PageOrder::Pud.low_bits()),
                _ => PageOrder::Pmd.align_down(pa) | (va & PageOrder::Pmd.low_bits()),
            };
            Some((va, pa, window))
        })
}

#[test]
fn cases_for_people() {
    for case in CASES {
        assert_eq!(case.answer(), case.want, "{}", case.name);
    }
    // A table that lost its entries would pass everywhere.
    for want in [
        None,
        Some(PageOrder::Page4K),
        Some(PageOrder::Pmd),
        Some(PageOrder::Pud),
    ] {
        assert!(
            CASES.iter().any(|case| case.want == want),
            "no case for {want:?}"
        );
    }
}

#[test]
fn orders_are_the_kernels() {
    for order in ORDERS {
        assert_eq!(order.size(), PAGE_SIZE << order.order());
        assert_eq!(order.size(), 1 << order.shift());
        assert_eq!(order.low_bits(), order.size() - 1);
        assert_eq!(PageOrder::from_order(order.order()), Some(order));
        assert_eq!(PageOrder::from_shift(order.shift()), Some(order));
    }
    assert_eq!((0..64).filter_map(PageOrder::from_order).count(), 3);
    assert_eq!((0..64).filter_map(PageOrder::from_shift).count(), 3);
    assert_eq!(PageOrder::Pud.smaller(), Some(PageOrder::Pmd));
    assert_eq!(PageOrder::Pmd.smaller(), Some(PageOrder::Page4K));
    assert_eq!(PageOrder::Page4K.smaller(), None);
    assert!(PageOrder::LARGEST_FIRST.is_sorted_by(|a, b| a > b));
}

/// What a fault on 32 GiB of NPU memory fills: every GiB with one fault, and every 2 MiB of one
/// GiB.
#[test]
fn around_a_large_bar() {
    const G: u64 = 1 << 30;
    let window = Range::new(0x7f00_0000_0000, 32 * G).unwrap();
    let va = window.start() + 5 * G + 12345 * PAGE_SIZE;
    let pa = 0x38_0000_0000 + 5 * G + 12345 * PAGE_SIZE;
    assert_eq!(
        order::around(PageOrder::Pud, va, pa, window),
        Some(Around {
            first_va: window.start(),
            first_pa: 0x38_0000_0000,
            count: 32,
            index: 5
        })
    );
    let gib = Around {
        first_va: window.start() + 5 * G,
        first_pa: 0x38_0000_0000 + 5 * G,
        count: TABLE_ENTRIES,
        index: 12345 / 512,
    };
    assert_eq!(order::around(PageOrder::Pmd, va, pa, window), Some(gib));
}

/// All windows, addresses and offsets of a universe of a few pages around a 2 MiB boundary.
#[test]
fn small_universe() {
    let pmd = PageOrder::Pmd.size();
    let points: Vec<u64> = [0, 1, 2, 511, 512, 513, 1023, 1024, 1025, 1536]
        .into_iter()
        .map(|page| 7 * pmd + page * PAGE_SIZE)
        .collect();
    let mut cases = 0u32;
    for &start in &points {
        for &end in &points {
            let Some(window) = Range::between(start, end) else {
                continue;
            };
            for &va in &points {
                for &pa in &points {
                    for order in ORDERS {
                        cases += 1;
                        assert_eq!(
                            order::fits(order, va, pa, window),
                            model_fits(order, va, pa, window),
                            "{order:?} at {va:#x} -> {pa:#x} in {window:x?}"
                        );
                        assert_eq!(
                            order::around(order, va, pa, window),
                            model_around(order, va, pa, window),
                            "{order:?} at {va:#x} -> {pa:#x} in {window:x?}"
                        );
                    }
                }
            }
        }
    }
    assert_eq!(cases, 45 * 10 * 10 * 3);
}

proptest! {
    #![proptest_config(common::cases(20_000))]

    #[test]
    fn largest_is_the_largest_that_fits((va, pa, window) in situation(), max in any_order()) {
        let model = ORDERS
            .into_iter()
            .filter(|order| *order <= max && model_fits(*order, va, pa, window))
            .next_back();
        prop_assert_eq!(order::largest(va, pa, window, max), model);
        for order in ORDERS {
            prop_assert_eq!(order::fits(order, va, pa, window), model_fits(order, va, pa, window));
        }
    }

    #[test]
    fn around_is_all_that_fits_in_the_table((va, pa, window) in situation(), order in any_order()) {
        prop_assert_eq!(order::around(order, va, pa, window), model_around(order, va, pa, window));
    }

    #[test]
    fn around_stays_in_one_table((va, pa, window) in situation(), order in any_order()) {
        if let Some(around) = order::around(order, va, pa, window) {
            let last = around.first_va + (around.count - 1) * order.size();
            prop_assert!(around.count <= TABLE_ENTRIES);
            prop_assert!(around.index < around.count);
            let table = order.size().checked_mul(TABLE_ENTRIES).unwrap();
            prop_assert_eq!(around.first_va / table, last / table);
            prop_assert_eq!(va / table, last / table);
            for entry in [0, around.index, around.count - 1] {
                let step = entry * order.size();
                prop_assert!(order::fits(order, around.first_va + step, around.first_pa + step, window));
            }
        }
    }

    #[test]
    fn place_is_the_first_congruent(floor in near_boundary(), pa in near_boundary(), order in any_order()) {
        match order::place(order, floor, pa) {
            Some(va) => {
                prop_assert!(va >= floor && va - floor < order.size());
                prop_assert_eq!(va % order.size(), pa % order.size());
            }
            None => prop_assert!(u64::MAX - floor < order.size()),
        }
    }

    #[test]
    fn orders_of_memory(pa in near_boundary(), len in near_boundary()) {
        let end = u128::from(pa) + u128::from(len);
        let exists = len > 0 && end <= u128::from(u64::MAX);
        let some_page = |order: PageOrder| {
            let size = u128::from(order.size());
            exists && u128::from(pa).div_ceil(size) * size + size <= end
        };
        let whole = |order: PageOrder| {
            exists && pa % order.size() == 0 && len % order.size() == 0
        };
        prop_assert_eq!(
            order::region_max_order(pa, len),
            ORDERS.into_iter().filter(|order| some_page(*order)).next_back()
        );
        prop_assert_eq!(
            order::backing_order(pa, len),
            ORDERS.into_iter().filter(|order| whole(*order)).next_back()
        );
        prop_assert_eq!(order::align_class(pa), pa % (1 << 30));
    }

    #[test]
    fn rounding(address in near_boundary(), order in any_order()) {
        let size = u128::from(order.size());
        let wide = u128::from(address);
        prop_assert_eq!(u128::from(order.align_down(address)), wide / size * size);
        prop_assert_eq!(order.align_up(address), u64::try_from(wide.div_ceil(size) * size).ok());
        prop_assert_eq!(order.is_aligned(address), wide % size == 0);
    }
}
