// SPDX-License-Identifier: MIT OR Apache-2.0

//! Any text is a format or an error, and what is one survives being shown.

#![no_main]

use barbuf::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(format) = text.parse::<Format>() {
        assert_eq!(format.to_string().parse(), Ok(format));
        if let Ok(known) = barbuf::drm_fourcc::DrmFormat::try_from(format) {
            let _ = format!("{known:?}");
        }
    }
});
