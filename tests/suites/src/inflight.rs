// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that is taken away while a drive reads into it.
//!
//! Reads that were let in finish, in bounded time; nobody gets the bytes before; and what is found
//! there later is what was there before or what the drive sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use barbuf_guest::protocol::HostOp;
use barbuf_guest::sysfs;
use serde_json::json;

use crate::adopt::the_drive_is_back;
use crate::kit::drive::{block_device, open_direct, read_into};
use crate::kit::pattern::word;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::process::{PROMPT, within};
use crate::odirect::prepared_drive;

pub(crate) const SUITE: Suite = Suite {
    name: "inflight",
    tests: &[
        test!(direct_io_in_flight_while_revoked).timeout(120),
        test!(direct_io_in_flight_while_unbound).timeout(120),
        test!(bytes_come_back_after_the_last_page_pin).timeout(120),
        test!(unbinding_the_owner_with_reads_in_flight).timeout(120),
    ],
};

/// Reads from a drive into a buffer all the time, and takes the buffer away in the middle.
///
/// Each read that was let in finishes; afterwards they are EFAULT. Every block of 512 bytes is as
/// it was or as the drive has it.
fn take_away_while_reading(
    ctx: &Ctx,
    seed: u64,
    take: impl Fn(&Provider, &Buffer) -> Result<()>,
) -> Result<()> {
    const LEN: u64 = 8 * MIB;
    let drive = prepared_drive(&block_device(ctx.nvme(0)?)?, seed, LEN)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::at(0, GIB).page())?;
    let map = Mapping::whole(&buffer)?;
    fill(&map, 0, LEN, !seed)?;
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let address = map.at(0) as usize;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<u64> {
            loop {
                match read_into(&drive, address as *mut u8, LEN, 0) {
                    Ok(LEN) => done.fetch_add(1, Ordering::Relaxed),
                    // Ended by the revocation in the middle: the drive reports what it had done.
                    Ok(part) => return Ok(part),
                    Err(Errno::EFAULT) => return Ok(0),
                    Err(errno) => bail!("pread: {errno}"),
                };
                ensure!(
                    !stop.load(Ordering::Relaxed),
                    "reads into a revoked buffer succeed"
                );
            }
        });
        let started = wait_until("the first read", || {
            done.load(Ordering::Relaxed) > 0 || reader.is_finished()
        });
        std::thread::sleep(Duration::from_millis(seed % 40));
        let taken = started
            .and_then(|()| within(4 * PROMPT, "taking it away", || take(&provider, &buffer))?);
        // One read may have been let in before.
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        let ended = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        taken?;
        ended.map(drop)
    })?;
    ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
    drop((map, buffer, provider));

    let provider = Provider::bind(ctx.npu(0)?)?;
    let again = Export::at(0, GIB);
    wait_until("the bytes free again", || {
        provider.node.export(&again).is_ok()
    })?;
    let map_of = provider.node.export(&again)?;
    let map = Mapping::whole(&map_of)?;
    for block in (0..LEN).step_by(512) {
        let is = |seed: u64| {
            (block..block + 512)
                .step_by(8)
                .all(|at| map.load(at) == Ok(word(seed, at)))
        };
        ensure!(is(seed) || is(!seed), "the block at {block:#x} is torn");
    }
    Ok(())
}

/// R16: O_DIRECT in flight during REVOKE.
fn direct_io_in_flight_while_revoked(ctx: &Ctx) -> Result<()> {
    for seed in 1..6 {
        take_away_while_reading(ctx, seed * 7, |provider, buffer| {
            Ok(provider.node.revoke(buffer)?)
        })?;
    }
    Ok(())
}

/// R16: O_DIRECT in flight during unbind.
pub(crate) fn direct_io_in_flight_while_unbound(ctx: &Ctx) -> Result<()> {
    for seed in 1..6 {
        take_away_while_reading(ctx, seed * 9, |provider, _| provider.function.unbind())?;
    }
    Ok(())
}

/// The same while the other drive reads into the pool: those reads finish, and the unbind waits for
/// no more than them.
fn unbinding_the_owner_with_reads_in_flight(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 4 * MIB;
    let drive = open_direct(&block_device(ctx.nvme(1)?)?)?;
    for _ in 0..5 {
        let provider = Provider::adopt(ctx.nvme(0)?)?;
        let buffer = provider.node.export(&Export::any(LEN).page())?;
        let map = Mapping::whole(&buffer)?;
        let address = map.at(0) as usize;
        std::thread::scope(|scope| -> Result<()> {
            let reader = scope.spawn(|| -> Result<()> {
                loop {
                    match read_into(&drive, address as *mut u8, LEN, 0) {
                        Ok(LEN) => {}
                        Ok(_) | Err(Errno::EFAULT) => return Ok(()),
                        Err(errno) => bail!("pread: {errno}"),
                    }
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            let unbound = within(2 * PROMPT, "unbind", || provider.function.unbind())?;
            reader
                .join()
                .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
            unbound
        })?;
        ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
        provider.function.restore()?;
        the_drive_is_back(ctx)?;
    }
    Ok(())
}

/// Makes the first drive slow, until this is dropped.
struct Slow<'a>(&'a Ctx);

impl Slow<'_> {
    fn new(ctx: &Ctx, bytes_per_second: u64) -> Result<Slow<'_>> {
        set_throttle(ctx, bytes_per_second)?;
        Ok(Slow(ctx))
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        if let Err(error) = set_throttle(self.0, 0) {
            eprintln!("the drive stays slow: {error:#}");
        }
    }
}

fn set_throttle(ctx: &Ctx, bytes_per_second: u64) -> Result<()> {
    ctx.host(HostOp::Qmp {
        execute: "block_set_io_throttle".into(),
        arguments: json!({
            "id": "nvme0",
            "bps": bytes_per_second, "bps_rd": 0, "bps_wr": 0,
            "iops": 0, "iops_rd": 0, "iops_wr": 0,
        }),
    })
    .map(drop)
}

/// Nothing but a page pin holds the bytes of a revoked buffer: they are not handed out until the
/// read that has it ends, and the drive writes nothing into the next owner's.
fn bytes_come_back_after_the_last_page_pin(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = MIB;
    let path = block_device(ctx.nvme(0)?)?;
    let drive = prepared_drive(&path, 1, LEN)?;
    let disk = path.file_name().context("a name")?.to_string_lossy();
    let is_reading = || -> Result<bool> {
        let text = sysfs::read(format!("/sys/block/{disk}/inflight"))?;
        Ok(text.split_whitespace().next() != Some("0"))
    };
    let provider = Provider::bind(ctx.npu(0)?)?;
    let wanted = Export::at(0, GIB).page();
    let buffer = provider.node.export(&wanted)?;
    let map = Mapping::whole(&buffer)?;
    fill(&map, 0, LEN, 2)?;
    let address = map.at(0) as usize;
    // The second command of the read waits for seconds.
    let slow = Slow::new(ctx, LEN / 8)?;
    let next = std::thread::scope(|scope| -> Result<Buffer> {
        let reader = scope.spawn(|| read_into(&drive, address as *mut u8, LEN, 0));
        wait_until("the read", || is_reading().unwrap_or(false))?;
        std::thread::sleep(Duration::from_millis(200));
        within(PROMPT, "REVOKE", || provider.node.revoke(&buffer))??;
        drop((map, buffer));
        ensure!(is_reading()?, "the read has ended too early for this test");
        let mut refused = 0;
        let mut next = None;
        wait_until("the bytes free again", || {
            match provider.node.export(&wanted) {
                Ok(buffer) => next = Some(buffer),
                Err(Errno::EBUSY) => refused += 1,
                Err(_) => {}
            }
            next.is_some()
        })?;
        let next = next.context("no buffer")?;
        fill(&Mapping::whole(&next)?, 0, LEN, 3)?;
        ensure!(refused > 0, "handed out while the drive was writing to it");
        ensure!(
            !is_reading()?,
            "the drive still writes to the next owner's bytes"
        );
        let answer = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        ensure!(answer == Ok(LEN), "the read: {answer:?}");
        Ok(next)
    })?;
    drop(slow);
    verify(&Mapping::whole(&next)?, 0, LEN, 3)
}
