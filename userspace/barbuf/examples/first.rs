// SPDX-License-Identifier: MIT OR Apache-2.0

//! The program that both READMEs print; a test holds them against this file. `send` is its other end.

use barbuf::pass::{Policy, receive};
use std::os::unix::net::UnixStream;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = UnixStream::connect("/run/weights.sock")?;
    let received = receive(&socket, &Policy::anybody())?;
    let map = received.buffer.map().build()?;
    println!("{} bytes, the first is {}", map.len(), map.read_u8(0)?);
    Ok(())
}
