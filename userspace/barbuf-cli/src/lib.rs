// SPDX-License-Identifier: MIT OR Apache-2.0

//! The parts of the command `barbuf`: PCI BAR memory as dma-bufs, listed, exported, filled, handed
//! on and taken back.
//!
//! This library is the command's own. Programs use the crate `barbuf`.
//!
//! - [`cli`] is the command line as types, the one source of help, man pages and completions;
//! - [`sysfs`] tells what the machine has, [`bind`] changes it;
//! - [`out`] prints, for people or for programs; [`error`] has the exit codes;
//! - [`buffer`], [`export`], [`load`] make, fill and read buffers, [`copy`] moves their bytes;
//! - [`serve`] is the broker, [`rules`] are its rules, [`get`] is its client;
//! - [`doctor`] judges the machine, [`bench`](mod@bench) measures it.

pub mod bench;
pub mod bind;
pub mod broker;
pub mod buffer;
pub mod cli;
pub mod copy;
pub mod doctor;
pub mod error;
pub mod export;
pub mod get;
pub mod list;
pub mod load;
pub mod manual;
pub mod out;
pub mod rules;
pub mod serve;
pub mod size;
pub mod sysfs;
pub mod wire;

use clap::Parser as _;
use clap::error::ErrorKind;

use cli::{Cli, Command, Global};
use error::{Error, Exit, Result};
use out::Out;
use sysfs::Sysfs;

/// Runs the command on these arguments, the program's name first.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> u8 {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error, &arguments) as u8,
    };
    let out = Out::new(&cli.global);
    match run(&cli, &out) {
        Ok(exit) => exit,
        Err(error) => {
            out.error(&error);
            error.exit as u8
        }
    }
}

/// Help and version, which are no errors, or a line that says what is wrong with the command line.
fn not_understood(error: &clap::Error, arguments: &[std::ffi::OsString]) -> Exit {
    let mut ours = arguments.iter().take_while(|argument| *argument != "--");
    let json = ours.any(|argument| argument == "--json");
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || (is_help && !json) {
        // A closed pipe is nobody's loss.
        let _ = error.print();
        return if is_help { Exit::Usage } else { Exit::Ok };
    }
    let global = Global {
        json,
        quiet: false,
        verbose: 0,
        root: "/".into(),
    };
    let said = if is_help {
        Error::usage("no command is named").hint("barbuf help")
    } else {
        usage(&error.to_string())
    };
    Out::new(&global).error(&said);
    said.exit
}

/// What clap says in paragraphs: the first is the error, others are tips, or how to use the command.
fn usage(said: &str) -> Error {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = said.split("\n\n").map(one_line);
    let message = paragraphs.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let hint = paragraphs
        .filter_map(|text| text.split_once(": ").map(|(_, rest)| rest.to_owned()))
        .next();
    Error::usage(message).hint(hint.unwrap_or_else(|| "barbuf help".into()))
}

fn run(cli: &Cli, out: &Out) -> Result<u8> {
    let sysfs = Sysfs::new(&cli.global.root);
    match &cli.command {
        Command::List(args) => list::run(args, &sysfs, out),
        Command::Bind(args) => bind::bind(args, &sysfs, out),
        Command::Unbind(args) => bind::unbind(args, &sysfs, out),
        Command::Adopt(args) => buffer::adopt(args, &sysfs, out),
        Command::Release(args) => buffer::release(args, &sysfs, out),
        Command::Info(args) => buffer::info(args, out),
        Command::Export(args) => export::run(args, out),
        Command::Load(args) => load::run(args, out),
        Command::Dump(args) => load::dump(args, out),
        Command::Revoke(args) => buffer::revoke(args, out),
        Command::Route(args) => buffer::route(args, out),
        Command::Serve(args) => serve::run(args, out),
        Command::Get(args) => get::run(args, out),
        Command::Bench(args) => bench::run(args, &sysfs, out),
        Command::Doctor(args) => doctor::run(args, &sysfs, out),
        Command::Manual(args) => manual::run(args, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_line_is_one_line() {
        for (arguments, message, hint) in [
            (
                &["barbuf", "bind"][..],
                "the following required arguments were not provided: <DEVICE>",
                "barbuf bind <DEVICE>",
            ),
            (
                &["barbuf", "bidn"],
                "unrecognized subcommand 'bidn'",
                "a similar subcommand exists: 'bind'",
            ),
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            let error = usage(&error.to_string());
            assert_eq!(
                (error.message.as_str(), error.hint.as_deref()),
                (message, Some(hint))
            );
        }
    }
}
