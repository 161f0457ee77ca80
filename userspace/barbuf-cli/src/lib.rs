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

use cli::{Cli, Command};
use error::{Exit, Result};
use out::Out;
use sysfs::Sysfs;

/// Runs the command on these arguments, the program's name first.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. A closed pipe is nobody's loss.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage as u8
            } else {
                Exit::Ok as u8
            };
        }
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
