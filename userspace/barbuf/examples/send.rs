// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exports device memory and passes it to whoever connects: `send 0000:05:00.0 SOCKET`.
//!
//! The buffer holds its own offsets, so that a receiver has something to look at. Ends, and takes
//! the buffer back, when it is interrupted.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;

use barbuf::pass::{Descriptor, send};
use barbuf::{Device, Direction, Watch};

const SIZE: u64 = 2 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: send PCI-ADDRESS SOCKET".into());
    };
    let device = Device::open(address)?;
    let watch = Watch::new()?;
    let buffer = device
        .export()
        .any(SIZE)
        .watch(&watch)
        .revoke_on_close(true)
        .build()?;
    let map = buffer.map().build()?;
    let access = buffer.cpu_access(Direction::Write)?;
    for offset in (0..map.len()).step_by(8) {
        map.write_u64(offset, offset as u64)?;
    }
    access.finish()?;

    // What a run that was interrupted has left there.
    if fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path)?;
    println!("{SIZE} bytes for whoever connects to {path}");
    let descriptor = Descriptor {
        range: Some(4096..SIZE),
        user: b"its own offsets".to_vec(),
        ..Descriptor::default()
    };
    for socket in listener.incoming() {
        match send(&socket?, &buffer, Some(&watch), &descriptor) {
            Ok(()) => {}
            // One that has hung up is no reason to stop.
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}
