// SPDX-License-Identifier: MIT OR Apache-2.0

//! Printing: tables and sentences for people, JSON for programs.
//!
//! Results go to standard output; notes, progress and errors to standard error. With `--json`
//! standard output carries exactly one document, also when the command fails.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::error::Error;

/// The number that every JSON document carries. It is raised when a member changes its meaning or
/// goes; members may be added without that.
pub const SCHEMA: u32 = 1;

#[derive(Clone, Debug)]
pub struct Out {
    json: bool,
    quiet: bool,
    verbose: u8,
    color: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tint {
    Good,
    Fair,
    Bad,
}

impl Out {
    pub fn new(global: &Global) -> Out {
        // https://no-color.org: set and not empty.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Out {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            color: !no_color && !global.json && io::stdout().is_terminal(),
        }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result: `value` for programs, `text` for people.
    pub fn result(&self, value: impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.document(serde_json::to_value(value).unwrap_or_default());
        } else {
            self.write(&text());
        }
    }

    /// The same where people need no word if all went well and they asked for quiet.
    pub fn done(&self, value: impl Serialize, text: impl FnOnce() -> String) {
        if self.json || !self.quiet {
            self.result(value, text);
        }
    }

    fn document(&self, value: Value) {
        let mut document = json!({ "schema": SCHEMA });
        if let (Some(to), Value::Object(from)) = (document.as_object_mut(), value) {
            to.extend(from);
        }
        self.write(&serde_json::to_string_pretty(&document).unwrap_or_default());
    }

    /// A closed pipe is not an error: `barbuf list | head -n 1`.
    fn write(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        let _ = writeln!(stdout, "{}", text.trim_end_matches('\n'));
        let _ = stdout.flush();
    }

    /// A remark for people.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", text.as_ref());
        }
    }

    /// What is done, for who asked to see it with `--verbose`.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose > 0 {
            eprintln!("{}", text.as_ref());
        }
    }

    pub fn error(&self, error: &Error) {
        if self.json {
            self.document(json!({
                "error": {
                    "exit": error.exit as u8,
                    "kind": error.exit.name(),
                    "message": error.message,
                    "hint": error.hint,
                }
            }));
        }
        eprintln!("barbuf: {}", error.message);
        if let Some(hint) = &error.hint {
            eprintln!("hint: {hint}");
        }
    }

    pub fn tinted(&self, tint: Tint, text: &str) -> String {
        let code = match tint {
            Tint::Good => 32,
            Tint::Fair => 33,
            Tint::Bad => 31,
        };
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A bar on standard error that shows how far something is, where a person looks at it.
    pub fn progress(&self, what: &str, bytes: u64) -> ProgressBar {
        let shown = !self.quiet && !self.json && io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(bytes), target);
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        if shown {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar
    }
}

/// A table without rules, as tools of this kind print them. Columns whose title begins with a `>`
/// are aligned to the right.
pub fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(titles.iter().map(|title| title.trim_start_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (index, title) in titles.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if title.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_titles() {
        let text = table(
            &["NAME", ">SIZE", "WHY"],
            [
                vec!["a".into(), "1 GiB".into(), "because".into()],
                vec!["longer".into(), "1 B".into(), String::new()],
            ],
        );
        assert_eq!(
            text,
            "NAME     SIZE  WHY\na       1 GiB  because\nlonger    1 B"
        );
    }
}
