// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reading the guest's report and holding it against the plan.
//!
//! The host knows every test that the guest was told to run, so a report can be wrong in ways
//! that a TAP reader cannot see. Whatever is not the next line that the plan calls for is a
//! problem of the boot, and the tests without a result have failed.

use std::collections::VecDeque;
use std::time::Duration;

use barbuf_guest::protocol::{BEGIN, HOST, HostOp, ORACLES, SAY, SuitePlan};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Passed,
    Failed(String),
    Skipped(String),
}

/// What a line of the report means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Line {
    /// Structure, or part of something longer.
    Nothing,
    Begin {
        test: String,
        timeout: Duration,
    },
    Say(String),
    Host(HostOp),
    Result {
        test: String,
        status: Status,
        time: Option<Duration>,
    },
    /// The plan is complete.
    Done,
    /// The guest gives up.
    BailOut(String),
    /// The report is not what the plan promised.
    Problem(String),
}

/// What may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    /// Exactly this line.
    Exact(String),
    /// The result of the test with this number in its suite.
    Result {
        number: usize,
        suite: String,
        name: String,
    },
    /// The result of a whole suite.
    Suite { number: usize, name: String },
}

#[derive(Debug)]
pub(crate) struct Ktap {
    due: VecDeque<Due>,
    notes: Vec<String>,
    time: Option<Duration>,
}

impl Ktap {
    pub(crate) fn new(plan: &[SuitePlan]) -> Self {
        let mut due = VecDeque::new();
        due.push_back(Due::Exact("KTAP version 1".into()));
        due.push_back(Due::Exact(format!("1..{}", plan.len())));
        for (index, suite) in plan.iter().enumerate() {
            due.push_back(Due::Exact("  KTAP version 1".into()));
            due.push_back(Due::Exact(format!("  # Subtest: {}", suite.name)));
            due.push_back(Due::Exact(format!("  1..{}", suite.tests.len() + 1)));
            let names = suite.tests.iter().map(|test| test.name.as_str());
            for (index, name) in names.chain([ORACLES]).enumerate() {
                due.push_back(Due::Result {
                    number: index + 1,
                    suite: suite.name.clone(),
                    name: name.into(),
                });
            }
            due.push_back(Due::Suite {
                number: index + 1,
                name: suite.name.clone(),
            });
        }
        Ktap {
            due,
            notes: Vec::new(),
            time: None,
        }
    }

    /// The tests whose results have not come.
    pub(crate) fn missing(&self) -> Vec<String> {
        let tests = self.due.iter().filter_map(|due| match due {
            Due::Result { suite, name, .. } => Some(format!("{suite}::{name}")),
            Due::Exact(_) | Due::Suite { .. } => None,
        });
        tests.collect()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.due.is_empty()
    }

    pub(crate) fn line(&mut self, line: &str) -> Line {
        if line.trim().is_empty() {
            return Line::Nothing;
        }
        if let Some(rest) = line.strip_prefix('@') {
            return side_line(line)
                .unwrap_or_else(|| problem(format!("an unknown line @{rest:?}")));
        }
        if let Some(why) = line.strip_prefix("Bail out!") {
            return Line::BailOut(why.trim().into());
        }
        let Some(due) = self.due.front().cloned() else {
            return problem(format!("{line:?} after the end of the plan"));
        };
        match due {
            Due::Exact(exact) if line == exact => {
                self.due.pop_front();
                Line::Nothing
            }
            Due::Exact(exact) => problem(format!("{line:?} where {exact:?} was due")),
            Due::Result {
                number,
                suite,
                name,
            } => self.result(line, number, &suite, &name),
            Due::Suite { number, name } => {
                let good = format!("ok {number} {name}");
                if line != good && line != format!("not {good}") {
                    return problem(format!("{line:?} where the result of {name} was due"));
                }
                self.due.pop_front();
                if self.is_done() {
                    Line::Done
                } else {
                    Line::Nothing
                }
            }
        }
    }

    /// A line inside a suite: a note, or the result that is due.
    fn result(&mut self, line: &str, number: usize, suite: &str, name: &str) -> Line {
        let text = line.trim_start();
        if let Some(note) = text.strip_prefix("# ") {
            match note.strip_prefix("time_us ").map(str::parse) {
                Some(Ok(micros)) => self.time = Some(Duration::from_micros(micros)),
                _ => self.notes.push(note.into()),
            }
            return Line::Nothing;
        }
        let due = format!("{number} {name}");
        let (good, rest) = match (text.strip_prefix("ok "), text.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => {
                return problem(format!(
                    "{text:?} where the result of {suite}::{name} was due"
                ));
            }
        };
        let (result, directive) = match rest.split_once(" # SKIP") {
            Some((result, why)) => (result, Some(why.trim().to_owned())),
            None => (rest, None),
        };
        if result != due {
            return problem(format!(
                "result {result:?} where {due:?} of {suite} was due"
            ));
        }
        self.due.pop_front();
        let notes = std::mem::take(&mut self.notes);
        let status = match (good, directive) {
            (true, None) => Status::Passed,
            (true, Some(why)) => Status::Skipped(why),
            (false, _) if notes.is_empty() => Status::Failed("no reason given".into()),
            (false, _) => Status::Failed(notes.join("\n")),
        };
        Line::Result {
            test: format!("{suite}::{name}"),
            status,
            time: self.time.take(),
        }
    }
}

fn side_line(line: &str) -> Option<Line> {
    if let Some(rest) = line.strip_prefix(BEGIN) {
        let mut fields = rest.split(' ');
        let (suite, test) = (fields.next()?, fields.next()?);
        let seconds = fields.next()?.parse().ok()?;
        let timeout = Duration::from_secs(seconds);
        return Some(Line::Begin {
            test: format!("{suite}::{test}"),
            timeout,
        });
    }
    if let Some(text) = line.strip_prefix(SAY) {
        return Some(Line::Say(text.into()));
    }
    let op = line.strip_prefix(HOST)?;
    Some(match serde_json::from_str(op) {
        Ok(op) => Line::Host(op),
        Err(error) => problem(format!("a request that is none: {op} ({error})")),
    })
}

fn problem(what: String) -> Line {
    Line::Problem(format!("broken report: {what}"))
}

#[cfg(test)]
mod tests {
    use barbuf_guest::protocol::TestPlan;

    use super::*;

    fn plan() -> Vec<SuitePlan> {
        let test = |name: &str| TestPlan {
            name: name.into(),
            timeout_s: 1,
            warns: false,
        };
        vec![SuitePlan {
            name: "smoke".into(),
            tests: vec![test("a"), test("b")],
        }]
    }

    const GOOD: &str = "KTAP version 1\n1..1\n  KTAP version 1\n  # Subtest: smoke\n  1..3\n\
        @begin smoke a 1\n  # time_us 1500\n  ok 1 a\n\
        @begin smoke b 1\n  # time_us 7\n  ok 2 b # SKIP no device\n\
        @begin smoke oracles 60\n  # time_us 9\n  # taint\n  # more\n  not ok 3 oracles\nnot ok 1 smoke\n";

    fn read(text: &str) -> (Vec<Line>, Ktap) {
        let mut ktap = Ktap::new(&plan());
        let lines = text
            .lines()
            .map(|line| ktap.line(line))
            .filter(|line| *line != Line::Nothing);
        (lines.collect(), ktap)
    }

    fn problems(text: &str) -> Vec<String> {
        let (lines, ktap) = read(text);
        let problems = lines.into_iter().filter_map(|line| match line {
            Line::Problem(text) => Some(text),
            _ => None,
        });
        problems
            .chain(
                ktap.missing()
                    .into_iter()
                    .map(|test| format!("missing {test}")),
            )
            .collect()
    }

    #[test]
    fn a_good_report() {
        let (lines, ktap) = read(GOOD);
        assert!(ktap.is_done() && ktap.missing().is_empty());
        let results: Vec<&Line> = lines
            .iter()
            .filter(|line| matches!(line, Line::Result { .. }))
            .collect();
        assert_eq!(
            *results[0],
            Line::Result {
                test: "smoke::a".into(),
                status: Status::Passed,
                time: Some(Duration::from_micros(1500))
            }
        );
        assert!(
            matches!(results[1], Line::Result { status: Status::Skipped(why), .. } if why == "no device")
        );
        assert!(
            matches!(results[2], Line::Result { status: Status::Failed(why), .. } if why == "taint\nmore")
        );
        assert_eq!(lines.last(), Some(&Line::Done));
    }

    #[test]
    fn a_duplicate_number_is_a_problem() {
        let found = problems(&GOOD.replace("  ok 2 b", "  ok 1 b"));
        assert!(found[0].contains("\"1 b\" where \"2 b\""), "{found:?}");
    }

    #[test]
    fn a_missing_result_is_a_problem() {
        let found = problems(&GOOD.replace("  ok 2 b # SKIP no device\n", ""));
        assert!(
            found[0].contains("\"3 oracles\" where \"2 b\""),
            "{found:?}"
        );
        assert!(found.contains(&"missing smoke::b".into()), "{found:?}");
    }

    #[test]
    fn an_early_end_is_a_problem() {
        let end = GOOD.find("@begin smoke b").unwrap();
        assert_eq!(
            problems(&GOOD[..end]),
            ["missing smoke::b", "missing smoke::oracles"]
        );
    }

    #[test]
    fn a_wrong_count_is_a_problem() {
        let found = problems(&GOOD.replace("  1..3", "  1..2"));
        assert!(
            found[0].contains("\"  1..2\" where \"  1..3\""),
            "{found:?}"
        );
    }

    #[test]
    fn results_after_the_plan_are_a_problem() {
        let found = problems(&format!("{GOOD}ok 2 more\n"));
        assert!(found[0].contains("after the end"), "{found:?}");
    }

    #[test]
    fn requests_and_other_side_lines() {
        let mut ktap = Ktap::new(&plan());
        let op = HostOp::DeviceDel { id: "npu0".into() };
        assert_eq!(
            ktap.line("@host {\"op\":\"device_del\",\"id\":\"npu0\"}"),
            Line::Host(op)
        );
        assert_eq!(ktap.line("@say hello you"), Line::Say("hello you".into()));
        assert!(matches!(ktap.line("@host nonsense"), Line::Problem(_)));
        assert!(matches!(ktap.line("@nonsense"), Line::Problem(_)));
        assert_eq!(
            ktap.line("Bail out! no NPU"),
            Line::BailOut("no NPU".into())
        );
    }
}
