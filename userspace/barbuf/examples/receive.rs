// SPDX-License-Identifier: MIT OR Apache-2.0

//! Receives a buffer from another process and reads its first word: `receive SOCKET`.
//!
//! See `send` for the other end. The C, C++ and Python programs in the repository's `examples/` do
//! the same.

use std::os::unix::net::UnixStream;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: receive SOCKET")?;
    let socket = UnixStream::connect(path)?;
    let received = barbuf::pass::receive(&socket, &barbuf::pass::Policy::anybody())?;
    let offset = received.descriptor.range.map_or(0, |range| range.start);
    let map = received.buffer.map().build()?;
    let name = match received.buffer.origin() {
        Ok(barbuf::Origin::Barbuf(query)) => query.provider,
        _ => "not one of barbuf's".into(),
    };
    let (word, event) = (map.read_u64(offset as usize)?, received.watch.is_some());
    let event = if event { "an" } else { "no" };
    println!(
        "{name}: {} bytes, word at {offset}: {word:016x}, {event} eventfd",
        map.len()
    );
    Ok(())
}
