// SPDX-License-Identifier: MIT OR Apache-2.0

//! One test as a child process: its packets, its output, its time limit, its remains.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use barbuf_guest::protocol::{FromTest, HostReply, SAY, SUITES, TEST_FD, Verdict};
use command_fds::{CommandFdExt, FdMapping};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::channel::Channel;

/// How often a running test is looked at if it says nothing.
const TICK: Duration = Duration::from_millis(100);
/// How long a killed process may take to go, before the time scale.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// More output of a test than this is dropped.
const MAX_OUTPUT: usize = 64 * 1024;

/// What is left of a test.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) verdict: Verdict,
    pub(crate) took: Duration,
    /// Its notes and its output, for the reader of a failure.
    pub(crate) notes: Vec<String>,
}

/// A test that runs.
struct Running<'a> {
    child: Child,
    socket: OwnedFd,
    output: File,
    text: Vec<u8>,
    notes: Vec<String>,
    verdict: Option<Verdict>,
    channel: &'a mut Channel,
    scale: u32,
}

/// Runs one test to its end, or to the end of its time.
pub(crate) fn run(
    suite: &str,
    test: &str,
    limit: Duration,
    scale: u32,
    channel: &mut Channel,
) -> io::Result<Ended> {
    let started = Instant::now();
    let mut running = Running::start(suite, test, channel, scale)?;
    let status = running.watch(started + limit * scale)?;
    let took = started.elapsed();
    let remains = sweep(GONE_WITHIN * scale);
    running.drain();
    let verdict = match (running.verdict.take(), status) {
        (_, None) => Verdict::Failed(format!("timed out after {} s", (limit * scale).as_secs())),
        (Some(verdict), Some(status)) if status.success() => verdict,
        (_, Some(status)) => Verdict::Failed(crash(status)),
    };
    let verdict = match (verdict, remains) {
        (Verdict::Failed(why), _) => Verdict::Failed(why),
        (_, Some(remains)) => Verdict::Failed(remains),
        (verdict, None) => verdict,
    };
    let mut notes = running.notes;
    notes.extend(
        String::from_utf8_lossy(&running.text)
            .lines()
            .map(|line| format!("| {line}")),
    );
    Ok(Ended {
        verdict,
        took,
        notes,
    })
}

impl<'a> Running<'a> {
    fn start(suite: &str, test: &str, channel: &'a mut Channel, scale: u32) -> io::Result<Self> {
        let (socket, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let (output, stdout) = pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
        // Only our end must not block.
        let stdout = reopen_blocking(stdout)?;
        let mut command = Command::new(SUITES);
        command
            .args([suite, test])
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stderr(stdout.try_clone()?)
            .stdout(stdout)
            .fd_mappings(vec![FdMapping {
                parent_fd: theirs,
                child_fd: TEST_FD,
            }])
            .map_err(io::Error::other)?;
        let child = command.spawn()?;
        Ok(Running {
            child,
            socket,
            output: output.into(),
            text: Vec::new(),
            notes: Vec::new(),
            verdict: None,
            channel,
            scale,
        })
    }

    /// Serves the test until it has exited. None: its time was up.
    fn watch(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                self.notes.extend(where_it_hangs(self.child.id()));
                return Ok(None);
            }
            // After its last packet a test exits at once: look closely then.
            let tick = if self.verdict.is_some() {
                Duration::from_millis(1)
            } else {
                TICK
            };
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.output.as_fd(), PollFlags::POLLIN),
            ];
            let watched = if self.verdict.is_some() {
                &mut fds[1..]
            } else {
                &mut fds[..]
            };
            poll(
                watched,
                PollTimeout::try_from(tick).unwrap_or(PollTimeout::MAX),
            )?;
            self.drain();
        }
    }

    /// Takes what has come without waiting for more.
    fn drain(&mut self) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = self.output.read(&mut buffer) {
            let room = MAX_OUTPUT.saturating_sub(self.text.len());
            self.text.extend_from_slice(&buffer[..count.min(room)]);
        }
        while let Ok(count @ 1..) =
            recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)
        {
            if let Err(error) = self.packet(&buffer[..count]) {
                self.notes.push(format!("init: {error}"));
            }
        }
    }

    fn packet(&mut self, packet: &[u8]) -> io::Result<()> {
        match serde_json::from_slice(packet)? {
            FromTest::Say(text) => self.channel.line(&format!("{SAY}{text}"))?,
            FromTest::Note(text) => self.notes.push(text),
            FromTest::End(verdict) => self.verdict = Some(verdict),
            FromTest::Host(op) => {
                let limit = Duration::from_secs(120) * self.scale;
                let reply = self.channel.ask(&op, limit);
                let reply = reply.unwrap_or_else(|error| HostReply::Error(error.to_string()));
                let text = serde_json::to_vec(&reply)?;
                send(self.socket.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL)?;
            }
        }
        Ok(())
    }
}

/// A pipe's end with blocking writes.
fn reopen_blocking(end: OwnedFd) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(&end, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(end)
}

fn crash(status: ExitStatus) -> String {
    match status.signal().map(Signal::try_from) {
        Some(Ok(signal)) => format!("crashed: killed by {signal}"),
        Some(Err(_)) => format!("crashed: {status}"),
        None => format!("ended without a verdict, {status}"),
    }
}

/// For a test that does not end: what its threads wait for in the kernel.
fn where_it_hangs(pid: u32) -> Vec<String> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    for thread in threads.flatten().take(8) {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let state = read("stat");
        let state = state
            .rsplit(") ")
            .next()
            .unwrap_or("?")
            .chars()
            .next()
            .unwrap_or('?');
        notes.push(format!("thread {:?} in state {state}", thread.file_name()));
        notes.extend(
            read("stack")
                .lines()
                .take(12)
                .map(|line| format!("  {line}")),
        );
    }
    notes
}

/// Ends every process but this one. Says so if a test had left some behind, or one cannot be
/// killed.
fn sweep(limit: Duration) -> Option<String> {
    let left = others();
    let deadline = Instant::now() + limit;
    loop {
        // ESRCH: nobody is left.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        let stuck = others();
        if stuck.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            return Some(format!("cannot be killed: {}", stuck.join(", ")));
        }
        sleep(Duration::from_millis(2));
    }
    (!left.is_empty()).then(|| format!("left processes behind: {}", left.join(", ")))
}

/// The living processes that are neither this one nor the kernel's.
fn others() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let stats = entries.flatten().filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        fs::read_to_string(entry.path().join("stat")).ok()
    });
    stats.filter_map(|stat| living_process(&stat)).collect()
}

/// `NAME (PID, state S)` from a line of /proc/PID/stat, unless it is of no interest.
fn living_process(stat: &str) -> Option<String> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?;
    let kernel = pid == "2" || parent == "2" || parent == "0";
    let dead = matches!(state, "Z" | "X");
    (!kernel && !dead).then(|| format!("{name} ({pid}, state {state})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_living_user_processes_count() {
        let named = "73 (a) name) S 1 73 73 0";
        assert_eq!(living_process(named), Some("a) name (73, state S)".into()));
        assert_eq!(living_process("1 (init) S 0 1 1 0"), None);
        assert_eq!(living_process("9 (kworker/0:1) I 2 0 0 0"), None);
        assert_eq!(living_process("74 (suites) Z 1 74 74 0"), None);
    }
}
