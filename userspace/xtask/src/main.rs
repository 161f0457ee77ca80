// SPDX-License-Identifier: MIT OR Apache-2.0

//! The build and test driver of barbuf.
//!
//! It runs inside the toolchain root file system (`userspace/toolchain/enter.sh`), where the
//! repository is `/barbuf` and the cache is `/cache`. The top-level Makefile is a thin layer
//! over it.

mod cache;
mod cli;
mod cmd;
mod ctx;
mod host;
mod kernel;
mod lint;
mod model;
mod module;
mod report;
mod ui;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Command};
use ctx::Ctx;
use report::Report;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ctx = match Ctx::from_env() {
        Ok(ctx) => ctx,
        Err(error) => return ui::fail(&error),
    };
    match run(&ctx, &cli.command) {
        Ok(code) => code,
        Err(error) => {
            ctx.ui.summary();
            ui::fail(&error)
        }
    }
}

fn run(ctx: &Ctx, command: &Command) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => vm::demo(ctx, args),
        Command::Figures(args) => vm::figures(ctx, args),
        Command::Compare(args) => vm::compare(ctx, args),
        Command::Shell(args) => vm::shell(ctx, args),
        Command::Test(args) => {
            let mut report = Report::new(ctx, &args.json);
            host::test(ctx, args, &mut report)?;
            vm::test(ctx, args, &mut report)?;
            report.keep_promise(&args.promised());
            ctx.ui.summary();
            report.finish()
        }
        Command::Kernel(args) => {
            let kernel = kernel::ensure(args.flavour, ctx)?;
            println!("{}", serde_json::to_string_pretty(&kernel)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Modules(args) => {
            let kernel = kernel::ensure(args.kernel, ctx)?;
            for module in module::build(&kernel, ctx)?.modules {
                println!("{}", module.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Product => vm::command(ctx),
        Command::Update => {
            kernel::update(ctx)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Lint => lint::lint(ctx),
        Command::Fmt => lint::fmt(ctx),
    }
}
