// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf serve`: the broker with its socket, its signals and its providers.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use barbuf::{Access, Buffer, Device, Watch};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use serde_json::{Value, json};

use crate::broker::{Broker, Made, Provider};
use crate::buffer;
use crate::cli::{BackingArg, CacheArg, HowArgs, ServeArgs};
use crate::error::{Error, Exit, Result};
use crate::export;
use crate::out::Out;
use crate::rules::{Allow, BufferRule, Grant, Limits, Rules, SystemNames, is_name};

/// sd_listen_fds(3): the first descriptor that is handed over.
const LISTEN_FDS_START: i32 = 3;

/// # Errors
///
/// The rules are wrong, the socket cannot be made, or another server has it.
pub fn run(args: &ServeArgs, out: &Out) -> Result<u8> {
    // Before any thread is started, so that all have it blocked.
    let failed = |errno| Error::errno("cannot wait for signals", errno);
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().map_err(failed)?;
    let ended = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(failed)?;
    let (rules, provider) = what(args)?;
    let listener = Listener::open(args.socket.as_deref())?;
    let broker = Broker::new(rules, provider, args.gets)?;
    out.detail(format!("listening on {}", listener.told()));
    broker.serve(listener.socket.as_fd(), ended.as_fd())?;
    drop(listener);
    let handed = broker.handed();
    out.done(json!({ "handed_out": handed }), || {
        format!("handed out {handed} times")
    });
    Ok(Exit::Ok as u8)
}

/// The rules, and where the buffers come from: nodes, or the one that was inherited.
fn what(args: &ServeArgs) -> Result<(Rules, Source)> {
    let allow: Vec<Allow> = args
        .allow_uid
        .iter()
        .map(|uid| Allow::of_uid(*uid))
        .chain(args.allow_gid.iter().map(|gid| Allow::of_gid(*gid)))
        .collect();
    match (&args.rules, &args.name, args.fd) {
        (Some(path), None, _) => {
            if !allow.is_empty() {
                return Err(Error::usage(
                    "--allow-uid and --allow-gid go with --name; rules say it themselves",
                ));
            }
            Ok((Rules::read(path, &SystemNames)?, Source::Nodes))
        }
        (None, Some(name), Some(fd)) => {
            if !is_name(name) {
                return Err(Error::usage(format!(
                    "{name:?} is no name: 1 to 64 letters, digits, '-', '_' or '.'"
                )));
            }
            if allow.is_empty() {
                return Err(Error::usage("nobody could have it")
                    .hint("--allow-uid or --allow-gid says who may"));
            }
            let buffer = Buffer::import(buffer::inherited(fd)?)?;
            let query = buffer.query()?;
            let watch = args
                .event_fd
                .map(buffer::inherited)
                .transpose()?
                .map(Watch::from);
            let rule = BufferRule {
                name: name.clone(),
                device: query.provider.parse().map_err(Error::failed)?,
                region: query.region,
                offset: None,
                length: query.size,
                backing: BackingArg::Pfn,
                cache: CacheArg::Uc,
                access: Grant::ReadOnly,
                per_client: false,
                revoke_on_disconnect: false,
                zero: false,
                shared: false,
                allow,
            };
            let rules = Rules {
                limits: Limits::default(),
                buffers: vec![rule],
            };
            Ok((rules, Source::One { buffer, watch }))
        }
        _ => Err(Error::usage("nothing to hand out").hint(
            "--rules FILE, or --name NAME with --allow-uid for a buffer that `barbuf export` has \
             handed to this command",
        )),
    }
}

/// Where buffers come from.
enum Source {
    /// Made as the rules say.
    Nodes,
    /// Made by somebody else, and given to us to hand on.
    One {
        buffer: Buffer,
        watch: Option<Watch>,
    },
}

impl Provider for Source {
    fn make(&self, rule: &BufferRule) -> Result<Made> {
        match self {
            Source::Nodes => from_node(rule),
            Source::One { buffer, watch } => Ok(Made {
                told: told(buffer, rule)?,
                buffer: buffer.try_clone()?,
                watch: watch.as_ref().map(Watch::try_clone).transpose()?,
                lease: Box::new(()),
            }),
        }
    }
}

fn from_node(rule: &BufferRule) -> Result<Made> {
    // A file of the node for each buffer: closing it revokes this one alone.
    let device = Device::open(rule.device.as_str())?;
    let watch = Watch::new()?;
    let how = HowArgs {
        backing: rule.backing,
        cache: rule.cache,
        read_only: rule.access == Grant::ReadOnly,
        shared: rule.shared,
        zero: rule.zero,
        page_size: None,
    };
    let export = export::with(device.export().region(rule.region), &how)
        .revoke_on_close(rule.revoke_on_disconnect)
        .watch(&watch);
    let buffer = match rule.offset {
        Some(offset) => export.range(offset..offset.saturating_add(rule.length)),
        None => export.any(rule.length),
    }
    .build()?;
    // What is handed out is what the rule says, whatever the module made of the request.
    let query = buffer.query()?;
    let access = match rule.access {
        Grant::ReadOnly => Access::ReadOnly,
        Grant::ReadWrite => Access::ReadWrite,
    };
    let place = rule
        .offset
        .is_none_or(|offset| query.ranges.first().is_some_and(|r| r.start == offset));
    if query.size != rule.length || query.access != access || !place {
        return Err(Error::failed(
            "the module made another buffer than the rule says",
        ));
    }
    Ok(Made {
        told: told(&buffer, rule)?,
        buffer,
        watch: Some(watch),
        lease: Box::new(device),
    })
}

/// What a client is told, besides the buffer itself.
fn told(buffer: &Buffer, rule: &BufferRule) -> Result<Value> {
    let mut value = buffer::as_json(&buffer.query()?);
    if let Some(members) = value.as_object_mut() {
        members.insert("name".into(), rule.name.clone().into());
    }
    Ok(value)
}

/// A socket that listens, and its name in the file system if that is ours.
struct Listener {
    socket: OwnedFd,
    path: Option<PathBuf>,
}

impl Listener {
    /// The one that a supervisor has handed over, or one of our own.
    fn open(path: Option<&Path>) -> Result<Listener> {
        if let Some(socket) = activated()? {
            return Ok(Listener { socket, path: None });
        }
        let Some(path) = path else {
            return Err(Error::usage("no socket is named")
                .hint("--socket PATH, or start it with a socket (LISTEN_FDS)"));
        };
        Ok(Listener {
            socket: make(path)?,
            path: Some(path.to_owned()),
        })
    }

    fn told(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "an inherited socket".into(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// sd_listen_fds(3): one socket, for this process.
fn activated() -> Result<Option<OwnedFd>> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => buffer::inherited(LISTEN_FDS_START).map(Some),
        Some(more) => Err(Error::usage(format!(
            "{more} sockets are handed over; one is served"
        ))),
    }
}

fn make(path: &Path) -> Result<OwnedFd> {
    let failed =
        |what: &str, errno| Error::errno(format!("cannot {what} {}", path.display()), errno);
    let address = UnixAddr::new(path).map_err(|errno| failed("name a socket", errno))?;
    let new = || {
        socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(|errno| failed("make a socket for", errno))
    };
    // Only what a dead server has left behind goes.
    if let Ok(data) = fs::symlink_metadata(path) {
        let dead = || -> Result<bool> {
            Ok(connect(new()?.as_raw_fd(), &address) == Err(Errno::ECONNREFUSED))
        };
        if !data.file_type().is_socket() || !dead()? {
            return Err(
                Error::new(Exit::Busy, format!("{} is in use", path.display()))
                    .hint("another server listens there, or it is no socket"),
            );
        }
    }
    // It gets its name when it is ready: whoever sees it can connect.
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new_path = PathBuf::from(name);
    let new_address = UnixAddr::new(&new_path).map_err(|errno| failed("name a socket", errno))?;
    let _ = fs::remove_file(&new_path);
    let listener = new()?;
    bind(listener.as_raw_fd(), &new_address).map_err(|errno| failed("bind", errno))?;
    // Rules decide about those who connect, whoever they are.
    fs::set_permissions(&new_path, fs::Permissions::from_mode(0o666))
        .map_err(|error| Error::io("open to others", path, &error))?;
    listen(&listener, Backlog::new(64).unwrap_or(Backlog::MAXCONN))
        .map_err(|errno| failed("listen on", errno))?;
    fs::rename(&new_path, path).map_err(|error| Error::io("make", path, &error))?;
    Ok(listener)
}
