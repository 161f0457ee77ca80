// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that this one runs: they die with it, their output is kept, and an error shows the
//! end of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::{prctl, signal::Signal};

use crate::ctx::Ctx;

/// How many lines of a log an error shows.
const TAIL: usize = 15;

/// The file that takes the output of the programs of one step.
#[derive(Debug)]
pub(crate) struct Log<'a> {
    ctx: &'a Ctx,
    path: PathBuf,
}

impl<'a> Log<'a> {
    /// Begins a log, in the place of one from an earlier run.
    pub(crate) fn create(ctx: &'a Ctx, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        make_dir(path.parent().unwrap_or(Path::new("/")))?;
        File::create(&path).with_context(|| format!("cannot write {}", ctx.show(&path)))?;
        Ok(Log { ctx, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a program to its end. `what` says in an error what went wrong.
    pub(crate) fn run(&self, command: &mut Command, what: &str) -> Result<()> {
        self.watch(command, what, |_| ())
    }

    /// Like [`Log::run`], and shows each line of the output to `line`.
    pub(crate) fn watch(
        &self,
        command: &mut Command,
        what: &str,
        line: impl FnMut(&str),
    ) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let status = self.wait(command, line)?;
        if status.success() {
            return Ok(());
        }
        if self.text()?.contains("No space left on device") {
            bail!(
                "{what}: the disk is full\n\
                 hint: free some space; what was done so far is kept (log: {})",
                self.ctx.show(&self.path)
            );
        }
        self.show_end()?;
        bail!(
            "{what} ({program}: {status})\nhint: the whole log is {}",
            self.ctx.show(&self.path)
        )
    }

    /// Runs a program whose failure is not an error by itself.
    pub(crate) fn quiet(&self, command: &mut Command) -> Result<ExitStatus> {
        self.wait(command, |_| ())
    }

    fn wait(&self, command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
        let open = || {
            File::options()
                .append(true)
                .open(&self.path)
                .with_context(|| format!("cannot write {}", self.ctx.show(&self.path)))
        };
        let mut reader = BufReader::new(File::open(&self.path)?);
        reader.seek(SeekFrom::End(0))?;
        let mut child = die_with_us(command)
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        let mut pause = Duration::from_millis(5);
        loop {
            let ended = child.try_wait()?;
            let mut text = Vec::new();
            while reader.read_until(b'\n', &mut text)? > 0 {
                line(String::from_utf8_lossy(&text).trim_end());
                text.clear();
            }
            if let Some(status) = ended {
                return Ok(status);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    fn text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.path)?).into_owned())
    }

    /// Prints the part of the log that says what went wrong.
    pub(crate) fn show_end(&self) -> Result<()> {
        for line in tail(&self.text()?) {
            self.ctx.ui.line(&format!("    {line}"));
        }
        Ok(())
    }
}

/// The lines that say what went wrong: those around the first compiler error, else the last.
fn tail(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().position(|line| {
        line.contains(" error: ") || line.starts_with("error") || line.contains(" Error ")
    });
    let start = first.map_or(lines.len().saturating_sub(TAIL), |at| at.saturating_sub(2));
    lines[start..].iter().copied().take(TAIL).collect()
}

/// A program that is killed when this one ends, however it ends.
pub(crate) fn die_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: the closure makes one system call and touches no memory of the parent, so that it
    // may run between fork and exec.
    unsafe {
        command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
    command
}

/// The standard output of a program that only answers a question.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = die_with_us(command)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed no UTF-8"))
}

pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_shown_not_the_last_lines() {
        let mut text = String::from("  CC a.o\nb.c:1:2: error: no such thing\n");
        text += &"  CC z.o\n".repeat(100);
        let shown = tail(&text);
        assert_eq!(shown[1], "b.c:1:2: error: no such thing");
        assert_eq!(shown.len(), TAIL);
    }

    #[test]
    fn without_an_error_the_end_is_shown() {
        let text = "a\n".repeat(100) + "99\n";
        assert_eq!(tail(&text).last(), Some(&"99"));
        assert_eq!(tail(""), Vec::<&str>::new());
    }
}
