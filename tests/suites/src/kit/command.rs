// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes that run the command `barbuf`, and what they say.

use std::ffi::OsStr;
use std::io::{BufReader, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use barbuf::Buffer;
use barbuf::pass::{Policy, Receiver};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use nix::unistd::Pid;
use serde::Deserialize as _;
use serde_json::{Deserializer, Value, json};

use super::pci::wait_until;
use super::process::scaled;

/// The user without any right.
pub(crate) const NOBODY: u32 = 65534;
const COMMAND: &str = "/bin/barbuf";

/// `barbuf` with these arguments.
pub(crate) struct Barbuf(Command);

pub(crate) fn barbuf(arguments: &[&str]) -> Barbuf {
    let mut command = Command::new(COMMAND);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/bin")
        .stdin(Stdio::null());
    Barbuf(command)
}

impl Barbuf {
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Barbuf {
        self.0.arg(argument);
        self
    }

    pub(crate) fn args(mut self, arguments: &[&str]) -> Barbuf {
        self.0.args(arguments);
        self
    }

    /// As a user without any right. Root's other groups go by themselves.
    pub(crate) fn nobody(mut self) -> Barbuf {
        self.0.uid(NOBODY).gid(NOBODY);
        self
    }

    /// A shell that runs this, with the command in reach.
    pub(crate) fn shell(script: &str) -> Barbuf {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .env_clear()
            .env("PATH", "/bin")
            .stdin(Stdio::null());
        Barbuf(command)
    }

    /// With this as standard input.
    pub(crate) fn stdin(mut self, fd: OwnedFd) -> Barbuf {
        self.0.stdin(fd);
        self
    }

    pub(crate) fn output(mut self) -> Result<Output> {
        Ok(self.0.output()?)
    }

    /// Its exit code, which must be this one; and what it says.
    pub(crate) fn exits(self, code: i32) -> Result<String> {
        let output = self.output()?;
        ensure!(
            output.status.code() == Some(code),
            "it should exit with {code}: {output:?}"
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The command with `--json`, which must end well: its one document.
pub(crate) fn answer(arguments: &[&str]) -> Result<Value> {
    let output = barbuf(&["--json"]).args(arguments).output()?;
    let value = parse(&output).with_context(|| format!("barbuf {}", arguments.join(" ")))?;
    ensure!(value["schema"] == 1, "{arguments:?} says {value}");
    Ok(value)
}

/// The command must refuse: with this exit code, one line for people and at most one hint, and with
/// `--json` one document that says the same.
pub(crate) fn refusal(arguments: &[&str], code: i32) -> Result<Value> {
    let output = barbuf(&["--json"]).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let check = || -> Result<Value> {
        ensure!(output.status.code() == Some(code), "{}", output.status);
        let lines: Vec<&str> = said.lines().collect();
        ensure!(
            matches!(lines[..], [error] | [error, _] if error.starts_with("barbuf: ")),
            "not one line and a hint"
        );
        ensure!(lines.iter().skip(1).all(|line| line.starts_with("hint: ")));
        let value: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(value["schema"] == 1 && value["error"]["exit"] == code);
        let message = value["error"]["message"].as_str().unwrap_or_default();
        ensure!(!message.is_empty() && lines[0].ends_with(message));
        Ok(value["error"].clone())
    };
    check().with_context(|| format!("barbuf {arguments:?}, not {code}: {output:?}"))
}

/// A process that says things in JSON while it runs. It does not outlive the test.
#[derive(Debug)]
pub(crate) struct Actor {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Actor {
    pub(crate) fn start(mut command: Barbuf) -> Result<Actor> {
        let mut child = command
            .0
            .stdout(Stdio::piped())
            .spawn()
            .context("/bin/barbuf")?;
        let stdout = child.stdout.take().context("a pipe")?;
        Ok(Actor {
            child,
            stdout: BufReader::new(stdout),
        })
    }

    /// The next document that it prints.
    pub(crate) fn document(&mut self) -> Result<Value> {
        let mut reader = Deserializer::from_reader(&mut self.stdout);
        match Value::deserialize(&mut reader) {
            Ok(value) => Ok(value),
            Err(error) => bail!(
                "it said nothing more: {error}; it is {:?}",
                self.child.try_wait()
            ),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid().try_into()?), signal)?)
    }

    /// Waits for its end, whatever it is.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn ends_well(&mut self) -> Result<()> {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}: {rest}");
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The one document of a process that has ended well.
pub(crate) fn parse(output: &Output) -> Result<Value> {
    ensure!(
        output.status.success(),
        "it ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

pub(crate) fn wait_for_socket(path: &Path) -> Result<()> {
    wait_until(&path.display().to_string(), || path.exists())
}

/// A buffer from `barbuf serve`, for this process, which need not be the command to get one. The
/// connection keeps a buffer that is revoked on disconnect.
pub(crate) fn fetch(path: &Path, name: &str) -> Result<(Buffer, OwnedFd)> {
    let connection = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    let request = json!({ "schema": 1, "get": name }).to_string();
    send(
        connection.as_raw_fd(),
        request.as_bytes(),
        MsgFlags::MSG_NOSIGNAL,
    )?;
    let received = Receiver::new(Policy::anybody().users([0]))
        .timeout(scaled(Duration::from_secs(20)))
        .receive(&connection)?;
    Ok((received.buffer, connection))
}
