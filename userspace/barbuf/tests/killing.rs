// SPDX-License-Identifier: MIT OR Apache-2.0

//! One end of a socket is killed at a random moment; the other end loses nothing.
//!
//! One test, because it counts the descriptors of the whole process.

mod common;

use std::env;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use barbuf::pass::{Descriptor, Policy, receive, send};
use barbuf::{ErrorKind, Watch};
use common::{buffer, pairs, stand_ins};

const ROLE: &str = "BARBUF_ROLE";

/// Longer than a socket's buffer, so that a stream is often in the middle of a message.
fn descriptor() -> Descriptor {
    Descriptor {
        user: vec![7; 40_000],
        ..Descriptor::default()
    }
}

/// Sends until the other end is gone.
fn sender(socket: &impl std::os::fd::AsFd) -> ErrorKind {
    let watch = Watch::new().unwrap();
    loop {
        let buffer = buffer(4096);
        if let Err(error) = send(socket, &buffer, Some(&watch), &descriptor()) {
            return error.kind();
        }
    }
}

/// Receives until the other end is gone.
fn receiver(socket: &impl std::os::fd::AsFd) -> ErrorKind {
    loop {
        match receive(socket, &Policy::anybody()) {
            Ok(received) => assert_eq!(received.descriptor, descriptor()),
            Err(error) => return error.kind(),
        }
    }
}

/// The victim: this program again, with the socket as its standard input.
fn start(role: &str, socket: OwnedFd) -> Child {
    Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "whoever_is_killed_nothing_is_lost",
        ])
        .env(ROLE, role)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn whoever_is_killed_nothing_is_lost() {
    let stdin = std::io::stdin();
    match env::var(ROLE).as_deref() {
        Ok("sender") => drop(sender(&stdin.as_fd())),
        Ok("receiver") => drop(receiver(&stdin.as_fd())),
        _ => survive(),
    }
}

fn survive() {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut ends = std::collections::BTreeMap::new();
    for round in 0..50 {
        for (kind, (ours, theirs)) in pairs().into_iter().enumerate() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let role = ["sender", "receiver"][round % 2];
            let mut victim = start(role, theirs);
            let moment = Duration::from_micros(random % 15_000);
            let end = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(moment);
                    victim.kill().unwrap();
                    victim.wait().unwrap();
                });
                match role {
                    "sender" => receiver(&ours),
                    _ => sender(&ours),
                }
            });
            *ends.entry((kind, role, format!("{end:?}"))).or_insert(0) += 1;
            assert_eq!(end, ErrorKind::Closed, "round {round}, a {role} was killed");
            drop(ours);
            assert_eq!(stand_ins(), 0, "round {round}, a {role} was killed");
        }
    }
    println!("{ends:?}");
}
