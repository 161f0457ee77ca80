// SPDX-License-Identifier: MIT OR Apache-2.0

//! Buffers between sockets: what arrives, what is refused, and that nothing is lost on the way.
//!
//! One test, because it counts the descriptors of the whole process.

mod common;

use std::io::{IoSlice, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use barbuf::pass::{
    Descriptor, Peer, Policy, Received, Receiver, receive, send, take_from_process,
};
use barbuf::{Buffer, ErrorKind, Format, Watch};
use common::{buffer, is_cloexec, memfd, pairs, stand_ins};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

fn descriptor() -> Descriptor {
    Descriptor {
        range: Some(4096..8192),
        format: Some(Format::BYTES),
        tag: 77,
        user: b"for whoever reads it".to_vec(),
    }
}

/// sendmsg(2) with whatever bytes and descriptors.
fn send_raw(socket: &OwnedFd, bytes: &[u8], fds: &[&OwnedFd]) {
    let numbers: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

fn take(socket: &impl AsFd) -> Result<Received, ErrorKind> {
    receive(socket, &Policy::anybody()).map_err(|error| {
        assert!(
            error.operation() == "receive" || error.operation() == "lseek",
            "{error}"
        );
        error.kind()
    })
}

/// What was sent is what arrives, and it is the same buffer.
fn arrives(ours: &OwnedFd, theirs: &OwnedFd) {
    let buffer = buffer(8192);
    let watch = Watch::new().unwrap();
    send(ours, &buffer, Some(&watch), &descriptor()).unwrap();
    send(ours, &buffer, None, &Descriptor::default()).unwrap();
    let first = take(theirs).unwrap();
    assert_eq!(first.descriptor, descriptor());
    assert_eq!(first.buffer.id().unwrap(), buffer.id().unwrap());
    assert_eq!(first.peer, Peer::of(theirs).unwrap());
    assert_eq!(first.peer.pid as u32, std::process::id());
    assert!(is_cloexec(&first.buffer) && is_cloexec(first.watch.as_ref().unwrap()));
    buffer.map().build().unwrap().write_u32(4096, 5).unwrap();
    let map = first.buffer.map().range(4096..8192).build().unwrap();
    assert_eq!(map.read_u32(0).unwrap(), 5);
    nix::unistd::write(&watch, &1u64.to_ne_bytes()).unwrap();
    assert!(first.watch.unwrap().wait(Some(Duration::ZERO)).unwrap());

    let second = take(theirs).unwrap();
    assert_eq!(second.descriptor, Descriptor::default());
    assert!(second.watch.is_none());
    // The largest, which a stream delivers in pieces.
    let big = Descriptor {
        user: (0..Descriptor::MAX_USER).map(|n| n as u8).collect(),
        ..Descriptor::default()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send(ours, &buffer, None, &big).unwrap());
        assert_eq!(take(theirs).unwrap().descriptor, big);
    });
}

/// More or fewer descriptors than the message says: all are closed, and the next message comes.
fn another_number(ours: &OwnedFd, theirs: &OwnedFd) {
    let file = memfd(8192);
    let bytes = descriptor().to_bytes().unwrap();
    for fds in [vec![], vec![&file, &file], vec![&file; 253]] {
        send_raw(ours, &bytes, &fds);
        assert_eq!(take(theirs).unwrap_err(), ErrorKind::WrongFds);
        assert_eq!(stand_ins(), 1, "after {} descriptors", fds.len());
    }
    send(ours, &file, None, &descriptor()).unwrap();
    assert_eq!(take(theirs).unwrap().descriptor, descriptor());
}

/// Descriptors that come with later bytes of a message belong to nobody.
fn surplus_in_the_middle(ours: &OwnedFd, theirs: &OwnedFd) {
    let file = memfd(8192);
    let bytes = descriptor().to_bytes().unwrap();
    let (head, tail) = bytes.split_at(60);
    send_raw(ours, head, &[&file]);
    send_raw(ours, tail, &[&file, &file]);
    assert_eq!(take(theirs).unwrap_err(), ErrorKind::WrongFds);
    // And those of the next message do not come with this one.
    send_raw(ours, &bytes, &[&file]);
    send_raw(ours, &bytes, &[&file]);
    assert!(take(theirs).is_ok() && take(theirs).is_ok());
    assert_eq!(stand_ins(), 1);
}

/// nix loses descriptors here: the kernel can deliver some of them only (MSG_CTRUNC).
fn no_room_for_all(ours: &OwnedFd, theirs: &OwnedFd) {
    let file = memfd(8192);
    let watch = Watch::new().unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The numbers below the limit are taken, but for one.
    let limit = 200;
    let mut fill: Vec<OwnedFd> = Vec::new();
    loop {
        let next = file.try_clone().unwrap();
        let number = next.as_raw_fd() as u64;
        fill.push(next);
        if number + 1 >= limit {
            break;
        }
    }
    for free in [0, 1] {
        if free == 1 {
            // The one with the lowest number that is ours.
            drop(fill.remove(0));
        }
        let before = stand_ins();
        send(ours, &file, Some(&watch), &descriptor()).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
        let outcome = receive(theirs, &Policy::anybody());
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "{error}");
        assert_eq!(error.errno(), Some(nix::libc::EMFILE));
        assert_eq!(stand_ins(), before, "one was lost with room for {free}");
    }
    drop(fill);
    send(ours, &file, None, &descriptor()).unwrap();
    assert_eq!(take(theirs).unwrap().descriptor, descriptor());
}

fn wrong_contents(ours: &OwnedFd, theirs: &OwnedFd) {
    let (read, write) = nix::unistd::pipe().unwrap();
    let file = memfd(8192);
    let with = |range| {
        let descriptor = Descriptor {
            range,
            ..Descriptor::default()
        };
        descriptor.to_bytes().unwrap()
    };
    // Beyond the end of what came, or nothing that has an end.
    for range in [0..8193, 8192..u64::MAX, u64::MAX - 1..u64::MAX] {
        send_raw(ours, &with(Some(range)), &[&file]);
        assert_eq!(take(theirs).unwrap_err(), ErrorKind::OutOfBounds);
    }
    send_raw(ours, &with(None), &[&read]);
    assert_eq!(take(theirs).unwrap_err(), ErrorKind::Os);
    drop(write);
    // Without an end is up to the end.
    let mut bytes = with(Some(4096..8192));
    bytes[24..32].fill(0);
    send_raw(ours, &bytes, &[&file]);
    assert_eq!(take(theirs).unwrap().descriptor.range, Some(4096..8192));
    assert_eq!(stand_ins(), 1);
}

/// Another user's message is closed unread where the socket itself tells, and at its end where each
/// message does.
fn who_sends(ours: &OwnedFd, theirs: &OwnedFd) {
    let me = Peer::of(theirs).unwrap();
    let file = memfd(4096);
    for policy in [
        Policy::anybody().users([me.uid]),
        Policy::anybody()
            .users([me.uid + 1, me.uid])
            .groups([me.gid]),
        Policy::anybody().users([me.uid]).of_each_message(),
    ] {
        policy.prepare(theirs).unwrap();
        send(ours, &file, None, &Descriptor::default()).unwrap();
        let received = receive(theirs, &policy).unwrap();
        assert_eq!(received.peer, me);
    }
    // Refused before a byte is read: the message is still there.
    for policy in [
        Policy::anybody().users([me.uid + 1]),
        Policy::anybody().users([]),
        Policy::anybody().users([me.uid]).groups([me.gid + 1]),
    ] {
        send(ours, &file, None, &Descriptor::default()).unwrap();
        let error = receive(theirs, &policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Peer, "{error}");
        assert_eq!(error.errno(), Some(nix::libc::EPERM));
        assert!(take(theirs).is_ok());
    }
    // Who has sent it is known only when it is there: it is thrown away, and the next one comes.
    let policy = Policy::anybody().users([me.uid + 1]).of_each_message();
    send(ours, &file, None, &descriptor_of(1)).unwrap();
    send(ours, &file, None, &descriptor_of(2)).unwrap();
    assert_eq!(
        receive(theirs, &policy).unwrap_err().kind(),
        ErrorKind::Peer
    );
    assert_eq!(take(theirs).unwrap().descriptor, descriptor_of(2));
    assert_eq!(stand_ins(), 1);
}

fn descriptor_of(tag: u64) -> Descriptor {
    Descriptor {
        tag,
        ..Descriptor::default()
    }
}

/// The end, and messages that stop in the middle.
fn ends() {
    let [stream, packets] = pairs();
    for (ours, theirs) in [stream, packets] {
        let file = memfd(8192);
        send(&ours, &file, None, &descriptor()).unwrap();
        drop(ours);
        assert!(take(&theirs).is_ok());
        assert_eq!(take(&theirs).unwrap_err(), ErrorKind::Closed);
        let error = send(&theirs, &file, None, &descriptor()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
    let bytes = descriptor().to_bytes().unwrap();
    for len in [1, 55, 56, bytes.len() - 1] {
        let [(ours, theirs), (packets, their_packets)] = pairs();
        let file = memfd(8192);
        send_raw(&ours, &bytes[..len], &[&file]);
        let patient = Receiver::new(Policy::anybody()).patience(Duration::from_millis(20));
        let error = patient.receive(&theirs).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
        assert_eq!(error.errno(), Some(nix::libc::ETIMEDOUT));
        send_raw(&packets, &bytes[..len], &[&file]);
        assert_eq!(take(&their_packets).unwrap_err(), ErrorKind::Malformed);

        let [(ours, theirs), _] = pairs();
        send_raw(&ours, &bytes[..len], &[&file]);
        drop(ours);
        let error = receive(&theirs, &Policy::anybody()).unwrap_err();
        assert_eq!(error.errno(), Some(nix::libc::ECONNRESET), "{error}");
        assert_eq!(stand_ins(), 1);
    }
    // Longer than any message can be.
    let [_, (ours, theirs)] = pairs();
    let file = memfd(4096);
    send_raw(&ours, &vec![0; Descriptor::MAX_LEN + 1], &[&file]);
    assert_eq!(take(&theirs).unwrap_err(), ErrorKind::Truncated);
    assert_eq!(stand_ins(), 1);
}

fn waiting() {
    for (ours, theirs) in pairs() {
        let patient = Receiver::new(Policy::anybody()).timeout(Duration::from_millis(10));
        let error = patient.receive(&theirs).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let file = memfd(4096);
        send(&ours, &file, None, &Descriptor::default()).unwrap();
        patient.receive(&theirs).unwrap();

        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&theirs, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        assert_eq!(take(&theirs).unwrap_err(), ErrorKind::WouldBlock);
        // A sender that does not block is told when the socket is full, between two messages.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut sent = 0;
        let error = loop {
            match send(&ours, &file, None, &Descriptor::default()) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
        for _ in 0..sent {
            take(&theirs).unwrap();
        }
        assert_eq!(take(&theirs).unwrap_err(), ErrorKind::WouldBlock);
    }
}

/// Sockets that could tear a message apart, or mix two, are refused.
fn other_sockets() {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let file = memfd(4096);
    for error in [
        send(&ours, &file, None, &Descriptor::default()).unwrap_err(),
        receive(&theirs, &Policy::anybody()).unwrap_err(),
        receive(&file, &Policy::anybody()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Os, "{error}");
    }
    // What is no message of ours.
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&[b'x'; 100]).unwrap();
    assert_eq!(take(&theirs).unwrap_err(), ErrorKind::Malformed);
}

/// 1,000 descriptors, from several senders at once.
fn storm() {
    const SENDERS: u64 = 4;
    const EACH: u64 = 250;
    for (ours, theirs) in pairs() {
        let mut seen = vec![0u64; SENDERS as usize];
        // A stream belongs to one sender at a time: a long message goes in pieces.
        let turn = &std::sync::Mutex::new(());
        std::thread::scope(|scope| {
            for sender in 0..SENDERS {
                let ours = &ours;
                scope.spawn(move || {
                    for n in 0..EACH {
                        let descriptor = Descriptor {
                            tag: (sender << 32) | n,
                            ..Descriptor::default()
                        };
                        let buffer = buffer(4096 * (1 + sender));
                        let _turn = turn.lock().unwrap();
                        send(ours, &buffer, None, &descriptor).unwrap();
                    }
                });
            }
            for _ in 0..SENDERS * EACH {
                let received = take(&theirs).unwrap();
                let sender = (received.descriptor.tag >> 32) as usize;
                // In the order in which each has sent.
                assert_eq!(received.descriptor.tag & 0xffff_ffff, seen[sender]);
                assert_eq!(received.buffer.size().unwrap(), 4096 * (1 + sender as u64));
                seen[sender] += 1;
            }
        });
        assert_eq!(seen, [EACH; SENDERS as usize]);
        assert_eq!(stand_ins(), 0);
    }
}

/// A descriptor is found by its number in another process; here, in this one.
fn debug_path() {
    let buffer = buffer(4096);
    let number = buffer.as_fd().as_raw_fd();
    match take_from_process(std::process::id(), number) {
        Ok(fd) => {
            assert!(is_cloexec(&fd));
            let same = Buffer::from(fd);
            assert_eq!(same.id().unwrap(), buffer.id().unwrap());
            let error = take_from_process(std::process::id(), 9999).unwrap_err();
            assert_eq!(error.errno(), Some(nix::libc::EBADF));
        }
        // Some containers forbid the call.
        Err(error) => assert_eq!(error.errno(), Some(nix::libc::EPERM), "{error}"),
    }
    let nobody = take_from_process(0x7fff_fffe, 0).unwrap_err();
    assert!(nobody.hint().is_some(), "{nobody}");
}

#[test]
fn everything_arrives_or_is_closed() {
    for (ours, theirs) in &pairs() {
        arrives(ours, theirs);
        another_number(ours, theirs);
        no_room_for_all(ours, theirs);
        wrong_contents(ours, theirs);
        assert_eq!(stand_ins(), 0);
    }
    let [(ours, theirs), _] = pairs();
    surplus_in_the_middle(&ours, &theirs);
    for (ours, theirs) in &pairs() {
        who_sends(ours, theirs);
    }
    ends();
    waiting();
    other_sockets();
    storm();
    debug_path();
    assert_eq!(stand_ins(), 0);
}
