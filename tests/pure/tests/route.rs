// SPDX-License-Identifier: GPL-2.0

//! Routes: what findings about bridges, masks and IOMMUs add up to.

use barbuf_pure_tests::pure::route::{
    last_address, piece_limit, Facts, Kind, Memory, Reason, Route,
};
use proptest::prelude::*;

mod common;

const MEMORY: Memory = Memory {
    bar: 2,
    last: (64 << 30) - 1,
    size: 32 << 30,
};

/// Below one switch, whose bus sees the memory where CPUs do.
const SWITCH: Facts = Facts {
    distance: Some(4),
    common: true,
    redirected: false,
    translated: false,
    mask: Some(u64::MAX),
    last_bus: MEMORY.last,
    memory: MEMORY,
};

fn route(kind: Kind, distance: u32) -> Route {
    Route {
        kind,
        reason: Reason::None,
        distance,
    }
}

#[test]
fn the_kinds_of_ways() {
    assert_eq!(SWITCH.judge(), route(Kind::Switch, 4));
    // An IOMMU is not on the way through a switch.
    let iommu = Facts {
        translated: true,
        ..SWITCH
    };
    assert_eq!(iommu.judge(), route(Kind::Switch, 4));
    let apart = Facts {
        common: false,
        ..SWITCH
    };
    assert_eq!(apart.judge(), route(Kind::HostBridge, 4));
    let redirected = Facts {
        redirected: true,
        ..SWITCH
    };
    assert_eq!(redirected.judge(), route(Kind::HostBridge, 4));
}

#[test]
fn the_reasons_against() {
    let nowhere = Facts {
        distance: None,
        common: false,
        ..SWITCH
    };
    assert_eq!(nowhere.judge(), Route::none(Reason::HostBridge));
    let acs = Facts {
        common: true,
        redirected: true,
        ..nowhere
    };
    assert_eq!(acs.judge(), Route::none(Reason::AcsRedirect));
    // Ports on two separate ways may redirect as they like.
    let apart = Facts {
        redirected: true,
        ..nowhere
    };
    assert_eq!(apart.judge(), Route::none(Reason::HostBridge));
}

#[test]
fn the_mask_has_to_cover_the_last_byte() {
    for (translated, common, least) in [
        (false, true, SWITCH.last_bus),
        (true, true, SWITCH.last_bus),
        (false, false, MEMORY.last),
        // One range of addresses, which the IOMMU can begin at 0.
        (true, false, MEMORY.size - 1),
    ] {
        let facts = |mask| Facts {
            translated,
            common,
            mask: Some(mask),
            ..SWITCH
        };
        assert_eq!(facts(least).judge().reason, Reason::None);
        assert_eq!(facts(least - 1).judge(), Route::none(Reason::DmaMask));
    }
    // The bus may see the memory somewhere else.
    let moved = Facts {
        last_bus: 1 << 20,
        mask: Some(1 << 20),
        ..SWITCH
    };
    assert_eq!(moved.judge().reason, Reason::None);
    let unknown = Facts {
        mask: None,
        ..SWITCH
    };
    assert_eq!(unknown.judge().reason, Reason::None);
}

/// Where the kernel maps piece by piece, no piece may be cut: its entries are at most 4 GiB less a
/// page.
#[test]
fn pieces_are_never_cut_where_that_matters() {
    let most = u64::from(u32::MAX) / 4096 * 4096;
    assert!(piece_limit(Kind::HostBridge, false) <= most);
    assert!(piece_limit(Kind::HostBridge, false).is_power_of_two());
    for (kind, translated) in [
        (Kind::Switch, false),
        (Kind::Switch, true),
        (Kind::HostBridge, true),
    ] {
        assert_eq!(piece_limit(kind, translated), u64::MAX);
    }
}

proptest! {
    #![proptest_config(common::cases(20_000))]

    /// Whatever was found: there is a kind exactly if there is no reason against, a distance only
    /// with a kind, and never an address beyond the mask.
    #[test]
    fn anything_at_all(
        distance in any::<Option<u32>>(),
        common in any::<bool>(),
        redirected in any::<bool>(),
        translated in any::<bool>(),
        mask in any::<Option<u64>>(),
        last_bus in any::<u64>(),
        last in any::<u64>(),
        size in any::<u64>(),
    ) {
        let memory = Memory { bar: 0, last, size };
        let facts = Facts { distance, common, redirected, translated, mask, last_bus, memory };
        let route = facts.judge();
        prop_assert_eq!(route.kind == Kind::None, route.reason != Reason::None);
        if route.kind == Kind::None {
            prop_assert_eq!(route.distance, 0);
        } else {
            prop_assert_eq!(Some(route.distance), distance);
            let last = last_address(route.kind, translated, &memory, last_bus);
            prop_assert!(mask.is_none_or(|mask| last <= mask));
        }
        prop_assert!(!route.reason.text().is_empty() && !route.kind.name().is_empty());
    }
}
