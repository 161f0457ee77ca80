// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a person sees: steps with their elapsed time, plain lines, errors, where the time went.
//!
//! On a terminal a running step is one line that is redrawn in place. Elsewhere it is a line at
//! its start, one at its end, and a heartbeat between them, so that a log of CI never looks stuck.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a running step says so where the output is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How often the progress line on a terminal is redrawn.
const REDRAW: Duration = Duration::from_millis(500);

/// The one place that writes to the user. Clones write to the same place.
#[derive(Clone, Debug)]
pub(crate) struct Ui {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    terminal: bool,
    started: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    steps: Vec<Entry>,
    /// Indices into `steps` of those that run, outermost first.
    running: Vec<usize>,
    /// A progress line stands on the terminal and must be wiped before anything else is printed.
    drawn: bool,
    /// What was spent before this program began.
    before: Duration,
    /// Standard output belongs to a program that reads it: people are told on standard error.
    reserved: bool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    note: String,
    depth: usize,
    started: Instant,
    last_beat: Instant,
    took: Option<Duration>,
}

/// A piece of work that takes long enough to be watched. Dropped before [`Step::done`], it is
/// reported as having failed.
#[derive(Debug)]
pub(crate) struct Step {
    ui: Ui,
    index: usize,
    loud: bool,
    finished: bool,
}

impl Ui {
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared {
            terminal: io::stdout().is_terminal() && io::stderr().is_terminal(),
            started: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let background = Arc::clone(&shared);
        thread::spawn(move || background.tick());
        Ui { shared }
    }

    /// Keeps standard output free for data.
    pub(crate) fn reserve_stdout(&self) {
        self.shared.lock().reserved = true;
    }

    /// Prints lines for a person, above any progress line.
    pub(crate) fn line(&self, text: &str) {
        let mut state = self.shared.lock();
        state.print(text);
        self.shared.draw(&mut state);
    }

    /// Begins a step. Steps nest.
    pub(crate) fn step(&self, name: impl Into<String>) -> Step {
        self.begin(name.into(), true)
    }

    /// Begins a step that prints nothing but its progress: the caller tells how it ended.
    pub(crate) fn quiet_step(&self, name: impl Into<String>) -> Step {
        self.begin(name.into(), false)
    }

    fn begin(&self, name: String, loud: bool) -> Step {
        let mut state = self.shared.lock();
        let now = Instant::now();
        let entry = Entry {
            name,
            note: String::new(),
            depth: state.running.len(),
            started: now,
            last_beat: now,
            took: None,
        };
        if loud && !self.shared.terminal {
            let text = format!("{}{} ...", indent(entry.depth), entry.name);
            state.print(&text);
        }
        let index = state.steps.len();
        state.steps.push(entry);
        state.running.push(index);
        self.shared.draw(&mut state);
        self.shared.changed.notify_one();
        Step {
            ui: self.clone(),
            index,
            loud,
            finished: false,
        }
    }

    /// Enters a step that ended before this program ran into the table.
    pub(crate) fn past_step(&self, name: &str, took: Duration) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        state.before += took;
        state.steps.push(Entry {
            name: name.into(),
            note: String::new(),
            depth: 0,
            started: now,
            last_beat: now,
            took: Some(took),
        });
    }

    /// Prints where the time went.
    pub(crate) fn summary(&self) {
        let state = self.shared.lock();
        let rows: Vec<(String, Duration)> = state
            .steps
            .iter()
            .filter_map(|step| Some((indent(step.depth) + &step.name, step.took?)))
            .filter(|(_, took)| *took >= Duration::from_millis(100))
            .collect();
        drop(state);
        if rows.is_empty() {
            return;
        }
        let width = rows.iter().map(|(name, _)| name.chars().count()).max();
        let width = width.unwrap_or(0).max("total".len());
        let mut table = String::from("\nwhere the time went\n");
        for (name, took) in rows {
            table += &format!("  {name:<width$}  {:>9}\n", clock(took));
        }
        table += &format!("  {:<width$}  {:>9}\n", "total", clock(self.elapsed()));
        self.line(&table);
    }

    /// Since this program, or the script that called it, began.
    fn elapsed(&self) -> Duration {
        self.shared.started.elapsed() + self.shared.lock().before
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is only text and times: after a panic elsewhere it still serves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The background thread: redraws, or gives a sign of life.
    fn tick(&self) {
        let period = if self.terminal { REDRAW } else { HEARTBEAT / 6 };
        let mut state = self.lock();
        loop {
            state = if state.running.is_empty() {
                self.changed.wait(state)
            } else {
                let wait = self.changed.wait_timeout(state, period);
                wait.map(|(state, _)| state)
                    .map_err(|e| PoisonError::new(e.into_inner().0))
            }
            .unwrap_or_else(PoisonError::into_inner);
            if self.terminal {
                self.draw(&mut state);
            } else {
                state.heartbeat();
            }
        }
    }

    /// Draws the progress line of the innermost step.
    fn draw(&self, state: &mut State) {
        let Some(&index) = state.running.last().filter(|_| self.terminal) else {
            return;
        };
        let step = &state.steps[index];
        let text = step.progress();
        eprint!("\r\x1b[2K{text}");
        // Standard error may be gone with the terminal; there is nobody left to tell then.
        let _ = io::stderr().flush();
        state.drawn = true;
    }
}

impl State {
    /// Removes the progress line.
    fn wipe(&mut self) {
        if self.drawn {
            eprint!("\r\x1b[2K");
            self.drawn = false;
        }
    }

    fn print(&mut self, text: &str) {
        self.wipe();
        // A reader that went away (`make test | head`) is no reason to end the work.
        let _ = if self.reserved {
            writeln!(io::stderr(), "{text}")
        } else {
            writeln!(io::stdout(), "{text}")
        };
    }

    fn heartbeat(&mut self) {
        let Some(&index) = self.running.last() else {
            return;
        };
        let step = &mut self.steps[index];
        if step.last_beat.elapsed() >= HEARTBEAT {
            step.last_beat = Instant::now();
            let text = step.progress();
            self.print(&text);
        }
    }
}

impl Entry {
    fn progress(&self) -> String {
        let note = if self.note.is_empty() {
            String::new()
        } else {
            format!("  {}", self.note)
        };
        format!(
            "{}{} ... {}{note}",
            indent(self.depth),
            self.name,
            clock(self.started.elapsed())
        )
    }
}

impl Step {
    /// Says how far the step has come.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.ui.shared.lock().steps[self.index].note = text.into();
    }

    /// Ends the step well and says how long it took.
    pub(crate) fn done(mut self) -> Duration {
        self.finished = true;
        self.end("done")
    }

    fn end(&self, word: &str) -> Duration {
        let mut state = self.ui.shared.lock();
        let step = &mut state.steps[self.index];
        let took = step.started.elapsed();
        step.took = Some(took);
        let text = format!(
            "{}{}: {word} in {}",
            indent(step.depth),
            step.name,
            clock(took)
        );
        state.running.retain(|&running| running != self.index);
        if self.loud {
            state.print(&text);
        } else {
            state.wipe();
        }
        self.ui.shared.draw(&mut state);
        took
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.end("failed");
        }
    }
}

/// Prints an error as one line, its causes joined, with its hint below, and says how to exit.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    let mut messages = Vec::new();
    let mut hints = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        let (hint, message): (Vec<&str>, Vec<&str>) =
            cause.lines().partition(|line| line.starts_with("hint: "));
        messages.push(message.join("\n  "));
        hints.extend(hint.into_iter().map(str::to_owned));
    }
    eprintln!("error: {}", messages.join(": "));
    for hint in hints {
        eprintln!("{hint}");
    }
    ExitCode::FAILURE
}

fn indent(depth: usize) -> String {
    "  ".repeat(depth)
}

/// `0.4 s`, `12.3 s`, `2:05 min`, `1:02:03 h`.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!(
            "{}:{:02}:{:02} h",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_reads_like_a_clock() {
        assert_eq!(clock(Duration::from_millis(420)), "0.4 s");
        assert_eq!(clock(Duration::from_secs(125)), "2:05 min");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03 h");
    }
}
