// SPDX-License-Identifier: MIT OR Apache-2.0

//! The runner's test of itself: guests that misbehave in every way that it claims to notice.
//!
//! The misbehaviour is in `tests/suites/src/provoke.rs`. Here is what must come of it. A runner
//! that lets any of it pass would let the same pass in a real test.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use barbuf_guest::protocol::ListedTest;

use super::boot::{Boot, BootDir, Ended, Progress};
use super::ktap::Status;
use super::parts::{self, Parts, Programs};
use super::plan::{self, Selection};
use super::topology;
use crate::ctx::Ctx;
use crate::report::{Outcome, Report, TestResult};

/// A guest, the tests that it runs, and what must come of each and of the boot.
struct Case {
    name: &'static str,
    topology: &'static str,
    /// What the boot declares that the console must show.
    console: &'static [&'static str],
    panics: bool,
    tests: &'static [(&'static str, Must)],
    oracles: Option<Must>,
    boot: Must,
}

#[derive(Clone, Copy)]
enum Must {
    Pass,
    Skip,
    /// Fail with a reason that contains this.
    Fail(&'static str),
    /// Run out of a time that is so many seconds long, if the user has no patience.
    TimeOut(u32),
}

use Must::{Fail, Pass, Skip, TimeOut};

const CASES: &[Case] = &[
    Case {
        name: "bad-tests",
        topology: "npu-cmb",
        console: &[],
        panics: false,
        tests: &[
            ("passes", Pass),
            ("fails", Fail("should be 5")),
            ("is_skipped", Skip),
            ("crashes", Fail("crashed: killed by SIGABRT")),
            ("runs_out_of_time", TimeOut(1)),
            ("leaves_a_process", Fail("left processes behind: suites")),
            ("unloads_the_module", Fail("barbuf is not loaded any more")),
            ("unbinds_a_drive", Fail("nvme0 has no driver, had nvme")),
            (
                "warns",
                Fail("console: WARNING: CPU: 0 PID: 1 at mm/provoked.c:1"),
            ),
            ("taints", Fail("taint went from OE to WOE")),
        ],
        oracles: Some(Pass),
        boot: Pass,
    },
    Case {
        name: "panic",
        topology: "minimal",
        console: &[],
        panics: false,
        tests: &[
            (
                "panics_the_kernel",
                Fail("the kernel panicked during provoke::panics_the_kernel"),
            ),
            ("passes", Fail("did not run: the kernel panicked")),
        ],
        oracles: Some(Fail("did not run")),
        boot: Fail("Kernel panic - not syncing: sysrq triggered crash"),
    },
    Case {
        name: "hang",
        topology: "minimal",
        console: &[],
        panics: false,
        tests: &[
            ("passes", Pass),
            (
                "hangs_the_guest",
                Fail("the guest hung in provoke::hangs_the_guest"),
            ),
        ],
        oracles: Some(Fail("did not run")),
        boot: Fail("the last lines of its console"),
    },
    Case {
        name: "broken-plan",
        topology: "minimal",
        console: &[],
        panics: false,
        tests: &[
            ("repeats_a_number", Pass),
            ("powers_off", Fail("the guest ended before its plan did")),
        ],
        oracles: Some(Fail("did not run: the guest ended before its plan did")),
        boot: Fail("broken report: result \"1 forged\" where"),
    },
    Case {
        name: "expected-panic",
        topology: "minimal",
        console: &[
            "sysrq triggered crash",
            "BUG: kernel NULL pointer dereference",
        ],
        panics: true,
        tests: &[("panics_the_kernel", Pass)],
        oracles: None,
        boot: Fail("the console never showed \"BUG: kernel NULL pointer dereference\""),
    },
];

/// The guest that hangs should not make everybody wait for as long as a slow one may take.
const GRACE: Duration = Duration::from_secs(12);

const PREFIX: &str = "runner::";

/// Whether the selection of tests leaves these in.
pub(crate) fn is_selected(selection: &Selection<'_>) -> bool {
    let named = CASES
        .iter()
        .any(|case| selection.names(&format!("{PREFIX}{}", case.name)));
    selection.topology.is_none() && named
}

/// Runs the guests two at a time: each uses one processor and waits a lot.
pub(crate) fn run(
    ctx: &Ctx,
    parts: &Parts,
    programs: &Programs,
    keep: bool,
    report: &mut Report<'_>,
) -> Result<()> {
    let provocations = programs.list("--list-provocations")?;
    plan::check(&provocations)?;
    let step = ctx.ui.step("test the runner itself");
    let cases = Mutex::new(CASES.iter());
    let report = Mutex::new(report);
    let place = parts.kernel.flavour.to_string();
    let work = || -> Result<()> {
        loop {
            let Some(case) = cases.lock().expect("no worker panics").next() else {
                return Ok(());
            };
            let started = Instant::now();
            let wrong = judge(case, &run_case(ctx, parts, &provocations, case, keep)?);
            let detail = (!wrong.is_empty()).then(|| wrong.join("\n"));
            report.lock().expect("no worker panics").add(TestResult {
                place: place.clone(),
                name: format!("{PREFIX}{}", case.name),
                outcome: if detail.is_none() {
                    Outcome::Passed
                } else {
                    Outcome::Failed
                },
                time: Some(started.elapsed()),
                detail,
            });
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(work);
        work()?;
        match other.join() {
            Ok(result) => result,
            Err(_) => bail!("the test of the runner panicked"),
        }
    })?;
    step.done();
    Ok(())
}

fn run_case(
    ctx: &Ctx,
    parts: &Parts,
    provocations: &[ListedTest],
    case: &Case,
    keep: bool,
) -> Result<Vec<Ended>> {
    let find = |name: &str| provocations.iter().find(|test| test.name == name);
    let Some(tests) = case
        .tests
        .iter()
        .map(|(name, _)| find(name))
        .collect::<Option<Vec<_>>>()
    else {
        bail!("a provocation of {} does not exist", case.name);
    };
    let mut topology = topology::find(case.topology)?;
    topology.smp = 1;
    let dir = BootDir::create(ctx, &format!("runner-{}", case.name))?;
    let boot = Boot {
        console: case.console.iter().map(|&text| text.into()).collect(),
        panics: case.panics,
        grace: GRACE,
        keep,
        ..Boot::new(&topology, parts, plan::suites(&tests), dir)
    };
    let mut ended = Vec::new();
    boot.run(&mut |progress| {
        if let Progress::Ended(result) = progress {
            ended.push(result);
        }
    })?;
    Ok(ended)
}

/// What did not come as it must.
fn judge(case: &Case, ended: &[Ended]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expect = |test: String, must: Must| {
        let results: Vec<&Ended> = ended.iter().filter(|result| result.test == test).collect();
        let [result] = results[..] else {
            wrong.push(format!("{test} has {} results", results.len()));
            return;
        };
        let timed_out = |limit| format!("timed out after {} s", limit * parts::patience());
        let good = match (must, &result.status) {
            (Pass, Status::Passed) | (Skip, Status::Skipped(_)) => true,
            (Fail(reason), Status::Failed(why)) => why.contains(reason),
            (TimeOut(limit), Status::Failed(why)) => why.contains(&timed_out(limit)),
            _ => false,
        };
        if !good {
            wrong.push(match must {
                Pass => format!("{test} should pass: {:?}", result.status),
                Skip => format!("{test} should be skipped: {:?}", result.status),
                Fail(reason) => format!("{test} should fail with {reason:?}: {:?}", result.status),
                TimeOut(limit) => {
                    let reason = timed_out(limit);
                    format!("{test} should fail with {reason:?}: {:?}", result.status)
                }
            });
        }
    };
    for (name, must) in case.tests {
        expect(format!("provoke::{name}"), *must);
    }
    if let Some(must) = case.oracles {
        expect("provoke::oracles".into(), must);
    }
    expect(format!("boot::runner-{}", case.name), case.boot);
    wrong
}
