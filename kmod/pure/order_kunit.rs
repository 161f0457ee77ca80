// SPDX-License-Identifier: GPL-2.0

//! Cases for the choice of the page order that a person can check by eye.
//!
//! The host tests and KUnit walk the same table, so that the code is also seen to work as the
//! kernel compiles it.

use super::{
    order::PageOrder,
    range::Range, //
};

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;
const G: u64 = 1 << 30;

/// One question to [`order::largest`](super::order::largest) and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What the case shows.
    pub name: &'static str,
    /// The address that was touched.
    pub va: u64,
    /// The physical address behind it.
    pub pa: u64,
    /// The first address of the window.
    pub window_start: u64,
    /// The address behind the window.
    pub window_end: u64,
    /// The largest order allowed.
    pub max: PageOrder,
    /// What `largest` has to say.
    pub want: Option<PageOrder>,
}

impl Case {
    /// What [`order::largest`](super::order::largest) answers to this case.
    pub fn answer(&self) -> Option<PageOrder> {
        let window = Range::between(self.window_start, self.window_end)?;
        super::order::largest(self.va, self.pa, window, self.max)
    }
}

/// The cases.
pub const CASES: &[Case] = &[
    Case {
        name: "an aligned GiB of a large mapping is one 1 GiB page",
        va: 64 * G,
        pa: 256 * G,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: Some(PageOrder::Pud),
    },
    Case {
        name: "a touch in the middle of a GiB maps all of it",
        va: 65 * G + 333 * M + 44 * K,
        pa: 257 * G + 333 * M + 44 * K,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: Some(PageOrder::Pud),
    },
    Case {
        name: "a mapping of exactly 1 GiB is enough for a 1 GiB page",
        va: 65 * G - 4 * K,
        pa: 3 * G - 4 * K,
        window_start: 64 * G,
        window_end: 65 * G,
        max: PageOrder::Pud,
        want: Some(PageOrder::Pud),
    },
    Case {
        name: "one page less than 1 GiB leaves 2 MiB",
        va: 64 * G,
        pa: 2 * G,
        window_start: 64 * G,
        window_end: 65 * G - 4 * K,
        max: PageOrder::Pud,
        want: Some(PageOrder::Pmd),
    },
    Case {
        name: "the last part of that mapping is left to 4 KiB pages",
        va: 65 * G - 8 * K,
        pa: 3 * G - 8 * K,
        window_start: 64 * G,
        window_end: 65 * G - 4 * K,
        max: PageOrder::Pud,
        want: Some(PageOrder::Page4K),
    },
    Case {
        name: "addresses that differ by 2 MiB modulo 1 GiB leave 2 MiB",
        va: 64 * G + 2 * M,
        pa: 2 * G,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: Some(PageOrder::Pmd),
    },
    Case {
        name: "addresses that differ by 4 KiB modulo 2 MiB leave 4 KiB",
        va: 64 * G + 4 * K,
        pa: 2 * G,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: Some(PageOrder::Page4K),
    },
    Case {
        name: "a limit on the order is kept",
        va: 64 * G,
        pa: 2 * G,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Pmd,
        want: Some(PageOrder::Pmd),
    },
    Case {
        name: "the lowest limit is kept",
        va: 64 * G,
        pa: 2 * G,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Page4K,
        want: Some(PageOrder::Page4K),
    },
    Case {
        name: "a mapping that begins inside a GiB has 2 MiB pages up to the next one",
        va: 64 * G + 512 * M,
        pa: 2 * G + 512 * M,
        window_start: 64 * G + 512 * M,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: Some(PageOrder::Pmd),
    },
    Case {
        name: "and 1 GiB pages behind it",
        va: 65 * G,
        pa: 3 * G,
        window_start: 64 * G + 512 * M,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: Some(PageOrder::Pud),
    },
    Case {
        name: "a window of one page",
        va: 64 * G + 12 * K,
        pa: 2 * G + 12 * K,
        window_start: 64 * G + 12 * K,
        window_end: 64 * G + 16 * K,
        max: PageOrder::Pud,
        want: Some(PageOrder::Page4K),
    },
    Case {
        name: "an address in front of the window has no page",
        va: 64 * G - 4 * K,
        pa: 2 * G - 4 * K,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: None,
    },
    Case {
        name: "an address behind the window has no page",
        va: 96 * G,
        pa: 34 * G,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: None,
    },
    Case {
        name: "addresses that differ inside of a page have no page",
        va: 64 * G + 512,
        pa: 2 * G,
        window_start: 64 * G,
        window_end: 96 * G,
        max: PageOrder::Pud,
        want: None,
    },
    Case {
        name: "the last page below 2^64 has no end and is refused",
        va: u64::MAX - 4095,
        pa: u64::MAX - 4095,
        window_start: u64::MAX - 8191,
        window_end: u64::MAX,
        max: PageOrder::Pud,
        want: None,
    },
];
