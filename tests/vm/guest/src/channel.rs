// SPDX-License-Identifier: MIT OR Apache-2.0

//! The serial port to the host: a line out, and for a request a line back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use barbuf_guest::protocol::{CHANNEL, HOST, HostOp, HostReply};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

#[derive(Debug)]
pub(crate) struct Channel {
    port: File,
    /// What has come in of a line that is not complete yet.
    partial: Vec<u8>,
}

impl Channel {
    pub(crate) fn open() -> io::Result<Self> {
        let port = OpenOptions::new().read(true).write(true).open(CHANNEL)?;
        let mut settings = tcgetattr(&port)?;
        cfmakeraw(&mut settings);
        tcsetattr(&port, SetArg::TCSANOW, &settings)?;
        Ok(Channel {
            port,
            partial: Vec::new(),
        })
    }

    /// Sends one line. Line breaks in the text would forge further lines; they become spaces.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        let mut line = text.replace(['\n', '\r'], " ");
        line.push('\n');
        self.port.write_all(line.as_bytes())
    }

    /// Asks the host for something and waits for its answer.
    pub(crate) fn ask(&mut self, op: &HostOp, limit: Duration) -> io::Result<HostReply> {
        self.line(&format!("{HOST}{}", serde_json::to_string(op)?))?;
        let answer = self.read_line(Instant::now() + limit)?;
        Ok(serde_json::from_str(&answer)?)
    }

    fn read_line(&mut self, deadline: Instant) -> io::Result<String> {
        loop {
            if let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                return String::from_utf8(line).map_err(io::Error::other);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(
                &mut [PollFd::new(self.port.as_fd(), PollFlags::POLLIN)],
                wait,
            )? == 0
            {
                return Err(io::Error::other("the host does not answer"));
            }
            let mut buffer = [0; 512];
            let count = self.port.read(&mut buffer)?;
            self.partial.extend_from_slice(&buffer[..count]);
        }
    }
}
