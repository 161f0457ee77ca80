// SPDX-License-Identifier: MIT OR Apache-2.0

//! The broker: hands buffers to whom the rules let have them.
//!
//! It acts with its own rights for others, so it takes nothing from them but a name. Who they are
//! the kernel tells (`SO_PEERCRED`, `SO_PEERGROUPS`); what they get is what the rule says, made
//! or found by the broker itself. Descriptors that clients send along are closed by the kernel
//! before anybody sees them.
//!
//! Each connection has a thread of its own, of which there are only so many, and a time limit on
//! every wait: who is slow, silent or dead holds up nobody else. What a client holds on condition
//! (`revoke_on_disconnect`) belongs to its thread, through a file of the provider's node that
//! revokes when it is closed: when the client goes, and also when the broker is killed.
//!
//! Lock order: `shared` and `clients` are never held together.

use std::collections::HashMap;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use barbuf::pass::{self, Descriptor, Peer};
use barbuf::{Buffer, Watch};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::SockFlag;
use nix::sys::socket::accept4;
use serde_json::{Value, json};

use crate::error::{Error, Exit, Result};
use crate::out::SCHEMA;
use crate::rules::{BufferRule, Caller, Rules};
use crate::wire::{self, Answer, MAX_REQUEST, Request};

/// Where buffers come from.
pub trait Provider: Send + Sync + 'static {
    /// Makes the buffer of a rule.
    ///
    /// # Errors
    ///
    /// The provider has gone, or has no room.
    fn make(&self, rule: &BufferRule) -> Result<Made>;
}

/// A buffer that is handed out.
pub struct Made {
    pub buffer: Buffer,
    pub watch: Option<Watch>,
    /// What clients are told of it.
    pub told: Value,
    /// What is given up when nobody is to have the buffer any more.
    pub lease: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made")
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

pub struct Broker<P> {
    rules: Rules,
    provider: P,
    /// Buffers that all clients share, by name.
    shared: Mutex<HashMap<String, Arc<Made>>>,
    /// Connections by user.
    clients: Mutex<HashMap<u32, u32>>,
    handed: AtomicU64,
    /// End after so many.
    gets: Option<u64>,
    /// Written to when that is reached.
    done: EventFd,
}

impl<P> std::fmt::Debug for Broker<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// Counts a connection as long as it lives.
struct Counted<P: Provider> {
    broker: Arc<Broker<P>>,
    uid: u32,
}

impl<P: Provider> Drop for Counted<P> {
    fn drop(&mut self) {
        let mut clients = lock(&self.broker.clients);
        if let Some(count) = clients.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.uid);
            }
        }
    }
}

/// A thread that panicked has left nothing half done in what these locks guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<P: Provider> Broker<P> {
    /// # Errors
    ///
    /// Those of eventfd(2).
    pub fn new(rules: Rules, provider: P, gets: Option<u64>) -> Result<Arc<Self>> {
        let done = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::errno("eventfd", errno))?;
        Ok(Arc::new(Broker {
            rules,
            provider,
            shared: Mutex::default(),
            clients: Mutex::default(),
            handed: AtomicU64::new(0),
            gets,
            done,
        }))
    }

    /// How many buffers were handed out.
    pub fn handed(&self) -> u64 {
        self.handed.load(Ordering::Relaxed)
    }

    /// Connections now.
    pub fn connections(&self) -> u32 {
        lock(&self.clients).values().sum()
    }

    /// Serves until `ended` is readable, or enough was handed out.
    ///
    /// # Errors
    ///
    /// Those of poll(2) and accept4(2) that do not pass.
    pub fn serve(self: &Arc<Self>, listener: BorrowedFd<'_>, ended: BorrowedFd<'_>) -> Result<()> {
        loop {
            let mut polled = [
                PollFd::new(listener, PollFlags::POLLIN),
                PollFd::new(ended, PollFlags::POLLIN),
                PollFd::new(self.done.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::errno("poll", errno)),
            }
            if polled[1].any() == Some(true) || polled[2].any() == Some(true) {
                return Ok(());
            }
            if polled[0].any() != Some(true) {
                continue;
            }
            match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(number) => self.accept(own(number)),
                // The client has gone again, or this process is at its limits: later.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EAGAIN | Errno::EPROTO) => {}
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                    thread::sleep(Duration::from_millis(50));
                }
                Err(errno) => return Err(Error::errno("accept", errno)),
            }
        }
    }

    /// Gives a connection its thread.
    fn accept(self: &Arc<Self>, socket: OwnedFd) {
        // A client that does not read must not stop a thread.
        let blocking = fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        let Ok(caller) = caller_of(socket.as_fd()) else {
            return;
        };
        if blocking.is_err() {
            return;
        }
        let counted = match self.count(caller.uid) {
            Ok(counted) => counted,
            Err(error) => {
                let _ = wire::write(socket.as_fd(), &Answer::error(&error));
                return;
            }
        };
        let broker = Arc::clone(self);
        // If there are no more threads, what the closure owns is dropped: the connection is closed.
        let _ = thread::Builder::new().name("client".into()).spawn(move || {
            broker.attend(&socket, &caller);
            drop(counted);
        });
    }

    fn count(self: &Arc<Self>, uid: u32) -> Result<Counted<P>> {
        let limits = &self.rules.limits;
        let mut clients = lock(&self.clients);
        let all: u32 = clients.values().sum();
        let count = clients.entry(uid).or_default();
        let full = if all >= limits.clients {
            Some("the server has as many clients as it may")
        } else if *count >= limits.clients_per_user {
            Some("this user has as many connections as it may")
        } else {
            None
        };
        if let Some(full) = full {
            if *count == 0 {
                clients.remove(&uid);
            }
            return Err(Error::new(Exit::Busy, full));
        }
        *count += 1;
        Ok(Counted {
            broker: Arc::clone(self),
            uid,
        })
    }

    /// Serves one client until it goes, says something wrong, or says nothing for too long.
    fn attend(&self, socket: &OwnedFd, caller: &Caller) {
        let mut held: HashMap<String, Arc<Made>> = HashMap::new();
        let mut conditional = false;
        loop {
            // Who holds a buffer on condition of staying may stay.
            let limit = if conditional {
                PollTimeout::NONE
            } else {
                let ms = self.rules.limits.timeout_s.saturating_mul(1000);
                PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
            };
            let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, limit) {
                Ok(1..) => {}
                Err(Errno::EINTR) => continue,
                Ok(_) | Err(_) => return,
            }
            let request = match wire::read(socket.as_fd(), MAX_REQUEST) {
                Ok(Some(bytes)) => Request::parse(&bytes),
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(Errno::EMSGSIZE) => Err(Error::usage("the request is too long")),
                Ok(None) | Err(_) => return,
            };
            let answered = match request {
                Err(error) => {
                    let _ = wire::write(socket.as_fd(), &Answer::error(&error));
                    return;
                }
                Ok(Request {
                    get: Some(name), ..
                }) => match self.find(&name, caller, &mut held) {
                    Ok((made, rule)) => {
                        conditional |= rule.revoke_on_disconnect;
                        self.hand(socket, &made)
                    }
                    Err(error) => wire::write(socket.as_fd(), &Answer::error(&error))
                        .map_err(|errno| Error::errno("send", errno)),
                },
                Ok(_) => self.list(socket.as_fd(), caller),
            };
            if answered.is_err() {
                return;
            }
        }
    }

    fn list(&self, socket: BorrowedFd<'_>, caller: &Caller) -> Result<()> {
        let names = self.rules.buffers.iter().filter(|rule| rule.allows(caller));
        let answer = Answer {
            schema: SCHEMA,
            buffers: Some(names.map(|rule| rule.name.clone()).collect()),
            error: None,
        };
        wire::write(socket, &answer).map_err(|errno| Error::errno("send", errno))
    }

    /// The buffer that a caller may have: the one that it has already, the one that all have, or a
    /// new one.
    fn find(
        &self,
        name: &str,
        caller: &Caller,
        held: &mut HashMap<String, Arc<Made>>,
    ) -> Result<(Arc<Made>, &BufferRule)> {
        let Some(rule) = self.rules.find(name, caller) else {
            return Err(Error::not_found("there is no such buffer for this user"));
        };
        if rule.per_client {
            if let Some(made) = held.get(name).filter(|made| made.is_live()) {
                return Ok((Arc::clone(made), rule));
            }
            let made = Arc::new(self.provider.make(rule)?);
            held.insert(name.to_owned(), Arc::clone(&made));
            return Ok((made, rule));
        }
        let mut shared = lock(&self.shared);
        if let Some(made) = shared.get(name).filter(|made| made.is_live()) {
            return Ok((Arc::clone(made), rule));
        }
        let made = Arc::new(self.provider.make(rule)?);
        shared.insert(name.to_owned(), Arc::clone(&made));
        Ok((made, rule))
    }

    fn hand(&self, socket: &OwnedFd, made: &Made) -> Result<()> {
        let told = json!({ "schema": SCHEMA, "buffer": made.told });
        let descriptor = Descriptor {
            user: told.to_string().into_bytes(),
            ..Descriptor::default()
        };
        pass::send(socket, &made.buffer, made.watch.as_ref(), &descriptor)?;
        let handed = self.handed.fetch_add(1, Ordering::Relaxed) + 1;
        if self.gets.is_some_and(|gets| handed >= gets) {
            let _ = self.done.write(1);
        }
        Ok(())
    }
}

impl Made {
    /// A revoked buffer is nobody's any more; another can be made.
    fn is_live(&self) -> bool {
        let watch = self.watch.as_ref();
        !watch.is_some_and(|watch| watch.is_revoked().unwrap_or(true))
    }
}

fn own(number: i32) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: accept4(2) has just made it, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Who is at the other end.
fn caller_of(socket: BorrowedFd<'_>) -> Result<Caller> {
    let peer = Peer::of(socket)?;
    let mut gids = groups_of(socket)?;
    gids.push(peer.gid);
    Ok(Caller {
        uid: peer.uid,
        gids,
    })
}

/// The supplementary groups of who has connected, as they were then (SO_PEERGROUPS).
fn groups_of(socket: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut gids = vec![0u32; 32];
    loop {
        let mut bytes = libc::socklen_t::try_from(mem::size_of_val(gids.as_slice())).unwrap_or(0);
        // SAFETY: The kernel writes at most `bytes` bytes to an array that is so long, and says how
        // many there are.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                gids.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let count = bytes as usize / mem::size_of::<u32>();
        match Errno::result(result) {
            Ok(_) => {
                gids.truncate(count);
                return Ok(gids);
            }
            // It has told how much room is needed. NGROUPS_MAX is 65,536.
            Err(Errno::ERANGE) if count > gids.len() && count <= 65_536 => gids.resize(count, 0),
            Err(Errno::ENODATA) => return Ok(Vec::new()),
            Err(errno) => return Err(Error::errno("SO_PEERGROUPS", errno)),
        }
    }
}
