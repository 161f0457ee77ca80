// SPDX-License-Identifier: MIT OR Apache-2.0

//! The boots behind a comparison: some measure, some answer; two run at a time.
//!
//! Measuring guests count instructions, so that it does not matter what else the host does. Guests that answer are
//! given calls that the kernel may not survive. Each is stopped at the first thing that goes wrong, and another one
//! goes on from there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Result, anyhow};
use barbuf_guest::protocol::ListedTest;
use barbuf_measure::report::{Answer, Measurement, Row, Verdict};

use super::super::boot::{Boot, BootDir, Ended, PANICKED, Progress};
use super::super::ktap::Status;
use super::super::parts::Parts;
use super::super::plan;
use super::super::topology::Topology;
use crate::ctx::Ctx;

/// Guests at a time. One that counts instructions has one processor and keeps one of the host's busy.
const AT_A_TIME: usize = 2;
/// The test that has nothing to do without a drive.
const HOST_MEMORY: &str = "host-memory";

/// What all boots have in common.
pub(super) struct Machine<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) parts: &'a Parts,
    pub(super) topology: &'a Topology,
    pub(super) keep: bool,
}

/// What came of them.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// The rows of each round.
    pub(super) measured: Vec<Vec<Row>>,
    pub(super) answers: Vec<Answer>,
    /// How many tests for each reason.
    pub(super) skipped: BTreeMap<String, usize>,
    pub(super) failed: Vec<String>,
}

enum Job<'a> {
    /// Of one round.
    Measure(usize, String, Share<'a>),
    Answer(Vec<&'a ListedTest>),
}

impl Machine<'_> {
    /// Runs everything, the measurements as many times as there are rounds.
    pub(super) fn run(
        &self,
        measurements: &[ListedTest],
        verdicts: &[ListedTest],
        rounds: u32,
    ) -> Result<Results> {
        let mut jobs = VecDeque::new();
        for round in 0..rounds as usize {
            for (index, share) in shares(measurements).into_iter().enumerate() {
                let name = format!("compare-{}-{}", round + 1, index + 1);
                jobs.push_back(Job::Measure(round, name, share));
            }
        }
        if !verdicts.is_empty() {
            jobs.push_back(Job::Answer(verdicts.iter().collect()));
        }
        let jobs = Mutex::new(jobs);
        let mut empty = Results::default();
        empty.measured.resize_with(rounds as usize, Vec::new);
        let results = Mutex::new(empty);
        thread::scope(|scope| {
            let work = || -> Result<()> {
                loop {
                    let job = lock(&jobs).pop_front();
                    match job {
                        None => return Ok(()),
                        Some(Job::Measure(round, name, share)) => {
                            self.measure(round, &name, &share, &results)?
                        }
                        Some(Job::Answer(tests)) => self.answer(tests, &results)?,
                    }
                }
            };
            let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .map_err(|_| anyhow!("a thread panicked"))
                    .and_then(|result| result)
            })
        })?;
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Boots end in any order; their rows have one.
        for rows in &mut results.measured {
            rows.sort_by_key(|row| {
                (
                    row.region != "NPU",
                    row.region.clone(),
                    row.size,
                    super::plot::rank(&row.path),
                    row.metric,
                )
            });
        }
        Ok(results)
    }

    fn measure(
        &self,
        round: usize,
        name: &str,
        share: &Share<'_>,
        results: &Mutex<Results>,
    ) -> Result<()> {
        let step = self.ctx.ui.step(format!("measure, boot {name}"));
        let topology = self.topology.clone().with_icount();
        let topology = match share.drives {
            Drives::None => topology.without_drives(),
            Drives::AsEver => topology.with_empty_drives(),
            Drives::Compound => topology.with_empty_drives().with_compound_cmb(),
        };
        let dir = BootDir::create(self.ctx, name)?;
        let boot = Boot {
            keep: self.keep,
            ..Boot::new(&topology, self.parts, plan::suites(&share.tests), dir)
        };
        boot.run(&mut |progress| match progress {
            Progress::Begin(test) => step.note(test),
            Progress::Say(text) => match Measurement::from_line(text) {
                Some(measured) => {
                    if let Some(rows) = lock(results).measured.get_mut(round) {
                        rows.push(measured.to_row());
                    }
                }
                None => self.ctx.ui.line(text),
            },
            Progress::Ended(Ended { test, status, .. }) => match status {
                Status::Passed => {}
                Status::Skipped(why) => *lock(results).skipped.entry(why).or_default() += 1,
                Status::Failed(why) => lock(results).failed.push(format!("{test}: {why}")),
            },
        })?;
        step.done();
        Ok(())
    }

    /// Boots until every test has had its say.
    fn answer(&self, tests: Vec<&ListedTest>, results: &Mutex<Results>) -> Result<()> {
        let step = self.ctx.ui.step("ask what each path survives");
        let mut left = tests;
        let mut number = 0;
        while !left.is_empty() {
            number += 1;
            let dir = BootDir::create(self.ctx, &format!("compare-answers-{number}"))?;
            let boot = Boot {
                keep: self.keep,
                stop_at_failure: true,
                ..Boot::new(self.topology, self.parts, plan::suites(&left), dir)
            };
            let mut said = Said::default();
            let mut ended = 0;
            let mut stopped = false;
            boot.run(&mut |progress| match progress {
                Progress::Begin(test) => {
                    step.note(format!("boot {number}: {test}"));
                    said.begin(test);
                }
                Progress::Say(text) => match Answer::from_line(text) {
                    Some(answer) => said.say(answer),
                    None => self.ctx.ui.line(text),
                },
                Progress::Ended(Ended { test, status, .. }) => {
                    // What follows a failure is for the next boot; oracles and the boot itself are no tests.
                    let is_test = left
                        .get(ended)
                        .is_some_and(|next| test == format!("{}::{}", next.suite, next.name));
                    if stopped || !is_test {
                        return;
                    }
                    ended += 1;
                    let why = match status {
                        Status::Passed => None,
                        Status::Skipped(why) => {
                            *lock(results).skipped.entry(why).or_default() += 1;
                            return;
                        }
                        Status::Failed(why) => Some(why),
                    };
                    stopped = why.is_some();
                    match said.take(&test) {
                        Some(answer) => lock(results).answers.push(judged(answer, why)),
                        None => lock(results)
                            .failed
                            .push(format!("{test}: {}", why.unwrap_or_default())),
                    }
                }
            })?;
            // A boot that ends without a single result would come again for ever.
            if ended == 0 {
                let first = left.remove(0);
                let name = format!("{}::{}", first.suite, first.name);
                lock(results).failed.push(format!("{name}: no result"));
            }
            left.drain(..ended.min(left.len()));
        }
        step.done();
        Ok(())
    }
}

/// What one measuring boot measures.
struct Share<'a> {
    tests: Vec<&'a ListedTest>,
    drives: Drives,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drives {
    /// There are none: all that is to be had without them.
    None,
    /// File I/O, and the memory of a drive.
    AsEver,
    /// The memory of a drive in compound pages, which its driver makes of it at boot or never.
    Compound,
}

/// The measuring boots, the longest first. Each path with pages of 4 KiB and R, whose time grows with the number of
/// pages, have one to themselves, so that two processors are busy to the end; all others share one, S and barbuf's large
/// pages among them. What needs a drive has one to itself, because a machine with drives is no two times the same.
fn shares(tests: &[ListedTest]) -> Vec<Share<'_>> {
    let (small, rest): (Vec<_>, Vec<_>) = tests
        .iter()
        .filter(|test| test.name != HOST_MEMORY)
        .partition(|test| test.name.ends_with("4k"));
    let (reviewed, large) = rest
        .into_iter()
        .partition(|test| test.name.starts_with("r-"));
    let posted = tests.iter().filter(|test| test.name == "s-2m").collect();
    let mut tests_of: Vec<_> = small.into_iter().rev().map(|test| vec![test]).collect();
    tests_of.extend([reviewed, large]);
    let with = |drives| move |tests| Share { tests, drives };
    let mut shares: Vec<_> = tests_of.into_iter().map(with(Drives::None)).collect();
    shares.push(with(Drives::AsEver)(tests.iter().collect()));
    shares.push(with(Drives::Compound)(posted));
    shares.retain(|share| !share.tests.is_empty());
    shares
}

/// The last thing that each test has said. A test may speak before the end of the one before it is told, which waits
/// for the console.
#[derive(Debug, Default)]
struct Said {
    current: String,
    answers: BTreeMap<String, Answer>,
}

impl Said {
    fn begin(&mut self, test: &str) {
        self.current = test.to_owned();
    }

    fn say(&mut self, answer: Answer) {
        self.answers.insert(self.current.clone(), answer);
    }

    fn take(&mut self, test: &str) -> Option<Answer> {
        self.answers.remove(test)
    }
}

/// What a test found out, and what the machine made of it.
///
/// A test first says what it is about to ask ([`Verdict::Hangs`], should nothing follow), then what came.
fn judged(mut answer: Answer, failure: Option<String>) -> Answer {
    let Some(why) = failure else {
        return answer;
    };
    let first = why.lines().next().unwrap_or_default().trim().to_owned();
    if why.starts_with(PANICKED) {
        answer.verdict = Verdict::Panic;
        answer.detail = complaint(&why).unwrap_or(first);
    } else if let Some(line) = complaint(&why) {
        // The kernel complains, even where the process has noticed nothing.
        if answer.verdict.is_harmless() {
            answer.verdict = Verdict::Broken;
        }
        join(&mut answer.detail, &line);
    } else if answer.verdict.is_harmless() {
        answer.verdict = Verdict::Broken;
        join(&mut answer.detail, &first);
    }
    answer
}

/// The kernel's own words in a failure, without its clock.
fn complaint(why: &str) -> Option<String> {
    let line = why
        .lines()
        .find_map(|line| line.trim().strip_prefix("console: "))?;
    let text = line.split_once("] ").map_or(line, |(_, text)| text);
    Some(text.trim().to_owned())
}

fn join(detail: &mut String, more: &str) {
    if !detail.is_empty() {
        detail.push_str("; ");
    }
    detail.push_str(more);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(verdict: Verdict) -> Answer {
        Answer {
            path: "p".into(),
            region: "NPU".into(),
            what: "smaps".into(),
            verdict,
            detail: String::new(),
        }
    }

    #[test]
    fn every_path_is_measured_with_drives_and_without() {
        let names = ["base-sysfs-4k", "s-2m", "r-2m", "r-1g", HOST_MEMORY];
        let tests = names.map(|name| plan::tests::test("compare", name, "compare"));
        let shares = shares(&tests);
        let mut found: Vec<(Drives, Vec<&str>)> = shares
            .iter()
            .map(|share| {
                let names = share.tests.iter().map(|test| test.name.as_str());
                (share.drives, names.collect())
            })
            .collect();
        assert_eq!(found.pop(), Some((Drives::Compound, vec!["s-2m"])));
        assert_eq!(found.pop(), Some((Drives::AsEver, names.to_vec())));
        assert!(found.iter().all(|(drives, _)| *drives == Drives::None));
        let mut alone: Vec<&str> = found.into_iter().flat_map(|(_, names)| names).collect();
        alone.sort_unstable();
        assert_eq!(alone, ["base-sysfs-4k", "r-1g", "r-2m", "s-2m"]);
    }

    #[test]
    fn what_the_kernel_says_counts() {
        assert_eq!(judged(answer(Verdict::Ok), None).verdict, Verdict::Ok);
        let leak = "console: [   12.5] BUG: Bad rss-counter state mm:1".to_owned();
        let judged_leak = judged(answer(Verdict::Ok), Some(leak));
        assert_eq!(judged_leak.verdict, Verdict::Broken);
        assert_eq!(judged_leak.detail, "BUG: Bad rss-counter state mm:1");
        let panic = format!("{PANICKED}verdicts::x\nconsole: [ 1.0] Oops: 0000");
        let judged_panic = judged(answer(Verdict::Hangs), Some(panic));
        assert_eq!(judged_panic.verdict, Verdict::Panic);
        assert_eq!(judged_panic.detail, "Oops: 0000");
    }

    #[test]
    fn a_loss_stays_a_loss() {
        let lost = judged(answer(Verdict::Sigbus), Some("SIGBUS at 0x1".into()));
        assert_eq!(lost.verdict, Verdict::Sigbus);
        let hangs = judged(answer(Verdict::Hangs), Some("timed out after 60 s".into()));
        assert_eq!(hangs.verdict, Verdict::Hangs);
    }

    #[test]
    fn what_the_next_test_says_already_is_not_this_one_s() {
        let mut said = Said::default();
        said.begin("verdicts::a");
        said.say(answer(Verdict::Hangs));
        said.say(answer(Verdict::Ok));
        said.begin("verdicts::b");
        said.say(answer(Verdict::Hangs));
        let verdict = |answer: Option<Answer>| answer.map(|answer| answer.verdict);
        assert_eq!(verdict(said.take("verdicts::a")), Some(Verdict::Ok));
        assert_eq!(verdict(said.take("verdicts::b")), Some(Verdict::Hangs));
        assert_eq!(verdict(said.take("verdicts::c")), None);
    }
}
