// SPDX-License-Identifier: MIT OR Apache-2.0

//! Any bytes are a descriptor or an error; and what is a descriptor survives being sent on.

#![no_main]

use barbuf::ErrorKind;
use barbuf::pass::Descriptor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Descriptor::from_bytes(bytes) {
        Ok(descriptor) => {
            // Whatever it says can be shown.
            let _ = format!("{descriptor:?} {:?}", descriptor.format.map(|f| f.to_string()));
            if let Some(range) = &descriptor.range {
                assert!(range.start < range.end);
            }
            let again = descriptor.to_bytes().expect("what was decoded can be encoded");
            assert_eq!(Descriptor::from_bytes(&again).expect("and decoded again"), descriptor);
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Malformed);
            let _ = error.to_string();
        }
    }
});
