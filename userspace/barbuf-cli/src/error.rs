// SPDX-License-Identifier: MIT OR Apache-2.0

//! What went wrong, what to do about it, and the exit code that says so.

use std::fmt;
use std::io;
use std::path::Path;

use nix::errno::Errno;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The exit codes. They are part of the command's interface and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The operation failed, for a reason that has no code of its own.
    Failed = 1,
    /// The command line or the file of rules is wrong.
    Usage = 2,
    /// No such device, buffer, file or socket.
    NotFound = 3,
    /// The caller may not.
    Permission = 4,
    /// `doctor` has found something that does not work.
    Doctor = 5,
    /// The device or the buffer has gone, or the buffer was revoked.
    Gone = 6,
    /// Somebody else uses what was asked for, or no room is left.
    Busy = 7,
    /// The data is not what it should be.
    Data = 8,
    /// `bench`: the machine is emulated.
    Emulated = 9,
    /// `export` or `get`: the command cannot be run.
    CannotRun = 126,
    /// `export` or `get`: there is no such command.
    NoCommand = 127,
}

/// All exit codes with their meaning, for the manual.
pub const EXIT_CODES: &[(Exit, &str)] = &[
    (Exit::Ok, "done; `doctor`: nothing fails"),
    (Exit::Failed, "the operation failed"),
    (
        Exit::Usage,
        "the command line or the file of rules is wrong",
    ),
    (Exit::NotFound, "no such device, buffer, file or socket"),
    (Exit::Permission, "permission is missing"),
    (
        Exit::Doctor,
        "`doctor` found a FAIL (with `--strict`: or a WARN)",
    ),
    (Exit::Gone, "the device has gone, or the buffer was revoked"),
    (Exit::Busy, "in use by somebody else, or no room is left"),
    (
        Exit::Data,
        "the data differs from what it should be (`--sha256`)",
    ),
    (
        Exit::Emulated,
        "`bench`: the machine or a device is emulated, and `--emulated` was not given",
    ),
    (
        Exit::CannotRun,
        "`export` and `get`: the command cannot be run",
    ),
    (
        Exit::NoCommand,
        "`export` and `get`: there is no such command",
    ),
];

impl Exit {
    /// A word for programs.
    pub fn name(self) -> &'static str {
        match self {
            Exit::Ok => "ok",
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::NotFound => "not-found",
            Exit::Permission => "permission",
            Exit::Doctor => "doctor",
            Exit::Gone => "gone",
            Exit::Busy => "busy",
            Exit::Data => "data",
            Exit::Emulated => "emulated",
            Exit::CannotRun => "cannot-run",
            Exit::NoCommand => "no-command",
        }
    }

    /// What an errno means for who called the command.
    pub fn of_errno(errno: Errno) -> Exit {
        match errno {
            Errno::ENOENT | Errno::ENXIO | Errno::ESRCH => Exit::NotFound,
            Errno::EPERM | Errno::EACCES => Exit::Permission,
            Errno::ENODEV | Errno::EBADFD => Exit::Gone,
            Errno::EBUSY | Errno::ENOSPC | Errno::EEXIST => Exit::Busy,
            _ => Exit::Failed,
        }
    }
}

/// One line that says what is wrong, and one that says what to do.
#[derive(Debug)]
pub struct Error {
    pub exit: Exit,
    pub message: String,
    pub hint: Option<String>,
}

impl Error {
    pub fn new(exit: Exit, message: impl Into<String>) -> Error {
        Error {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(Exit::Failed, message)
    }

    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(Exit::Usage, message)
    }

    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(Exit::NotFound, message)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// A failed system call on a path.
    pub fn io(what: &str, path: &Path, error: &io::Error) -> Error {
        let exit = error
            .raw_os_error()
            .map_or(Exit::Failed, |raw| Exit::of_errno(Errno::from_raw(raw)));
        let failed = Error::new(
            exit,
            format!("cannot {what} {}: {}", path.display(), plain(error)),
        );
        match exit {
            Exit::Permission => failed.hint("run it as root"),
            _ => failed,
        }
    }

    /// A failed system call.
    pub fn errno(what: impl fmt::Display, errno: Errno) -> Error {
        Error::new(
            Exit::of_errno(errno),
            format!("{what}: {} ({errno:?})", errno.desc()),
        )
    }
}

impl From<barbuf::Error> for Error {
    fn from(error: barbuf::Error) -> Error {
        use barbuf::ErrorKind;
        let exit = match error.kind() {
            ErrorKind::Revoked => Exit::Gone,
            ErrorKind::Peer => Exit::Permission,
            // It is there, and somebody else's: its errno, ENODEV, would say that it has gone.
            ErrorKind::NotOurs => Exit::Failed,
            _ => error
                .errno()
                .map_or(Exit::Failed, |raw| Exit::of_errno(Errno::from_raw(raw))),
        };
        // The hint has a line of its own here.
        let text = error.to_string();
        let hint = error.hint().map(str::to_owned);
        let message = match &hint {
            Some(hint) => text.replace(&format!("; {hint}"), ""),
            None => text,
        };
        Error {
            exit,
            message,
            hint,
        }
    }
}

impl From<anyhow::Error> for Error {
    /// What the crate for measuring says.
    fn from(error: anyhow::Error) -> Error {
        let message = format!("{error:#}");
        let error = match error.downcast::<Error>() {
            Ok(ours) => return ours,
            Err(error) => error,
        };
        let error = match error.downcast::<barbuf::Error>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        if error.is::<barbuf_measure::guard::Gone>() {
            return Error::new(Exit::Gone, message);
        }
        let raw = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
        let errno = error.downcast_ref::<Errno>().copied();
        let errno = errno.or(error.downcast_ref().and_then(raw));
        Error::new(errno.map_or(Exit::Failed, Exit::of_errno), message)
    }
}

/// What the error says, without the number that the standard library adds.
pub fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(raw) => Errno::from_raw(raw).desc().to_owned(),
        None => error.to_string(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_in_the_manual_once_and_in_order() {
        let numbers: Vec<u8> = EXIT_CODES.iter().map(|(exit, _)| *exit as u8).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 126, 127]);
    }

    #[test]
    fn errors_without_permission_have_their_exit_code_and_a_hint() {
        let error = Error::io(
            "open",
            Path::new("/x"),
            &io::Error::from_raw_os_error(Errno::EACCES as i32),
        );
        assert_eq!(error.exit, Exit::Permission);
        assert_eq!(error.message, "cannot open /x: Permission denied");
        assert!(error.hint.is_some());
    }

    #[test]
    fn memory_that_went_while_it_was_measured_has_gone() {
        let error = anyhow::Error::from(barbuf_measure::guard::Gone).context("at 4K");
        assert_eq!(Error::from(error).exit, Exit::Gone);
    }
}
