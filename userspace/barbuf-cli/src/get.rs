// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf get`: a buffer from `barbuf serve`, for a command.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use barbuf::pass::{Policy, Received, Receiver};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, socket,
};
use serde_json::{Value, json};

use crate::cli::GetArgs;
use crate::error::{Error, Exit, Result};
use crate::export::{self, Described};
use crate::out::{Out, SCHEMA};
use crate::wire::{self, Answer, MAX_ANSWER, Request};

/// # Errors
///
/// There is no server, or it refuses.
pub fn run(args: &GetArgs, out: &Out) -> Result<u8> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let policy = match args.from_uid {
        Some(uid) => Policy::anybody().users([uid]),
        None => Policy::anybody(),
    };
    let Some(name) = &args.name else {
        let request = Request {
            schema: SCHEMA,
            get: None,
            list: true,
        };
        let connection = reach(&args.socket, deadline)?;
        let names = match ask(&connection, &request, &policy, deadline)? {
            Reply::Json(answer) => answer.buffers.unwrap_or_default(),
            Reply::Buffer(_) => {
                return Err(Error::failed("the server sent a buffer instead of a list"));
            }
        };
        out.result(json!({ "buffers": names }), || names.join("\n"));
        return Ok(Exit::Ok as u8);
    };
    let timeout = Duration::from_secs(args.timeout);
    let (received, connection) = fetch(&args.socket, name, &policy, timeout)?;
    let told: Value = serde_json::from_slice(&received.descriptor.user).unwrap_or_default();
    if args.command.is_empty() {
        let size = received.buffer.size()?;
        let id = received.buffer.id()?;
        out.done(
            json!({ "size": size, "id": format!("{}:{}", id.device, id.inode), "told": told["buffer"] }),
            || format!("{name}: {}", crate::size::show(size)),
        );
        return Ok(Exit::Ok as u8);
    }
    let provider = told["buffer"]["provider"].as_str().unwrap_or_default();
    let described = Described::of(&received.buffer, provider)?;
    Err(export::replace(
        &args.command,
        received.buffer.into(),
        received.watch.map(Into::into),
        Some(connection),
        &described,
    ))
}

/// Connects. A server with a full queue is tried again.
fn reach(path: &Path, deadline: Instant) -> Result<OwnedFd> {
    let failed = |errno| Error::errno(format!("cannot reach {}", path.display()), errno);
    let address = UnixAddr::new(path).map_err(failed)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connection =
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(failed)?;
    loop {
        match connect(connection.as_raw_fd(), &address) {
            Ok(()) => return Ok(connection),
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => {
                sleep(Duration::from_millis(5));
            }
            Err(errno @ (Errno::ENOENT | Errno::ECONNREFUSED)) => {
                return Err(Error::not_found(format!(
                    "nobody serves {} ({errno:?})",
                    path.display()
                ))
                .hint("start `barbuf serve`, or name its --socket"));
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// Gets a buffer, as `barbuf get` does. The connection keeps a buffer that is revoked on disconnect.
///
/// # Errors
///
/// There is no server, or it refuses.
pub fn fetch(
    path: &Path,
    name: &str,
    policy: &Policy,
    timeout: Duration,
) -> Result<(Received, OwnedFd)> {
    let deadline = Instant::now() + timeout;
    let connection = reach(path, deadline)?;
    match ask(&connection, &Request::get(name), policy, deadline)? {
        Reply::Buffer(received) => Ok((*received, connection)),
        Reply::Json(_) => Err(Error::failed("the server sent no buffer")),
    }
}

enum Reply {
    Buffer(Box<Received>),
    Json(Answer),
}

fn ask(
    connection: &OwnedFd,
    request: &Request,
    policy: &Policy,
    deadline: Instant,
) -> Result<Reply> {
    let lost = |errno: Errno| match errno {
        Errno::ECONNRESET | Errno::EPIPE => Error::failed("the server has closed the connection"),
        errno => Error::errno("the connection", errno),
    };
    // A server that is at its limits says so and closes without reading: its word is still there.
    match wire::write(connection.as_fd(), request) {
        Ok(()) | Err(Errno::EPIPE) => {}
        Err(errno) => return Err(lost(errno)),
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let mut polled = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
    if poll(&mut polled, limit).map_err(lost)? == 0 {
        return Err(
            Error::failed("the server has not answered in time").hint("--timeout waits longer")
        );
    }
    let mut first = [0; 1];
    let count = recv(connection.as_raw_fd(), &mut first, MsgFlags::MSG_PEEK).map_err(lost)?;
    if count == 0 {
        return Err(lost(Errno::EPIPE));
    }
    if first != *b"{" {
        let receiver = Receiver::new(policy.clone()).timeout(left);
        return Ok(Reply::Buffer(Box::new(receiver.receive(connection)?)));
    }
    let bytes = wire::read(connection.as_fd(), MAX_ANSWER).map_err(lost)?;
    let answer: Answer = serde_json::from_slice(&bytes.unwrap_or_default())
        .map_err(|error| Error::failed(format!("the server's answer is none: {error}")))?;
    match answer.error {
        Some(refusal) => Err(refusal.into_error()),
        None => Ok(Reply::Json(answer)),
    }
}
