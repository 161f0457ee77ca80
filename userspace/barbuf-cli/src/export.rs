// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf export`: makes a buffer, and gives it to a command or holds it.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::Command;

use barbuf::{Access, Backing, Buffer, Cache, Device, PageSize, Watch};
use command_fds::{CommandFdExt as _, FdMapping};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;

use crate::cli::{BackingArg, CacheArg, ExportArgs, HowArgs, PageArg};
use crate::error::{Error, Exit, Result};
use crate::out::Out;
use crate::size;

/// Where a command finds the buffer, the eventfd, and with `get` the connection.
pub const BUFFER_FD: i32 = 3;
pub const EVENT_FD: i32 = 4;
pub const CONNECTION_FD: i32 = 5;

/// # Errors
///
/// The buffer cannot be made, or there is no such command.
pub fn run(args: &ExportArgs, out: &Out) -> Result<u8> {
    let device = Device::open(args.device.as_str())?;
    let watch = Watch::new()?;
    let buffer = make(&device, args, &watch)?;
    let size = buffer.size()?;
    out.detail(format!("exported {} of {}", size::show(size), args.device));
    if args.hold {
        return hold(&device, buffer, &watch, args.revoke_on_exit, out);
    }
    let described = Described::of(&buffer, args.device.as_str())?;
    if !args.revoke_on_exit {
        // The command takes the place of this one: its signals and its exit status are its own.
        return Err(replace(
            &args.command,
            buffer.into(),
            Some(watch.into()),
            None,
            &described,
        ));
    }
    let duplicate = buffer.try_clone()?;
    let mut command = prepare(
        &args.command,
        duplicate.into(),
        Some(watch.into()),
        None,
        &described,
    )?;
    let status = command
        .status()
        .map_err(|error| not_run(&args.command, &error));
    // Whatever became of it.
    match device.revoke(&buffer) {
        Err(error) if !error.is_revoked() && error.errno() != Some(nix::libc::EBADFD) => {
            return Err(error.into());
        }
        _ => {}
    }
    let status = status?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(Exit::Failed as u8))
}

fn make(device: &Device, args: &ExportArgs, watch: &Watch) -> Result<Buffer> {
    let info = device.info()?;
    let region = match (args.region, args.bar) {
        (Some(index), _) => info.regions.iter().find(|region| region.index == index),
        (None, Some(bar)) => info.regions.iter().find(|region| region.bar == bar),
        (None, None) => info.roomiest().or(info.regions.first()),
    };
    let Some(region) = region else {
        return Err(
            Error::not_found(format!("{} has no such region", args.device))
                .hint(format!("barbuf info {}", args.device)),
        );
    };
    let mut export = with(device.export().region(region.index), &args.how).watch(watch);
    if args.range.is_empty() {
        export = export.any(args.length.unwrap_or(region.free));
    }
    for &(offset, length) in &args.range {
        export = export.range(offset..offset.saturating_add(length));
    }
    Ok(export.build()?)
}

/// An export as the options say.
pub fn with<'d>(export: barbuf::Export<'d>, how: &HowArgs) -> barbuf::Export<'d> {
    let export = export
        .backing(match how.backing {
            BackingArg::Pfn => Backing::Pfn,
            BackingArg::Page => Backing::Page,
        })
        .cache(match how.cache {
            CacheArg::Uc => Cache::Uncached,
            CacheArg::Wc => Cache::WriteCombining,
        })
        .access(if how.read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        })
        .shared(how.shared)
        .zero(how.zero);
    match how.page_size {
        None => export,
        Some(PageArg::Size4K) => export.largest_page(PageSize::Size4K),
        Some(PageArg::Size2M) => export.largest_page(PageSize::Size2M),
        Some(PageArg::Size1G) => export.largest_page(PageSize::Size1G),
    }
}

/// What the environment tells a command of its buffer.
#[derive(Clone, Debug)]
pub struct Described {
    pub provider: String,
    pub size: u64,
    pub id: String,
}

impl Described {
    /// # Errors
    ///
    /// The kernel does not say how large it is.
    pub fn of(buffer: &Buffer, provider: &str) -> Result<Described> {
        let id = buffer.id()?;
        Ok(Described {
            provider: provider.to_owned(),
            size: buffer.size()?,
            id: format!("{}:{}", id.device, id.inode),
        })
    }
}

/// Becomes the command. Returns only if that fails.
pub fn replace(
    words: &[OsString],
    buffer: OwnedFd,
    event: Option<OwnedFd>,
    connection: Option<OwnedFd>,
    described: &Described,
) -> Error {
    match prepare(words, buffer, event, connection, described) {
        Ok(mut command) => not_run(words, &command.exec()),
        Err(error) => error,
    }
}

fn prepare(
    words: &[OsString],
    buffer: OwnedFd,
    event: Option<OwnedFd>,
    connection: Option<OwnedFd>,
    described: &Described,
) -> Result<Command> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Error::usage("no command is given"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("BARBUF_FD", BUFFER_FD.to_string())
        .env("BARBUF_SIZE", described.size.to_string())
        .env("BARBUF_ID", &described.id)
        .env("BARBUF_PROVIDER", &described.provider)
        .env_remove("BARBUF_EVENT_FD")
        .env_remove("BARBUF_CONNECTION_FD");
    let mut mappings = vec![FdMapping {
        parent_fd: buffer,
        child_fd: BUFFER_FD,
    }];
    for (name, number, fd) in [
        ("BARBUF_EVENT_FD", EVENT_FD, event),
        ("BARBUF_CONNECTION_FD", CONNECTION_FD, connection),
    ] {
        if let Some(parent_fd) = fd {
            command.env(name, number.to_string());
            mappings.push(FdMapping {
                parent_fd,
                child_fd: number,
            });
        }
    }
    command
        .fd_mappings(mappings)
        .map_err(|error| Error::failed(format!("cannot pass the buffer on: {error}")))?;
    Ok(command)
}

/// The exit codes of env(1) and of shells.
fn not_run(words: &[OsString], error: &std::io::Error) -> Error {
    let program = words.first().map_or(OsStr::new(""), OsString::as_os_str);
    let exit = match error.kind() {
        ErrorKind::NotFound => Exit::NoCommand,
        _ => Exit::CannotRun,
    };
    Error::new(
        exit,
        format!(
            "cannot run {}: {}",
            program.to_string_lossy(),
            crate::error::plain(error)
        ),
    )
}

/// Keeps the buffer for others to take, until somebody says that it is enough.
fn hold(device: &Device, buffer: Buffer, watch: &Watch, revoke: bool, out: &Out) -> Result<u8> {
    let failed = |errno| Error::errno("cannot wait for signals", errno);
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().map_err(failed)?;
    let ended = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(failed)?;
    let pid = std::process::id();
    let fd = buffer.as_fd().as_raw_fd();
    let size = buffer.size()?;
    out.result(
        json!({ "pid": pid, "fd": fd, "event_fd": watch.as_fd().as_raw_fd(), "size": size }),
        || format!("{pid}:{fd}"),
    );
    let mut polled = [
        PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        PollFd::new(watch.as_fd(), PollFlags::POLLIN),
    ];
    while let Err(errno) = poll(&mut polled, PollTimeout::NONE) {
        if errno != nix::errno::Errno::EINTR {
            return Err(Error::errno("poll", errno));
        }
    }
    if polled[1].any() == Some(true) {
        return Err(Error::new(Exit::Gone, "the buffer was revoked"));
    }
    if revoke {
        device.revoke(&buffer)?;
    }
    Ok(Exit::Ok as u8)
}
