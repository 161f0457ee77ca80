// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who is at the other end of a socket.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{PassCred, PeerCredentials};
use nix::sys::socket::{getsockopt, setsockopt};

use super::message::Credentials;
use crate::error::{Error, ErrorKind, Result};

/// A process at the other end of a Unix socket, as the kernel vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Peer {
    /// The process. It may have ended since, and its number may be another's by now.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Peer {
    /// Who has connected the socket, or has made it by socketpair(2): `SO_PEERCRED`.
    ///
    /// That is who it was then. A process that has inherited or received the socket shows as the
    /// one that made it; [`Policy::of_each_message`] looks at who sends.
    ///
    /// # Errors
    ///
    /// Those of getsockopt(2).
    pub fn of(socket: impl AsFd) -> Result<Self> {
        let credentials = getsockopt(&socket, PeerCredentials)
            .map_err(|errno| Error::os("getsockopt", errno).of("SO_PEERCRED"))?;
        Ok(Peer {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gid: credentials.gid(),
        })
    }
}

impl From<Credentials> for Peer {
    fn from(credentials: Credentials) -> Self {
        Peer {
            pid: credentials.pid,
            uid: credentials.uid,
            gid: credentials.gid,
        }
    }
}

/// From whom to take buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    uids: Option<Vec<u32>>,
    gids: Option<Vec<u32>>,
    each: bool,
}

impl Policy {
    /// From anybody who could connect.
    pub fn anybody() -> Self {
        Policy {
            uids: None,
            gids: None,
            each: false,
        }
    }

    /// Only from these users.
    pub fn users(mut self, uids: impl IntoIterator<Item = u32>) -> Self {
        self.uids = Some(uids.into_iter().collect());
        self
    }

    /// Only from these groups.
    pub fn groups(mut self, gids: impl IntoIterator<Item = u32>) -> Self {
        self.gids = Some(gids.into_iter().collect());
        self
    }

    /// Looks at who has sent each message (`SCM_CREDENTIALS`), not only at who has made the
    /// connection.
    ///
    /// Receiving sets `SO_PASSCRED` on the socket then. What was sent before that comes as from
    /// nobody (65534), so that it is best set on the socket beforehand: [`Policy::prepare`].
    pub fn of_each_message(mut self) -> Self {
        self.each = true;
        self
    }

    /// Makes the socket tell who sends each message, if the policy wants to know.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn prepare(&self, socket: impl AsFd) -> Result<()> {
        match self.each {
            false => Ok(()),
            true => setsockopt(&socket, PassCred, &true)
                .map_err(|errno| Error::os("setsockopt", errno).of("SO_PASSCRED")),
        }
    }

    pub(crate) fn looks_at_each(&self) -> bool {
        self.each
    }

    /// Whether it takes from this one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Peer`] if not.
    pub fn check(&self, peer: &Peer) -> Result<()> {
        let within = |wanted: &Option<Vec<u32>>, is: u32| {
            wanted.as_ref().is_none_or(|wanted| wanted.contains(&is))
        };
        if within(&self.uids, peer.uid) && within(&self.gids, peer.gid) {
            return Ok(());
        }
        Err(Error::new("receive", ErrorKind::Peer)
            .of(format!("from uid {}, gid {}", peer.uid, peer.gid)))
    }
}

/// Takes a descriptor out of another process: `pidfd_getfd`. For debugging; between programs that
/// know of each other, [`send`](super::send) is the way.
///
/// It needs the right to trace the process (`PTRACE_MODE_ATTACH_REALCREDS`; with Yama's usual
/// setting, ancestors and root have it). The process may end, and its number become another's,
/// between whatever told the number and this call; check the answer.
///
/// # Errors
///
/// `ESRCH` if there is no such process, `EBADF` if it has no such descriptor, `EPERM` without the
/// right.
pub fn take_from_process(pid: u32, number: RawFd) -> Result<OwnedFd> {
    let new_fd = |result: libc::c_long| -> Result<OwnedFd, Errno> {
        // SAFETY: The call has made this descriptor for us.
        Errno::result(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    };
    // SAFETY: The call takes two integers and touches no memory of ours.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = new_fd(opened).map_err(|errno| {
        let error = Error::os("pidfd_open", errno).of(pid.to_string());
        match errno {
            Errno::ESRCH => error.hinted("there is no such process"),
            _ => error,
        }
    })?;
    // SAFETY: Three integers. The descriptor is closed over execve().
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) }).map_err(
        |errno| {
            let error = Error::os("pidfd_getfd", errno).of(format!("{pid}:{number}"));
            match errno {
                Errno::EPERM => error.hinted(
                    "this needs the right to trace the process: root, or its parent (see kernel.yama.ptrace_scope)",
                ),
                Errno::EBADF => error.hinted("the process has no such descriptor"),
                _ => error,
            }
        },
    )
}
