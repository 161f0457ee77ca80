// SPDX-License-Identifier: GPL-2.0

//! The decisions of `pure/` inside a kernel: the same cases as on the host.
//!
//! Built and run when the module is loaded, if the kernel has CONFIG_KUNIT=y; Debian's has not, the
//! debug kernel has.

use kernel::prelude::*;

#[kunit_tests(barbuf_order)]
mod order {
    use crate::pure::order_kunit::CASES;

    /// The largest page for an address, a physical address and a length.
    #[test]
    fn largest() {
        for case in CASES {
            assert_eq!(case.answer(), case.want);
        }
    }
}
