// SPDX-License-Identifier: MIT OR Apache-2.0

//! How long the kernel spends in functions of its own: kprobe events at their beginning and at their end.
//!
//! Probes take time themselves, many times that of a short function. How much they add is found out by probing a
//! function that does nothing, and taken off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use barbuf_guest::sysfs;
use nix::libc;

const TRACING: &str = "/sys/kernel/tracing";
/// An optimised probe is a jump, another one a trap: which of them it is would change some time after it is set.
const OPTIMIZATION: &str = "/proc/sys/debug/kprobes-optimization";
/// The time stamp counter, as it is.
const CLOCK: (&str, &str) = ("x86-tsc", "local");
/// What system calls that were removed run into: two instructions.
const NOTHING: &str = "__x64_sys_ni_syscall";
const NOTHING_NS: u64 = 2;
/// create_module(2).
const REMOVED: libc::c_long = 174;

/// Functions that are probed until this is dropped.
#[derive(Debug)]
pub(crate) struct Probes {
    functions: Vec<&'static str>,
    /// What the probes of one call add.
    cost: u64,
}

impl Probes {
    /// None where the kernel has no probes.
    pub(crate) fn of(functions: &[&'static str]) -> Result<Option<Probes>> {
        if !file("kprobe_events").exists() {
            return Ok(None);
        }
        let mut probes = Probes {
            functions: functions.to_vec(),
            cost: 0,
        };
        set("tracing_on", "0")?;
        if Path::new(OPTIMIZATION).exists() {
            sysfs::write(OPTIMIZATION, "0")?;
        }
        set("trace_clock", CLOCK.0)?;
        for (index, function) in probes.all().enumerate() {
            set("kprobe_events", &format!("p:barbuf/in{index} {function}"))?;
            set("kprobe_events", &format!("r:barbuf/out{index} {function}"))?;
        }
        set("events/barbuf/enable", "1")?;
        for _ in 0..20 {
            let calls = probes.record(|| {
                // SAFETY: There is no such system call: it returns ENOSYS.
                unsafe { libc::syscall(REMOVED) };
            })?;
            let took = calls.get(functions.len()).copied().unwrap_or_default();
            ensure!(took.0 == 1, "{} calls of {NOTHING}", took.0);
            let cost = took.1.saturating_sub(NOTHING_NS);
            probes.cost = if probes.cost == 0 {
                cost
            } else {
                probes.cost.min(cost)
            };
        }
        Ok(Some(probes))
    }

    fn all(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.functions.clone().into_iter().chain([NOTHING])
    }

    /// Nanoseconds in each of the functions while something runs, as they would be without probes.
    pub(crate) fn time(&self, run: impl FnOnce()) -> Result<Vec<u64>> {
        let mut calls = self.record(run)?;
        calls.truncate(self.functions.len());
        for ((count, _), function) in calls.iter().zip(&self.functions) {
            ensure!(*count > 0, "{function} was not called");
        }
        let net = |(count, ns): (u64, u64)| ns.saturating_sub(count * self.cost);
        Ok(calls.into_iter().map(net).collect())
    }

    /// Calls of each function, and the time from probe to probe.
    fn record(&self, run: impl FnOnce()) -> Result<Vec<(u64, u64)>> {
        // Opening it for writing, and truncating it, is what empties it.
        std::fs::write(file("trace"), "").context("cannot empty the trace")?;
        set("tracing_on", "1")?;
        run();
        set("tracing_on", "0")?;
        let trace = sysfs::read(file("trace"))?;
        Ok(calls_in(&trace, self.functions.len() + 1))
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let undo = || -> Result<()> {
            set("events/barbuf/enable", "0")?;
            std::fs::write(file("kprobe_events"), "")?;
            std::fs::write(file("trace"), "")?;
            set("trace_clock", CLOCK.1)?;
            if Path::new(OPTIMIZATION).exists() {
                sysfs::write(OPTIMIZATION, "1")?;
            }
            set("tracing_on", "1")
        };
        if let Err(error) = undo() {
            eprintln!("cannot take the probes away: {error:#}");
        }
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(TRACING).join(name)
}

/// Adds to what is there: the files of probes are not truncated by this.
fn set(name: &str, text: &str) -> Result<()> {
    use std::io::Write as _;
    let path = file(name);
    let opened = std::fs::OpenOptions::new().append(true).open(&path);
    opened
        .and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()))
        .with_context(|| format!("cannot write {text:?} to {}", path.display()))
}

/// Of a line `task-pid [cpu] flags stamp: event: ...`, stamp and event.
fn event(line: &str) -> Option<(u64, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (stamp, name) = words.windows(2).find_map(|pair| {
        let stamp = pair.first()?.strip_suffix(':')?.parse().ok()?;
        Some((stamp, pair.get(1)?.strip_suffix(':')?))
    })?;
    Some((stamp, name))
}

fn calls_in(trace: &str, functions: usize) -> Vec<(u64, u64)> {
    let mut calls = vec![(0, 0); functions];
    let mut begun = BTreeMap::new();
    for (stamp, name) in trace.lines().filter_map(event) {
        if let Some(index) = name.strip_prefix("in") {
            begun.insert(index.to_owned(), stamp);
        } else if let Some(index) = name.strip_prefix("out") {
            let slot = index
                .parse()
                .ok()
                .and_then(|index: usize| calls.get_mut(index));
            if let (Some(slot), Some(start)) = (slot, begun.remove(index)) {
                slot.0 += 1;
                slot.1 += stamp - start;
            }
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel writes it, with two functions of ours, another one's event, and what is no event.
    const TRACE: &str = "\
# tracer: nop
#
# entries-in-buffer/entries-written: 9/9   #P:1
#
#                                _-----=> irqs-off/BH-disabled
#           TASK-PID     CPU#  |||||     TIMESTAMP  FUNCTION
#              | |         |   |||||        |         |
           suite-91      [000] .....   7000000100: in0: (pin_user_pages_fast+0x4/0x60)
           suite-91      [000] .....   7000000120: in1: (__bio_release_pages+0x4/0x2b0)
           suite-91      [000] ...1.   7000000150: out1: (bio_release+0x1c/0x40 <- __bio_release_pages)
           suite-91      [000] .....   7000000500: out0: (iov_iter_extract+0x1/0x2 <- pin_user_pages_fast)
           suite-91      [000] .....   7000000600: in10: (another+0x4/0x60)
           suite-91      [000] .....   7000000900: out10: (another+0x4/0x60 <- x)
    kworker/0:1-23      [000] d..2.   7000001000: in1: (__bio_release_pages+0x4/0x2b0)
    kworker/0:1-23      [000] d..2.   7000001007: out1: (bio_endio+0x1c/0x40 <- __bio_release_pages)
";

    #[test]
    fn calls_are_paired_and_added_up() {
        assert_eq!(calls_in(TRACE, 2), [(1, 400), (2, 37)]);
        assert_eq!(calls_in(TRACE, 3), [(1, 400), (2, 37), (0, 0)]);
        assert_eq!(calls_in("", 1), [(0, 0)]);
    }

    #[test]
    fn half_a_call_is_none() {
        let lines: Vec<_> = TRACE.lines().collect();
        let (first, last) = lines.split_at(lines.len() - 1);
        // The trace ends inside of a call, or begins there.
        assert_eq!(calls_in(&first.join("\n"), 2), [(1, 400), (1, 30)]);
        assert_eq!(calls_in(&last.join("\n"), 2), [(0, 0), (0, 0)]);
    }

    #[test]
    fn names_of_tasks_may_look_like_anything() {
        let line = "a 12: b-91 [000] ..... 7000000100: in0: (f+0x4/0x60)";
        assert_eq!(event(line), Some((7_000_000_100, "in0")));
        assert_eq!(event("# tracer: nop"), None);
        assert_eq!(event("suite-91 [000] ..... 7000000100: "), None);
    }
}
