// SPDX-License-Identifier: MIT OR Apache-2.0

//! How long a revocation takes that has many mappings to find.

use barbuf_guest::figure::Unit;
use barbuf_measure::clock::RUNS;
use nix::sys::signal::Signal;
use nix::unistd::{pipe, read, write};

use super::clock::{CLOCK, tell};
use crate::kit::map::mmap;
use crate::kit::prelude::*;
use crate::kit::process::Child;

const PROCESSES: u64 = 8;
const MAPPINGS: [u64; 3] = [100, 1_000, 2_000];

/// BARBUF_REVOKE of 32 GiB with mappings of 1 GiB each, evenly in eight processes, all of them touched.
pub(crate) fn revoke(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for (backing, word) in [(BARBUF_BACKING_PFN, "pfn"), (BARBUF_BACKING_PAGE, "page")] {
        for mappings in MAPPINGS {
            let samples: Result<Vec<u64>> = (0..RUNS)
                .map(|_| revoke_once(&provider, backing, mappings))
                .collect();
            tell(
                ctx,
                &format!("revoke_{mappings}_{word}"),
                Unit::Ns,
                samples?,
            )?;
        }
    }
    Ok(())
}

fn revoke_once(provider: &Provider, backing: u32, mappings: u64) -> Result<u64> {
    let buffer = provider
        .node
        .export(&Export::any(32 * GIB).backing(backing))?;
    let (ready, says) = pipe()?;
    let children: Result<Vec<Child>> = (0..PROCESSES)
        .map(|index| {
            let share = mappings / PROCESSES + u64::from(index < mappings % PROCESSES);
            Child::start(|| {
                let mapped = map_and_touch(&buffer, share);
                write(&says, if mapped.is_ok() { b"r" } else { b"e" })?;
                mapped?;
                loop {
                    nix::unistd::pause();
                }
            })
        })
        .collect();
    let children = children?;
    drop(says);
    let mut byte = [0; 1];
    for _ in 0..PROCESSES {
        ensure!(
            read(&ready, &mut byte)? == 1 && byte == *b"r",
            "a process could not map the buffer"
        );
    }
    ensure_eq!(provider.node.query(&buffer)?.raw.out_mappings, mappings);
    let (took, answer) = CLOCK.time(|| provider.node.revoke(&buffer));
    answer?;
    for mut child in children {
        child.signal(Signal::SIGKILL)?;
        child.wait()?;
    }
    Ok(took)
}

/// Maps one GiB after the other, beginning again at the end of the buffer.
fn map_and_touch(buffer: &Buffer, count: u64) -> Result<()> {
    let room = crate::kit::map::Room::new(count * GIB, buffer.raw.out_phys_class, GIB)?;
    for index in 0..count {
        let (at, offset) = (room.at(index * GIB), index * GIB % buffer.size());
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: The room is ours.
        unsafe { mmap(at as usize, GIB, READ_WRITE, flags, buffer, offset) }?;
        // SAFETY: Mapped, and not revoked yet.
        unsafe { at.read_volatile() };
    }
    // It must stay until the process is killed.
    std::mem::forget(room);
    Ok(())
}
