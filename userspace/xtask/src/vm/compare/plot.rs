// SPDX-License-Identifier: MIT OR Apache-2.0

//! The plots, as SVG that fits light and dark pages.
//!
//! Written by hand: the plotting libraries at hand fix every colour in the picture, and these are to follow the scheme of
//! the page that shows them. Both axes are logarithmic; each line says at its end what it is. Colour tells whose design
//! it is (Okabe and Ito's palette, which colour-blind people can tell apart), dashes and marks tell the page size.

use std::fmt::Write as _;

use barbuf_measure::GIB;
use barbuf_measure::report::{Metric, Report};
use barbuf_measure::table;

/// What is known of a path.
struct Known {
    path: &'static str,
    meaning: &'static str,
    /// The class of its colour.
    family: &'static str,
}

const fn known(path: &'static str, family: &'static str, meaning: &'static str) -> Known {
    Known {
        path,
        meaning,
        family,
    }
}

/// In the order of every table.
const KNOWN: &[Known] = &[
    known(
        "base sysfs 4K",
        "stock",
        "`p2pmem/allocate` as the kernel has it, pages of 4 KiB",
    ),
    known(
        "S 2M",
        "posted",
        "the series as it was posted, pages of 2 MiB",
    ),
    known("S 1G", "posted", "the same, pages of 1 GiB"),
    known(
        "R 2M",
        "reviewed",
        "what its reviewers asked for, pages of 2 MiB",
    ),
    known("R 1G", "reviewed", "the same, pages of 1 GiB"),
    known(
        "barbuf pfn 4K",
        "pfn",
        "barbuf without struct pages, pages of 4 KiB",
    ),
    known("barbuf pfn 2M", "pfn", "the same, pages of 2 MiB"),
    known("barbuf pfn 1G", "pfn", "the same, pages of 1 GiB"),
    known(
        "barbuf page 4K",
        "page",
        "barbuf with struct pages, pages of 4 KiB",
    ),
    known(
        "barbuf page 2M",
        "page",
        "the same, compound pages of 2 MiB",
    ),
    known(
        "barbuf page 1G",
        "page",
        "the same, compound pages of 1 GiB",
    ),
    known(
        "vfio-pci",
        "vfio",
        "vfio-pci's own mmap, with the largest pages that fit",
    ),
    known(
        "device-dax 2M",
        "dax",
        "device-dax over the same BAR, pages of 2 MiB",
    ),
    known("device-dax 1G", "dax", "the same, pages of 1 GiB"),
    known(
        "host memory 4K",
        "host",
        "ordinary memory in pages of 4 KiB, for file I/O",
    ),
    known("host memory 2M", "host", "ordinary memory in a huge page"),
];

/// Where a path stands in tables.
pub(super) fn rank(path: &str) -> usize {
    let found = KNOWN.iter().position(|known| known.path == path);
    found.unwrap_or(KNOWN.len())
}

pub(super) fn meaning(path: &str) -> &'static str {
    KNOWN.get(rank(path)).map_or("", |known| known.meaning)
}

struct Plot {
    file: &'static str,
    title: &'static str,
    metric: Metric,
    unit: fn(u64) -> String,
    /// Powers of ten, or of two, at which lines are drawn.
    steps: &'static [u64],
}

const PLOTS: &[Plot] = &[
    Plot {
        file: "struct-pages.svg",
        title: "Memory for struct pages against the size of the BAR",
        metric: Metric::StructPages,
        unit: table::bytes,
        steps: &[
            4 << 10,
            16 << 10,
            64 << 10,
            256 << 10,
            1 << 20,
            4 << 20,
            16 << 20,
            64 << 20,
            256 << 20,
            1 << 30,
            4 << 30,
        ],
    },
    Plot {
        file: "map-and-touch.svg",
        title: "mmap and first touch against the size of the mapping",
        metric: Metric::MmapTouch,
        unit: table::time,
        steps: &[
            1_000,
            10_000,
            100_000,
            1_000_000,
            10_000_000,
            100_000_000,
            1_000_000_000,
            10_000_000_000,
        ],
    },
];

/// Every plot: its file name, the picture.
pub(super) fn all(report: &Report) -> Vec<(&'static str, String)> {
    PLOTS
        .iter()
        .map(|plot| (plot.file, draw(plot, report)))
        .collect()
}

/// What a picture says that it shows.
pub(super) fn title_of(svg: &str) -> &str {
    let title = svg
        .split_once("<title>")
        .and_then(|(_, rest)| rest.split_once("</title>"));
    title.map_or("", |(title, _)| title)
}

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 76.0;
/// The labels of the lines stand to the right of this.
const RIGHT: f64 = 610.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 404.0;
/// Zero has no place on a logarithmic axis: it gets one below it.
const ZERO: f64 = BOTTOM + 14.0;
/// Between the base lines of two labels.
const LABEL: f64 = 15.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}\
.grid{stroke:#d1d9e0;stroke-width:1}\
.line{fill:none;stroke-width:2}\
.leader{fill:none;stroke-width:1}\
.stock{stroke:#d55e00}.posted{stroke:#b07a00}.reviewed{stroke:#b0568a}\
.pfn{stroke:#0072b2}.page{stroke:#00825f}.vfio{stroke:#59636e}.dax{stroke:#3a2fb0}.host{stroke:#59636e}\
.mark{stroke-width:1.5;fill:#ffffff}\
@media (prefers-color-scheme:dark){\
text{fill:#f0f6fc}.grid{stroke:#3d444d}.mark{fill:#0d1117}\
.stock{stroke:#ff8c42}.posted{stroke:#e6b422}.reviewed{stroke:#e79cc6}\
.pfn{stroke:#56b4e9}.page{stroke:#2ec9a0}.vfio{stroke:#9198a1}.dax{stroke:#a99bff}.host{stroke:#9198a1}}";

/// One line of a plot.
struct Series<'a> {
    path: &'a str,
    /// Size and value, by size.
    points: Vec<(u64, u64)>,
}

fn series<'a>(plot: &Plot, report: &'a Report) -> Vec<Series<'a>> {
    let mut all: Vec<Series<'a>> = Vec::new();
    for row in &report.rows {
        if row.metric != plot.metric || row.region != "NPU" || rank(&row.path) >= KNOWN.len() {
            continue;
        }
        let point = (row.size, row.min);
        match all.iter_mut().find(|series| series.path == row.path) {
            Some(series) => series.points.push(point),
            None => all.push(Series {
                path: &row.path,
                points: vec![point],
            }),
        }
    }
    for series in &mut all {
        series.points.sort_unstable();
    }
    all.sort_by_key(|series| rank(series.path));
    all
}

/// Maps values to the picture.
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn at(&self, value: u64) -> f64 {
        let part = ((value as f64).ln() - self.from) / (self.to - self.from);
        self.start + part * (self.end - self.start)
    }
}

fn draw(plot: &Plot, report: &Report) -> String {
    let all = series(plot, report);
    let sizes: Vec<u64> = (0..).map(|power| GIB << power).take(8).collect();
    let values = || {
        all.iter()
            .flat_map(|series| series.points.iter().map(|point| point.1))
    };
    let largest = values().max().unwrap_or(1).max(1);
    let smallest = values().filter(|value| *value > 0).min().unwrap_or(1);
    let above = plot.steps.iter().copied().find(|step| *step >= largest);
    let below = plot
        .steps
        .iter()
        .rev()
        .copied()
        .find(|step| *step <= smallest);
    let bottom = below.unwrap_or(plot.steps[0]);
    let top = above.unwrap_or(largest).max(bottom * 4);
    let x = Scale {
        from: (sizes[0] as f64).ln(),
        to: (sizes[sizes.len() - 1] as f64).ln(),
        start: LEFT,
        end: RIGHT,
    };
    let y = Scale {
        from: (bottom as f64).ln(),
        to: (top as f64).ln(),
        start: BOTTOM,
        end: TOP,
    };
    let height = |value: u64| if value == 0 { ZERO } else { y.at(value) };

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->\n\
         <title>{}</title>\n<style>{STYLE}</style>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"22\">{}</text>\n",
        plot.title, plot.title
    );
    for size in &sizes {
        let at = x.at(*size);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            BOTTOM + 34.0,
            table::bytes(*size)
        );
    }
    for step in plot
        .steps
        .iter()
        .filter(|step| (bottom..=top).contains(step))
    {
        let at = y.at(*step);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            round(&(plot.unit)(*step))
        );
    }
    if values().any(|value| value == 0) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">0</text>",
            LEFT - 8.0,
            ZERO + 4.0
        );
    }
    for series in &all {
        let family = KNOWN[rank(series.path)].family;
        let points: Vec<String> = series
            .points
            .iter()
            .map(|(size, value)| format!("{:.1},{:.1}", x.at(*size), height(*value)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline class=\"line {family}\"{} points=\"{}\"/>",
            dashes(series.path),
            points.join(" ")
        );
        for (size, value) in &series.points {
            let _ = writeln!(
                svg,
                "{}",
                mark(series.path, family, x.at(*size), height(*value))
            );
        }
    }
    labels(
        &mut svg,
        &all,
        |point: (u64, u64)| (x.at(point.0), height(point.1)),
        plot,
    );
    svg += "</svg>\n";
    svg
}

/// The name and last value of each line, moved apart where lines end at one height.
fn labels(
    svg: &mut String,
    all: &[Series<'_>],
    place: impl Fn((u64, u64)) -> (f64, f64),
    plot: &Plot,
) {
    let mut ends: Vec<(f64, f64, f64, &Series<'_>)> = all
        .iter()
        .filter_map(|series| {
            let (x, y) = place(*series.points.last()?);
            Some((y, x, y, series))
        })
        .collect();
    ends.sort_by(|a, b| {
        a.2.total_cmp(&b.2)
            .then(rank(a.3.path).cmp(&rank(b.3.path)))
    });
    // Downwards each keeps its distance from the one above, upwards from the lower border.
    for index in 1..ends.len() {
        ends[index].0 = ends[index].0.max(ends[index - 1].0 + LABEL);
    }
    // The sizes below the axis keep their line.
    let mut limit = ZERO;
    for end in ends.iter_mut().rev() {
        end.0 = end.0.min(limit);
        limit = end.0 - LABEL;
    }
    for (label, x, y, series) in ends {
        let family = KNOWN[rank(series.path)].family;
        let value = series.points.last().map_or(0, |point| point.1);
        let _ = writeln!(
            svg,
            "<path class=\"leader {family}\" d=\"M{:.1} {y:.1}L{:.1} {label:.1}H{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}, {}</text>",
            x + 5.0,
            RIGHT + 8.0,
            RIGHT + 14.0,
            RIGHT + 18.0,
            label + 4.0,
            series.path,
            (plot.unit)(value)
        );
    }
}

/// A tick's text without digits behind the point, and in the unit of its neighbours.
fn round(text: &str) -> String {
    let text = text.replace("1,000 ns", "1 µs");
    text.replace(".00", "").replace(".0", "")
}

fn dashes(path: &str) -> &'static str {
    match path.rsplit(' ').next() {
        Some("4K") => " stroke-dasharray=\"2 3\"",
        Some("2M") => " stroke-dasharray=\"7 4\"",
        _ => "",
    }
}

fn mark(path: &str, family: &str, x: f64, y: f64) -> String {
    match path.rsplit(' ').next() {
        Some("4K") => format!(
            "<rect class=\"mark {family}\" x=\"{:.1}\" y=\"{:.1}\" width=\"6\" height=\"6\"/>",
            x - 3.0,
            y - 3.0
        ),
        Some("2M") => format!(
            "<path class=\"mark {family}\" d=\"M{x:.1} {:.1}l4 7h-8z\"/>",
            y - 4.0
        ),
        _ => format!("<circle class=\"mark {family}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use barbuf_measure::report::{Measurement, SCHEMA};

    fn report() -> Report {
        let mut rows = Vec::new();
        for (path, base) in [
            ("base sysfs 4K", 16 << 20),
            ("barbuf page 1G", 8 << 10),
            ("barbuf pfn 1G", 0),
        ] {
            for power in [0, 5, 7] {
                let measured = Measurement {
                    path: path.into(),
                    region: "NPU".into(),
                    size: GIB << power,
                    metric: Metric::StructPages,
                    samples: vec![base << power],
                };
                rows.push(measured.to_row());
            }
        }
        Report {
            schema: SCHEMA,
            kernel: String::new(),
            accel: String::new(),
            clock: String::new(),
            rows,
            answers: Vec::new(),
        }
    }

    #[test]
    fn a_plot_has_every_path_and_both_schemes() {
        let plots = all(&report());
        let (name, svg) = &plots[0];
        assert_eq!(*name, "struct-pages.svg");
        assert_eq!(svg.matches("<polyline").count(), 3);
        for text in [
            "base sysfs 4K, 2 GiB",
            "barbuf page 1G, 1 MiB",
            "barbuf pfn 1G, 0",
            "prefers-color-scheme:dark",
        ] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
        assert_eq!(title_of(svg), PLOTS[0].title);
    }

    #[test]
    fn ticks_of_one_axis_have_one_notation() {
        let ticks: Vec<_> = PLOTS[1]
            .steps
            .iter()
            .map(|step| round(&table::time(*step)))
            .collect();
        let wanted = [
            "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s",
        ];
        assert_eq!(ticks, wanted);
    }

    #[test]
    fn axes_are_logarithmic() {
        let scale = Scale {
            from: 1f64.ln(),
            to: 100f64.ln(),
            start: 0.0,
            end: 10.0,
        };
        assert!((scale.at(10) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn labels_do_not_cover_each_other() {
        let svg = &all(&report())[0].1;
        let mut heights: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("leader"))
            .filter_map(|line| line.rsplit_once("y=\"")?.1.split_once('"')?.0.parse().ok())
            .collect();
        heights.sort_by(f64::total_cmp);
        assert_eq!(heights.len(), 3);
        assert!(
            heights
                .windows(2)
                .all(|pair| pair[1] - pair[0] >= LABEL - 0.1),
            "{heights:?}"
        );
    }
}
