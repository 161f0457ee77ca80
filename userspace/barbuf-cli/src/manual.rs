// SPDX-License-Identifier: MIT OR Apache-2.0

//! Manual pages and completions, from the same types as the command line itself.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use serde_json::json;

use crate::cli::{Cli, ManualArgs};
use crate::error::{EXIT_CODES, Error, Exit, Result};
use crate::out::Out;

/// # Errors
///
/// The directory cannot be written to.
pub fn run(args: &ManualArgs, out: &Out) -> Result<u8> {
    let dir = &args.directory;
    let failed = |error: io::Error| Error::io("write to", dir, &error);
    fs::create_dir_all(dir).map_err(failed)?;
    let mut command = Cli::command();
    command.build();
    let mut written = pages(&command, dir).map_err(failed)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let path = generate_to(shell, &mut command, "barbuf", dir).map_err(failed)?;
        written.push(path.display().to_string());
    }
    out.done(json!({ "written": written }), || written.join("\n"));
    Ok(Exit::Ok as u8)
}

/// `barbuf.1`, and a page for each command that people see.
fn pages(command: &clap::Command, dir: &Path) -> io::Result<Vec<String>> {
    let mut written = Vec::new();
    let visible = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    for part in std::iter::once(command).chain(visible) {
        let name = part
            .get_display_name()
            .map_or_else(|| part.get_name().to_owned(), |name| name.replace(' ', "-"));
        let path = dir.join(format!("{name}.1"));
        let mut file = File::create(&path)?;
        file.write_all(&page(part.clone().name(name.clone()))?)?;
        written.push(path.display().to_string());
    }
    Ok(written)
}

fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let man = Man::new(command.clone());
    // Not `render_title`: it drops a date that is empty, and what follows takes its place.
    let (name, version) = (command.get_name(), env!("CARGO_PKG_VERSION"));
    writeln!(
        bytes,
        r#".TH {name} 1 "" "barbuf {version}" "User Commands""#
    )?;
    man.render_name_section(&mut bytes)?;
    man.render_synopsis_section(&mut bytes)?;
    man.render_description_section(&mut bytes)?;
    man.render_options_section(&mut bytes)?;
    man.render_subcommands_section(&mut bytes)?;
    if command.get_after_long_help().is_some() {
        man.render_extra_section(&mut bytes)?;
    }
    let mut codes = Roff::new();
    codes.control("SH", ["EXIT STATUS"]);
    for (exit, meaning) in EXIT_CODES {
        codes.control("TP", []);
        codes.text([bold((*exit as u8).to_string())]);
        codes.text([roman(meaning.replace('`', ""))]);
    }
    codes.control("PP", []);
    codes.text([roman(
        "export and get with a command end as that command ends, with its exit status.",
    )]);
    codes.control("SH", ["ENVIRONMENT"]);
    codes.control("TP", []);
    codes.text([bold("NO_COLOR")]);
    codes.text([roman("If set and not empty, nothing is coloured.")]);
    codes.to_writer(&mut bytes)?;
    man.render_version_section(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_each_command_with_all_exit_codes() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Cli::command();
        command.build();
        let written = pages(&command, dir.path()).unwrap();
        assert!(written.len() > 4, "{written:?}");
        for path in written {
            let text = fs::read_to_string(&path).unwrap();
            let name = Path::new(&path).file_stem().unwrap().to_str().unwrap();
            let version = env!("CARGO_PKG_VERSION");
            let title = format!(".TH {name} 1 \"\" \"barbuf {version}\" \"User Commands\"");
            assert!(text.lines().any(|line| line == title), "{path}");
            assert!(text.contains(".SH NAME"), "{path}");
            for (exit, _) in EXIT_CODES {
                assert!(text.contains(&format!("\\fB{}\\fR", *exit as u8)), "{path}");
            }
        }
    }
}
