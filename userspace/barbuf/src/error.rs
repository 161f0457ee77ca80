// SPDX-License-Identifier: MIT OR Apache-2.0

//! What went wrong: the operation, the errno, and what to do about it.

use std::borrow::Cow;
use std::fmt;
use std::io;

use nix::errno::Errno;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation that failed.
///
/// Displayed, it is one line: what was tried, why it failed, and a hint if there is one.
///
/// ```
/// let error = barbuf::Device::open("0000:ff:1f.7").unwrap_err();
/// assert_eq!(error.errno(), Some(2)); // ENOENT
/// assert!(error.to_string().starts_with("open /dev/barbuf/0000:ff:1f.7: "));
/// assert!(error.hint().is_some());
/// ```
#[derive(Clone, Debug)]
pub struct Error {
    operation: &'static str,
    subject: Option<String>,
    kind: ErrorKind,
    errno: Option<Errno>,
    hint: Option<Cow<'static, str>>,
}

/// What a program can tell apart without looking at numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A call to the kernel failed; [`Error::errno`] says how.
    Os,
    /// The memory is gone: the buffer was revoked, its device has been removed, or (for a file
    /// that is no dma-buf) it was truncated. `ENODEV`.
    Revoked,
    /// The device reported that the memory is damaged. `EHWPOISON`.
    Poisoned,
    /// Beyond the end of a mapping or a buffer. `EINVAL`.
    OutOfBounds,
    /// The offset is not a multiple of the access's width. `EINVAL`.
    Misaligned,
    /// Writing through a mapping or a buffer that is read-only. `EACCES`.
    ReadOnly,
    /// An argument that is never right: an empty range, a name that is too long. `EINVAL`.
    Invalid,
    /// The file descriptor is a dma-buf, but not one of barbuf's. `ENODEV`.
    NotOurs,
    /// The file descriptor is no dma-buf. `EINVAL`.
    NotDmaBuf,
    /// What came over the socket is no descriptor of a buffer. `EBADMSG`.
    Malformed,
    /// A message came with another number of file descriptors than it says. All of them have been
    /// closed. `EBADMSG`.
    WrongFds,
    /// The kernel could not deliver all of a message or of its file descriptors (mostly because
    /// this process has too many open). Those that came have been closed. `EMFILE` or `EMSGSIZE`.
    Truncated,
    /// The other end of the socket is not who it should be. `EPERM`.
    Peer,
    /// The other end has closed the socket. `ECONNRESET` in the middle of a message, else none.
    Closed,
    /// Nothing has come in the time given, or nothing is there on a non-blocking socket. `EAGAIN`
    /// or `ETIMEDOUT`.
    WouldBlock,
}

impl Error {
    pub(crate) fn os(operation: &'static str, errno: Errno) -> Self {
        Error {
            operation,
            subject: None,
            kind: ErrorKind::Os,
            errno: Some(errno),
            hint: None,
        }
    }

    pub(crate) fn new(operation: &'static str, kind: ErrorKind) -> Self {
        let errno = match kind {
            ErrorKind::Revoked | ErrorKind::NotOurs => Some(Errno::ENODEV),
            ErrorKind::Poisoned => Some(Errno::EHWPOISON),
            ErrorKind::OutOfBounds
            | ErrorKind::Misaligned
            | ErrorKind::Invalid
            | ErrorKind::NotDmaBuf => Some(Errno::EINVAL),
            ErrorKind::ReadOnly => Some(Errno::EACCES),
            ErrorKind::Malformed | ErrorKind::WrongFds => Some(Errno::EBADMSG),
            ErrorKind::Truncated => Some(Errno::EMSGSIZE),
            ErrorKind::Peer => Some(Errno::EPERM),
            ErrorKind::WouldBlock => Some(Errno::EAGAIN),
            ErrorKind::Os | ErrorKind::Closed => None,
        };
        Error {
            operation,
            subject: None,
            kind,
            errno,
            hint: None,
        }
    }

    /// What it was done to: a path, a member, a number.
    pub(crate) fn of(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    pub(crate) fn with_errno(mut self, errno: Errno) -> Self {
        self.errno = Some(errno);
        self
    }

    pub(crate) fn kinded(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn hinted(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What was tried: the name of a system call, of an ioctl, or of a function of this crate.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The errno. Failures that this crate finds by itself have the one that the kernel would
    /// have given.
    pub fn errno(&self) -> Option<i32> {
        self.errno.map(|errno| errno as i32)
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether the memory is gone for good, however that was noticed: by a fault, or because a
    /// call said so.
    pub fn is_revoked(&self) -> bool {
        self.kind == ErrorKind::Revoked
    }

    fn reason(&self) -> &'static str {
        match self.kind {
            ErrorKind::Os => self.errno.map_or("failed", Errno::desc),
            ErrorKind::Revoked => "the memory is gone (revoked, or its device removed)",
            ErrorKind::Poisoned => "the device says that this memory is damaged",
            ErrorKind::OutOfBounds => "beyond the end",
            ErrorKind::Misaligned => "not a multiple of the access's width",
            ErrorKind::ReadOnly => "it is read-only",
            ErrorKind::Invalid => "an argument that is never right",
            ErrorKind::NotOurs => "a dma-buf, but not one of barbuf's",
            ErrorKind::NotDmaBuf => "not a dma-buf",
            ErrorKind::Malformed => "what came is no descriptor of a buffer",
            ErrorKind::WrongFds => "not as many file descriptors as the message says",
            ErrorKind::Truncated => "the kernel could not deliver all of it",
            ErrorKind::Peer => "the other end is not who it should be",
            ErrorKind::Closed => "the other end has closed the socket",
            ErrorKind::WouldBlock => "nothing there yet",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation)?;
        if let Some(subject) = &self.subject {
            write!(f, " {subject}")?;
        }
        write!(f, ": {}", self.reason())?;
        if let Some(errno) = self.errno {
            write!(f, " ({errno:?})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    /// Keeps the error as the source; its kind is that of the errno.
    fn from(error: Error) -> Self {
        let kind = match error.errno {
            Some(errno) => io::Error::from_raw_os_error(errno as i32).kind(),
            None if error.kind == ErrorKind::Closed => io::ErrorKind::UnexpectedEof,
            None => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_everything() {
        let error = Error::os("BARBUF_EXPORT", Errno::EPERM)
            .of("region 0")
            .hinted("CAP_SYS_RAWIO is missing");
        assert_eq!(
            error.to_string(),
            "BARBUF_EXPORT region 0: Operation not permitted (EPERM); CAP_SYS_RAWIO is missing"
        );
        assert_eq!(error.operation(), "BARBUF_EXPORT");
        assert_eq!(error.errno(), Some(1));
    }

    #[test]
    fn becomes_an_io_error_of_the_same_kind() {
        let revoked = Error::new("read", ErrorKind::ReadOnly);
        let error = io::Error::from(revoked);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
        assert_eq!(inner.map(Error::kind), Some(ErrorKind::ReadOnly));
        let closed = io::Error::from(Error::new("receive", ErrorKind::Closed));
        assert_eq!(closed.kind(), io::ErrorKind::UnexpectedEof);
    }
}
