// SPDX-License-Identifier: MIT OR Apache-2.0

//! Virtual machines: topologies, boot, guest tests, judging.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::{DemoArgs, ShellArgs, TestArgs};
use crate::ctx::Ctx;
use crate::report::Report;

pub(crate) fn demo(_ctx: &Ctx, _args: &DemoArgs) -> Result<ExitCode> {
    bail!("no virtual machine yet")
}

pub(crate) fn shell(_ctx: &Ctx, _args: &ShellArgs) -> Result<ExitCode> {
    bail!("no virtual machine yet")
}

pub(crate) fn test(_ctx: &Ctx, _args: &TestArgs, _report: &mut Report<'_>) -> Result<()> {
    bail!("no virtual machine yet")
}
