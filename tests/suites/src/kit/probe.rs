// SPDX-License-Identifier: MIT OR Apache-2.0

//! Functions of the kernel whose calls are counted.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use barbuf_guest::sysfs;

const TRACING: &str = "/sys/kernel/tracing";

/// A kprobe event, as long as this exists.
#[derive(Debug)]
pub(crate) struct Probe(&'static str);

impl Probe {
    /// Counts the calls of `function`, as `name`.
    pub(crate) fn new(name: &'static str, function: &str) -> Result<Probe> {
        define(&format!("p:kprobes/{name} {function}"))
            .with_context(|| format!("a probe on {function}"))?;
        let probe = Probe(name);
        probe.enable(true)?;
        Ok(probe)
    }

    fn enable(&self, enabled: bool) -> Result<()> {
        let file = Path::new(TRACING)
            .join("events/kprobes")
            .join(self.0)
            .join("enable");
        Ok(sysfs::write(file, if enabled { "1" } else { "0" })?)
    }

    /// Calls so far.
    pub(crate) fn hits(&self) -> Result<u64> {
        // Name, hits, misses.
        let text = sysfs::read(Path::new(TRACING).join("kprobe_profile"))?;
        let hits = text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == self.0).then(|| words.next()?.parse().ok())?
        });
        hits.with_context(|| format!("{} is not in kprobe_profile", self.0))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let gone = self
            .enable(false)
            .and_then(|()| define(&format!("-:kprobes/{}", self.0)));
        if let Err(error) = gone {
            eprintln!("cannot remove the probe {}: {error:#}", self.0);
        }
    }
}

/// Adds a line to the list of probes. Opening it without O_APPEND empties the list.
fn define(line: &str) -> Result<()> {
    let file = Path::new(TRACING).join("kprobe_events");
    let mut file = OpenOptions::new().append(true).open(file)?;
    Ok(file.write_all(line.as_bytes())?)
}
