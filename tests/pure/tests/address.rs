// SPDX-License-Identifier: GPL-2.0

//! Names of PCI functions: what is written can be read, and nothing else can.

use barbuf_pure_tests::pure::address::Address;
use proptest::prelude::*;

mod common;

#[test]
fn names_that_are_none() {
    let good = "0000:03:1f.7";
    assert!(Address::parse(good.as_bytes()).is_some());
    for bad in [
        "",
        "0000",
        "03:1f.7",
        "000:03:1f.7",
        "0000:3:1f.7",
        "0000:03:1f",
        "0000:03:1f.",
        "0000:03:1f.8",
        "0000:03:20.7",
        "0000:03:1f.70",
        "0000:03:1f:7",
        "0000:03:+f.7",
        "0000:03:1f.7\n",
        " 0000:03:1f.7",
        "0000:03:1f.7\0",
        "0x00:03:1f.7",
        "100000000:03:1f.7",
        "0000:03:1\u{e9}.7",
    ] {
        assert_eq!(Address::parse(bad.as_bytes()).map(|_| ()), None, "{bad:?}");
    }
    assert!(Address::parse(b"0000:\xff3:1f.7").is_none());
}

proptest! {
    #![proptest_config(common::cases(10_000))]

    #[test]
    fn what_is_written_can_be_read(
        domain in prop_oneof![0u32..0x1_0000, any::<u32>()],
        bus in any::<u8>(),
        device in 0u8..32,
        function in 0u8..8,
    ) {
        let address = Address { domain, bus, device, function };
        let text = address.to_string();
        prop_assert_eq!(&text, &format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"));
        prop_assert!(Address::parse(text.as_bytes()) == Some(address));
    }

    /// A name is read as the function that it names, or not at all.
    #[test]
    fn damaged_names(
        text in "[0-9a-f]{3,5}:[0-9a-f]{1,3}:[012][0-9a-f]{0,2}\\.[0-9]{1,2}",
        at in 0usize..16,
        byte in any::<u8>(),
        damage in any::<bool>(),
    ) {
        let mut text = text.into_bytes();
        if damage {
            if let Some(place) = text.get_mut(at) {
                *place = byte;
            }
        }
        if let Some(address) = Address::parse(&text) {
            let written = address.to_string();
            let read = String::from_utf8(text).unwrap().to_lowercase();
            prop_assert_eq!(read.trim_start_matches('0'), written.trim_start_matches('0'));
        }
    }
}
