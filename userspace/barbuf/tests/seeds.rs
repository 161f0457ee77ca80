// SPDX-License-Identifier: MIT OR Apache-2.0

//! The seeds of the fuzz targets, through the same checks, where no fuzzer is at hand.

use std::fs;
use std::path::Path;

use barbuf::pass::Descriptor;
use barbuf::{ErrorKind, Format};

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let entries =
        fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut seeds: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    seeds.sort();
    seeds
}

#[test]
fn descriptors() {
    let mut refused = Vec::new();
    for (name, bytes) in seeds("descriptor") {
        match Descriptor::from_bytes(&bytes) {
            Ok(descriptor) => {
                let _ = format!("{descriptor:?}");
                let again = descriptor.to_bytes().unwrap();
                assert_eq!(
                    Descriptor::from_bytes(&again).unwrap(),
                    descriptor,
                    "{name}"
                );
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Malformed, "{name}");
                refused.push(name);
            }
        }
    }
    assert_eq!(refused, ["cut", "overflow", "reserved", "version-2"]);
}

#[test]
fn formats() {
    for (name, bytes) in seeds("format") {
        let text = String::from_utf8(bytes).unwrap();
        let format: Format = text.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(format.to_string(), text, "{name}");
    }
}
