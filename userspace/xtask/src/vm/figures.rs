// SPDX-License-Identifier: MIT OR Apache-2.0

//! `make figures`: what mapping, exporting and revoking cost, next to vfio-pci in the same boot.
//!
//! The suite `figures` of the guest measures, on a machine whose time counts guest instructions, so
//! that the numbers are the same on every host. Here they are put into the rows that the project has
//! set itself as reaches. A missed reach is printed and is no failure.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use barbuf_guest::figure::Figure;
use barbuf_guest::protocol::ListedTest;
use serde_json::{Value, json};

use super::boot::{Boot, BootDir, Ended, Progress};
use super::ktap::Status;
use super::parts::{Parts, Programs};
use super::plan::{self, Selection};
use super::topology;
use crate::cli::FiguresArgs;
use crate::ctx::Ctx;
use crate::kernel::{self, Flavour};

/// Each is booted once for its part of the measurements; no ratio is taken across boots.
const TOPOLOGIES: &[&str] = &["icount", "icount-root-ports"];
/// Of the JSON; raised when a member changes its meaning.
const SCHEMA: u32 = 2;

type Figures = BTreeMap<String, Figure>;

/// A line of the table.
struct Row {
    what: &'static str,
    measure: Measure,
    at_most: f64,
}

/// How a line's value comes from figures, of each of which the minimum counts.
#[derive(Clone, Copy)]
enum Measure {
    /// The figure itself.
    Plain(&'static str),
    /// One figure divided by another.
    Ratio(&'static str, &'static str),
    /// By how much the cost per item grows, from the first count of items to the second.
    Growth((&'static str, u64), (&'static str, u64)),
}

use Measure::{Growth, Plain, Ratio};

impl Row {
    /// The figures that it needs.
    fn figures(&self) -> impl Iterator<Item = &'static str> {
        let (one, other) = match self.measure {
            Plain(name) => (name, None),
            Ratio(a, b) | Growth((a, _), (b, _)) => (a, Some(b)),
        };
        std::iter::once(one).chain(other)
    }
}

const ROWS: &[Row] = &[
    Row {
        what: "mmap + first touch of every GiB, pfn : vfio-pci",
        measure: Ratio("touch_1g_pfn", "touch_1g_vfio"),
        at_most: 0.5,
    },
    Row {
        what: "the same, page backing of 1 GiB : vfio-pci",
        measure: Ratio("touch_1g_page", "touch_1g_vfio"),
        at_most: 0.37,
    },
    Row {
        what: "mmap + first touch of every 2 MiB : one page per fault",
        measure: Ratio("touch_2m_pfn", "touch_2m_pfn_one_by_one"),
        at_most: 0.45,
    },
    Row {
        what: "memory for struct pages of 32 GiB, pfn",
        measure: Plain("struct_pages_pfn"),
        at_most: 0.0,
    },
    Row {
        what: "memory for struct pages of 32 GiB, page 1 GiB",
        measure: Plain("struct_pages_page_1g"),
        at_most: 64.0,
    },
    Row {
        what: "memory for struct pages of 32 GiB, page 2 MiB",
        measure: Plain("struct_pages_page_2m"),
        at_most: 32_768.0,
    },
    Row {
        what: "export of 32 GiB, pfn : vfio-pci's dma-buf",
        measure: Ratio("export_pfn", "export_vfio"),
        at_most: 1.0,
    },
    Row {
        what: "revoke, cost per mapping: 1,000 in 8 processes : 100",
        measure: Growth(("revoke_100_pfn", 100), ("revoke_1000_pfn", 1_000)),
        at_most: 1.1,
    },
    Row {
        what: "revoke, cost per mapping: 2,000 in 8 processes : 1,000",
        measure: Growth(("revoke_1000_pfn", 1_000), ("revoke_2000_pfn", 2_000)),
        at_most: 1.1,
    },
    Row {
        what: "attach + map of 32 GiB for a device : vfio-pci's dma-buf",
        measure: Ratio("import_barbuf", "import_vfio"),
        at_most: 1.0,
    },
    Row {
        what: "scatterlist entries of that : vfio-pci's dma-buf",
        measure: Ratio("import_barbuf_entries", "import_vfio_entries"),
        at_most: 1.0,
    },
    Row {
        what: "buffer sent and received by the crate : a bare descriptor",
        measure: Ratio("pass_buffer", "pass_bare"),
        at_most: 2.0,
    },
    Row {
        what: "first mmap + touch of every GiB, receiver : owner",
        measure: Ratio("first_map_receiver", "first_map_exporter"),
        at_most: 1.1,
    },
];

/// Measures, prints the tables, writes the JSON.
pub(crate) fn figures(ctx: &Ctx, args: &FiguresArgs) -> Result<ExitCode> {
    let programs = Programs::build(ctx)?;
    let tests = programs.list("--list-figures")?;
    plan::check(&tests)?;
    let selection = Selection {
        filter: &args.filter,
        topology: None,
    };
    let wanted = |test: &&ListedTest| selection.names(&plan::full_name(test));
    let tests: Vec<_> = tests.iter().filter(wanted).collect();
    if tests.is_empty() {
        bail!("no measurement has such a name");
    }
    let parts = Parts::gather(kernel::ensure(Flavour::Stock, ctx)?, &programs, ctx)?;
    let mut boots = Vec::new();
    for number in 1..=args.boots.get() {
        let mut figures = Figures::new();
        for name in TOPOLOGIES {
            let topology = topology::find(name)?;
            let of_it: Vec<_> = tests
                .iter()
                .copied()
                .filter(|test| test.topology == *name)
                .collect();
            if of_it.is_empty() {
                continue;
            }
            let dir = BootDir::create(ctx, &format!("figures-{number}-{name}"))?;
            let boot = Boot {
                keep: args.keep,
                ..Boot::new(&topology, &parts, plan::suites(&of_it), dir)
            };
            figures.extend(measure(ctx, &boot)?);
        }
        boots.push(figures);
    }
    let first = &boots[0];
    let rows = rows(first, args.filter.is_empty())?;
    print!("{}", table(&rows));
    print!("{}", details(first));
    for (number, boot) in boots.iter().enumerate().skip(1) {
        print!("{}", comparison(number + 1, first, boot));
    }
    if let Some(path) = &args.json {
        write_json(path, &parts, &boots, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One boot. All tests must run to their end.
fn measure(ctx: &Ctx, boot: &Boot<'_>) -> Result<Figures> {
    let step = ctx.ui.step(format!(
        "measure on {}, {}",
        boot.parts.kernel.release, boot.topology.name
    ));
    let mut figures = Figures::new();
    let mut failed = Vec::new();
    boot.run(&mut |progress| match progress {
        Progress::Begin(test) => step.note(test),
        Progress::Say(text) => match Figure::from_line(text) {
            Some(figure) => drop(figures.insert(figure.name.clone(), figure)),
            None => ctx.ui.line(text),
        },
        Progress::Ended(Ended {
            test,
            status: Status::Failed(why) | Status::Skipped(why),
            ..
        }) => {
            failed.push(format!("{test}: {why}"));
        }
        Progress::Ended(_) => {}
    })?;
    if !failed.is_empty() {
        bail!("could not measure everything\n{}", failed.join("\n"));
    }
    step.done();
    Ok(figures)
}

/// A line of the table with its value.
struct Measured {
    row: &'static Row,
    value: f64,
    /// Where the value comes from, for people.
    from: String,
}

impl Measured {
    fn is_met(&self) -> bool {
        self.value <= self.row.at_most
    }
}

/// The rows with their values: `all`, or those whose figures have been measured.
fn rows(figures: &Figures, all: bool) -> Result<Vec<Measured>> {
    let wanted = |row: &&Row| all || row.figures().all(|name| figures.contains_key(name));
    let rows = ROWS.iter().filter(wanted);
    rows.map(|row| measured(row, figures)).collect()
}

fn measured(row: &'static Row, figures: &Figures) -> Result<Measured> {
    let min = |name: &str| {
        let figure = figures
            .get(name)
            .with_context(|| format!("the guest did not measure {name}"))?;
        Ok::<_, anyhow::Error>(figure.min())
    };
    let (value, from) = match row.measure {
        Plain(name) => {
            let value = min(name)?;
            (value as f64, format!("{} pages", grouped(value)))
        }
        Ratio(of, to) => {
            let unit = figures.get(of).map_or("", |figure| figure.unit.name());
            let (of, to) = (min(of)?, min(to)?);
            (
                of as f64 / to as f64,
                format!("{} : {} {unit}", grouped(of), grouped(to)),
            )
        }
        Growth((from, from_items), (to, to_items)) => {
            let per_item = |total: u64, items: u64| total as f64 / items as f64;
            let (from, to) = (min(from)?, min(to)?);
            let (old, new) = (per_item(from, from_items), per_item(to, to_items));
            (
                new / old,
                format!("{} ns for {}", grouped(to), grouped(to_items)),
            )
        }
    };
    Ok(Measured { row, value, from })
}

/// What is shown of a value or a reach.
fn shown(measure: Measure, value: f64) -> String {
    match measure {
        Plain(_) => grouped(value as u64),
        Ratio(..) | Growth(..) => format!("{value:.3}"),
    }
}

fn table(rows: &[Measured]) -> String {
    let mut text = format!(
        "\n{:<56} {:>9} {:>8}         from\n",
        "what", "measured", "at most"
    );
    for measured in rows {
        let Row {
            what,
            measure,
            at_most,
        } = measured.row;
        text += &format!(
            "{what:<56} {:>9} {:>8}  {:<6} {}\n",
            shown(*measure, measured.value),
            shown(*measure, *at_most),
            if measured.is_met() { "met" } else { "MISSED" },
            measured.from,
        );
    }
    text
}

fn details(figures: &Figures) -> String {
    let mut text = format!(
        "\n{:<34} {:>12} {:>12} {:>12}\n",
        "figure", "minimum", "median", "maximum"
    );
    for (name, figure) in figures {
        let unit = figure.unit.name();
        text += &format!(
            "{name:<34} {:>12} {:>12} {:>12} {unit}\n",
            grouped(figure.min()),
            grouped(figure.median()),
            grouped(figure.max()),
        );
    }
    text
}

/// Whether another boot came to the same minima.
fn comparison(number: usize, first: &Figures, other: &Figures) -> String {
    let min = |figures: &Figures, name: &String| figures.get(name).map(Figure::min);
    let mut text = String::new();
    for name in first.keys() {
        let (was, is) = (min(first, name), min(other, name));
        let (Some(was), Some(is)) = (was, is) else {
            continue;
        };
        if was != is {
            let percent = (is as f64 / was as f64 - 1.0) * 100.0;
            text += &format!(
                "{name:<34} {:>12} {:>12} {percent:>+11.3} %\n",
                grouped(was),
                grouped(is)
            );
        }
    }
    let same = first.len() - text.lines().count();
    format!(
        "\nboot {number}: {same} of {} minima are those of boot 1\n{text}",
        first.len()
    )
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn write_json(path: &Path, parts: &Parts, boots: &[Figures], rows: &[Measured]) -> Result<()> {
    let text = serde_json::to_string_pretty(&to_json(&parts.kernel.release, boots, rows))?;
    if path == Path::new("-") {
        println!("{text}");
        return Ok(());
    }
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn to_json(kernel: &str, boots: &[Figures], rows: &[Measured]) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|measured| {
            json!({
                "what": measured.row.what,
                "value": measured.value,
                "at_most": measured.row.at_most,
                "met": measured.is_met(),
            })
        })
        .collect();
    let figures = |boot: &Figures| -> Vec<Value> {
        boot.values()
            .map(|figure| {
                json!({
                    "name": figure.name,
                    "unit": figure.unit,
                    "min": figure.min(),
                    "median": figure.median(),
                    "max": figure.max(),
                    "samples": figure.samples,
                })
            })
            .collect()
    };
    let boots: Vec<Value> = boots
        .iter()
        .map(|boot| json!({ "figures": figures(boot) }))
        .collect();
    json!({ "schema": SCHEMA, "kernel": kernel, "topologies": TOPOLOGIES, "rows": rows, "boots": boots })
}

#[cfg(test)]
mod tests {
    use barbuf_guest::figure::Unit;

    use super::*;

    /// Every figure that a row needs, with one value for all.
    fn all(value: u64) -> Figures {
        let names = ROWS.iter().flat_map(Row::figures);
        let figure = |name: &str| Figure {
            name: name.into(),
            unit: Unit::Ns,
            samples: vec![value],
        };
        names.map(|name| (name.to_owned(), figure(name))).collect()
    }

    #[test]
    fn rows_are_judged_by_minima() {
        let mut figures = all(100);
        figures.get_mut("touch_1g_pfn").unwrap().samples = vec![900, 50, 70];
        let rows = rows(&figures, true).unwrap();
        assert_eq!((rows[0].value, rows[0].is_met()), (0.5, true));
        assert_eq!((rows[1].value, rows[1].is_met()), (1.0, false));
        // 100 struct pages where none may be.
        assert!(!rows[3].is_met());
        // The same total for ten times as many mappings.
        let first = ROWS
            .iter()
            .position(|row| matches!(row.measure, Growth(..)))
            .unwrap();
        assert!(
            (rows[first].value - 0.1).abs() < 1e-9,
            "{}",
            rows[first].value
        );
        let text = table(&rows);
        assert!(
            text.lines()
                .nth(2)
                .unwrap()
                .contains("0.500    0.500  met    50 : 100 ns"),
            "{text}"
        );
        assert!(text.contains("MISSED"));
    }

    #[test]
    fn a_figure_that_is_missing_is_named() {
        let mut figures = all(1);
        figures.remove("export_vfio");
        let Err(error) = rows(&figures, true) else {
            panic!("judged without")
        };
        assert_eq!(error.to_string(), "the guest did not measure export_vfio");
    }

    #[test]
    fn a_filter_leaves_rows_out() {
        let mut figures = all(1);
        figures.remove("export_vfio");
        let rows = rows(&figures, false).unwrap();
        assert_eq!(rows.len(), ROWS.len() - 1);
        assert!(rows.iter().all(|row| !row.row.what.contains("export")));
    }

    #[test]
    fn boots_are_compared() {
        let (first, mut other) = (all(1000), all(1000));
        assert!(!comparison(2, &first, &other).contains('%'));
        other.get_mut("export_pfn").unwrap().samples = vec![1010];
        let text = comparison(2, &first, &other);
        assert!(
            text.contains("export_pfn") && text.contains("+1.000 %"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn json_has_its_schema() {
        let boots = [all(1)];
        let json = to_json("7.3", &boots, &rows(&boots[0], true).unwrap());
        assert_eq!(json["schema"], 2);
        assert_eq!(json["rows"].as_array().unwrap().len(), ROWS.len());
        assert_eq!(json["boots"][0]["figures"][0]["min"], 1);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 1234567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
