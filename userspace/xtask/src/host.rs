// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tests that need no virtual machine: `cargo test` over the workspace.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cli::TestArgs;
use crate::cmd::Log;
use crate::ctx::Ctx;
use crate::report::{Outcome, Report, TestResult};
use crate::ui::clock;

/// The place that these results are reported under.
pub(crate) const PLACE: &str = "host";

pub(crate) fn test(ctx: &Ctx, args: &TestArgs, report: &mut Report<'_>) -> Result<()> {
    if !args.selects_host() {
        return Ok(());
    }
    let step = ctx.ui.step("testing on the host");
    let log = Log::create(ctx, ctx.target.join("host-tests.log"))?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(ctx.repo.join("userspace")).args([
        "test",
        "--locked",
        "--workspace",
        "--no-fail-fast",
    ]);
    cargo.arg("--").args(&args.filter);
    // The output tells more than the exit status: which tests failed, and why.
    let ended = log.quiet(&mut cargo)?;
    let output = fs::read_to_string(log.path())?;
    let binaries = parse(&output);
    let failed = binaries
        .iter()
        .any(|binary| binary.count(Outcome::Failed) > 0);
    if !ended.success() && !failed {
        log.show_end()?;
        bail!(
            "the host's tests could not be built or run\nhint: the whole log is {}",
            ctx.show(log.path())
        );
    }
    step.done();
    for binary in binaries {
        binary.report(ctx, report);
    }
    Ok(())
}

/// The tests of one crate, as one test program ran them.
#[derive(Debug, Default, PartialEq)]
struct Binary {
    name: String,
    tests: Vec<(String, Outcome)>,
    /// What failed tests printed, by test.
    output: Vec<(String, String)>,
    time: Option<Duration>,
}

impl Binary {
    fn count(&self, outcome: Outcome) -> usize {
        self.tests.iter().filter(|(_, o)| *o == outcome).count()
    }

    fn report(self, ctx: &Ctx, report: &mut Report<'_>) {
        let (passed, failed) = (self.count(Outcome::Passed), self.count(Outcome::Failed));
        if passed > 0 && failed == 0 {
            let time = self
                .time
                .map_or(String::new(), |t| format!("  {}", clock(t)));
            ctx.ui.line(&format!(
                "ok    {PLACE}  {}: {passed} tests{time}",
                self.name
            ));
        }
        for (test, outcome) in &self.tests {
            let printed = self.output.iter().find(|(name, _)| name == test);
            let result = TestResult {
                place: PLACE.into(),
                name: format!("{}::{test}", self.name),
                outcome: *outcome,
                time: None,
                detail: match outcome {
                    Outcome::Passed => None,
                    Outcome::Failed => printed.map(|(_, text)| text.clone()),
                    Outcome::Skipped => Some("marked #[ignore]".into()),
                },
            };
            if *outcome == Outcome::Passed {
                report.record(result);
            } else {
                report.add(result);
            }
        }
    }
}

/// Reads what `cargo test` prints: which program runs, a line per test, what failed ones said.
fn parse(output: &str) -> Vec<Binary> {
    let mut binaries: Vec<Binary> = Vec::new();
    let mut speaking: Option<String> = None;
    for line in output.lines() {
        if let Some(name) = program(line) {
            speaking = None;
            binaries.push(Binary {
                name,
                ..Binary::default()
            });
            continue;
        }
        let Some(binary) = binaries.last_mut() else {
            continue;
        };
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.split_once(" std"))
        {
            speaking = Some(name.0.to_owned());
            binary.output.push((name.0.to_owned(), String::new()));
        } else if line == "failures:" {
            speaking = None;
        } else if let (Some(_), Some((_, text))) = (&speaking, binary.output.last_mut()) {
            if !line.is_empty() {
                *text += line;
                text.push('\n');
            }
        } else if let Some((name, word)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            let outcome = match word.split([',', ' ']).next() {
                Some("ok") => Outcome::Passed,
                Some("FAILED") => Outcome::Failed,
                Some("ignored") => Outcome::Skipped,
                _ => continue,
            };
            let name = name.trim_end_matches(" - should panic");
            binary.tests.push((name.to_owned(), outcome));
        } else if line.starts_with("test result: ") {
            binary.time = line
                .rsplit_once("finished in ")
                .and_then(|(_, time)| time.strip_suffix('s')?.parse().ok())
                .map(Duration::from_secs_f64);
        }
    }
    binaries
}

/// The crate whose test program cargo says it runs.
fn program(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let path = line.strip_prefix("Running ")?.rsplit_once('(')?.1;
    let file = path.trim_end_matches(')').rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
   Compiling xtask v0.1.0
     Running unittests src/main.rs (target/debug/deps/xtask-0123456789abcdef)

running 4 tests
test ui::tests::clock ... ok
test cache::tests::key ... FAILED
test slow ... ignored, takes an hour
test panics - should panic ... ok

failures:

---- cache::tests::key stdout ----
assertion failed: test a ... ok

failures:
    cache::tests::key

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.25s

   Doc-tests barbuf_sys
test src/lib.rs - (line 5) ... ok
test result: ok. 1 passed; 0 failed; finished in 0.01s
";

    #[test]
    fn every_test_is_found_with_its_outcome() {
        let binaries = parse(OUTPUT);
        assert_eq!(binaries.len(), 2);
        assert_eq!(binaries[0].name, "xtask");
        assert_eq!(
            binaries[0].tests,
            [
                ("ui::tests::clock".into(), Outcome::Passed),
                ("cache::tests::key".into(), Outcome::Failed),
                ("slow".into(), Outcome::Skipped),
                ("panics".into(), Outcome::Passed),
            ]
        );
        assert_eq!(binaries[0].time, Some(Duration::from_millis(1250)));
        assert_eq!(binaries[1].name, "barbuf_sys (documentation)");
        assert_eq!(binaries[1].count(Outcome::Passed), 1);
    }

    #[test]
    fn a_failed_test_comes_with_what_it_said() {
        let binaries = parse(OUTPUT);
        assert_eq!(
            binaries[0].output,
            [(
                "cache::tests::key".into(),
                "assertion failed: test a ... ok\n".into()
            )]
        );
    }
}
