// SPDX-License-Identifier: MIT OR Apache-2.0

//! Virtual machines: topologies, boots, guest tests, judging.
//!
//! [`plan`] turns the list of tests into boots, [`parts`] gathers what a guest is made of,
//! [`boot`] runs one and follows its report ([`ktap`]) and its console ([`judge`]), and serves
//! what tests ask of the host ([`backing`], [`qmp`]).

mod backing;
mod boot;
mod compare;
mod figures;
mod initramfs;
mod judge;
mod kmods;
mod ktap;
mod machine;
mod parts;
mod plan;
mod python;
mod qemu;
mod qmp;
mod selftest;
mod topology;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use barbuf_guest::protocol::{Job, ORACLES};

use crate::cli::{DemoArgs, ShellArgs, TestArgs};
use crate::ctx::Ctx;
use crate::kernel::{self, Flavour};
use crate::model;
use crate::report::{Outcome, Report, TestResult};
use backing::Stores;
use boot::{Boot, BootDir, Ended, Progress};
pub(crate) use compare::compare;
pub(crate) use figures::figures;
use ktap::Status;
use parts::{Parts, Programs};
use plan::{PlannedBoot, Selection};
use qemu::Accelerator;
use topology::Topology;

const DEFAULT_TOPOLOGY: &str = "npu-cmb";

/// What the demonstration says last, for the last line of all.
const FIGURES: &str = "figures: ";

/// Boots the demonstration and prints what it says.
pub(crate) fn demo(ctx: &Ctx, args: &DemoArgs) -> Result<ExitCode> {
    let topology = chosen(args.topology.as_deref(), args.icount)?.with_files(&model::ensure(ctx)?);
    let programs = Programs::build(ctx)?;
    let tests = programs.list("--list")?;
    // The demonstration is written for the default topology; on another it shows what is there.
    let tests: Vec<_> = tests.iter().filter(|test| test.suite == "demo").collect();
    let parts = Parts::gather(kernel::ensure(Flavour::Stock, ctx)?, &programs, ctx)?;
    say_where(ctx, &topology);
    let dir = BootDir::create(ctx, "demo")?;
    let boot = Boot {
        keep: args.keep,
        ..Boot::new(&topology, &parts, plan::suites(&tests), dir)
    };
    let step = ctx.ui.step(format!(
        "boot {} with {}",
        parts.kernel.release, topology.name
    ));
    let mut good = true;
    let mut figures = String::new();
    boot.run(&mut |progress| match progress {
        Progress::Begin(_) => {}
        Progress::Say(text) => match text.strip_prefix(FIGURES) {
            Some(text) => figures = text.to_owned(),
            None => ctx.ui.line(text),
        },
        Progress::Ended(Ended {
            test,
            status: Status::Failed(why),
            ..
        }) => {
            good = false;
            ctx.ui.line(&format!("{test} failed: {why}"));
        }
        Progress::Ended(_) => {}
    })?;
    step.done();
    // The guest has taken what was on its drive, whatever that was.
    let real = format!(
        "model_bytes={} model_sha256={}",
        model::BYTES,
        model::SHA256
    );
    if good && !figures.contains(&real) {
        good = false;
        ctx.ui
            .line("the guest has loaded another file than the model");
    }
    let word = if good { "PASS" } else { "FAIL" };
    ctx.ui.line(format!("demo: {word} {figures}").trim_end());
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the command as the guests have it: one file that needs no library.
pub(crate) fn command(ctx: &Ctx) -> Result<ExitCode> {
    let programs = Programs::build(ctx)?;
    let dir = ctx.target.join("command");
    programs.install_command(&dir)?;
    ctx.ui.line(&format!(
        "barbuf, manual pages and completions are in {}",
        ctx.show(&dir)
    ));
    Ok(ExitCode::SUCCESS)
}

/// Gives a person the console of a guest.
pub(crate) fn shell(ctx: &Ctx, args: &ShellArgs) -> Result<ExitCode> {
    let topology = chosen(args.topology.as_deref(), false)?;
    let mut programs = Programs::build(ctx)?;
    for file in &args.add {
        let name = file.file_name().context("--add takes a file")?;
        let path = format!("/bin/{}", name.to_string_lossy());
        programs.others.push((path, ctx.repo.join(file)));
    }
    let parts = Parts::gather(kernel::ensure(args.kernel, ctx)?, &programs, ctx)?;
    say_where(ctx, &topology);
    let dir = BootDir::create(ctx, "shell")?;
    let initramfs = dir.path.join("initramfs.cpio");
    let spec = parts.spec(&topology, parts.time_scale(&topology), Job::Shell);
    std::fs::write(&initramfs, boot::build_initramfs(&parts, &spec)?)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let stores = Stores::create(topology.machine().devices, &dir.path, 1)?;
    let mut guest = parts.guest(&topology, &initramfs);
    // A person wants the prompt, and has dmesg.
    guest.parameters += " quiet";
    let status = guest.start_interactive(&stores)?.wait()?;
    // Nothing in it is worth keeping, and disks are large.
    let _ = std::fs::remove_dir_all(&dir.path);
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Names what a run on the stock kernel alone leaves out.
fn leave_out(report: &mut Report<'_>) {
    report.add(TestResult {
        place: Flavour::Debug.to_string(),
        name: "all guest tests".into(),
        outcome: Outcome::Skipped,
        time: None,
        detail: Some("many times slower there: make debug-test runs them".into()),
    });
}

/// Runs the guest tests on each kernel.
pub(crate) fn test(ctx: &Ctx, args: &TestArgs, report: &mut Report<'_>) -> Result<()> {
    let selection = Selection {
        filter: &args.filter,
        topology: args.topology.as_deref(),
    };
    if let Some(name) = selection.topology {
        topology::find(name)?;
    }
    let programs = Programs::build(ctx)?;
    let tests = programs.list("--list")?;
    plan::check(&tests)?;
    let mut selected = false;
    for &flavour in args.kernel.flavours() {
        let boots = plan::boots(&tests, flavour, &selection);
        // What it proves is the runner's, and many times quicker to see there.
        let selftest = flavour == Flavour::Stock && selftest::is_selected(&selection);
        if boots.is_empty() && !selftest {
            continue;
        }
        selected = true;
        let parts = Parts::gather(kernel::ensure(flavour, ctx)?, &programs, ctx)?;
        ctx.ui.line(&format!(
            "\n{flavour} kernel {} ({}), accelerator: {}",
            parts.kernel.release,
            parts.kernel.version,
            Accelerator::probe()
        ));
        if selftest {
            selftest::run(ctx, &parts, &programs, args.keep, report)?;
        }
        for planned in boots {
            run_planned(ctx, args, &parts, planned, report)?;
        }
    }
    if args.is_unselective() && !args.kernel.flavours().contains(&Flavour::Debug) {
        leave_out(report);
    }
    if !selected {
        ctx.ui.line("no guest test is selected");
    }
    Ok(())
}

fn run_planned(
    ctx: &Ctx,
    args: &TestArgs,
    parts: &Parts,
    planned: PlannedBoot,
    report: &mut Report<'_>,
) -> Result<()> {
    let topology = if args.icount {
        planned.topology.clone().with_icount()
    } else {
        planned.topology
    };
    let dir = BootDir::create(ctx, &planned.name)?;
    let boot = Boot {
        console: planned.console,
        panics: planned.panics,
        hotplug: planned.hotplug,
        keep: args.keep,
        ..Boot::new(&topology, parts, planned.suites, dir)
    };
    ctx.ui
        .line(&format!("\n{}: {}", topology.name, topology.purpose));
    // The boot has a result of its own to tell how it ended.
    let step = ctx.ui.quiet_step(format!("boot {}", planned.name));
    let place = parts.kernel.flavour.to_string();
    let result = boot.run(&mut |progress| match progress {
        Progress::Begin(test) => step.note(test),
        Progress::Say(text) => ctx.ui.line(&format!("        {text}")),
        Progress::Ended(mut ended) => {
            // The oracles of a suite run once in each boot of it.
            if ended.test.ends_with(&format!("::{ORACLES}")) {
                ended.test = format!("{}@{}", ended.test, topology.name);
            }
            report.add(to_result(&place, ended));
        }
    });
    step.done();
    result
}

fn to_result(place: &str, ended: Ended) -> TestResult {
    let (outcome, detail) = match ended.status {
        Status::Passed => (Outcome::Passed, None),
        Status::Failed(why) => (Outcome::Failed, Some(why)),
        Status::Skipped(why) => (Outcome::Skipped, Some(why)),
    };
    TestResult {
        place: place.into(),
        name: ended.test,
        outcome,
        time: ended.time,
        detail,
    }
}

fn chosen(name: Option<&str>, icount: bool) -> Result<Topology> {
    let topology = topology::find(name.unwrap_or(DEFAULT_TOPOLOGY))?;
    Ok(if icount {
        topology.with_icount()
    } else {
        topology
    })
}

fn say_where(ctx: &Ctx, topology: &Topology) {
    ctx.ui
        .line(&format!("topology {}: {}", topology.name, topology.purpose));
    ctx.ui
        .line(&format!("accelerator: {}", Accelerator::probe()));
}
