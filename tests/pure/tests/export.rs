// SPDX-License-Identifier: GPL-2.0

//! Requests to export: which make sense, and which a region can serve. Numbers are compared with
//! the header.

use barbuf_pure_tests::pure::{
    errno::Errno,
    export::{any_len, Export, Flags, OpenFlags, Region, Request},
    mode::{Backing, Cache},
    order::PageOrder,
    range::MAX_RANGES,
    route::{Kind, Reason},
    state::State,
};
use proptest::prelude::*;

mod common;

const HEADER: &str = include_str!("../../../uapi/linux/barbuf.h");

/// The value that the header gives to `name`, by `#define NAME value` or `NAME = value,`.
fn header(name: &str) -> u32 {
    let mut values = HEADER.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let first = words.next()?;
        let value = match first {
            "#define" if words.next()? == name => words.collect::<String>(),
            _ if first == name && words.next()? == "=" => words.collect(),
            _ => return None,
        };
        let value = value
            .trim_end_matches(',')
            .trim_matches(['(', ')'])
            .to_owned();
        Some(match value.split_once("u<<") {
            Some((one, shift)) => one.parse::<u32>().unwrap() << shift.parse::<u32>().unwrap(),
            None => value.parse().unwrap(),
        })
    });
    let value = values
        .next()
        .unwrap_or_else(|| panic!("{name} is not in the header"));
    assert_eq!(values.next(), None, "{name} is in the header twice");
    value
}

#[test]
fn numbers_are_those_of_the_header() {
    assert_eq!(MAX_RANGES as u32, header("BARBUF_MAX_RANGES"));
    assert_eq!(PageOrder::Page4K.shift(), header("BARBUF_PAGE_SHIFT_4K"));
    assert_eq!(PageOrder::Pmd.shift(), header("BARBUF_PAGE_SHIFT_2M"));
    assert_eq!(PageOrder::Pud.shift(), header("BARBUF_PAGE_SHIFT_1G"));
    assert_eq!(Backing::Pfn.to_uapi(), header("BARBUF_BACKING_PFN"));
    assert_eq!(Backing::Page.to_uapi(), header("BARBUF_BACKING_PAGE"));
    assert_eq!(Cache::Uncached.to_uapi(), header("BARBUF_CACHE_UC"));
    assert_eq!(Cache::WriteCombining.to_uapi(), header("BARBUF_CACHE_WC"));
    assert_eq!(State::Live.to_uapi(), header("BARBUF_STATE_LIVE"));
    assert_eq!(State::Suspended.to_uapi(), header("BARBUF_STATE_SUSPENDED"));
    assert_eq!(State::Revoked.to_uapi(), header("BARBUF_STATE_REVOKED"));
    assert_eq!(Flags::ANY.bits(), header("BARBUF_EXPORT_ANY"));
    assert_eq!(Flags::SHARED.bits(), header("BARBUF_EXPORT_SHARED"));
    assert_eq!(Flags::ZERO.bits(), header("BARBUF_EXPORT_ZERO"));
    assert_eq!(
        Flags::REVOKE_ON_CLOSE.bits(),
        header("BARBUF_EXPORT_REVOKE_ON_CLOSE")
    );
    assert_eq!(
        Flags::STATIC_IMPORT.bits(),
        header("BARBUF_EXPORT_STATIC_IMPORT")
    );
    assert_eq!(Kind::None.to_uapi(), header("BARBUF_ROUTE_NONE"));
    assert_eq!(Kind::Switch.to_uapi(), header("BARBUF_ROUTE_SWITCH"));
    assert_eq!(
        Kind::HostBridge.to_uapi(),
        header("BARBUF_ROUTE_HOST_BRIDGE")
    );
    assert_eq!(Reason::None.to_uapi(), header("BARBUF_REASON_NONE"));
    assert_eq!(
        Reason::NoDevice.to_uapi(),
        header("BARBUF_REASON_NO_DEVICE")
    );
    assert_eq!(
        Reason::HostBridge.to_uapi(),
        header("BARBUF_REASON_HOST_BRIDGE")
    );
    assert_eq!(
        Reason::AcsRedirect.to_uapi(),
        header("BARBUF_REASON_ACS_REDIRECT")
    );
    assert_eq!(Reason::DmaMask.to_uapi(), header("BARBUF_REASON_DMA_MASK"));
    assert_eq!(
        Reason::NoP2pdma.to_uapi(),
        header("BARBUF_REASON_NO_P2PDMA")
    );
    // A flag that the header has and the module does not know would be refused.
    let flags = HEADER
        .lines()
        .filter(|line| line.starts_with("#define BARBUF_EXPORT_"))
        .count();
    assert_eq!(
        (0..32)
            .filter(|bit| Flags::from_bits(1 << bit).is_ok())
            .count(),
        flags
    );
    // Each errno that a decision can end in is in the header's table.
    for errno in [
        Errno::EPERM,
        Errno::E2BIG,
        Errno::EACCES,
        Errno::EFAULT,
        Errno::EBUSY,
        Errno::ENODEV,
        Errno::EINVAL,
        Errno::ENOSPC,
        Errno::EBADFD,
        Errno::EOPNOTSUPP,
    ] {
        assert!(HEADER.contains(&format!(" * {errno:?} ")), "{errno:?}");
    }
}

/// The numbers of `asm-generic/errno-base.h` and `errno.h`.
#[test]
fn errnos_are_those_of_linux() {
    let numbers = [
        (Errno::EPERM, 1),
        (Errno::E2BIG, 7),
        (Errno::EAGAIN, 11),
        (Errno::EACCES, 13),
        (Errno::EFAULT, 14),
        (Errno::EBUSY, 16),
        (Errno::ENODEV, 19),
        (Errno::EINVAL, 22),
        (Errno::ENOSPC, 28),
        (Errno::EBADFD, 77),
        (Errno::EOPNOTSUPP, 95),
    ];
    for (errno, number) in numbers {
        assert_eq!(errno.number(), number);
    }
}

const REQUEST: Request = Request {
    flags: 0,
    backing: 0,
    cache: 0,
    open_flags: 2,
    eventfd: -1,
    page_shift: 0,
    nr_ranges: 1,
    reserved: 0,
};

/// NPU memory, registered by its driver.
const MEMORY: Region = Region {
    memory_only: true,
    prefetchable: true,
    pool: false,
    page_order: Some(PageOrder::Pud),
    max_order: PageOrder::Pud,
};

/// A register BAR of 1 MiB.
const CONTROL: Region = Region {
    memory_only: false,
    prefetchable: false,
    pool: false,
    page_order: None,
    max_order: PageOrder::Page4K,
};

#[test]
fn each_member_is_looked_at() {
    assert!(REQUEST.parse().is_ok());
    let wrong = [
        Request {
            flags: 1 << 5,
            ..REQUEST
        },
        Request {
            flags: 1 << 31,
            ..REQUEST
        },
        Request {
            backing: 2,
            ..REQUEST
        },
        Request {
            cache: 2,
            ..REQUEST
        },
        Request {
            open_flags: 1,
            ..REQUEST
        },
        Request {
            open_flags: 3,
            ..REQUEST
        },
        Request {
            open_flags: 0o4002,
            ..REQUEST
        },
        Request {
            eventfd: -2,
            ..REQUEST
        },
        Request {
            eventfd: i32::MIN,
            ..REQUEST
        },
        Request {
            page_shift: 13,
            ..REQUEST
        },
        Request {
            page_shift: u32::MAX,
            ..REQUEST
        },
        Request {
            nr_ranges: 0,
            ..REQUEST
        },
        Request {
            nr_ranges: 65,
            ..REQUEST
        },
        Request {
            nr_ranges: u32::MAX,
            ..REQUEST
        },
        Request {
            flags: Flags::ANY.bits(),
            nr_ranges: 2,
            ..REQUEST
        },
        Request {
            reserved: 1,
            ..REQUEST
        },
    ];
    for request in wrong {
        assert_eq!(request.parse(), Err(Errno::EINVAL), "{request:?}");
    }
}

#[test]
fn members_keep_their_meaning() {
    let request = Request {
        flags: 0b1_1111,
        backing: 1,
        cache: 1,
        open_flags: 0o2_000_000,
        eventfd: 0,
        page_shift: 21,
        ..REQUEST
    };
    let expected = Export {
        flags: Flags::from_bits(0b1_1111).unwrap(),
        backing: Backing::Page,
        cache: Cache::WriteCombining,
        open: OpenFlags {
            writable: false,
            cloexec: true,
        },
        eventfd: Some(0),
        page: Some(PageOrder::Pmd),
        nr_ranges: 1,
    };
    assert_eq!(request.parse(), Ok(expected));
    let plain = Request {
        nr_ranges: 64,
        ..REQUEST
    }
    .parse()
    .unwrap();
    assert_eq!(plain.flags, Flags::NONE);
    assert_eq!(
        plain.open,
        OpenFlags {
            writable: true,
            cloexec: false
        }
    );
    assert_eq!(
        (plain.eventfd, plain.page, plain.nr_ranges),
        (None, None, 64)
    );
    assert_eq!(
        (plain.open.access_bits(), expected.open.access_bits()),
        (2, 0)
    );
}

#[test]
fn regions_refuse_what_they_can_not_do() {
    let on = |request: Request, region: Region| request.parse().unwrap().on(&region);
    let no = Err(Errno::EOPNOTSUPP);
    let wc = Request {
        cache: 1,
        ..REQUEST
    };
    let zero = Request {
        flags: Flags::ZERO.bits(),
        ..REQUEST
    };
    let page = Request {
        backing: 1,
        ..REQUEST
    };
    for request in [wc, zero, page] {
        assert_eq!(on(request, MEMORY), Ok(PageOrder::Pud));
        assert_eq!(on(request, CONTROL), no, "{request:?}");
    }
    assert_eq!(on(REQUEST, CONTROL), Ok(PageOrder::Page4K));

    let pool = Region {
        pool: true,
        ..MEMORY
    };
    assert_eq!(on(REQUEST, pool), no);
    assert_eq!(
        on(
            Request {
                flags: Flags::ANY.bits(),
                ..REQUEST
            },
            pool
        ),
        Ok(PageOrder::Pud)
    );

    // A named size is a limit for mappings, but exact for compound pages.
    let small = Region {
        page_order: Some(PageOrder::Pmd),
        max_order: PageOrder::Pmd,
        ..MEMORY
    };
    let named = Request {
        page_shift: 30,
        ..REQUEST
    };
    assert_eq!(on(named, small), Ok(PageOrder::Pmd));
    assert_eq!(
        on(
            Request {
                backing: 1,
                ..named
            },
            small
        ),
        no
    );
    assert_eq!(on(page, small), Ok(PageOrder::Pmd));
    for (shift, order) in [
        (12, PageOrder::Page4K),
        (21, PageOrder::Pmd),
        (30, PageOrder::Pud),
    ] {
        let named = Request {
            page_shift: shift,
            ..REQUEST
        };
        assert_eq!(on(named, MEMORY), Ok(order));
        assert_eq!(
            on(
                Request {
                    backing: 1,
                    ..named
                },
                MEMORY
            ),
            Ok(order)
        );
    }
}

#[test]
fn what_info_says_is_what_export_does() {
    for region in [MEMORY, CONTROL] {
        for value in 0..2 {
            let backing = Request {
                backing: value,
                ..REQUEST
            }
            .parse()
            .unwrap();
            assert_eq!(
                backing.on(&region).is_ok(),
                (region.backings() >> value) & 1 == 1
            );
            let cache = Request {
                cache: value,
                ..REQUEST
            }
            .parse()
            .unwrap();
            assert_eq!(
                cache.on(&region).is_ok(),
                (region.caches() >> value) & 1 == 1
            );
        }
        assert_eq!((region.backings() >> 2, region.caches() >> 2), (0, 0));
    }
    assert!(CONTROL.needs_rawio() && !MEMORY.needs_rawio());
}

#[test]
fn lengths_of_any() {
    assert_eq!(any_len(0, 8192), Ok(8192));
    assert_eq!(any_len(0, u64::MAX - 4095), Ok(u64::MAX - 4095));
    for (offset, len) in [(0, 0), (4096, 4096), (0, 4095), (0, 4097), (u64::MAX, 4096)] {
        assert_eq!(any_len(offset, len), Err(Errno::EINVAL));
    }
}

proptest! {
    #![proptest_config(common::cases(20_000))]

    /// Whatever user space writes: the errno is EINVAL, and what passes can be written back as it
    /// came.
    #[test]
    fn anything_at_all(
        flags in prop_oneof![4 => 0u32..40, 1 => any::<u32>()],
        backing in prop_oneof![4 => 0u32..3, 1 => any::<u32>()],
        cache in prop_oneof![4 => 0u32..3, 1 => any::<u32>()],
        open_flags in prop_oneof![
            4 => prop::sample::select(vec![0u32, 2, 0o2_000_000, 0o2_000_002]),
            1 => any::<u32>()
        ],
        eventfd in prop_oneof![4 => -2i32..3, 1 => any::<i32>()],
        page_shift in prop_oneof![4 => prop::sample::select(vec![0u32, 12, 21, 30]), 1 => any::<u32>()],
        nr_ranges in prop_oneof![4 => 0u32..67, 1 => any::<u32>()],
        reserved in prop_oneof![9 => Just(0u32), 1 => any::<u32>()],
    ) {
        let request =
            Request { flags, backing, cache, open_flags, eventfd, page_shift, nr_ranges, reserved };
        let any = flags & Flags::ANY.bits() != 0;
        let sense = flags < 32
            && backing < 2
            && cache < 2
            && [0, 2, 0o2_000_000, 0o2_000_002].contains(&open_flags)
            && eventfd >= -1
            && [0, 12, 21, 30].contains(&page_shift)
            && (nr_ranges == 1 || (!any && (2..=64).contains(&nr_ranges)))
            && reserved == 0;
        match request.parse() {
            Err(errno) => {
                prop_assert_eq!(errno, Errno::EINVAL);
                prop_assert!(!sense);
            }
            Ok(export) => {
                prop_assert!(sense);
                prop_assert_eq!(export.flags.bits(), flags);
                prop_assert_eq!(export.backing.to_uapi(), backing);
                prop_assert_eq!(export.cache.to_uapi(), cache);
                prop_assert_eq!(export.open.access_bits(), open_flags & 3);
                prop_assert_eq!(export.open.cloexec, open_flags & 0o2_000_000 != 0);
                prop_assert_eq!(export.eventfd.unwrap_or(-1), eventfd);
                prop_assert_eq!(export.page.map_or(0, PageOrder::shift), page_shift);
                prop_assert_eq!(export.nr_ranges, nr_ranges);
                let order = export.on(&MEMORY);
                prop_assert_eq!(order, Ok(export.page.unwrap_or(PageOrder::Pud)));
            }
        }
    }
}
