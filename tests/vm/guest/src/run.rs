// SPDX-License-Identifier: MIT OR Apache-2.0

//! Running the plan and writing KTAP: a test per suite, with the suite's tests as subtests.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use barbuf_guest::modules::Modules;
use barbuf_guest::protocol::{
    BEGIN, BootSpec, CONSOLE_BEGIN, CONSOLE_END, ORACLES, SuitePlan, TestPlan, Verdict,
};

use crate::channel::Channel;
use crate::child::{self, Ended};
use crate::oracles::Oracles;

/// How long the host should grant the oracles, before the time scale.
const ORACLES_WITHIN_S: u32 = 120;

pub(crate) fn run(
    spec: &BootSpec,
    modules: &Modules,
    suites: &[SuitePlan],
    channel: Channel,
) -> io::Result<()> {
    let mut oracles = Oracles::new(spec, modules)?;
    let mut report = Report { channel };
    report.channel.line("KTAP version 1")?;
    report.channel.line(&format!("1..{}", suites.len()))?;
    for (index, suite) in suites.iter().enumerate() {
        let last = index + 1 == suites.len();
        let good = run_suite(spec, suite, last, &mut oracles, &mut report)?;
        let word = if good { "ok" } else { "not ok" };
        report
            .channel
            .line(&format!("{word} {} {}", index + 1, suite.name))?;
    }
    Ok(())
}

fn run_suite(
    spec: &BootSpec,
    suite: &SuitePlan,
    last: bool,
    oracles: &mut Oracles<'_>,
    report: &mut Report,
) -> io::Result<bool> {
    report.channel.line("  KTAP version 1")?;
    report
        .channel
        .line(&format!("  # Subtest: {}", suite.name))?;
    report
        .channel
        .line(&format!("  1..{}", suite.tests.len() + 1))?;
    let mut good = true;
    for (index, test) in suite.tests.iter().enumerate() {
        report.begin(suite, test)?;
        let limit = Duration::from_secs(test.timeout_s.into());
        let ended = child::run(
            &suite.name,
            &test.name,
            limit,
            spec.time_scale,
            &mut report.channel,
        );
        let mut ended = ended.unwrap_or_else(|error| Ended {
            verdict: Verdict::Failed(format!("init: {error}")),
            took: Duration::ZERO,
            notes: Vec::new(),
        });
        if test.warns {
            oracles.expect_warning();
        }
        blame(&mut ended, oracles.after_test());
        good &= report.end(suite, &test.name, index + 1, ended)?;
    }
    let test = TestPlan {
        name: ORACLES.into(),
        timeout_s: ORACLES_WITHIN_S,
        warns: false,
    };
    report.begin(suite, &test)?;
    let started = Instant::now();
    let wrong = oracles.after_suite(last);
    let mut ended = Ended {
        verdict: Verdict::Passed,
        took: started.elapsed(),
        notes: Vec::new(),
    };
    blame(&mut ended, wrong);
    good &= report.end(suite, ORACLES, suite.tests.len() + 1, ended)?;
    Ok(good)
}

/// Turns what an oracle found into the failure of the test before it.
fn blame(ended: &mut Ended, wrong: Vec<String>) {
    if wrong.is_empty() {
        return;
    }
    let mut reasons = Vec::new();
    if let Verdict::Failed(why) = &ended.verdict {
        reasons.push(why.clone());
    }
    reasons.extend(wrong.into_iter().map(|what| format!("afterwards: {what}")));
    ended.verdict = Verdict::Failed(reasons.join("\n"));
}

/// Writes to both places that follow the run: the channel, and the console for the markers.
struct Report {
    channel: Channel,
}

impl Report {
    fn begin(&mut self, suite: &SuitePlan, test: &TestPlan) -> io::Result<()> {
        let (suite, name) = (&suite.name, &test.name);
        mark(&format!("{CONSOLE_BEGIN}{suite}::{name}"))?;
        self.channel
            .line(&format!("{BEGIN}{suite} {name} {}", test.timeout_s))
    }

    fn end(
        &mut self,
        suite: &SuitePlan,
        name: &str,
        number: usize,
        ended: Ended,
    ) -> io::Result<bool> {
        mark(&format!("{CONSOLE_END}{}::{name}", suite.name))?;
        self.channel
            .line(&format!("  # time_us {}", ended.took.as_micros()))?;
        let (word, directive) = match &ended.verdict {
            Verdict::Passed => ("ok", String::new()),
            Verdict::Skipped(why) => ("ok", format!(" # SKIP {why}")),
            Verdict::Failed(why) => {
                for line in why.lines().chain(ended.notes.iter().map(String::as_str)) {
                    self.channel.line(&format!("  # {line}"))?;
                }
                ("not ok", String::new())
            }
        };
        self.channel
            .line(&format!("  {word} {number} {name}{directive}"))?;
        Ok(word == "ok")
    }
}

/// Writes a line into the kernel's log, in order with what the kernel itself says.
fn mark(text: &str) -> io::Result<()> {
    let mut log = OpenOptions::new().write(true).open("/dev/kmsg")?;
    // Level 4, "warning": below every limit of the console.
    log.write_all(format!("<4>{text}\n").as_bytes())
}
