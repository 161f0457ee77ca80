// SPDX-License-Identifier: MIT OR Apache-2.0

//! Other processes, and what a process may have: descriptors, limits, capabilities.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use barbuf_guest::protocol::{BOOT_SPEC, BootSpec};
use barbuf_guest::sysfs;
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};

/// A child that runs a part of the test.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    trouble: File,
    reaped: bool,
}

impl Child {
    /// Forks. What the child returns is what [`Child::join`] returns; its buffers are copies, its
    /// mappings shared.
    pub(crate) fn start(part: impl FnOnce() -> Result<()>) -> Result<Child> {
        let (read, write) = pipe()?;
        // SAFETY: A test has one thread where it forks, or joins the others first. The child leaves
        // by `_exit`.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Child {
                pid: child,
                trouble: read.into(),
                reaped: false,
            }),
            ForkResult::Child => {
                drop(read);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(part));
                let text = match outcome {
                    Ok(Ok(())) => String::new(),
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(_) => "the child panicked".to_owned(),
                };
                let _ = File::from(write).write_all(text.as_bytes());
                // SAFETY: Nothing of the parent's is to be cleaned up here.
                unsafe { libc::_exit(i32::from(!text.is_empty())) }
            }
        }
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn join(mut self) -> Result<()> {
        let mut text = String::new();
        self.trouble.read_to_string(&mut text)?;
        match self.wait()? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(..) => bail!("in the child: {text}"),
            other => bail!("the child ended as {other:?} {text}"),
        }
    }

    /// Waits for its end, whatever it is.
    pub(crate) fn wait(&mut self) -> Result<WaitStatus> {
        let status = waitpid(self.pid, None)?;
        self.reaped = !matches!(status, WaitStatus::Stopped(..) | WaitStatus::Continued(_));
        Ok(status)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid, signal)?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// How many page faults of this process needed no I/O, so far.
pub(crate) fn minor_faults() -> Result<u64> {
    Ok(getrusage(UsageWho::RUSAGE_SELF)?
        .minor_page_faults()
        .try_into()?)
}

/// How many descriptors this process has open.
pub(crate) fn open_fds() -> Result<usize> {
    // One of them is that of the directory itself.
    Ok(fs::read_dir("/proc/self/fd")?.count() - 1)
}

/// The call must neither open nor close a descriptor.
pub(crate) fn no_fd_leaks<T>(call: impl FnOnce() -> T) -> Result<T> {
    let before = open_fds()?;
    let value = call();
    let after = open_fds()?;
    ensure!(
        before == after,
        "{before} descriptors before the call, {after} after it"
    );
    Ok(value)
}

/// Runs something with room for no further descriptor.
pub(crate) fn without_free_fds<T>(run: impl FnOnce() -> T) -> Result<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The lowest free number is what the next open would get.
    let probe = File::open("/dev/null")?;
    let next = std::os::fd::AsRawFd::as_raw_fd(&probe) as u64;
    drop(probe);
    setrlimit(Resource::RLIMIT_NOFILE, next, hard)?;
    let value = run();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    Ok(value)
}

/// Sets the soft limit on descriptors for this process.
pub(crate) fn allow_fds(count: u64) -> Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, count, count).context("raising RLIMIT_NOFILE")
}

/// Gives up one capability in this process, for good.
pub(crate) fn drop_capability(capability: u32) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: Version 3 of the interface takes two elements.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) })?;
    let word = &mut data[capability as usize / 32];
    let bit = 1 << (capability % 32);
    word.effective &= !bit;
    word.permitted &= !bit;
    word.inheritable &= !bit;
    // SAFETY: As above.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) })?;
    Ok(())
}

pub(crate) const CAP_SYS_RAWIO: u32 = 17;
pub(crate) const CAP_SYS_ADMIN: u32 = 21;

/// Becomes nobody, without any capability.
pub(crate) fn become_nobody() -> Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// A limit for this machine: the debug kernel takes its time.
pub(crate) fn scaled(limit: Duration) -> Duration {
    static SCALE: OnceLock<u32> = OnceLock::new();
    let scale = SCALE.get_or_init(|| {
        let spec = sysfs::read(BOOT_SPEC).ok();
        let spec = spec.and_then(|text| serde_json::from_str::<BootSpec>(&text).ok());
        spec.map_or(1, |spec| spec.time_scale)
    });
    limit * *scale
}

/// Runs something that must end soon, even on an emulated machine.
pub(crate) fn within<T>(limit: Duration, what: &str, run: impl FnOnce() -> T) -> Result<T> {
    let limit = scaled(limit);
    let start = Instant::now();
    let value = run();
    let took = start.elapsed();
    ensure!(took < limit, "{what} took {took:?}, more than {limit:?}");
    Ok(value)
}

/// Oracle 7 of the plan: what no importer holds up is done in this time.
pub(crate) const PROMPT: Duration = Duration::from_secs(5);

/// An eventfd, and whether it was signalled.
#[derive(Debug)]
pub(crate) struct Event(pub(crate) OwnedFd);

impl Event {
    pub(crate) fn new() -> Result<Event> {
        use std::os::fd::FromRawFd as _;
        // SAFETY: A new descriptor that belongs to nobody else.
        unsafe {
            let fd = Errno::result(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
            Ok(Event(OwnedFd::from_raw_fd(fd)))
        }
    }

    pub(crate) fn number(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&self.0)
    }

    /// How often it was signalled since the last time this was asked.
    pub(crate) fn take(&self) -> Result<u64> {
        let mut count = [0; 8];
        match nix::unistd::read(&self.0, &mut count) {
            Ok(8) => Ok(u64::from_ne_bytes(count)),
            Ok(other) => bail!("an eventfd gave {other} bytes"),
            Err(Errno::EAGAIN) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }
}
