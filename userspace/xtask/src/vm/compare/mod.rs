// SPDX-License-Identifier: MIT OR Apache-2.0

//! `make compare`: every way to map the memory of a device, next to each other, on one kernel.
//!
//! [`boots`] has guests measure and answer, [`reach`] holds the numbers against what the project has set itself, and
//! [`document`] and [`plot`] write what stays: `target/compare/report.json`, a report of Markdown, plots. A missed reach
//! is printed and is no failure; a path that could not be measured is one.

mod boots;
mod document;
mod plot;
mod reach;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use barbuf_guest::protocol::ListedTest;
use barbuf_measure::report::{Report, SCHEMA};
use barbuf_measure::table;

use super::parts::{Parts, Programs};
use super::{plan, topology};
use crate::cache;
use crate::cli::CompareArgs;
use crate::cmd::make_dir;
use crate::ctx::Ctx;
use crate::kernel;
use crate::ui;
use boots::Results;

const TOPOLOGY: &str = "compare";
/// What a nanosecond of the report is.
const CLOCK: &str =
    "guest instructions, 1 ns each (icount); processor times are the kernel's, of the same clock";

/// Measures, prints, writes.
pub(crate) fn compare(ctx: &Ctx, args: &CompareArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let topology = topology::find(TOPOLOGY)?;
    let programs = Programs::build(ctx)?;
    let list = |option: &str| -> Result<Vec<ListedTest>> {
        let tests = programs.list(option)?;
        plan::check(&tests)?;
        let wanted = |test: &ListedTest| {
            let filter = args.filter.as_deref();
            filter.is_none_or(|text| format!("{}::{}", test.suite, test.name).contains(text))
        };
        Ok(tests.into_iter().filter(wanted).collect())
    };
    let (measurements, verdicts) = (list("--list-compare")?, list("--list-verdicts")?);
    let parts = Parts::gather(kernel::ensure(args.kernel, ctx)?, &programs, ctx)?;
    let machine = boots::Machine {
        ctx,
        parts: &parts,
        topology: &topology,
        keep: args.keep,
    };
    let results = machine.run(&measurements, &verdicts, args.boots.get())?;
    let Results {
        measured,
        answers,
        skipped,
        failed,
    } = results;
    let report = |rows| Report {
        schema: SCHEMA,
        kernel: parts.kernel.release.clone(),
        accel: "TCG with icount".into(),
        clock: CLOCK.into(),
        rows,
        answers: Vec::new(),
    };
    let mut reports: Vec<Report> = measured.into_iter().map(report).collect();
    let mut first = reports.remove(0);
    first.answers = answers;

    print(&first);
    print_took(started.elapsed(), &first);
    for (index, other) in reports.iter().enumerate() {
        print!("{}", reach::difference(index + 2, &first, other));
    }
    let dir = ctx.target.join("compare");
    write(&dir, &first)?;
    ctx.ui.line(&format!(
        "\nreport: {}",
        ctx.show(&dir.join(document::REPORT))
    ));
    if args.record {
        document::record(&ctx.repo, &dir)?;
        ctx.ui.line("recorded in docs/");
    }
    for (why, count) in &skipped {
        ctx.ui.line(&format!("{count} left out: {why}"));
    }
    for why in &failed {
        ctx.ui.line(&format!("could not be measured: {why}"));
    }
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(report: &Report) {
    for (region, size) in table::places(report) {
        print!("{}", table::of_place(report, region, size).to_text());
    }
    print!("{}", document::answers(report).to_text());
    print!("{}", document::pinning(report).to_text());
    print!("{}", reach::table(report).to_text());
}

/// The one reach that is about this command itself.
fn print_took(took: Duration, report: &Report) {
    const MOST: Duration = Duration::from_secs(25 * 60);
    let word = if took <= MOST { "met" } else { "MISSED" };
    println!(
        "\n{} rows in {}, at most {}: {word}",
        report.rows.len(),
        ui::clock(took),
        ui::clock(MOST)
    );
}

/// Everything that is made of a report.
fn write(dir: &Path, report: &Report) -> Result<()> {
    make_dir(dir)?;
    let save = |name: &str, text: &str| {
        cache::write(&dir.join(name), text.as_bytes()).with_context(|| format!("writing {name}"))
    };
    save(document::REPORT, &report.to_json()?)?;
    for (name, svg) in plot::all(report) {
        save(name, &svg)?;
    }
    save(document::MARKDOWN, &document::markdown(report))
}
