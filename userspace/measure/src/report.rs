// SPDX-License-Identifier: MIT OR Apache-2.0

//! The report: rows of numbers, answers in words, as JSON.

use serde::{Deserialize, Serialize};

/// Raised when a member changes its meaning.
pub const SCHEMA: u32 = 1;

/// What precedes a measurement where a guest's test says it to the host.
const PREFIX: &str = "measured ";
const ANSWER_PREFIX: &str = "answered ";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Memory for struct pages that registering the device's memory takes.
    StructPages,
    /// Page tables of a mapping that was touched.
    PageTables,
    /// Making the device's memory available: binding the driver, and what else must happen once.
    Register,
    /// Getting a buffer once there are struct pages, where that is a call of its own.
    Export,
    Mmap,
    /// A byte of every leaf, for the first time.
    Touch,
    MmapTouch,
    /// The same bytes again.
    Retouch,
    Munmap,
    /// Giving the buffer back.
    Close,
    /// fork(2) until the child has touched every leaf.
    ForkTouch,
    /// Sending the descriptor until another process has mapped it and touched every leaf.
    SendMapTouch,
    /// pread(2) of 4 KiB with O_DIRECT: processor time of the caller.
    #[serde(rename = "direct_4k_processor")]
    Direct4kProcessor,
    #[serde(rename = "direct_1m_processor")]
    Direct1mProcessor,
    /// The same until the call returns.
    #[serde(rename = "direct_4k")]
    Direct4k,
    #[serde(rename = "direct_1m")]
    Direct1m,
    /// Finding and pinning the pages of the same call.
    #[serde(rename = "direct_4k_pin")]
    Direct4kPin,
    #[serde(rename = "direct_1m_pin")]
    Direct1mPin,
    /// Marking them as written, and letting go of them.
    #[serde(rename = "direct_4k_unpin")]
    Direct4kUnpin,
    #[serde(rename = "direct_1m_unpin")]
    Direct1mUnpin,
    /// Attaching another device and mapping everything for its DMA.
    AttachMap,
    /// Entries of the scatterlist that this gives.
    SgEntries,
    /// Taking the memory back while it is mapped, by the interface for that.
    Revoke,
    /// Unbinding the driver while the memory is mapped.
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Ns,
    Bytes,
    Count,
}

impl Metric {
    /// In the order of columns.
    pub const ALL: [Metric; 24] = [
        Metric::StructPages,
        Metric::PageTables,
        Metric::Register,
        Metric::Export,
        Metric::Mmap,
        Metric::Touch,
        Metric::MmapTouch,
        Metric::Retouch,
        Metric::Munmap,
        Metric::Close,
        Metric::ForkTouch,
        Metric::SendMapTouch,
        Metric::Direct4kProcessor,
        Metric::Direct1mProcessor,
        Metric::Direct4k,
        Metric::Direct1m,
        Metric::Direct4kPin,
        Metric::Direct1mPin,
        Metric::Direct4kUnpin,
        Metric::Direct1mUnpin,
        Metric::AttachMap,
        Metric::SgEntries,
        Metric::Revoke,
        Metric::Remove,
    ];

    pub fn unit(self) -> Unit {
        match self {
            Metric::StructPages | Metric::PageTables => Unit::Bytes,
            Metric::SgEntries => Unit::Count,
            _ => Unit::Ns,
        }
    }

    /// Whether the median says more than the minimum: a drive has a part in it, and now and then saves the caller
    /// something, by an answer at the right moment.
    pub fn varies(self) -> bool {
        matches!(
            self,
            Metric::Direct4kProcessor
                | Metric::Direct1mProcessor
                | Metric::Direct4k
                | Metric::Direct1m
        )
    }

    /// The head of its column.
    pub fn label(self) -> &'static str {
        match self {
            Metric::StructPages => "struct pages",
            Metric::PageTables => "page tables",
            Metric::Register => "register",
            Metric::Export => "export",
            Metric::Mmap => "mmap",
            Metric::Touch => "first touch",
            Metric::MmapTouch => "mmap+touch",
            Metric::Retouch => "2nd touch",
            Metric::Munmap => "munmap",
            Metric::Close => "close",
            Metric::ForkTouch => "fork+touch",
            Metric::SendMapTouch => "send+map",
            Metric::Direct4kProcessor => "4K O_DIRECT cpu",
            Metric::Direct1mProcessor => "1M O_DIRECT cpu",
            Metric::Direct4k => "4K O_DIRECT",
            Metric::Direct1m => "1M O_DIRECT",
            Metric::Direct4kPin => "4K pin",
            Metric::Direct1mPin => "1M pin",
            Metric::Direct4kUnpin => "4K unpin",
            Metric::Direct1mUnpin => "1M unpin",
            Metric::AttachMap => "attach+map",
            Metric::SgEntries => "SG entries",
            Metric::Revoke => "revoke",
            Metric::Remove => "remove",
        }
    }
}

/// One quantity of one path, with all that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurement {
    /// How the memory is mapped: `barbuf page 1G`.
    pub path: String,
    /// Which memory: `NPU`, `CMB`.
    pub region: String,
    /// Bytes.
    pub size: u64,
    pub metric: Metric,
    /// In the order in which they were taken; never empty.
    pub samples: Vec<u64>,
}

/// The same as the report has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub path: String,
    pub region: String,
    pub size: u64,
    pub metric: Metric,
    pub unit: Unit,
    pub min: u64,
    pub median: u64,
    pub max: u64,
    pub runs: usize,
}

/// How a path answers to a call that is not about time: in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub path: String,
    pub region: String,
    /// What was done: `smaps`, `partial_munmap`.
    pub what: String,
    pub verdict: Verdict,
    /// More about it, for people; may be empty.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It works, and every byte is what and where it should be.
    Ok,
    /// An errno, and nothing has changed.
    Refused,
    /// The path has no such thing.
    Absent,
    /// A process loses its mapping: SIGBUS where memory should be.
    Sigbus,
    /// Wrong data, a stale mapping, a leak, a complaint of the kernel.
    Broken,
    /// The call, or what must come after it, never ends.
    Hangs,
    /// The kernel dies.
    Panic,
}

impl Verdict {
    /// Whether nobody is harmed.
    pub fn is_harmless(self) -> bool {
        matches!(self, Verdict::Ok | Verdict::Refused | Verdict::Absent)
    }

    pub fn label(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Refused => "refused",
            Verdict::Absent => "-",
            Verdict::Sigbus => "SIGBUS",
            Verdict::Broken => "broken",
            Verdict::Hangs => "hangs",
            Verdict::Panic => "panic",
        }
    }
}

/// All of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    /// `uname -r`.
    pub kernel: String,
    /// What executes the machine's instructions: an emulator, a hypervisor, the hardware.
    pub accel: String,
    /// What a nanosecond is.
    pub clock: String,
    pub rows: Vec<Row>,
    #[serde(default)]
    pub answers: Vec<Answer>,
}

impl Measurement {
    /// The line that carries it.
    pub fn to_line(&self) -> serde_json::Result<String> {
        Ok(format!("{PREFIX}{}", serde_json::to_string(self)?))
    }

    /// The measurement that a line carries; None if the line is of another kind.
    pub fn from_line(line: &str) -> Option<Measurement> {
        let found: Measurement = serde_json::from_str(line.strip_prefix(PREFIX)?).ok()?;
        (!found.samples.is_empty()).then_some(found)
    }

    pub fn to_row(&self) -> Row {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        Row {
            path: self.path.clone(),
            region: self.region.clone(),
            size: self.size,
            metric: self.metric,
            unit: self.metric.unit(),
            min: at(0),
            // The upper one of the two in the middle, if there are two.
            median: at(sorted.len() / 2),
            max: at(sorted.len().saturating_sub(1)),
            runs: sorted.len(),
        }
    }
}

impl Answer {
    /// The line that carries it.
    pub fn to_line(&self) -> serde_json::Result<String> {
        Ok(format!("{ANSWER_PREFIX}{}", serde_json::to_string(self)?))
    }

    /// The answer that a line carries; None if the line is of another kind.
    pub fn from_line(line: &str) -> Option<Answer> {
        serde_json::from_str(line.strip_prefix(ANSWER_PREFIX)?).ok()
    }
}

impl Row {
    /// What tables show: the minimum, or where that varies the median.
    pub fn value(&self) -> u64 {
        match self.metric.varies() {
            true => self.median,
            false => self.min,
        }
    }
}

impl Report {
    /// What tables show of one quantity.
    pub fn value(&self, path: &str, region: &str, size: u64, metric: Metric) -> Option<u64> {
        self.row(path, region, size, metric).map(Row::value)
    }

    /// The minimum of one quantity.
    pub fn min(&self, path: &str, region: &str, size: u64, metric: Metric) -> Option<u64> {
        self.row(path, region, size, metric).map(|row| row.min)
    }

    pub fn row(&self, path: &str, region: &str, size: u64, metric: Metric) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.path == path && row.region == region && row.size == size && row.metric == metric
        })
    }

    pub fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// # Errors
    ///
    /// Also for a report of another schema.
    pub fn from_json(text: &str) -> anyhow::Result<Report> {
        let report: Report = serde_json::from_str(text)?;
        anyhow::ensure!(
            report.schema == SCHEMA,
            "a report of schema {}, where {SCHEMA} is known",
            report.schema
        );
        Ok(report)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn measured(path: &str, size: u64, metric: Metric, samples: &[u64]) -> Measurement {
        Measurement {
            path: path.into(),
            region: "NPU".into(),
            size,
            metric,
            samples: samples.into(),
        }
    }

    pub(crate) fn report(measurements: &[Measurement]) -> Report {
        Report {
            schema: SCHEMA,
            kernel: "7.3.4".into(),
            accel: "TCG".into(),
            clock: "instructions".into(),
            rows: measurements.iter().map(Measurement::to_row).collect(),
            answers: Vec::new(),
        }
    }

    #[test]
    fn lines_carry_measurements() {
        let sent = measured("p", 1, Metric::Direct4kProcessor, &[3, 1, 2]);
        let line = sent.to_line().unwrap();
        assert_eq!(Measurement::from_line(&line), Some(sent));
        let none = measured("p", 1, Metric::Mmap, &[]).to_line().unwrap();
        assert_eq!(Measurement::from_line(&none), None);
        assert_eq!(Measurement::from_line("measured nothing"), None);
    }

    #[test]
    fn rows_have_minimum_median_maximum() {
        let row = measured("p", 1, Metric::PageTables, &[5, 1, 9]).to_row();
        assert_eq!(
            (row.min, row.median, row.max, row.runs, row.unit),
            (1, 5, 9, 3, Unit::Bytes)
        );
    }

    #[test]
    fn json_has_the_documented_form() {
        let report = report(&[measured("barbuf page 1G", 64, Metric::MmapTouch, &[7])]);
        let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(json["schema"], 1);
        let row = &json["rows"][0];
        for (name, value) in [
            ("path", "barbuf page 1G".into()),
            ("region", "NPU".into()),
            ("size", 64.into()),
            ("metric", "mmap_touch".into()),
            ("unit", serde_json::Value::from("ns")),
            ("min", 7.into()),
            ("median", 7.into()),
            ("max", 7.into()),
            ("runs", 1.into()),
        ] {
            assert_eq!(row[name], value, "{name}");
        }
        assert_eq!(
            Report::from_json(&report.to_json().unwrap()).unwrap(),
            report
        );
    }

    #[test]
    fn another_schema_is_refused() {
        let mut other = report(&[]);
        other.schema = 2;
        let error = Report::from_json(&other.to_json().unwrap()).unwrap_err();
        assert!(error.to_string().contains("schema 2"), "{error}");
    }

    #[test]
    fn every_metric_has_a_column() {
        let mut labels: Vec<&str> = Metric::ALL.iter().map(|metric| metric.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Metric::ALL.len());
    }
}
