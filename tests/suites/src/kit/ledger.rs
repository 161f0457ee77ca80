// SPDX-License-Identifier: MIT OR Apache-2.0

//! What there is of the module at one time, to see afterwards whether something was left.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use barbuf_guest::modules;
use barbuf_guest::sysfs::{self, dma_buf_count};
use barbuf_measure::memory::{pinned_pages, struct_page_bytes};

use super::pci::wait_until;
use super::process::open_fds;
use crate::support::{Ctx, ensure_eq};

/// Everything that is counted. Two of the same machine are equal if nothing was left in between.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Each region of each provider with its free bytes, and how many buffers count against the limit.
    providers: String,
    nodes: Vec<PathBuf>,
    buffers: String,
    attachments: String,
    dma_bufs: u64,
    /// Open files, mappings, and whatever else keeps the module.
    references: u32,
    /// Of this process.
    fds: usize,
    struct_page_bytes: u64,
    /// Of all memory.
    pinned_pages: i64,
}

impl Ledger {
    pub(crate) fn take(ctx: &Ctx) -> Result<Ledger> {
        Ok(Ledger {
            providers: debug_file("providers")?,
            nodes: barbuf::Device::paths()?,
            buffers: debug_file("buffers")?,
            attachments: debug_file("attachments")?,
            dma_bufs: dma_buf_count()?,
            references: modules::references(ctx.product())?,
            fds: open_fds()?,
            struct_page_bytes: struct_page_bytes()?,
            pinned_pages: pinned_pages()?,
        })
    }

    /// Waits until all is as it was: much of what a process leaves is given back after its end.
    pub(crate) fn wait_until_again(&self, ctx: &Ctx) -> Result<()> {
        let same = || Ledger::take(ctx).is_ok_and(|now| now == *self);
        if let Err(error) = wait_until("all as it was before", same) {
            ensure_eq!(Ledger::take(ctx)?, *self);
            return Err(error);
        }
        Ok(())
    }
}

/// How many buffers and attachments there are.
pub(crate) fn live() -> Result<(usize, usize)> {
    // A line says what the columns are.
    let rows = |text: String| text.lines().filter(|line| !line.starts_with('#')).count();
    Ok((
        rows(debug_file("buffers")?),
        rows(debug_file("attachments")?),
    ))
}

fn debug_file(name: &str) -> Result<String> {
    let path = format!("/sys/kernel/debug/barbuf/{name}");
    sysfs::read(&path).with_context(|| path)
}
