// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf bench` on machines that are emulated, as all of these are: it refuses, or marks what it says.
//!
//! The numbers are nobody's business here, only which there are.

use std::process::Output;
use std::time::Duration;

use barbuf_measure::report::{Metric, Report, Verdict};
use serde_json::Value;

use crate::kit::command::{barbuf, parse, refusal};
use crate::kit::drive::block_device;
use crate::kit::pattern::word;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::vfio::Borrowed;

pub(crate) const SUITE: Suite = Suite {
    name: "bench",
    tests: &[
        test!(an_emulated_machine_is_refused),
        test!(a_provider_is_measured_with_every_backing_and_page)
            .on(&["small-npu"])
            .timeout(240),
        test!(a_drive_s_memory_is_measured_through_sysfs_and_barbuf).timeout(180),
        test!(vfio_pci_is_measured).on(&["iommu"]).timeout(120),
        test!(registering_and_removal_are_measured)
            .on(&["small-npu"])
            .timeout(180),
        test!(a_device_that_goes_away_is_one_error)
            .on(&["small-npu"])
            .timeout(120),
    ],
};

const LIFE: [Metric; 6] = [
    Metric::Mmap,
    Metric::Touch,
    Metric::MmapTouch,
    Metric::Retouch,
    Metric::Munmap,
    Metric::PageTables,
];

/// The report of a run that has ended well. Every row of it is marked.
fn report_of(output: &Output) -> Result<Report> {
    parse(output)?;
    let report = Report::from_json(&String::from_utf8_lossy(&output.stdout))?;
    ensure!(!report.rows.is_empty());
    for row in &report.rows {
        ensure!(row.path.ends_with(" (emulated)"), "{row:?}");
        ensure!(row.runs >= 1 && row.min <= row.median && row.median <= row.max);
    }
    ensure!(report.clock.contains("emulated"), "{}", report.clock);
    Ok(report)
}

/// What was measured of a path that has so many bytes.
fn metrics(report: &Report, path: &str, size: u64) -> Vec<Metric> {
    let path = format!("{path} (emulated)");
    let rows = report.rows.iter();
    let rows = rows.filter(|row| row.path == path && row.size == size);
    rows.map(|row| row.metric).collect()
}

fn an_emulated_machine_is_refused(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    // Should it measure after all, it must not touch 32 GiB of the host's memory.
    let little = ["bench", provider.bdf(), "--size", "2M"];
    let output = barbuf(&little).arg("--json").output()?;
    ensure_eq!(output.status.code(), Some(9));
    let value: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(value.get("rows").is_none(), "{value}");
    ensure_eq!(value["error"]["kind"].as_str(), Some("emulated"));
    let hint = value["error"]["hint"].as_str().unwrap_or_default();
    ensure!(hint.contains("--emulated"), "{value}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("emulated by"), "{said}");

    let output = barbuf(&little).output()?;
    ensure_eq!(output.status.code(), Some(9));
    ensure!(output.stdout.is_empty(), "a table all the same");
    Ok(())
}

fn a_provider_is_measured_with_every_backing_and_page(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    let mut wanted = LIFE.to_vec();
    wanted.extend([Metric::ForkTouch, Metric::SendMapTouch, Metric::Revoke]);
    let measured = |options: &[&str]| -> Result<Report> {
        let mut command = barbuf(&["bench", provider.bdf(), "--emulated", "--json"]);
        for option in options {
            command = command.arg(option);
        }
        let report = report_of(&command.output()?)?;
        ensure!(report.answers.is_empty(), "{:?}", report.answers);
        Ok(report)
    };
    let report = measured(&["--size", "32M"])?;
    let large = measured(&["--page-size", "1G"])?;
    for backing in ["pfn", "page"] {
        for page in ["4K", "2M"] {
            let path = format!("barbuf {backing} {page}");
            ensure_eq!(metrics(&report, &path, 32 * MIB), wanted);
        }
        ensure_eq!(
            metrics(&large, &format!("barbuf {backing} 1G"), GIB),
            wanted
        );
    }
    ensure_eq!(large.rows.len(), 2 * wanted.len());
    // Smaller pages take more tables, or else all were measured with the same.
    let tables = |report: &Report, path: &str| {
        let mut rows = report.rows.iter();
        rows.find(|row| row.path.starts_with(path) && row.metric == Metric::PageTables)
            .map(|row| row.min)
    };
    let of_2m = tables(&report, "barbuf pfn 2M");
    ensure!(tables(&report, "barbuf pfn 4K") > of_2m);
    ensure!(of_2m > tables(&large, "barbuf pfn 1G"));
    provider.wait_until_free(&before)?;

    // For people.
    let size = ["--emulated", "--size", "2M"];
    let output = barbuf(&["bench", provider.bdf()]);
    let output = size.iter().fold(output, |command, word| command.arg(word));
    let output = output.output()?;
    ensure!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    for part in [", 2 MiB\n", "barbuf page 2M (emulated)", "mmap+touch"] {
        ensure!(text.contains(part), "{text}");
    }
    ensure!(!text.contains("1G"), "{text}");
    Ok(())
}

fn a_drive_s_memory_is_measured_through_sysfs_and_barbuf(ctx: &Ctx) -> Result<()> {
    const SIZE: u64 = 4 * MIB;
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let before = provider.node.info()?.regions;
    let drive = block_device(ctx.nvme(1)?)?;
    let output = barbuf(&["bench", provider.bdf(), "--emulated", "--json", "--size"])
        .arg("4M")
        .arg("--file")
        .arg(&drive)
        .output()?;
    let report = report_of(&output)?;
    let direct = [
        Metric::Direct4kProcessor,
        Metric::Direct4k,
        Metric::Direct1mProcessor,
        Metric::Direct1m,
    ];
    let mut wanted = LIFE.to_vec();
    wanted.push(Metric::ForkTouch);
    wanted.extend(direct);
    ensure_eq!(metrics(&report, "base sysfs 4K", SIZE), wanted);
    let with_pages = metrics(&report, "barbuf page 4K", SIZE);
    ensure!(
        direct.iter().all(|metric| with_pages.contains(metric)),
        "{with_pages:?}"
    );
    // The drive's own driver has made the struct pages.
    ensure_eq!(metrics(&report, "barbuf page 2M", SIZE), []);
    // File I/O wants them.
    let without = metrics(&report, "barbuf pfn 4K", SIZE);
    ensure!(without.contains(&Metric::Revoke), "{without:?}");
    ensure!(
        !direct.iter().any(|metric| without.contains(metric)),
        "{without:?}"
    );
    provider.wait_until_free(&before)
}

fn vfio_pci_is_measured(ctx: &Ctx) -> Result<()> {
    let npu = Borrowed::for_vfio(ctx, ctx.npu(0)?)?;
    let bdf = npu.function.bdf.as_str();
    let output = barbuf(&["bench", bdf, "--emulated", "--json", "--size", "2G"]).output()?;
    let report = report_of(&output)?;
    let mut wanted = LIFE.to_vec();
    wanted.extend([Metric::ForkTouch, Metric::SendMapTouch]);
    ensure_eq!(metrics(&report, "vfio-pci", 2 * GIB), wanted);

    // The host bridge has nothing, and that stops all.
    let output = barbuf(&["bench", bdf, "00:00.0", "--emulated"]).output()?;
    ensure_eq!(output.status.code(), Some(3));

    // Somebody has the group.
    let vfio = barbuf_measure::vfio::Vfio::open(bdf, &npu.group)?;
    let output = barbuf(&["bench", bdf, "--emulated"]).output()?;
    ensure_eq!(output.status.code(), Some(7));
    drop(vfio);
    Ok(())
}

fn registering_and_removal_are_measured(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let arguments = ["bench", provider.bdf(), "--emulated", "--json", "--rebind"];
    // Other people's buffers are not revoked for it.
    let held = provider.node.export(&Export::at(0, PAGE))?;
    let output = barbuf(&arguments).arg("--size").arg("2M").output()?;
    let report = Report::from_json(&String::from_utf8_lossy(&output.stdout));
    ensure_eq!(output.status.code(), Some(7));
    ensure!(report.is_err());
    drop(held);
    let output = barbuf(&arguments).arg("--size").arg("2M").output()?;
    let report = report_of(&output)?;
    ensure!(
        report.answers.iter().all(|a| a.verdict == Verdict::Absent),
        "{:?}",
        report.answers
    );
    let pages = |path: &str| {
        let path = format!("{path} (emulated)");
        let mut rows = report.rows.iter();
        let found = rows.find(|row| row.path == path && row.metric == Metric::StructPages);
        found.map(|row| (row.min, row.max))
    };
    for path in ["barbuf pfn 4K", "barbuf page 2M"] {
        let found = metrics(&report, path, 2 * MIB);
        for metric in [Metric::Register, Metric::Remove, Metric::Revoke] {
            ensure!(found.contains(&metric), "{path}: {found:?}");
        }
    }
    ensure_eq!(pages("barbuf pfn 4K"), Some((0, 0)));
    // The region has 1 GiB, whatever is mapped of it.
    ensure_eq!(pages("barbuf page 4K"), Some((16 * MIB, 16 * MIB)));
    ensure_eq!(provider.function.driver().as_deref(), Some("barbuf"));
    Ok(())
}

/// The function is unbound while its memory is mapped, touched, inherited and passed on.
fn a_device_that_goes_away_is_one_error(ctx: &Ctx) -> Result<()> {
    // Each path takes seconds.
    const MOST_MS: u64 = 2000;
    for round in 0..10 {
        let provider = Provider::bind(ctx.npu(0)?)?;
        // What is on its way is told nobody, so that the error is all there is.
        let arguments = ["-q", "bench", provider.bdf(), "--emulated", "--size", "32M"];
        std::thread::scope(|scope| -> Result<()> {
            let bench = scope.spawn(|| refusal(&arguments, 6));
            let begun = wait_until("the first buffer", || {
                let info = provider.node.info();
                let buffers = info.map(|info| info.regions.iter().map(|r| r.nr_buffers).sum());
                bench.is_finished() || buffers.is_ok_and(|buffers: u32| buffers > 0)
            });
            let delay = Duration::from_millis(word(1, round) % MOST_MS);
            std::thread::sleep(delay);
            let unbound = provider.function.unbind();
            let error = bench.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
            begun?;
            unbound?;
            let error = error.with_context(|| format!("unbound after {delay:?}"))?;
            ctx.note(format!("{delay:?}: {}", error["message"]));
            Ok(())
        })?;
    }
    Ok(())
}
