// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf bench`: what mapping the memory of this machine's devices costs, in real time.
//!
//! The rows are those of `make compare`, as far as a machine has them: `path` knows the ways to map what a function
//! offers, `rebind` measures what comes before and after. The crate `barbuf-measure` measures, here as there.
//!
//! Time that passes on an emulated machine says how fast the emulator is, and must not be taken for more: there
//! nothing is measured, or every row is marked.

mod path;
mod rebind;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use barbuf_measure::clock::Clock;
use barbuf_measure::guard::guarded;
use barbuf_measure::machine::Machine;
use barbuf_measure::mapping::{Anchor, life};
use barbuf_measure::report::{Answer, Measurement, Metric, Report, SCHEMA, Verdict};
use barbuf_measure::{GIB, MIB, direct, process, table};

use crate::cli::BenchArgs;
use crate::copy::length_of;
use crate::error::{Error, Exit, Result};
use crate::out::Out;
use crate::size;
use crate::sysfs::{Function, Sysfs};
use path::{PAGE, Path};

const CLOCK: Clock = Clock::Wall;
/// What marks the path of a row from an emulated machine.
const MARK: &str = " (emulated)";
/// With pages of 4 KiB, sizes above this are not mapped: touching every page would take minutes.
const MOST_4K: u64 = 32 * GIB;
/// With pages of 4 KiB, sizes above this are mapped by one process only.
const MUCH_4K: u64 = GIB;

/// # Errors
///
/// The machine is emulated, a function offers nothing, or nothing could be measured.
pub fn run(args: &BenchArgs, sysfs: &Sysfs, out: &Out) -> Result<u8> {
    let functions = args.devices.iter().map(|bdf| sysfs.function(bdf));
    let functions: Vec<Function> = functions.collect::<Result<_>>()?;
    let machine = Machine::detect(&sysfs.path("sys"));
    let emulated = emulation(&machine, &functions);
    if let Some(why) = &emulated {
        if !args.emulated {
            return Err(refusal(why));
        }
        out.note(format!("note: {why}: its times say nothing about hardware"));
    }
    let drive = args.file.as_deref().map(open_direct).transpose()?;
    let mut paths = Vec::new();
    for function in &functions {
        paths.extend(path::offered(function, args.bar, args.size)?);
    }
    if !args.page_size.is_empty() {
        paths.retain(|path| args.page_size.contains(&path.page()));
    }
    if paths.is_empty() {
        return Err(Error::not_found(
            "no memory is offered in pages of this size",
        ));
    }
    let mut found = Found::default();
    for path in &paths {
        out.note(format!(
            "{} of {}, {} ...",
            path.name,
            path.region,
            size::show(path.size)
        ));
        found.measure(path, drive.as_ref(), args.rebind, sysfs)?;
    }
    if let (true, Some(error)) = (found.measurements.is_empty(), found.trouble) {
        return Err(error);
    }
    let report = Report {
        schema: SCHEMA,
        kernel: sysfs.read("proc/sys/kernel/osrelease").unwrap_or_default(),
        accel: executes(&machine, emulated.as_deref(), sysfs),
        clock: match &emulated {
            None => "wall clock (CLOCK_MONOTONIC_RAW)".into(),
            Some(_) => "wall clock of an emulated machine, which says nothing".into(),
        },
        rows: found.measurements.iter().map(Measurement::to_row).collect(),
        answers: found.answers,
    };
    let report = match emulated {
        Some(_) => marked(report),
        None => report,
    };
    out.result(&report, || as_text(&report));
    Ok(Exit::Ok as u8)
}

fn refusal(why: &str) -> Error {
    Error::new(
        Exit::Emulated,
        format!("{why}: its times would say nothing about hardware"),
    )
    .hint(
        "--emulated measures all the same and marks every row; `make compare` counts instructions",
    )
}

/// Why time says nothing here; nothing if it does.
fn emulation(machine: &Machine, functions: &[Function]) -> Option<String> {
    match machine {
        Machine::Hardware => None,
        Machine::Emulated(who) => Some(format!("this machine is emulated by {who}")),
        // A real processor waits for emulated memory.
        Machine::Virtual(_) => {
            let emulated = functions.iter().find(|function| is_qemu_s(function))?;
            Some(format!("{} is emulated by QEMU", emulated.bdf))
        }
    }
}

/// By the vendor's numbers that QEMU's own devices have. In a virtual machine nothing else has them.
fn is_qemu_s(function: &Function) -> bool {
    const QEMU: [u64; 3] = [0x1af4, 0x1b36, 0x1234];
    let numbers = ["vendor", "subsystem_vendor"].map(|name| function.number(name));
    numbers.iter().flatten().any(|number| QEMU.contains(number))
}

/// What the report says of the processor.
fn executes(machine: &Machine, emulated: Option<&str>, sysfs: &Sysfs) -> String {
    let cpuinfo = sysfs.read("proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim())
    });
    let device = emulated.filter(|_| matches!(machine, Machine::Virtual(_)));
    let parts = [Some(machine.to_string()), model.map(Into::into)];
    let parts = parts.into_iter().chain([device.map(Into::into)]).flatten();
    parts.collect::<Vec<_>>().join("; ")
}

/// No row can be taken for one of hardware, wherever it is copied to.
fn marked(mut report: Report) -> Report {
    for row in &mut report.rows {
        row.path += MARK;
    }
    for answer in &mut report.answers {
        answer.path += MARK;
    }
    report
}

fn as_text(report: &Report) -> String {
    let mut text = format!(
        "{}\n{}\n{}; minima\n",
        report.kernel, report.accel, report.clock
    );
    for (region, size) in table::places(report) {
        text += &table::of_place(report, region, size).to_text();
    }
    for answer in &report.answers {
        text += &format!("\n{} of {}: {}", answer.path, answer.region, answer.detail);
    }
    text
}

fn open_direct(path: &std::path::Path) -> Result<File> {
    if length_of(path)? < MIB {
        return Err(Error::usage(format!(
            "{} is shorter than the MiB that is to be read",
            path.display()
        )));
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(path)
        .map_err(|error| Error::io("open with O_DIRECT", path, &error))
}

/// What has been measured so far, and what could not be.
#[derive(Debug, Default)]
struct Found {
    measurements: Vec<Measurement>,
    answers: Vec<Answer>,
    /// The first thing that could not be.
    trouble: Option<Error>,
}

impl Found {
    /// All of one path. What fails is told, and what was measured before is kept.
    ///
    /// # Errors
    ///
    /// What the path shows has gone, and with it the sense of all the rest.
    fn measure(
        &mut self,
        path: &Path,
        drive: Option<&File>,
        rebind: bool,
        sysfs: &Sysfs,
    ) -> Result<()> {
        let measurements = &mut self.measurements;
        let mut tell = |metric, samples: Vec<u64>| {
            if !samples.is_empty() {
                measurements.push(Measurement {
                    path: path.name.clone(),
                    region: path.region.clone(),
                    size: path.size,
                    metric,
                    samples,
                });
            }
        };
        let result = match rebind && path.is_bound() {
            true => rebind::measure(path, sysfs, &mut tell),
            false => Ok(()),
        };
        let result = result.and_then(|()| measure(path, drive, &mut tell));
        if let Err(error) = result.map_err(Error::from) {
            if error.exit == Exit::Gone || !path.is_there() {
                let (name, region) = (&path.name, &path.region);
                let text = format!("{name} of {region}: {}", error.message);
                return Err(Error::new(Exit::Gone, text)
                    .hint("it was unplugged, or has lost its driver, or the buffer was revoked"));
            }
            self.answers.push(Answer {
                path: path.name.clone(),
                region: path.region.clone(),
                what: "measure".into(),
                verdict: match error.exit {
                    Exit::NotFound => Verdict::Absent,
                    Exit::Failed => Verdict::Broken,
                    _ => Verdict::Refused,
                },
                detail: error.message.clone(),
            });
            self.trouble.get_or_insert(error);
        }
        Ok(())
    }
}

fn measure(
    path: &Path,
    drive: Option<&File>,
    tell: &mut impl FnMut(Metric, Vec<u64>),
) -> anyhow::Result<()> {
    if path.leaf == PAGE && path.size > MOST_4K {
        return Ok(());
    }
    let memory = path.open()?;
    let target = memory.target();
    let life = guarded(&target, || life(CLOCK, &target))?;
    memory.had_only(
        target.leaf,
        target.len / target.leaf * life.mmap.len() as u64,
    )?;
    for (metric, samples) in life.into_samples() {
        tell(metric, samples);
    }
    if path.leaf == PAGE && path.size > MUCH_4K {
        return Ok(());
    }
    let samples = guarded(&target, || process::fork_touch(CLOCK, &target))?;
    tell(Metric::ForkTouch, samples);
    if memory.can_be_passed_on() {
        let samples = guarded(&target, || process::send_map_touch(CLOCK, &target))?;
        tell(Metric::SendMapTouch, samples);
    }
    if let Some(drive) = drive {
        let samples = guarded(&target, || direct::into_mapping(CLOCK, drive, &target))?;
        for (metric, samples) in samples {
            tell(metric, samples);
        }
    }
    drop(memory);
    tell(Metric::Revoke, revocation(path)?);
    Ok(())
}

/// BARBUF_REVOKE with everything mapped and touched; nothing elsewhere.
fn revocation(path: &Path) -> anyhow::Result<Vec<u64>> {
    let mut samples = Vec::new();
    if !path.is_barbuf() {
        return Ok(samples);
    }
    CLOCK.repeat(|| {
        let memory = path.open()?;
        let target = memory.target();
        let took = guarded(&target, || {
            let _anchor = Anchor::behind(&target)?;
            let mapped = target.map()?;
            mapped.touch();
            let (took, result) = CLOCK.time(|| memory.revoke());
            result.map(|()| took)
        })?;
        samples.push(took);
        Ok(())
    })?;
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::sysfs::tree::Tree;
    use clap::Parser as _;

    const NPU: &str = "0000:05:00.0";

    fn function(tree: &Tree) -> Function {
        tree.sysfs().function(&NPU.parse().unwrap()).unwrap()
    }

    #[test]
    fn emulation_is_told_from_hardware() {
        let tree = Tree::new();
        tree.function(NPU, "0x120000", None);
        let qemu_s = [function(&tree)];
        let hypervisor = Machine::Virtual("KVMKVMKVM".into());
        assert_eq!(emulation(&Machine::Hardware, &qemu_s), None);
        let why = emulation(&hypervisor, &qemu_s).unwrap();
        assert!(why.contains(NPU), "{why}");
        let emulator = Machine::Emulated("QEMU's TCG".into());
        assert!(emulation(&emulator, &[]).unwrap().contains("TCG"));

        // A device that is handed to the virtual machine.
        tree.write(&format!("sys/bus/pci/devices/{NPU}/vendor"), "0x10de");
        assert_eq!(emulation(&hypervisor, &[function(&tree)]), None);
        let subsystem = format!("sys/bus/pci/devices/{NPU}/subsystem_vendor");
        tree.write(&subsystem, "0x1af4");
        assert!(emulation(&hypervisor, &[function(&tree)]).is_some());
        assert_eq!(refusal("x").exit, Exit::Emulated);
    }

    fn report() -> Report {
        let measured = Measurement {
            path: "barbuf pfn 1G".into(),
            region: "r".into(),
            size: GIB,
            metric: Metric::Mmap,
            samples: vec![3, 1, 2],
        };
        Report {
            schema: SCHEMA,
            kernel: "7.3.4".into(),
            accel: "hardware".into(),
            clock: "wall clock".into(),
            rows: vec![measured.to_row()],
            answers: vec![Answer {
                path: "vfio-pci".into(),
                region: "r".into(),
                what: "measure".into(),
                verdict: Verdict::Refused,
                detail: "busy".into(),
            }],
        }
    }

    #[test]
    fn no_row_of_an_emulated_machine_goes_without_its_mark() {
        let text = as_text(&report());
        assert!(
            text.contains("r, 1 GiB\n") && text.contains("1 ns"),
            "{text}"
        );
        assert!(text.contains("vfio-pci of r: busy") && !text.contains(MARK));
        let marked = marked(report());
        assert!(marked.rows.iter().all(|row| row.path.ends_with(MARK)));
        assert_eq!(as_text(&marked).matches(MARK).count(), 2);
    }

    #[test]
    fn programs_read_the_report_of_the_comparison() {
        // The number of this document is the report's, and the command adds its own.
        assert_eq!(SCHEMA, crate::out::SCHEMA);
        let text = report().to_json().unwrap();
        assert_eq!(Report::from_json(&text).unwrap(), report());
    }

    #[test]
    fn a_short_file_is_no_drive() {
        let tree = Tree::new();
        tree.write("short", "text");
        let error = open_direct(&tree.path("short")).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        let error = open_direct(&tree.path("none")).unwrap_err();
        assert_eq!(error.exit, Exit::NotFound);
    }

    #[test]
    fn what_fails_is_told_and_the_rest_is_kept() {
        let tree = Tree::new();
        tree.function(NPU, "0x120000", Some("other"));
        tree.pool(NPU, 4 << 20, 2 << 20, true);
        let paths = path::offered(&function(&tree), None, None).unwrap();
        let mut found = Found::default();
        let allocate = tree.path(&format!("sys/bus/pci/devices/{NPU}/p2pmem/allocate"));
        std::fs::create_dir(&allocate).unwrap();
        let measure = |found: &mut Found| found.measure(&paths[0], None, true, &tree.sysfs());
        measure(&mut found).unwrap();
        assert!(found.measurements.is_empty());
        assert_eq!(found.trouble.unwrap().exit, Exit::Failed);
        assert_eq!(found.answers[0].path, "base sysfs 4K");

        std::fs::remove_dir(&allocate).unwrap();
        let file = File::create(&allocate).unwrap();
        file.set_len(2 << 20).unwrap();
        let mut found = Found::default();
        measure(&mut found).unwrap();
        assert!(found.trouble.is_none(), "{:?}", found.trouble);
        let metrics: Vec<Metric> = found.measurements.iter().map(|m| m.metric).collect();
        assert_eq!(
            metrics,
            [
                Metric::Mmap,
                Metric::Touch,
                Metric::MmapTouch,
                Metric::Retouch,
                Metric::Munmap,
                Metric::PageTables,
                Metric::ForkTouch
            ]
        );

        // What has gone ends it: the memory, and then the file.
        file.set_len(1 << 20).unwrap();
        let error = measure(&mut Found::default()).unwrap_err();
        assert_eq!(error.exit, Exit::Gone);
        assert!(error.message.contains("while it was measured"), "{error}");
        std::fs::remove_file(&allocate).unwrap();
        let error = measure(&mut Found::default()).unwrap_err();
        assert_eq!(error.exit, Exit::Gone);
    }

    #[test]
    fn a_device_must_be_named() {
        assert!(Cli::try_parse_from(["barbuf", "bench"]).is_err());
        let cli = Cli::try_parse_from(["barbuf", "bench", "5:0.0", "--size", "1G"]).unwrap();
        assert!(matches!(cli.command, Command::Bench(args) if args.size == Some(GIB)));
    }
}
