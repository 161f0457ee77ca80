// SPDX-License-Identifier: MIT OR Apache-2.0

//! Buffers between processes, over Unix sockets.
//!
//! [`send`] and [`receive`] work on connected sockets of the types `SOCK_SEQPACKET` and
//! `SOCK_STREAM`. With each buffer goes a [`Descriptor`], and an eventfd if the receiver shall
//! know when the buffer is revoked.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use barbuf::pass::{Descriptor, Policy, receive, send};
//! # use std::os::fd::OwnedFd;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # // Stands in for a buffer where there is no device.
//! # let file = nix::sys::memfd::memfd_create(c"doc", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
//! # nix::unistd::ftruncate(&file, 1 << 20)?;
//! # let buffer = barbuf::Buffer::from(OwnedFd::from(file));
//!
//! let (ours, theirs) = UnixStream::pair()?;
//! send(&ours, &buffer, None, &Descriptor { user: b"weights".to_vec(), ..Default::default() })?;
//!
//! let received = receive(&theirs, &Policy::anybody())?;
//! assert_eq!(received.descriptor.user, b"weights");
//! assert_eq!(received.buffer.size()?, buffer.size()?);
//! # Ok(())
//! # }
//! ```
//!
//! # What can go wrong
//!
//! Every descriptor that arrives is owned from the first instant, closed over `execve()`, and closed
//! again if the message is refused. A message that is refused as [`WrongFds`](ErrorKind::WrongFds),
//! [`Truncated`](ErrorKind::Truncated) or by its range has been read to its end, so that the next
//! one can be received. After [`Malformed`](ErrorKind::Malformed) on a stream nobody knows where the
//! next one begins: close it.
//!
//! A sender can be stopped in the middle of a message on a stream, and a receiver waits for the rest
//! no longer than [`Receiver::patience`].

mod descriptor;
mod message;
mod peer;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::sockopt::SockType as SocketTypeOption;
use nix::sys::socket::{SockType, getsockopt};

pub use descriptor::Descriptor;
pub use peer::{Peer, Policy, take_from_process};

use crate::buffer::{Buffer, wait};
use crate::error::{Error, ErrorKind, Result};
use crate::watch::Watch;
use message::Received as Part;

/// How long the rest of a message that has begun may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A buffer that has come from another process.
#[derive(Debug)]
#[non_exhaustive]
pub struct Received {
    /// The buffer. What it is, is not known yet: [`Buffer::origin`] tells, [`Buffer::map`] maps.
    pub buffer: Buffer,
    /// Signalled when the buffer is revoked, if the sender has sent one.
    pub watch: Option<Watch>,
    /// What the sender says of it. Its range lies inside of the buffer.
    pub descriptor: Descriptor,
    /// Who has sent it, as the kernel vouches for it.
    pub peer: Peer,
}

/// Sends a buffer, with an eventfd for its revocation if there is one. Both stay usable here.
///
/// Waits as long as the other end does not read, unless the socket is non-blocking.
///
/// # Errors
///
/// [`ErrorKind::Closed`] (`EPIPE`) if the other end has gone, [`ErrorKind::WouldBlock`] if the
/// socket is non-blocking and full, `ETOOMANYREFS` if too many descriptors are under way,
/// `EMSGSIZE` if the descriptor is longer than the socket's send buffer allows,
/// [`ErrorKind::Invalid`] for a descriptor that cannot be encoded.
pub fn send(
    socket: impl AsFd,
    buffer: impl AsFd,
    watch: Option<&Watch>,
    descriptor: &Descriptor,
) -> Result<()> {
    let socket = socket.as_fd();
    is_stream("send", socket)?;
    let bytes = descriptor.encode(watch.is_some())?;
    let mut fds = vec![buffer.as_fd()];
    fds.extend(watch.map(AsFd::as_fd));
    // The descriptors go with the first byte.
    let mut sent = message::send(socket, &bytes, &fds, 0).map_err(send_failed)?;
    while let Some(rest @ [_, ..]) = bytes.get(sent..) {
        match message::send(socket, rest, &[], libc::MSG_DONTWAIT) {
            Ok(more) => sent += more,
            // A message that has begun is finished, or the next one would end up inside of it.
            Err(Errno::EAGAIN) => drop(wait(socket, PollFlags::POLLOUT, None)?),
            Err(errno) => return Err(send_failed(errno)),
        }
    }
    Ok(())
}

/// Receives a buffer, with the usual patience: see [`Receiver`].
///
/// # Errors
///
/// Those of [`Receiver::receive`].
pub fn receive(socket: impl AsFd, policy: &Policy) -> Result<Received> {
    Receiver::new(policy.clone()).receive(socket)
}

/// How to receive.
#[derive(Clone, Debug)]
pub struct Receiver {
    policy: Policy,
    timeout: Option<Duration>,
    patience: Duration,
}

impl Receiver {
    /// From whom the policy allows, waiting for a message for ever.
    pub fn new(policy: Policy) -> Self {
        Receiver {
            policy,
            timeout: None,
            patience: PATIENCE,
        }
    }

    /// How long to wait for a message to begin.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long the rest of a message may take that has begun; 10 s unless told otherwise.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Receives one buffer.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] at the end; [`ErrorKind::Peer`] if the policy refuses the other end;
    /// [`ErrorKind::Malformed`], [`ErrorKind::WrongFds`], [`ErrorKind::Truncated`],
    /// [`ErrorKind::OutOfBounds`] (the range is not one of the buffer's) for messages that are not
    /// right, all of whose descriptors have been closed; [`ErrorKind::WouldBlock`] if nothing has
    /// come.
    pub fn receive(&self, socket: impl AsFd) -> Result<Received> {
        let socket = socket.as_fd();
        let stream = is_stream("receive", socket)?;
        let maker = Peer::of(socket)?;
        if self.policy.looks_at_each() {
            self.policy.prepare(socket)?;
        } else {
            // Before anything of theirs is read.
            self.policy.check(&maker)?;
        }
        if let Some(timeout) = self.timeout {
            if !wait(socket, PollFlags::POLLIN, Some(timeout))? {
                return Err(
                    Error::new("receive", ErrorKind::WouldBlock).with_errno(Errno::ETIMEDOUT)
                );
            }
        }
        let mut message = if stream {
            self.stream_message(socket)?
        } else {
            packet(socket)?
        };
        let peer = message.peer.unwrap_or(maker);
        self.policy.check(&peer)?;
        message.is_whole()?;
        let (descriptor, event) = Descriptor::decode(&message.bytes)?;
        let wanted = if event { 2 } else { 1 };
        if message.fds.len() != wanted {
            return Err(Error::new("receive", ErrorKind::WrongFds)
                .of(format!("{} file descriptors", message.fds.len()))
                .hinted(format!("{wanted} should have come; all are closed")));
        }
        let watch = if event { message.fds.pop() } else { None };
        let Some(buffer) = message.fds.pop().map(Buffer::from) else {
            return Err(Error::new("receive", ErrorKind::WrongFds));
        };
        let descriptor = within(&buffer, descriptor)?;
        Ok(Received {
            buffer,
            watch: watch.map(Watch::from),
            descriptor,
            peer,
        })
    }

    /// One message of a stream. Never a byte of the next one is read, so that no descriptor of the
    /// next one can come with this one.
    fn stream_message(&self, socket: BorrowedFd<'_>) -> Result<Message> {
        let mut message = Message::default();
        let mut bytes = vec![0; Descriptor::HEADER];
        let mut filled = 0;
        let mut total = None;
        let mut deadline = None;
        while total.is_none_or(|total| filled < total) {
            let flags = match deadline {
                None => 0,
                Some(at) => {
                    let left = Instant::saturating_duration_since(&at, Instant::now());
                    if !wait(socket, PollFlags::POLLIN, Some(left))? {
                        return Err(Error::new("receive", ErrorKind::WouldBlock)
                            .with_errno(Errno::ETIMEDOUT)
                            .hinted("a message has begun and does not go on; close the socket"));
                    }
                    libc::MSG_DONTWAIT
                }
            };
            let part = match message::receive(socket, &mut bytes[filled..], flags) {
                Err(Errno::EAGAIN) if deadline.is_some() => continue,
                other => other.map_err(receive_failed)?,
            };
            let len = part.len;
            message.take(part);
            if len == 0 {
                let error = Error::new("receive", ErrorKind::Closed);
                return Err(match filled {
                    0 => error,
                    _ => error
                        .with_errno(Errno::ECONNRESET)
                        .hinted("in the middle of a message"),
                });
            }
            filled += len;
            deadline.get_or_insert_with(|| Instant::now() + self.patience);
            if let (None, Some(header)) = (total, bytes.first_chunk()) {
                if filled == Descriptor::HEADER {
                    let frame = Descriptor::frame(header)?;
                    bytes.resize(frame.total, 0);
                    total = Some(frame.total);
                }
            }
        }
        message.bytes = bytes;
        Ok(message)
    }
}

/// One message of a socket that keeps them apart.
fn packet(socket: BorrowedFd<'_>) -> Result<Message> {
    let mut bytes = vec![0; Descriptor::MAX_LEN];
    let part = message::receive(socket, &mut bytes, 0).map_err(receive_failed)?;
    let mut message = Message::default();
    bytes.truncate(part.len);
    message.take(part);
    if bytes.is_empty() && message.fds.is_empty() {
        return Err(Error::new("receive", ErrorKind::Closed));
    }
    message.bytes = bytes;
    Ok(message)
}

/// A message as it has come.
#[derive(Debug, Default)]
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    peer: Option<Peer>,
    lost_fds: bool,
    lost_bytes: bool,
}

impl Message {
    fn take(&mut self, part: Part) {
        self.fds.extend(part.fds);
        self.lost_fds |= part.lost_fds;
        self.lost_bytes |= part.lost_bytes;
        self.peer = part.credentials.map(Peer::from).or(self.peer);
    }

    fn is_whole(&self) -> Result<()> {
        let error = Error::new("receive", ErrorKind::Truncated);
        if self.lost_fds {
            return Err(error.with_errno(Errno::EMFILE).hinted(
                "file descriptors were lost: this process has too many open, or may not have these (RLIMIT_NOFILE)",
            ));
        }
        match self.lost_bytes {
            true => Err(error.hinted("the message is longer than 65,536 bytes")),
            false => Ok(()),
        }
    }
}

/// Whether it is a stream; whatever else it is must keep messages apart.
fn is_stream(operation: &'static str, socket: BorrowedFd<'_>) -> Result<bool> {
    let kind = getsockopt(&socket, SocketTypeOption)
        .map_err(|errno| Error::os("getsockopt", errno).of("SO_TYPE"))?;
    match kind {
        SockType::Stream => Ok(true),
        SockType::SeqPacket => Ok(false),
        _ => Err(Error::os(operation, Errno::EPROTOTYPE)
            .hinted("the socket must be of the type SOCK_SEQPACKET or SOCK_STREAM")),
    }
}

/// A range must be one of the buffer's. One without an end gets the buffer's.
fn within(buffer: &Buffer, mut descriptor: Descriptor) -> Result<Descriptor> {
    let size = buffer
        .size()
        .map_err(|error| error.hinted("what came is nothing that can be mapped"))?;
    if let Some(range) = &mut descriptor.range {
        if range.end == u64::MAX {
            range.end = size;
        }
        if range.start >= range.end || range.end > size {
            return Err(Error::new("receive", ErrorKind::OutOfBounds)
                .of(format!("a range of {range:?}"))
                .hinted(format!("the buffer has {size} bytes")));
        }
    }
    Ok(descriptor)
}

fn send_failed(errno: Errno) -> Error {
    let error = Error::os("send", errno);
    match errno {
        Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => error.kinded(ErrorKind::Closed),
        Errno::EAGAIN => error.kinded(ErrorKind::WouldBlock),
        Errno::EMSGSIZE => error.hinted("fewer user bytes, or a larger SO_SNDBUF"),
        Errno::ETOOMANYREFS => {
            error.hinted("too many descriptors are under way; let the receiver take some")
        }
        _ => error,
    }
}

fn receive_failed(errno: Errno) -> Error {
    let error = Error::os("receive", errno);
    match errno {
        Errno::EAGAIN => error.kinded(ErrorKind::WouldBlock),
        Errno::ECONNRESET | Errno::ENOTCONN => error.kinded(ErrorKind::Closed),
        _ => error,
    }
}
