// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tests that need no virtual machine.

use anyhow::Result;

use crate::cli::TestArgs;
use crate::ctx::Ctx;
use crate::report::Report;

pub(crate) fn test(_ctx: &Ctx, _args: &TestArgs, _report: &mut Report<'_>) -> Result<()> {
    Ok(())
}
