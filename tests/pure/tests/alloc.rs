// SPDX-License-Identifier: GPL-2.0

//! The choice of free space, against a model that keeps a map of every page.

mod common;

use barbuf_pure_tests::pure::{
    alloc::{self, Claim, Floor, Space},
    errno::Errno,
    mode::{Backing, Cache},
    order::PageOrder,
    range::{Range, PAGE_SIZE},
};
use proptest::prelude::*;

/// The region of the model, in units of 2 MiB less a few pages: room for all three alignments.
const PMD_PAGES: u64 = 512;

fn claim(page: u64, pages: u64, shared: bool) -> Claim {
    Claim {
        range: Range::new(page * PAGE_SIZE, pages * PAGE_SIZE).unwrap(),
        owner: 1,
        shared,
        cache: Cache::Uncached,
        backing: Backing::Pfn,
    }
}

fn any_claim(pages: u64) -> impl Strategy<Value = Claim> {
    (
        0..pages,
        1..=pages / 4,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        0u64..4,
    )
        .prop_map(|(page, len, shared, wc, page_backed, owner)| Claim {
            owner,
            cache: if wc {
                Cache::WriteCombining
            } else {
                Cache::Uncached
            },
            backing: if page_backed {
                Backing::Page
            } else {
                Backing::Pfn
            },
            ..claim(page, len, shared)
        })
}

/// A list as the driver keeps it: sorted by start, and whatever else.
fn sorted_claims(pages: u64, max: usize) -> impl Strategy<Value = Vec<Claim>> {
    prop::collection::vec(any_claim(pages), 0..max).prop_map(|mut claims| {
        claims.sort_by_key(|claim| claim.range.start());
        claims
    })
}

fn sorted_ranges(pages: u64, max: usize) -> impl Strategy<Value = Vec<Range>> {
    sorted_claims(pages, max).prop_map(|claims| claims.iter().map(|claim| claim.range).collect())
}

/// Which pages of the region are free.
fn free_map(space: &Space<'_>) -> Vec<bool> {
    let taken: Vec<Range> = space
        .claims
        .iter()
        .map(|claim| claim.range)
        .chain(space.reserved.iter().copied())
        .collect();
    (0..space.len / PAGE_SIZE)
        .map(|page| !taken.iter().any(|range| range.contains(page * PAGE_SIZE)))
        .collect()
}

/// The lowest place at the best alignment that has one, found by trying each page.
fn model_find(space: &Space<'_>, pages: u64, preference: &[PageOrder]) -> Option<u64> {
    let map = free_map(space);
    preference.iter().find_map(|order| {
        (0..map.len() as u64)
            .filter(|page| (space.phys_base + page * PAGE_SIZE) % order.size() == 0)
            .find(|page| {
                (*page..page + pages).all(|page| map.get(page as usize).copied().unwrap_or(false))
            })
            .map(|page| page * PAGE_SIZE)
    })
}

#[test]
fn rules_of_sharing() {
    let held = claim(4, 4, true);
    let busy = |wanted| alloc::check_fixed(&[held], &[], &wanted) == Err(Errno::EBUSY);
    assert!(!busy(claim(4, 4, true)));
    assert!(!busy(claim(6, 9, true)));
    assert!(busy(claim(4, 4, false)), "the wanted side must say shared");
    assert!(
        busy(Claim {
            cache: Cache::WriteCombining,
            ..held
        }),
        "one cache mode per byte"
    );
    assert!(
        busy(Claim {
            backing: Backing::Page,
            ..held
        }),
        "one backing per byte"
    );
    let exclusive = claim(4, 4, false);
    assert_eq!(
        alloc::check_fixed(&[exclusive], &[], &held),
        Err(Errno::EBUSY)
    );
    // Bytes beside each other have nothing to do with each other.
    assert!(!busy(claim(8, 1, false)));
    assert!(!busy(claim(3, 1, false)));
    assert_eq!(
        alloc::check_fixed(&[], &[held.range], &claim(7, 1, true)),
        Err(Errno::EBUSY)
    );
    assert_eq!(
        alloc::check_fixed(&[], &[held.range], &claim(8, 1, true)),
        Ok(())
    );
}

/// A long claim in front of many short ones is not forgotten.
#[test]
fn nested_claims() {
    let claims = [claim(0, 100, true), claim(1, 1, true), claim(2, 1, true)];
    assert_eq!(
        alloc::check_fixed(&claims, &[], &claim(50, 1, false)),
        Err(Errno::EBUSY)
    );
    let space = Space {
        claims: &claims,
        reserved: &[],
        len: 110 * PAGE_SIZE,
        phys_base: 0,
        floor: Floor::new(),
    };
    assert_eq!(space.free_bytes(), 10 * PAGE_SIZE);
    assert_eq!(
        alloc::find(&space, PAGE_SIZE, &[PageOrder::Page4K]),
        Ok(100 * PAGE_SIZE)
    );
}

/// 8 GiB that begin 512 MiB behind a 1 GiB boundary.
#[test]
fn alignment_is_that_of_the_physical_address() {
    const G: u64 = 1 << 30;
    let mut space = Space {
        claims: &[],
        reserved: &[],
        len: 8 * G,
        phys_base: 5 * G + G / 2,
        floor: Floor::new(),
    };
    let find = |space: &Space<'_>, len| alloc::find(space, len, alloc::preferences(len));
    assert_eq!(find(&space, G), Ok(G / 2));
    assert_eq!(find(&space, 7 * G), Ok(G / 2));
    // Without room at a 1 GiB boundary the next best boundary will do.
    assert_eq!(find(&space, 7 * G + G / 2 + PAGE_SIZE), Ok(0));
    assert_eq!(find(&space, 8 * G), Ok(0));
    assert_eq!(find(&space, 8 * G + PAGE_SIZE), Err(Errno::ENOSPC));
    // Small buffers do not use up the large boundaries.
    assert_eq!(find(&space, PAGE_SIZE), Ok(0));
    let held = [claim(0, 1, false)];
    space.claims = &held;
    assert_eq!(find(&space, PAGE_SIZE), Ok(PAGE_SIZE));
    assert_eq!(find(&space, 2 << 20), Ok(2 << 20));
}

#[test]
fn senseless_lengths() {
    let space = Space {
        claims: &[],
        reserved: &[],
        len: 1 << 30,
        phys_base: 0,
        floor: Floor::new(),
    };
    for len in [0, 1, 4095, 4097] {
        assert_eq!(
            alloc::find(&space, len, alloc::preferences(len)),
            Err(Errno::EINVAL)
        );
    }
    let last = u64::MAX - 4095;
    assert_eq!(
        alloc::find(&space, last, alloc::preferences(last)),
        Err(Errno::ENOSPC)
    );
    assert_eq!(alloc::find(&space, PAGE_SIZE, &[]), Err(Errno::ENOSPC));
}

proptest! {
    #![proptest_config(common::cases(10_000))]

    #[test]
    fn fixed_ranges(
        claims in sorted_claims(32, 8),
        reserved in sorted_ranges(32, 3),
        wanted in any_claim(32),
    ) {
        // By pages: each page that both want must be wanted by both in the same way.
        let mut busy = false;
        for page in wanted.range.start() / PAGE_SIZE..wanted.range.end() / PAGE_SIZE {
            let at = page * PAGE_SIZE;
            busy |= reserved.iter().any(|range| range.contains(at));
            busy |= claims.iter().filter(|claim| claim.range.contains(at)).any(|claim| {
                (claim.shared, wanted.shared) != (true, true)
                    || (claim.cache, claim.backing) != (wanted.cache, wanted.backing)
            });
        }
        let held = claims.iter().any(|claim| {
            (wanted.range.start()..wanted.range.end())
                .step_by(4096)
                .any(|at| claim.range.contains(at))
        });
        prop_assert_eq!(alloc::is_free(&claims, wanted.range), !held);
        prop_assert_eq!(
            alloc::check_fixed(&claims, &reserved, &wanted),
            if busy { Err(Errno::EBUSY) } else { Ok(()) }
        );
    }

    #[test]
    fn free_space_is_found(
        claims in sorted_claims(64, 8),
        reserved in sorted_ranges(64, 3),
        region in 1u64..72,
        phys in 0u64..1024,
        pages in 1u64..40,
        orders in prop::sample::subsequence(PageOrder::LARGEST_FIRST.to_vec(), 0..=3),
    ) {
        let space = Space {
            claims: &claims,
            reserved: &reserved,
            len: region * PAGE_SIZE,
            phys_base: phys * PAGE_SIZE,
            floor: Floor::new(),
        };
        prop_assert_eq!(
            alloc::find(&space, pages * PAGE_SIZE, &orders).ok(),
            model_find(&space, pages, &orders)
        );
        let free = free_map(&space).into_iter().filter(|free| *free).count() as u64;
        prop_assert_eq!(space.free_bytes(), free * PAGE_SIZE);
    }

    #[test]
    fn nothing_overflows(
        ranges in prop::collection::vec((any::<u64>(), any::<u64>()), 0..6),
        len in any::<u64>(),
        phys_base in any::<u64>(),
        wanted in any::<u64>(),
    ) {
        let mut ranges: Vec<Range> = ranges
            .into_iter()
            .filter_map(|(a, b)| Range::between(a.min(b), a.max(b)))
            .collect();
        ranges.sort_by_key(|range| range.start());
        let space = Space { claims: &[], reserved: &ranges, len, phys_base, floor: Floor::new() };
        prop_assert!(space.free_bytes() <= len);
        let wanted = wanted & !4095;
        if let Ok(start) = alloc::find(&space, wanted, alloc::preferences(wanted)) {
            let found = Range::new(start, wanted).unwrap();
            prop_assert!(found.end() <= len);
            prop_assert!(!ranges.iter().any(|range| range.overlaps(found)));
        }
    }

    #[test]
    fn preferences_are_the_pages_that_fit(len in prop_oneof![0u64..4 << 30, any::<u64>()]) {
        let fitting: Vec<PageOrder> = PageOrder::LARGEST_FIRST
            .into_iter()
            .filter(|order| *order == PageOrder::Page4K || order.size() <= len)
            .collect();
        prop_assert_eq!(alloc::preferences(len), fitting);
    }
}

proptest! {
    // Fewer cases: each looks at thousands of pages.
    #![proptest_config(common::cases(500))]

    #[test]
    fn free_space_on_2_mib_boundaries(
        claims in sorted_claims(4 * PMD_PAGES, 8),
        phys in prop_oneof![Just(0), Just(PMD_PAGES), 0..PMD_PAGES],
        pages in prop_oneof![Just(PMD_PAGES), 1..2 * PMD_PAGES],
    ) {
        let space = Space {
            claims: &claims,
            reserved: &[],
            len: 4 * PMD_PAGES * PAGE_SIZE,
            phys_base: phys * PAGE_SIZE,
            floor: Floor::new(),
        };
        let preference = alloc::preferences(pages * PAGE_SIZE);
        prop_assert_eq!(
            alloc::find(&space, pages * PAGE_SIZE, preference).ok(),
            model_find(&space, pages, preference)
        );
    }

    /// A driver's life: exports and releases in any order never give a page to two exclusive
    /// owners.
    #[test]
    fn a_long_life(steps in prop::collection::vec((any_claim(32), any::<bool>(), any::<bool>()), 1..60)) {
        let mut claims: Vec<Claim> = Vec::new();
        for (owner, (mut wanted, fixed, release)) in steps.into_iter().enumerate() {
            wanted.owner = owner as u64;
            if release {
                let victim = owner as u64 / 2;
                while let Some(index) = claims.iter().position(|claim| claim.owner == victim) {
                    let start = claims[index].range.start();
                    prop_assert_eq!(alloc::index_of(&claims, start, victim), Some(index));
                    prop_assert_eq!(alloc::index_of(&claims, start, u64::MAX), None);
                    prop_assert_eq!(alloc::index_of(&claims, start + 1, victim), None);
                    claims.remove(index);
                }
                prop_assert!(claims.iter().all(|claim| claim.owner != victim));
                continue;
            }
            if !fixed {
                let space = Space { claims: &claims, reserved: &[], len: 40 * PAGE_SIZE, phys_base: 0, floor: Floor::new() };
                let Ok(start) = alloc::find(&space, wanted.range.len(), &[PageOrder::Page4K]) else {
                    continue;
                };
                wanted.range = Range::new(start, wanted.range.len()).unwrap();
            }
            if alloc::check_fixed(&claims, &[], &wanted).is_err() {
                prop_assert!(fixed, "what find found is free");
                continue;
            }
            claims.insert(alloc::insertion_point(&claims, &wanted), wanted);
            prop_assert!(claims.is_sorted_by_key(|claim| claim.range.start()));
            for (index, a) in claims.iter().enumerate() {
                for b in &claims[..index] {
                    let alike = a.shared && b.shared && a.cache == b.cache && a.backing == b.backing;
                    prop_assert!(alike || !a.range.overlaps(b.range));
                }
            }
        }
    }
}

/// What happens to a list of claims.
#[derive(Clone, Debug)]
enum Step {
    /// Somebody wants these bytes.
    Fixed(Claim),
    /// Somebody wants so many pages, anywhere.
    Any(u64, bool),
    /// The claim at this index, counted round, goes.
    Remove(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any_claim(40).prop_map(Step::Fixed),
        (1u64..6, any::<bool>()).prop_map(|(pages, shared)| Step::Any(pages, shared)),
        any::<usize>().prop_map(Step::Remove),
    ]
}

proptest! {
    /// A search that begins at the floor finds what one from the start finds, and a check of those
    /// in reach says what one of all says, whatever comes and goes.
    #[test]
    fn a_floor_changes_no_answer(steps in prop::collection::vec(any_step(), 1..120), phys in 0u64..8) {
        let mut claims: Vec<Claim> = Vec::new();
        let mut floor = Floor::new();
        let mut owner = 100;
        for step in steps {
            floor.rise(&claims);
            let from_start = |floor| Space {
                claims: &claims,
                reserved: &[],
                len: 64 * PAGE_SIZE,
                phys_base: phys * PAGE_SIZE,
                floor,
            };
            let mut wanted = match step {
                Step::Remove(_) if claims.is_empty() => continue,
                Step::Remove(index) => {
                    let gone = claims.remove(index % claims.len());
                    floor.removed(&gone);
                    continue;
                }
                Step::Fixed(claim) => claim,
                Step::Any(pages, shared) => {
                    let find = |floor| {
                        alloc::find(&from_start(floor), pages * PAGE_SIZE, &[PageOrder::Page4K])
                    };
                    let found = find(floor);
                    prop_assert_eq!(found, find(Floor::new()));
                    let Ok(start) = found else { continue };
                    claim(start / PAGE_SIZE, pages, shared)
                }
            };
            owner += 1;
            wanted.owner = owner;
            let check = |others: &[Claim]| {
                (alloc::check_fixed(others, &[], &wanted), alloc::is_free(others, wanted.range))
            };
            let answer = check(&claims);
            prop_assert_eq!(answer, check(floor.in_reach(&claims, wanted.range.start())));
            if answer.0.is_ok() {
                claims.insert(alloc::insertion_point(&claims, &wanted), wanted);
                floor.added(wanted.range);
            }
        }
    }

    /// Pages that are handed out one by one are found without a look at those before.
    #[test]
    fn a_full_start_is_passed_over(pages in 1u64..200) {
        let mut claims: Vec<Claim> = Vec::new();
        let mut floor = Floor::new();
        for page in 0..pages {
            floor.rise(&claims);
            prop_assert!(floor.in_reach(&claims, page * PAGE_SIZE).is_empty());
            let next = claim(page, 1, false);
            claims.push(next);
            floor.added(next.range);
        }
    }
}
