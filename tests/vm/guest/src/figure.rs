// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a benchmark in the guest tells the host: one quantity, measured several times.

use serde::{Deserialize, Serialize};

/// What precedes a figure where a test says it to the person at the host.
const PREFIX: &str = "figure ";

/// One measured quantity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub unit: Unit,
    /// In the order in which they were taken; never empty.
    pub samples: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Nanoseconds of guest time, which are guest instructions under icount.
    Ns,
    /// Pages of memory, 4 KiB each.
    Pages,
    /// Entries of a scatterlist.
    Entries,
}

impl Unit {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Ns => "ns",
            Unit::Pages => "pages",
            Unit::Entries => "entries",
        }
    }
}

impl Figure {
    /// The line that carries it.
    pub fn to_line(&self) -> serde_json::Result<String> {
        Ok(format!("{PREFIX}{}", serde_json::to_string(self)?))
    }

    /// The figure that a line carries; None if the line is of another kind.
    pub fn from_line(line: &str) -> Option<Figure> {
        let figure: Figure = serde_json::from_str(line.strip_prefix(PREFIX)?).ok()?;
        (!figure.samples.is_empty()).then_some(figure)
    }

    /// The smallest sample: what the work costs when nothing comes in between.
    pub fn min(&self) -> u64 {
        self.samples.iter().copied().min().unwrap_or_default()
    }

    pub fn max(&self) -> u64 {
        self.samples.iter().copied().max().unwrap_or_default()
    }

    /// The upper one of the two in the middle, if there are two.
    pub fn median(&self) -> u64 {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(samples: &[u64]) -> Figure {
        Figure {
            name: "first_touch".into(),
            unit: Unit::Ns,
            samples: samples.into(),
        }
    }

    #[test]
    fn lines_carry_figures() {
        let sent = figure(&[3, 1, 2]);
        let line = sent.to_line().unwrap();
        assert!(line.starts_with("figure {"), "{line}");
        assert_eq!(Figure::from_line(&line), Some(sent));
    }

    #[test]
    fn other_lines_do_not() {
        assert_eq!(Figure::from_line("figure skating"), None);
        assert_eq!(
            Figure::from_line(r#"{"name":"a","unit":"ns","samples":[1]}"#),
            None
        );
        assert_eq!(Figure::from_line(&figure(&[]).to_line().unwrap()), None);
    }

    #[test]
    fn minimum_median_maximum() {
        let of = |samples: &[u64]| {
            let figure = figure(samples);
            (figure.min(), figure.median(), figure.max())
        };
        assert_eq!(of(&[5, 1, 9]), (1, 5, 9));
        assert_eq!(of(&[4, 2]), (2, 4, 4));
        assert_eq!(of(&[7]), (7, 7, 7));
    }
}
