// SPDX-License-Identifier: MIT OR Apache-2.0

//! The report as Markdown, and what of it the documentation keeps.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use barbuf_measure::GIB;
use barbuf_measure::report::{Answer, Metric, Report, Unit, Verdict};
use barbuf_measure::table::{self, Table, shown};

use super::{plot, reach};

pub(super) const REPORT: &str = "report.json";
pub(super) const MARKDOWN: &str = "README.md";
/// Where the last full run is kept.
const KEPT: &str = "docs/comparison";
/// The page whose table comes from a report, between these two lines.
const QUESTION: &str = "docs/reviewer-question.md";
const BEGIN: &str = "<!-- begin: make compare --record writes this -->\n";
/// What stands there as long as no report is kept.
#[cfg(test)]
const NOTHING: &str = "Not measured yet.\n";
const END: &str = "<!-- end -->\n";
/// Answers that stand in that table where there is no number; as the guest calls them.
const FORK: &str = "fork, child reads and writes";
const DIRECT: &str = "O_DIRECT into it";

/// What is the same for all paths, and what is not.
const SAME: &str = "\
mm is as it is today for all paths but R, which brings repairs for leaves of 1 GiB along and has them switched on.\n\
All map uncached but device-dax, which has no such choice and maps write-back; the machine's emulated processor has no\n\
caches, so that no figure shows the difference. Of the drive's CMB of 64 MiB half is mapped: its driver keeps some for queues.\n\n";

/// What columns mean, where their names do not say it.
const COLUMNS: &str = "
| column | from when until when |
|---|---|
| register | binding the driver until that has been done; for barbuf also opening its node and the first export, which makes the struct pages |
| export, close | `BARBUF_EXPORT` with the struct pages there, and `close()`: getting memory and giving it back, once for any number of mappings. \
Paths through sysfs do that in each mmap and munmap; vfio-pci and device-dax show all of the memory to whoever opens them |
| first touch, 2nd touch | reading one byte of each page |
| fork+touch | `fork()` until the child has touched all that it inherits |
| send+map | sending the descriptor until another process has mapped and touched everything |
| O_DIRECT cpu | processor time of the process that reads, median |
| attach+map | attaching QEMU's edu to a dma-buf and mapping everything for its DMA |
| revoke, remove | `BARBUF_REVOKE`, and unbinding the driver, with everything mapped and touched |
";

/// How each path answers: what was done downwards, paths across.
pub(super) fn answers(report: &Report) -> Table {
    let mut paths: Vec<&str> = report.answers.iter().map(|a| a.path.as_str()).collect();
    paths.sort_by_key(|path| plot::rank(path));
    paths.dedup();
    let mut whats: Vec<&str> = Vec::new();
    for answer in &report.answers {
        if !whats.contains(&answer.what.as_str()) {
            whats.push(&answer.what);
        }
    }
    let head = std::iter::once("").chain(paths.iter().copied());
    let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
    for what in whats {
        let mut cells = vec![what.to_owned()];
        for path in &paths {
            let found = find(report, path, what);
            cells.push(found.map_or("", |answer| answer.verdict.label()).to_owned());
        }
        rows.push(cells);
    }
    Table {
        title: "what each path survives".into(),
        rows,
    }
}

fn find<'a>(report: &'a Report, path: &str, what: &str) -> Option<&'a Answer> {
    report
        .answers
        .iter()
        .find(|answer| answer.path == path && answer.what == what)
}

/// What stands behind every answer that is not just "ok".
fn details(report: &Report) -> String {
    let mut text = String::new();
    for answer in &report.answers {
        if !answer.detail.is_empty() {
            text += &format!(
                "- {}, {}: {} ({})\n",
                answer.path,
                answer.what,
                answer.verdict.label(),
                answer.detail
            );
        }
    }
    text
}

/// The whole report.
pub(super) fn markdown(report: &Report) -> String {
    let mut text = format!(
        "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->\n\
         <!-- Written by `make compare`. -->\n\n\
         # Comparison\n\n\
         Kernel {}. Machine: {}. Time: {}.\n\
         Every value is the minimum of 20 runs, or of 3 where a run takes over a second; of the processor time of\n\
         `O_DIRECT`, which a drive has a part in, it is the median. [{REPORT}]({REPORT}) has minimum, median and maximum.\n\n\
         Repeat it with `make compare`, or with `make compare ARGS='--boots 2'`, which measures twice and tells which\n\
         values differ.\n\n\
         Paths with pages of 4 KiB are not mapped at 128 GiB, forked at 1 and 32 GiB and in the CMB only, sent, revoked and\n\
         removed at 1 GiB and in the CMB only: their time grows with the size, and would be most of the time of the whole.\n\n",
        report.kernel, report.accel, report.clock
    );
    let pinned = pinning(report);
    if pinned.rows.len() > 1 {
        text += "Rows of an NPU other than `O_DIRECT` come from machines without a drive, where each instruction of a boot\n\
             is that of the boot before. `O_DIRECT` and all rows of the CMB have a drive in the machine, which answers when the\n\
             host gets to it: **they do not repeat to the digit**, but for pinning and what is shorter than a tick of the clock.\n\
             The table of `O_DIRECT` below shows by how much its runs differ.\n\n";
    }
    text += SAME;
    text += "| path | what it is |\n|---|---|\n";
    for path in table::paths(report) {
        text += &format!("| {path} | {} |\n", plot::meaning(path));
    }
    text += COLUMNS;
    for (name, svg) in plot::all(report) {
        text += &format!("\n![{}]({name})\n", plot::title_of(&svg));
    }
    text += "\n## Reaches\n\n";
    text += &reach::table(report).to_markdown();
    if let Some(why) = reach::why(report) {
        text += &format!("\n{why}");
    }
    if pinned.rows.len() > 1 {
        text += &format!(
            "\n## {}\n\n\
             Pinning is `pin_user_pages_fast()`, unpinning `__bio_release_pages()`, which marks the pages as written too; measured\n\
             by probes in reads of their own, the cost of the probes taken off. The share is that of both in the processor time of\n\
             the call. Spread: how much less than the median the fastest and how much more the slowest run took.\n\n{}",
            pinned.title,
            pinned.to_markdown()
        );
    }
    if !report.answers.is_empty() {
        text += "\n## What each path survives\n\n";
        text += &answers(report).to_markdown();
        text += "\n";
        text += &details(report);
    }
    for (region, size) in table::places(report) {
        let table = table::of_place(report, region, size);
        text += &format!("\n## {}\n\n{}", table.title, table.to_markdown());
    }
    text
}

/// How much of each read with O_DIRECT is spent in pinning the pages. Of the NPUs two will do: a read does not know how
/// much memory there is besides that which it reads into.
pub(super) fn pinning(report: &Report) -> Table {
    const SIZES_OF_NPU: [u64; 2] = [GIB, 32 * GIB];
    const LENGTHS: [(&str, Metric, Metric, Metric); 2] = [
        (
            "4 KiB",
            Metric::Direct4kProcessor,
            Metric::Direct4kPin,
            Metric::Direct4kUnpin,
        ),
        (
            "1 MiB",
            Metric::Direct1mProcessor,
            Metric::Direct1mPin,
            Metric::Direct1mUnpin,
        ),
    ];
    let head = [
        "path",
        "memory",
        "read",
        "cpu",
        "pin",
        "unpin",
        "share of both",
        "spread",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (region, size) in table::places(report) {
        if region == "NPU" && !SIZES_OF_NPU.contains(&size) {
            continue;
        }
        for path in table::paths(report) {
            for (len, processor, pin, unpin) in LENGTHS {
                let row = |metric| report.row(path, region, size, metric);
                let (Some(whole), Some(pin), Some(unpin)) = (row(processor), row(pin), row(unpin))
                else {
                    continue;
                };
                let all = whole.value() as f64;
                let percent = |part: f64| part / all * 100.0;
                rows.push(vec![
                    path.to_owned(),
                    format!("{region}, {}", table::bytes(size)),
                    len.into(),
                    shown(whole.value(), Unit::Ns),
                    shown(pin.value(), Unit::Ns),
                    shown(unpin.value(), Unit::Ns),
                    format!("{:.0} %", percent((pin.value() + unpin.value()) as f64)),
                    format!(
                        "{:+.0} %, {:+.0} %",
                        percent(whole.min as f64 - all),
                        percent(whole.max as f64 - all)
                    ),
                ]);
            }
        }
    }
    Table {
        title: "What of O_DIRECT is pinning".into(),
        rows,
    }
}

/// What the table of that page says: the value, or why there is none.
fn cell(report: &Report, path: &str, gib: u64, metric: Metric) -> String {
    let at = |gib| {
        let value = report.value(path, "NPU", gib * GIB, metric)?;
        Some(shown(value, metric.unit()))
    };
    let verdict = |what| {
        let answer = find(report, path, what)?;
        (answer.verdict != Verdict::Ok).then(|| answer.verdict.label().to_owned())
    };
    at(gib)
        .or_else(|| match metric {
            Metric::Direct1mProcessor => at(1).map(|time| format!("{time} (1 GiB)")),
            _ => None,
        })
        .or_else(|| match metric {
            Metric::ForkTouch => verdict(FORK),
            Metric::Direct1mProcessor => verdict(DIRECT),
            _ => None,
        })
        .unwrap_or("-".into())
}

/// The table of the page for the reviewer: 32 GiB, and the memory of 128 GiB.
fn for_the_question(report: &Report) -> String {
    const COLUMNS: [(u64, Metric, &str); 8] = [
        (32, Metric::StructPages, "struct pages"),
        (128, Metric::StructPages, "of 128 GiB"),
        (32, Metric::PageTables, "page tables"),
        (32, Metric::Register, "register"),
        (32, Metric::MmapTouch, "mmap + touch"),
        (32, Metric::Munmap, "munmap"),
        (32, Metric::ForkTouch, "fork + touch"),
        (32, Metric::Direct1mProcessor, "1 MiB O_DIRECT"),
    ];
    let head = std::iter::once("32 GiB, through").chain(COLUMNS.iter().map(|column| column.2));
    let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
    for path in table::paths(report) {
        let cells = COLUMNS.map(|(gib, metric, _)| cell(report, path, gib, metric));
        if report
            .rows
            .iter()
            .any(|row| row.path == path && row.region == "NPU")
        {
            rows.push(std::iter::once(path.to_owned()).chain(cells).collect());
        }
    }
    let main = Table {
        title: String::new(),
        rows,
    };
    let mut text = format!(
        "Kernel {}; {}.\n\n{}",
        report.kernel,
        report.clock,
        main.to_markdown()
    );
    let host: Vec<String> = ["host memory 4K", "host memory 2M"]
        .into_iter()
        .filter_map(|path| {
            let row = report
                .rows
                .iter()
                .find(|row| row.path == path && row.metric == Metric::Direct1mProcessor)?;
            Some(format!("{path}: {}", shown(row.value(), Unit::Ns)))
        })
        .collect();
    if !host.is_empty() {
        text += &format!("\n1 MiB O_DIRECT with {}.\n", host.join(", with "));
    }
    if !report.answers.is_empty() {
        text += &format!("\n{}", answers(report).to_markdown());
    }
    text
}

/// Replaces what stands between the two marks.
fn replaced(page: &str, block: &str) -> Result<String> {
    let (before, rest) = page
        .split_once(BEGIN)
        .with_context(|| format!("{QUESTION} has lost the line {}", BEGIN.trim()))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{QUESTION} has lost the line {}", END.trim()))?;
    Ok(format!("{before}{BEGIN}\n{block}\n{END}{after}"))
}

/// Takes a report over into the documentation.
pub(super) fn record(repo: &Path, from: &Path) -> Result<()> {
    let kept = repo.join(KEPT);
    fs::create_dir_all(&kept)?;
    let text = fs::read_to_string(from.join(REPORT))?;
    let report = Report::from_json(&text)?;
    fs::write(kept.join(REPORT), &text)?;
    fs::write(kept.join(MARKDOWN), markdown(&report))?;
    for (name, svg) in plot::all(&report) {
        fs::write(kept.join(name), svg)?;
    }
    let question = repo.join(QUESTION);
    let page = fs::read_to_string(&question).with_context(|| format!("reading {QUESTION}"))?;
    fs::write(&question, replaced(&page, &for_the_question(&report))?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        let new = replaced(&page, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n\n{END}b\n"));
        assert_eq!(replaced(&new, "new\n").unwrap(), new);
        assert!(replaced("a\n", "new").is_err());
    }

    /// What the documentation shows is what the report that it keeps says.
    #[test]
    fn the_documentation_is_that_of_its_report() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let kept = repo.join(KEPT);
        let page = fs::read_to_string(repo.join(QUESTION)).unwrap();
        if !kept.join(REPORT).exists() {
            // Numbers without a report would be somebody's invention.
            assert_eq!(page, replaced(&page, NOTHING).unwrap());
            return;
        }
        let text = fs::read_to_string(kept.join(REPORT)).unwrap();
        let report = Report::from_json(&text).unwrap();
        let same = |name: &str, wanted: &str| {
            let is = fs::read_to_string(kept.join(name)).unwrap();
            assert!(is == wanted, "{KEPT}/{name} is not what {REPORT} says");
        };
        same(MARKDOWN, &markdown(&report));
        for (name, svg) in plot::all(&report) {
            same(name, &svg);
        }
        assert!(
            page == replaced(&page, &for_the_question(&report)).unwrap(),
            "the table of {QUESTION} is not what {KEPT}/{REPORT} says"
        );
    }
}
