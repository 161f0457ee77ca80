// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counting guest instructions.

use std::arch::asm;

use anyhow::{Result, ensure};
use barbuf_guest::figure::{Figure, Unit};
use barbuf_measure::clock::{Clock, RUNS};

use crate::support::Ctx;

pub(crate) const CLOCK: Clock = Clock::Instructions;

/// Tells the host a quantity.
pub(crate) fn tell(ctx: &Ctx, name: &str, unit: Unit, samples: Vec<u64>) -> Result<()> {
    ctx.say(
        Figure {
            name: name.into(),
            unit,
            samples,
        }
        .to_line()?,
    );
    Ok(())
}

/// What all other tests rely on: a loop of known length takes as many nanoseconds as it has instructions.
pub(crate) fn clock_counts_instructions(ctx: &Ctx) -> Result<()> {
    if !ctx.topology().icount {
        return ctx.skip("guest time does not count instructions on this machine");
    }
    const ROUNDS: u64 = 100_000;
    let samples: Vec<u64> = (0..RUNS).map(|_| CLOCK.time(|| spin(ROUNDS)).0).collect();
    let best = samples.iter().copied().min().unwrap_or(0);
    let wanted = 2 * ROUNDS;
    ensure!(
        (wanted..wanted + 100).contains(&best),
        "{wanted} instructions took {best} ns"
    );
    tell(ctx, "clock_200000_instructions", Unit::Ns, samples)
}

/// Two instructions per round.
fn spin(rounds: u64) {
    // SAFETY: Touches nothing but its own register.
    unsafe { asm!("2:", "dec {0}", "jnz 2b", inout(reg) rounds => _, options(nomem, nostack)) };
}
