// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the comparison should show, held against a report; and one report against another.

use barbuf_measure::GIB;
use barbuf_measure::report::{Metric, Report, Verdict};
use barbuf_measure::table::{Table, grouped, shown};

const NPU: &str = "NPU";
/// The size that the reaches are about.
const SIZE: u64 = 32 * GIB;
/// The size for which the series states how much memory it takes, and how much that is.
const CLAIMED_SIZE: u64 = 128 * GIB;
const CLAIMED_BYTES: f64 = (2 << 20) as f64;

pub(super) const OURS: &str = "barbuf page 1G";
pub(super) const OURS_PFN: &str = "barbuf pfn 1G";
pub(super) const SERIES: &str = "S 1G";
pub(super) const STOCK: &str = "base sysfs 4K";

/// One line: a value and its limit. None if the report lacks what it is made of.
struct Reach {
    what: &'static str,
    value: Option<f64>,
    limit: Limit,
    from: String,
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Reach {
    fn is_met(&self) -> Option<bool> {
        self.value.map(|value| match self.limit {
            Limit::AtMost(limit) => value <= limit,
            Limit::AtLeast(limit) => value >= limit,
        })
    }
}

fn reaches(report: &Report) -> Vec<Reach> {
    let min = |path: &str, size: u64, metric| report.min(path, NPU, size, metric);
    let ratio = |of: Option<u64>, to: Option<u64>| Some(of? as f64 / to? as f64);
    let pair = |of: Option<u64>, to: Option<u64>, metric: Metric| {
        let text = |value: Option<u64>| value.map_or("?".into(), |v| shown(v, metric.unit()));
        format!("{} : {}", text(of), text(to))
    };
    let ours = min(OURS, SIZE, Metric::MmapTouch);
    let series = min(SERIES, SIZE, Metric::MmapTouch);
    // Its mmap fills in every page, so that no touch is needed.
    let stock = min(STOCK, SIZE, Metric::Mmap);
    let pages = |path: &str, size| min(path, size, Metric::StructPages);
    let asked = || {
        let answers = report.answers.iter();
        answers.filter(|answer| answer.path.starts_with("barbuf"))
    };
    let broken = asked().filter(|answer| !answer.verdict.is_harmless());
    let refused = asked().filter(|answer| answer.verdict == Verdict::Refused);
    vec![
        Reach {
            what: "mmap + first touch of 32 GiB, barbuf page 1G : S 1G",
            value: ratio(ours, series),
            limit: Limit::AtMost(1.0),
            from: pair(ours, series, Metric::MmapTouch),
        },
        Reach {
            what: "mmap of 32 GiB, base sysfs 4K : barbuf page 1G with first touch",
            value: ratio(stock, ours),
            limit: Limit::AtLeast(200_000.0),
            from: pair(stock, ours, Metric::Mmap),
        },
        Reach {
            what: "bytes of struct pages of 32 GiB, barbuf pfn 1G",
            value: pages(OURS_PFN, SIZE).map(|bytes| bytes as f64),
            limit: Limit::AtMost(0.0),
            from: String::new(),
        },
        Reach {
            what: "struct pages of 32 GiB, barbuf page 1G : S 1G",
            value: ratio(pages(OURS, SIZE), pages(SERIES, SIZE)),
            limit: Limit::AtMost(1.0),
            from: pair(pages(OURS, SIZE), pages(SERIES, SIZE), Metric::StructPages),
        },
        Reach {
            what: "struct pages of 128 GiB, barbuf page 1G : 2 MiB, as the series claims",
            value: pages(OURS, CLAIMED_SIZE).map(|bytes| bytes as f64 / CLAIMED_BYTES),
            limit: Limit::AtMost(0.5),
            from: pages(OURS, CLAIMED_SIZE)
                .map_or("?".into(), |v| shown(v, Metric::StructPages.unit())),
        },
        Reach {
            what: "mapping tests that barbuf does not pass",
            value: (asked().count() > 0).then(|| broken.count() as f64),
            limit: Limit::AtMost(0.0),
            from: format!(
                "{} tests, {} of them answered by the errno that is documented",
                asked().count(),
                refused.count()
            ),
        },
    ]
}

/// Why the first reach stands where it does: what mmap and the first touch have to do with it. None if either was not
/// measured.
pub(super) fn why(report: &Report) -> Option<String> {
    let of = |path, metric| report.min(path, NPU, SIZE, metric);
    let time = |path, metric| of(path, metric).map(|value| shown(value, metric.unit()));
    let (ours, series) = (of(OURS, Metric::MmapTouch)?, of(SERIES, Metric::MmapTouch)?);
    let compared = if ours > series {
        format!(
            "takes {} times as long as",
            number(ours as f64 / series as f64)
        )
    } else {
        format!(
            "takes no longer ({} times) than",
            number(ours as f64 / series as f64)
        )
    };
    let with_export = match of(OURS, Metric::Export) {
        Some(export) => format!(
            " {SERIES} also gets the memory in mmap, each time; barbuf gets it in an export ({}), once for any number \
             of mappings: with an export for each, it would be {} times.",
            shown(export, Metric::Export.unit()),
            number((ours + export) as f64 / series as f64)
        ),
        None => String::new(),
    };
    Some(format!(
        "Of mmap and first touch of 32 GiB, {OURS} {compared} {SERIES}. The two fill in the same leaves at different moments: \
         {SERIES} in mmap ({} there, {} the touch), {OURS} in a fault ({} and {}).{with_export} A mapping that is \
         filled in by mmap has its leaves before it is linked to the file, where `unmap_mapping_range()` does not see \
         it: a buffer could be revoked in between, and the leaves would stay. So barbuf does not, and pays for an \
         exception.\n",
        time(SERIES, Metric::Mmap)?,
        time(SERIES, Metric::Touch)?,
        time(OURS, Metric::Mmap)?,
        time(OURS, Metric::Touch)?,
    ))
}

/// Every reach, with whether it is met.
pub(super) fn table(report: &Report) -> Table {
    let head = ["reach", "measured", "wanted", "", "from"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for reach in reaches(report) {
        let wanted = match reach.limit {
            Limit::AtMost(limit) => format!("at most {}", number(limit)),
            Limit::AtLeast(limit) => format!("at least {}", number(limit)),
        };
        let word = match reach.is_met() {
            None => "not measured",
            Some(true) => "met",
            Some(false) => "MISSED",
        };
        rows.push(vec![
            reach.what.into(),
            reach.value.map_or("-".into(), number),
            wanted,
            word.into(),
            reach.from,
        ]);
    }
    Table {
        title: "reaches".into(),
        rows,
    }
}

fn number(value: f64) -> String {
    if value == value.trunc() || value >= 100.0 {
        grouped(value as u64)
    } else {
        format!("{value:.3}")
    }
}

/// Which values another round did not come to again.
pub(super) fn difference(number: usize, first: &Report, other: &Report) -> String {
    let mut text = String::new();
    let mut compared = 0;
    for row in &first.rows {
        let Some(again) = other.value(&row.path, &row.region, row.size, row.metric) else {
            continue;
        };
        compared += 1;
        let value = row.value();
        if again != value {
            let percent = (again as f64 / value as f64 - 1.0) * 100.0;
            text += &format!(
                "  {} {} {} {}: {} and {}, {percent:+.3} %\n",
                row.path,
                row.region,
                shown(row.size, barbuf_measure::report::Unit::Bytes),
                row.metric.label(),
                grouped(value),
                grouped(again),
            );
        }
    }
    let same = compared - text.lines().count();
    format!("\nround {number}: {same} of {compared} values are those of round 1\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use barbuf_measure::report::{Answer, Measurement, SCHEMA};

    fn report(rows: &[(&str, u64, Metric, u64)]) -> Report {
        let row = |(path, size, metric, value): &(&str, u64, Metric, u64)| {
            Measurement {
                path: (*path).into(),
                region: NPU.into(),
                size: *size,
                metric: *metric,
                samples: vec![*value],
            }
            .to_row()
        };
        Report {
            schema: SCHEMA,
            kernel: "k".into(),
            accel: "a".into(),
            clock: "c".into(),
            rows: rows.iter().map(row).collect(),
            answers: Vec::new(),
        }
    }

    fn words(report: &Report) -> Vec<String> {
        let rows = table(report).rows;
        rows[1..].iter().map(|row| row[3].clone()).collect()
    }

    #[test]
    fn reaches_are_judged() {
        let mut good = report(&[
            (OURS, SIZE, Metric::MmapTouch, 30_000),
            (SERIES, SIZE, Metric::MmapTouch, 30_000),
            (STOCK, SIZE, Metric::Mmap, 6_000_000_000),
            (OURS_PFN, SIZE, Metric::StructPages, 0),
            (OURS, SIZE, Metric::StructPages, 256 << 10),
            (SERIES, SIZE, Metric::StructPages, 256 << 10),
            (OURS, CLAIMED_SIZE, Metric::StructPages, 1 << 20),
        ]);
        good.answers.push(Answer {
            path: OURS.into(),
            region: NPU.into(),
            what: "smaps".into(),
            verdict: Verdict::Ok,
            detail: String::new(),
        });
        assert_eq!(words(&good), ["met"; 6]);
        for row in &mut good.rows {
            row.min = if row.path == STOCK {
                1
            } else {
                row.min * 2 + 1
            };
        }
        good.rows[1].min = 1;
        good.rows[5].min = 1;
        good.answers[0].verdict = Verdict::Sigbus;
        assert_eq!(words(&good), ["MISSED"; 6]);
    }

    #[test]
    fn the_first_reach_is_explained_by_its_parts() {
        let rows = |ours| {
            report(&[
                (OURS, SIZE, Metric::MmapTouch, ours),
                (OURS, SIZE, Metric::Mmap, 4_000),
                (OURS, SIZE, Metric::Touch, ours - 4_000),
                (SERIES, SIZE, Metric::MmapTouch, 20_000),
                (SERIES, SIZE, Metric::Mmap, 19_900),
                (SERIES, SIZE, Metric::Touch, 100),
            ])
        };
        let slower = why(&rows(25_000)).unwrap();
        assert!(
            slower.contains("takes 1.250 times as long as S 1G"),
            "{slower}"
        );
        assert!(
            slower.contains("(19.9 µs there, 100 ns the touch)"),
            "{slower}"
        );
        assert!(
            why(&rows(15_000))
                .unwrap()
                .contains("no longer (0.750 times)")
        );
        assert_eq!(why(&report(&[])), None);
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(words(&report(&[])), ["not measured"; 6]);
    }

    #[test]
    fn rounds_are_compared() {
        let first = report(&[(OURS, SIZE, Metric::Mmap, 1000)]);
        assert!(difference(2, &first, &first).contains("1 of 1 values"));
        let other = report(&[(OURS, SIZE, Metric::Mmap, 1010)]);
        let text = difference(2, &first, &other);
        assert!(
            text.contains("0 of 1 values") && text.contains("+1.000 %"),
            "{text}"
        );
    }
}
