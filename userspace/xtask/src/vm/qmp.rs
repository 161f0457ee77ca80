// SPDX-License-Identifier: MIT OR Apache-2.0

//! QEMU's machine protocol: a command, its answer, and the events in between.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take for one command. It is one process on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    /// What has come in of a line that is not complete yet.
    partial: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Greets and becomes ready for commands.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        let mut qmp = Qmp {
            stream,
            partial: Vec::new(),
            events: VecDeque::new(),
        };
        let greeting = qmp.next(Instant::now() + ANSWER_WITHIN)?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.stream
            .write_all(line.as_bytes())
            .context("QEMU takes no more commands")?;
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let message = self.next(deadline)?;
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            if let Some(error) = message.get("error") {
                let text = error["desc"].as_str().unwrap_or("no reason given");
                bail!("QEMU refuses {command}: {text}");
            }
            self.events.push_back(message);
        }
    }

    /// Forgets the events that have come so far.
    pub(crate) fn forget_events(&mut self) {
        self.events.clear();
    }

    /// Waits for an event about a device.
    pub(crate) fn wait_event(
        &mut self,
        names: &[&str],
        device: &str,
        limit: Duration,
    ) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(event) = self.events.pop_front() {
                let name = event["event"].as_str().unwrap_or_default();
                if names.contains(&name) && event["data"]["device"] == device {
                    return Ok(name.to_owned());
                }
            }
            let event = self.next(deadline).with_context(|| {
                format!(
                    "waited {} s for {} of {device}",
                    limit.as_secs(),
                    names.join(" or ")
                )
            })?;
            self.events.push_back(event);
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Value> {
        loop {
            if let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .context("QEMU says something that is no JSON");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("QEMU does not answer");
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("QEMU has ended"),
                Ok(count) => self.partial.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("cannot read from QEMU"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread;

    use super::*;

    /// A QEMU that greets, then answers each command with the next of these texts.
    fn qemu(answers: &'static [&'static str]) -> Qmp {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut lines = BufReader::new(theirs.try_clone().unwrap());
            let mut theirs = theirs;
            theirs.write_all(b"{\"QMP\": {}}\n").unwrap();
            for answer in ["{\"return\": {}}"].iter().chain(answers) {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                theirs.write_all(format!("{answer}\n").as_bytes()).unwrap();
            }
        });
        Qmp::new(ours).unwrap()
    }

    #[test]
    fn answers_errors_and_events() {
        let mut qmp = qemu(&[
            "{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"npu0\"}}\n{\"return\":7}",
            "{\"error\":{\"desc\":\"no such device\"}}",
        ]);
        assert_eq!(qmp.execute("one", json!({})).unwrap(), 7);
        let error = qmp.execute("two", json!({})).unwrap_err().to_string();
        assert!(error.contains("no such device"), "{error}");
        let limit = Duration::from_secs(1);
        assert_eq!(
            qmp.wait_event(&["DEVICE_DELETED"], "npu0", limit).unwrap(),
            "DEVICE_DELETED"
        );
        let error = qmp
            .wait_event(&["DEVICE_DELETED"], "npu0", limit)
            .unwrap_err();
        assert!(
            format!("{error:#}").contains("waited 1 s for DEVICE_DELETED of npu0"),
            "{error:#}"
        );
    }
}
