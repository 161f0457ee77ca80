// SPDX-License-Identifier: GPL-2.0

//! Ranges and lookups in lists of ranges, against models that name every byte or page.

mod common;

use barbuf_pure_tests::pure::{
    errno::Errno,
    range::{self, Place, Range, Site, MAX_RANGES, PAGE_SIZE},
};
use proptest::prelude::*;

fn any_edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..40,
        (0u64..40).prop_map(|n| u64::MAX - n),
        any::<u64>()
    ]
}

fn any_range() -> impl Strategy<Value = Range> {
    (any_edge(), any_edge()).prop_filter_map("a range is not empty", |(a, b)| {
        Range::between(a.min(b), a.max(b))
    })
}

/// Ranges of 1 to 4 pages in a region of 24 pages; now and then one that is not right.
fn page_ranges(max: usize) -> impl Strategy<Value = Vec<Range>> {
    prop::collection::vec(
        (
            0u64..24,
            1u64..=4,
            prop::sample::select(vec![0u64, 0, 0, 0, 0, 0, 0, 0, 0, 512]),
        )
            .prop_map(|(page, pages, crooked)| {
                Range::new(page * PAGE_SIZE + crooked, pages * PAGE_SIZE).unwrap()
            }),
        0..=max,
    )
}

/// All bytes of a small region that the ranges name, in the buffer's order, in units of 512 bytes.
fn units(ranges: &[Range]) -> Vec<u64> {
    ranges
        .iter()
        .flat_map(|range| range.start() / 512..range.end() / 512)
        .collect()
}

#[test]
fn constructor() {
    assert_eq!(Range::new(5, 0), Err(Errno::EINVAL));
    assert_eq!(Range::new(u64::MAX, 1), Err(Errno::EINVAL));
    assert_eq!(Range::new(u64::MAX - 1, 1).map(Range::end), Ok(u64::MAX));
    assert_eq!(Range::new(0, u64::MAX).map(Range::end), Ok(u64::MAX));
    assert_eq!(Range::new(1, u64::MAX), Err(Errno::EINVAL));
    assert_eq!(Range::between(7, 7), None);
    assert_eq!(Range::between(8, 7), None);
}

#[test]
fn every_bit_of_an_address_in_a_page_counts() {
    for bit in 0..64 {
        assert_eq!(range::page_aligned(1 << bit), bit >= 12, "bit {bit}");
    }
    assert!(range::page_aligned(0));
}

#[test]
fn the_number_of_ranges_is_limited() {
    let pages: Vec<Range> = (0..65)
        .map(|page| Range::new(page * 2 * PAGE_SIZE, PAGE_SIZE).unwrap())
        .collect();
    let region = 130 * PAGE_SIZE;
    assert_eq!(range::validate(&[], region), Err(Errno::EINVAL));
    assert_eq!(
        range::validate(&pages[..MAX_RANGES], region),
        Ok(64 * PAGE_SIZE)
    );
    assert_eq!(range::validate(&pages, region), Err(Errno::EINVAL));
}

#[test]
fn lengths_that_do_not_add_up() {
    let huge = Range::new(0, u64::MAX / 2 + 1).unwrap();
    assert_eq!(range::total_len(&[huge, huge]), Err(Errno::EINVAL));
    assert_eq!(range::total_len(&[huge]), Ok(u64::MAX / 2 + 1));
    assert_eq!(range::total_len(&[]), Ok(0));
}

/// mremap can leave a mapping that shows more than the buffer has, or one that begins in its
/// middle.
#[test]
fn sites_at_the_edges() {
    let range = |start, pages| Range::new(start, pages * PAGE_SIZE).unwrap();
    let ranges = [range(0x10_0000, 4), range(0x4000, 2)];
    let vma = range(0x7000_0000, 16);
    // The mapping begins at the buffer's second page, so that its first window holds three pages of
    // range 0.
    assert_eq!(
        range::site(&ranges, vma, PAGE_SIZE, 0x7000_2000),
        Some(Site {
            window: range(0x7000_0000, 3),
            offset: 0x10_3000
        })
    );
    assert_eq!(
        range::site(&ranges, vma, PAGE_SIZE, 0x7000_4000),
        Some(Site {
            window: range(0x7000_3000, 2),
            offset: 0x5000
        })
    );
    assert_eq!(range::site(&ranges, vma, PAGE_SIZE, 0x7000_5000), None);
    assert_eq!(range::site(&ranges, vma, PAGE_SIZE, 0x7001_0000), None);
    assert_eq!(range::site(&ranges, vma, u64::MAX, 0x7000_0001), None);
}

proptest! {
    #![proptest_config(common::cases(20_000))]

    #[test]
    fn set_relations(a in any_range(), b in any_range(), at in any_edge()) {
        let has = |range: Range, byte: u64| range.start() <= byte && byte - range.start() < range.len();
        prop_assert_eq!(a.contains(at), has(a, at));
        // Two ranges overlap exactly if one holds the first byte of the other.
        let overlap = has(a, b.start()) || has(b, a.start());
        prop_assert_eq!(a.overlaps(b), overlap);
        prop_assert_eq!(a.encloses(b), has(a, b.start()) && has(a, b.end() - 1));
        match a.intersection(b) {
            None => prop_assert!(!overlap),
            Some(both) => {
                prop_assert!(a.encloses(both) && b.encloses(both));
                for byte in [a.start(), b.start(), a.end() - 1, b.end() - 1, at] {
                    prop_assert_eq!(has(both, byte), has(a, byte) && has(b, byte));
                }
            }
        }
        prop_assert_eq!(
            a.is_page_aligned(),
            a.start() % PAGE_SIZE == 0 && a.end() % PAGE_SIZE == 0
        );
    }

    #[test]
    fn validation(ranges in page_ranges(5), region in 18u64..28) {
        let region_len = region * PAGE_SIZE;
        let mut named = units(&ranges);
        let inside = named.iter().all(|unit| unit * 512 < region_len);
        let total = named.len() as u64 * 512;
        named.sort_unstable();
        let disjoint = named.windows(2).all(|two| two[0] != two[1]);
        let aligned = ranges.iter().all(|range| range.start() % PAGE_SIZE == 0);
        let valid = !ranges.is_empty() && aligned && inside && disjoint;
        prop_assert_eq!(
            range::validate(&ranges, region_len),
            if valid { Ok(total) } else { Err(Errno::EINVAL) }
        );
    }

    #[test]
    fn validation_survives_anything(ranges in prop::collection::vec(any_range(), 0..8), region in any_edge()) {
        if let Ok(total) = range::validate(&ranges, region) {
            prop_assert!(total <= region && total % PAGE_SIZE == 0 && total > 0);
        }
    }

    #[test]
    fn lookup(ranges in page_ranges(5), at in 0u64..24 * 8 + 8) {
        let named = units(&ranges);
        match range::locate(&ranges, at * 512) {
            None => prop_assert!(at as usize >= named.len()),
            Some(Place { index, offset, before, left }) => {
                prop_assert_eq!(Some(offset / 512), named.get(at as usize).copied());
                prop_assert_eq!(ranges[index].start() + before, offset);
                prop_assert_eq!(offset + left, ranges[index].end());
                prop_assert_eq!(range::total_len(&ranges[..index]).unwrap() + before, at * 512);
            }
        }
    }

    #[test]
    fn lookup_survives_anything(ranges in prop::collection::vec(any_range(), 0..5), at in any_edge()) {
        if let Some(place) = range::locate(&ranges, at) {
            prop_assert!(ranges[place.index].contains(place.offset));
            prop_assert!(place.left > 0);
        }
    }

    #[test]
    fn sites(
        ranges in page_ranges(5),
        vma_page in 0u64..8,
        vma_pages in 1u64..20,
        first in 0u64..8,
        page in 0u64..32,
    ) {
        let vma = Range::new(vma_page * PAGE_SIZE, vma_pages * PAGE_SIZE).unwrap();
        let shows = |page: u64| {
            let inside = vma_page <= page && page < vma_page + vma_pages;
            inside.then(|| range::locate(&ranges, (page - vma_page + first) * PAGE_SIZE)).flatten()
        };
        match (range::site(&ranges, vma, first * PAGE_SIZE, page * PAGE_SIZE), shows(page)) {
            (None, None) => {}
            (Some(site), Some(place)) => {
                prop_assert_eq!(site.offset, place.offset);
                // Exactly the pages around it that show the same range belong to the window.
                for other in 0..32 {
                    let same = shows(other).is_some_and(|other| other.index == place.index);
                    prop_assert_eq!(site.window.contains(other * PAGE_SIZE), same, "page {}", other);
                }
            }
            (site, place) => prop_assert!(false, "{site:?} for {place:?}"),
        }
    }
}
