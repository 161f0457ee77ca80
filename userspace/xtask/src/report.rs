// SPDX-License-Identifier: MIT OR Apache-2.0

//! The results of a test run: a line per test as it ends, the closing count, JSON for programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::ctx::Ctx;

/// The number of the JSON's layout. A program that reads it can rely on what it knows of this one;
/// names may be added without a new number.
const SCHEMA: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// One test that ran, or was skipped for a reason that `detail` names.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TestResult {
    /// Where it ran: `host`, `stock`, `debug` or `base`.
    pub(crate) place: String,
    /// `suite::test`.
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// None where the harness tells no time per test.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub(crate) time: Option<Duration>,
    /// Why it failed or was skipped; where the log lies.
    pub(crate) detail: Option<String>,
}

fn seconds<S: serde::Serializer>(
    time: &Option<Duration>,
    out: S,
) -> std::result::Result<S::Ok, S::Error> {
    time.map(|t| t.as_secs_f64()).serialize(out)
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

#[derive(Debug)]
pub(crate) struct Report<'a> {
    ctx: &'a Ctx,
    json: Option<PathBuf>,
    results: Vec<TestResult>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(ctx: &'a Ctx, json: &Option<PathBuf>) -> Self {
        if json.as_deref() == Some(Path::new("-")) {
            ctx.ui.reserve_stdout();
        }
        Report {
            ctx,
            json: json.clone(),
            results: Vec::new(),
        }
    }

    /// Records a test that has ended and prints its line.
    pub(crate) fn add(&mut self, result: TestResult) {
        let word = match result.outcome {
            Outcome::Passed => "ok  ",
            Outcome::Failed => "FAIL",
            Outcome::Skipped => "skip",
        };
        let time = result
            .time
            .map_or(String::new(), |t| format!("  {:.2} s", t.as_secs_f64()));
        self.ctx.ui.line(&format!(
            "{word}  {:<5} {}{time}",
            result.place, result.name
        ));
        if let (Some(detail), true) = (&result.detail, result.outcome != Outcome::Passed) {
            for line in detail.lines() {
                self.ctx.ui.line(&format!("        {line}"));
            }
        }
        self.record(result);
    }

    /// Records a test that is not worth a line.
    pub(crate) fn record(&mut self, result: TestResult) {
        self.results.push(result);
    }

    /// Adds a failure for each of `places` where no test has passed. A place that is left out by
    /// mistake would otherwise go unnoticed: fewer tests, all of them passed.
    pub(crate) fn keep_promise(&mut self, places: &[String]) {
        for place in places {
            let passed = |r: &TestResult| r.place == *place && r.outcome == Outcome::Passed;
            if !self.results.iter().any(passed) {
                self.add(TestResult {
                    place: place.clone(),
                    name: "all tests".into(),
                    outcome: Outcome::Failed,
                    time: None,
                    detail: Some("no test has passed here: this run should have had some".into()),
                });
            }
        }
    }

    pub(crate) fn tally(&self) -> Tally {
        let count = |outcome| self.results.iter().filter(|r| r.outcome == outcome).count();
        Tally {
            passed: count(Outcome::Passed),
            failed: count(Outcome::Failed),
            skipped: count(Outcome::Skipped),
        }
    }

    /// Writes the JSON that was asked for and the closing line.
    pub(crate) fn finish(self) -> Result<ExitCode> {
        let tally = self.tally();
        if let Some(path) = &self.json {
            let json = serde_json::to_string_pretty(&serde_json::json!({
                "schema": SCHEMA,
                "passed": tally.passed,
                "failed": tally.failed,
                "skipped": tally.skipped,
                "tests": self.results,
            }))?;
            if path == Path::new("-") {
                println!("{json}");
            } else {
                fs::write(path, json + "\n")
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        if tally == Tally::default() {
            self.ctx.ui.line("no test has this name");
        }
        self.ctx.ui.line(&format!(
            "{} passed, {} failed, {} skipped",
            tally.passed, tally.failed, tally.skipped
        ));
        Ok(if tally.failed == 0 && tally.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(place: &str, outcome: Outcome) -> TestResult {
        TestResult {
            place: place.into(),
            name: "suite::test".into(),
            outcome,
            time: None,
            detail: None,
        }
    }

    #[test]
    fn a_place_without_a_passed_test_is_a_failure() {
        let ctx = Ctx::for_tests();
        let mut report = Report::new(&ctx, &None);
        report.record(result("stock", Outcome::Passed));
        report.record(result("debug", Outcome::Skipped));
        report.keep_promise(&["stock".into()]);
        assert_eq!(report.tally().failed, 0);
        report.keep_promise(&["host".into(), "stock".into(), "debug".into()]);
        assert_eq!(report.tally().failed, 2);
    }
}
