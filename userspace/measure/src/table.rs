// SPDX-License-Identifier: MIT OR Apache-2.0

//! The report for people: a table per region and size, paths downwards, quantities across.

use crate::report::{Metric, Report, Row, Unit};
use crate::{GIB, KIB, MIB};

/// Rows and columns of text; the first row is the head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub title: String,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns of equal width, for a terminal.
    pub fn to_text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = format!("\n{}\n", self.title);
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                if column == 0 {
                    line += &format!("{cell:<width$}");
                } else {
                    line += &format!("  {cell:>width$}");
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// A table of Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            text += &format!("| {} |\n", cells.join(" | "));
            if index == 0 {
                let right = "--:|".repeat(row.len().saturating_sub(1));
                text += &format!("|---|{right}\n");
            }
        }
        text
    }
}

/// Regions and sizes of a report, in its order.
pub fn places(report: &Report) -> Vec<(&str, u64)> {
    unique(
        report
            .rows
            .iter()
            .map(|row| (row.region.as_str(), row.size)),
    )
}

/// Paths of a report, in its order.
pub fn paths(report: &Report) -> Vec<&str> {
    unique(report.rows.iter().map(|row| row.path.as_str()))
}

fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for item in items {
        if !found.contains(&item) {
            found.push(item);
        }
    }
    found
}

/// The values of one region and size. Quantities that no path has are left out, what a path has not is `-`.
pub fn of_place(report: &Report, region: &str, size: u64) -> Table {
    let here: Vec<&Row> = report
        .rows
        .iter()
        .filter(|row| row.region == region && row.size == size)
        .collect();
    let metrics: Vec<Metric> = Metric::ALL
        .into_iter()
        .filter(|metric| here.iter().any(|row| row.metric == *metric))
        .collect();
    let head = std::iter::once("path").chain(metrics.iter().map(|metric| metric.label()));
    let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
    for path in unique(here.iter().map(|row| row.path.as_str())) {
        let mut cells = vec![path.to_owned()];
        for metric in &metrics {
            let found = here
                .iter()
                .find(|row| row.path == path && row.metric == *metric);
            cells.push(found.map_or("-".into(), |row| shown(row.value(), row.unit)));
        }
        rows.push(cells);
    }
    Table {
        title: format!("{region}, {}", bytes(size)),
        rows,
    }
}

/// A value in the unit that a person would choose.
pub fn shown(value: u64, unit: Unit) -> String {
    match unit {
        Unit::Ns => time(value),
        Unit::Bytes => bytes(value),
        Unit::Count => grouped(value),
    }
}

/// Nanoseconds, with three digits.
pub fn time(ns: u64) -> String {
    let (value, unit) = match ns {
        0..10_000 => return format!("{} ns", grouped(ns)),
        10_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = match value {
        100.0.. => 0,
        10.0..100.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

/// Bytes in the largest unit that leaves a whole number, or one digit behind the point.
pub fn bytes(bytes: u64) -> String {
    for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit && bytes % unit == 0 {
            return format!("{} {name}", bytes / unit);
        }
        if bytes >= 10 * unit {
            return format!("{:.1} {name}", bytes as f64 / unit as f64);
        }
    }
    match bytes {
        0 => "0".into(),
        _ => format!("{bytes} B"),
    }
}

/// With a comma between thousands.
pub fn grouped(number: u64) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{measured, report};

    #[test]
    fn values_read_well() {
        assert_eq!(
            [0, 9_999, 10_000, 61_300, 1_510_000_000].map(time),
            ["0 ns", "9,999 ns", "10.0 µs", "61.3 µs", "1.51 s"]
        );
        assert_eq!(
            [0, 64, 4096, 36 * 1024, 512 * MIB, 32 * GIB].map(bytes),
            ["0", "64 B", "4 KiB", "36 KiB", "512 MiB", "32 GiB"]
        );
        assert_eq!(bytes(64 * MIB + 132 * KIB), "64.1 MiB");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn a_table_has_paths_and_minima() {
        let report = report(&[
            measured("a", GIB, Metric::Mmap, &[30_000, 20_000]),
            measured("b", GIB, Metric::Mmap, &[5]),
            measured("b", GIB, Metric::StructPages, &[8192]),
        ]);
        assert_eq!(places(&report), [("NPU", GIB)]);
        assert_eq!(paths(&report), ["a", "b"]);
        let table = of_place(&report, "NPU", GIB);
        assert_eq!(
            table.to_text(),
            "\nNPU, 1 GiB\npath  struct pages     mmap\na                -  20.0 µs\nb            8 KiB     5 ns\n"
        );
        assert_eq!(
            table.to_markdown(),
            "| path | struct pages | mmap |\n|---|--:|--:|\n| a | - | 20.0 µs |\n| b | 8 KiB | 5 ns |\n"
        );
    }
}
