// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table of tests: what each is called, what it needs, how it is run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::Result;
use barbuf_guest::protocol::{FromTest, ListedTest, Verdict};

use super::{Ctx, Skipped};

/// The kernels that a test applies to unless it says otherwise.
const EVERY_KERNEL: &[&str] = &["stock", "debug", "base"];
const DEFAULT_TIMEOUT_S: u32 = 30;

/// Tests of one subject, in one file.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    pub(crate) tests: &'static [Test],
}

/// A test and its needs. Make it with [`test!`].
#[derive(Debug)]
pub(crate) struct Test {
    name: &'static str,
    topologies: &'static [&'static str],
    kernels: &'static [&'static str],
    timeout_s: u32,
    console: &'static [&'static str],
    panics: bool,
    hotplug: bool,
    body: fn(&Ctx) -> Result<()>,
}

/// A [`Test`] that is called like its function: `test!(reloads).on(&["minimal"]).timeout(60)`.
macro_rules! test {
    ($body:ident) => {
        $crate::support::Test::new(stringify!($body), $body)
    };
}
pub(crate) use test;

#[allow(
    dead_code,
    reason = "what the present suites do not need, the next ones will"
)]
impl Test {
    pub(crate) const fn new(name: &'static str, body: fn(&Ctx) -> Result<()>) -> Self {
        Test {
            name,
            topologies: &["npu-cmb"],
            kernels: EVERY_KERNEL,
            timeout_s: DEFAULT_TIMEOUT_S,
            console: &[],
            panics: false,
            hotplug: false,
            body,
        }
    }

    /// What it is called in its suite.
    #[cfg(test)]
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// The topologies to run on, once on each; `npu-cmb` unless told.
    pub(crate) const fn on(mut self, topologies: &'static [&'static str]) -> Self {
        self.topologies = topologies;
        self
    }

    /// The kernel flavours it applies to; all unless told.
    pub(crate) const fn kernels(mut self, kernels: &'static [&'static str]) -> Self {
        self.kernels = kernels;
        self
    }

    /// How many seconds it may take on the stock kernel without KVM.
    pub(crate) const fn timeout(mut self, seconds: u32) -> Self {
        self.timeout_s = seconds;
        self
    }

    /// The console must show these texts while it runs. It gets a boot of its own.
    pub(crate) const fn console(mut self, texts: &'static [&'static str]) -> Self {
        self.console = texts;
        self
    }

    /// The kernel must panic while it runs. Needs [`Test::console`] to say how.
    pub(crate) const fn panics(mut self) -> Self {
        self.panics = true;
        self
    }

    /// It unplugs a device through its port. The kernel's pciehp takes two locks in both orders
    /// then, lockdep reports that and switches itself off: on the debug kernel such tests share a
    /// boot with each other only, and there the report is no complaint.
    pub(crate) const fn hotplug(mut self) -> Self {
        self.hotplug = true;
        self
    }

    fn listed<'a>(&'a self, suite: &'a Suite) -> impl Iterator<Item = ListedTest> + 'a {
        self.topologies.iter().map(|topology| ListedTest {
            suite: suite.name.into(),
            name: match self.topologies {
                [_] => self.name.into(),
                _ => format!("{}@{topology}", self.name),
            },
            topology: (*topology).into(),
            kernels: self.kernels.iter().map(|&kernel| kernel.into()).collect(),
            timeout_s: self.timeout_s,
            console: self.console.iter().map(|&text| text.into()).collect(),
            panics: self.panics,
            hotplug: self.hotplug,
        })
    }
}

/// Prints the table for the runner.
pub(crate) fn list(suites: &[Suite]) -> ExitCode {
    let tests: Vec<ListedTest> = suites
        .iter()
        .flat_map(|suite| suite.tests.iter().flat_map(move |test| test.listed(suite)))
        .collect();
    match serde_json::to_string_pretty(&tests) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("suites: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one test in this process and tells init how it ended.
pub(crate) fn run<'a>(
    suites: impl IntoIterator<Item = &'a Suite>,
    suite: &str,
    test: &str,
) -> ExitCode {
    let name = test.split('@').next().unwrap_or(test);
    let found = suites
        .into_iter()
        .filter(|candidate| candidate.name == suite)
        .flat_map(|suite| suite.tests)
        .find(|candidate| candidate.name == name);
    let Some(found) = found else {
        eprintln!("suites: there is no test {suite}::{test}");
        return ExitCode::from(2);
    };
    // A session of its own: a signal to its terminal or group reaches only the test.
    if let Err(error) = nix::unistd::setsid() {
        eprintln!("suites: setsid: {error}");
    }
    let ctx = match Ctx::from_init(found.hotplug) {
        Ok(ctx) => ctx,
        Err(error) => {
            eprintln!("suites: not started by the guest's init: {error}");
            return ExitCode::from(2);
        }
    };
    // The test's guards run when it panics too, and the panic's text is on standard error.
    let verdict = match catch_unwind(AssertUnwindSafe(|| (found.body)(&ctx))) {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(error)) => match error.downcast_ref::<Skipped>() {
            Some(Skipped(why)) => Verdict::Skipped(why.clone()),
            None => Verdict::Failed(format!("{error:#}")),
        },
        Err(_) => Verdict::Failed("the test panicked".into()),
    };
    match ctx.send(&FromTest::End(verdict)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("suites: {error}");
            ExitCode::FAILURE
        }
    }
}
