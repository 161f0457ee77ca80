// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command `barbuf`. See `barbuf help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(barbuf_cli::main(std::env::args_os()))
}
