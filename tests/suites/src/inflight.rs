// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that is taken away while a drive reads into it or writes from it.
//!
//! What was let in finishes, in bounded time; nobody gets the bytes before; and what arrives is what
//! was sent, and nothing of the next owner's.

use std::path::Path;
use std::time::Duration;

use barbuf_guest::protocol::HostOp;
use barbuf_guest::sysfs;
use serde_json::json;

use crate::adopt::the_drive_is_back;
use crate::kit::drive::{Aligned, block_device, open_direct, read_into, write_from};
use crate::kit::pattern::{self, word};
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

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToMemory,
    ToDrive,
}

/// Bytes of one transfer: a few commands for the drive.
const LEN: u64 = 2 * MIB;
/// Seeds of what lies at the target, of what the first transfer brings there and of what the second
/// does, and of what the next owner of the memory writes.
const BEFORE: u64 = 40;
const SENT: [u64; 2] = [41, 42];
const NEXT: u64 = 43;

/// What the transfer `turn` brings to byte `at` of its target: it is taken from `turn * LEN`.
fn sent(turn: u64, at: u64) -> u64 {
    word(SENT[turn as usize], turn * LEN + at)
}

/// Takes the buffer away while a transfer is on its way that takes a second. `take` returns the provider
/// that the next owner gets the bytes from.
///
/// That transfer finishes, and further ones are EFAULT. The target has all that was sent, sector by
/// sector, and nothing of the next owner's, who writes as soon as it can.
fn take_away_in_flight(
    ctx: &Ctx,
    way: Way,
    pause: Duration,
    take: &dyn Fn(Provider, &Buffer) -> Result<Provider>,
) -> Result<()> {
    let path = block_device(ctx.nvme(0)?)?;
    let drive = open_direct(&path)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let wanted = Export::at(0, GIB).page();
    let buffer = provider.node.export(&wanted)?;
    let map = Mapping::whole(&buffer)?;
    let to_drive = |seed, at| -> Result<()> {
        let mut memory = Aligned::new(LEN)?;
        let bytes = pattern::bytes(seed, at, LEN as usize);
        memory.bytes_mut().copy_from_slice(&bytes);
        let written = write_from(&drive, memory.as_ptr(), LEN, at);
        ensure!(written == Ok(LEN), "preparing the drive: {written:?}");
        Ok(())
    };
    match way {
        Way::ToMemory => {
            to_drive(SENT[0], 0)?;
            to_drive(SENT[1], LEN)?;
            fill(&map, 0, LEN, BEFORE)?;
        }
        Way::ToDrive => {
            fill(&map, 0, LEN, SENT[0])?;
            fill(&map, LEN, LEN, SENT[1])?;
            to_drive(BEFORE, 0)?;
        }
    }
    let address = map.at(0) as usize;
    let transfer = |turn: u64| match way {
        Way::ToMemory => read_into(&drive, address as *mut u8, LEN, turn * LEN),
        Way::ToDrive => write_from(&drive, (address as u64 + turn * LEN) as *const u8, LEN, 0),
    };
    let first = transfer(0);
    ensure!(first == Ok(LEN), "undisturbed: {first:?}");

    let slow = Slow::new(ctx, LEN / 2)?;
    let (next, answer) = std::thread::scope(|scope| -> Result<_> {
        let second = scope.spawn(|| transfer(1));
        wait_until("the transfer", || is_busy(&path).unwrap_or(false))?;
        std::thread::sleep(pause);
        ensure!(is_busy(&path)?, "it has ended too early for this test");
        let provider = within(4 * PROMPT, "taking it away", || take(provider, &buffer))??;
        let third = transfer(0);
        ensure!(third == Err(Errno::EFAULT), "let in afterwards: {third:?}");
        ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
        drop((map, buffer));
        let mut next = None;
        wait_until("the bytes free again", || {
            next = provider.node.export(&wanted).ok();
            next.is_some()
        })?;
        let next = next.context("no buffer")?;
        let theirs = Mapping::whole(&next)?;
        if way == Way::ToDrive {
            // Whatever still reads the memory now sends their bytes.
            fill(&theirs, 0, 2 * LEN, NEXT)?;
        }
        let answer = within(4 * PROMPT, "the transfer", || second.join())?
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?;
        Ok(((provider, theirs), answer))
    })?;
    drop(slow);

    let arrived: Vec<u64> = match way {
        Way::ToMemory => {
            let load = |at| {
                next.1
                    .load(at)
                    .map_err(|fault| anyhow::anyhow!("{fault:x?}"))
            };
            (0..LEN).step_by(8).map(load).collect::<Result<_>>()?
        }
        Way::ToDrive => {
            let back = Aligned::new(LEN)?;
            let read = read_into(&drive, back.as_ptr(), LEN, 0);
            ensure!(read == Ok(LEN), "reading back: {read:?}");
            let words = back.bytes().chunks_exact(8);
            words
                .map(|word| Ok(u64::from_le_bytes(word.try_into()?)))
                .collect::<Result<_>>()?
        }
    };
    for (block, words) in arrived.chunks_exact(512 / 8).enumerate() {
        let at = |i: usize| (block * 512 + i * 8) as u64;
        let is = |turn| (0..words.len()).all(|i| words[i] == sent(turn, at(i)));
        ensure!(
            is(0) || is(1),
            "{way:?}: the sector at {:#x} is torn",
            at(0)
        );
        ensure!(is(1), "{way:?}: the sector at {:#x} has not come", at(0));
    }
    ensure!(answer == Ok(LEN), "{way:?}: {answer:?}");
    Ok(())
}

fn both_ways(ctx: &Ctx, take: &dyn Fn(Provider, &Buffer) -> Result<Provider>) -> Result<()> {
    for way in [Way::ToMemory, Way::ToDrive] {
        for pause in [0, 300, 900] {
            let pause = Duration::from_millis(pause);
            take_away_in_flight(ctx, way, pause, take)
                .with_context(|| format!("{way:?}, after {pause:?}"))?;
        }
    }
    Ok(())
}

/// R16: O_DIRECT in flight during REVOKE, which does not wait for it.
fn direct_io_in_flight_while_revoked(ctx: &Ctx) -> Result<()> {
    both_ways(ctx, &|provider, buffer| {
        within(PROMPT, "REVOKE", || provider.node.revoke(buffer))??;
        Ok(provider)
    })
}

/// R16: O_DIRECT in flight during unbind, which waits for no more than it. The next owner is that of a
/// function that is bound anew.
pub(crate) fn direct_io_in_flight_while_unbound(ctx: &Ctx) -> Result<()> {
    both_ways(ctx, &|provider, _| {
        provider.function.unbind()?;
        drop(provider);
        Provider::bind(ctx.npu(0)?)
    })
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

/// Whether a drive has commands to do.
fn is_busy(path: &Path) -> Result<bool> {
    let disk = path.file_name().context("a name")?.to_string_lossy();
    let text = sysfs::read(format!("/sys/block/{disk}/inflight"))?;
    Ok(text.split_whitespace().any(|count| count != "0"))
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
    let is_reading = || is_busy(&path);
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
