// SPDX-License-Identifier: MIT OR Apache-2.0

//! Importing devices whose buffer goes away for a while and comes back: each is told, waited for, and
//! told to map again; and those that cannot be told go on.
//!
//! What happens while the memory is away is in `vendor/sharing.rs`, because there a test says when that
//! ends.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use barbuf_guest::sysfs;

use crate::adopt::the_drive_is_back;
use crate::kit::importer::{
    BIDIRECTIONAL, ENGINE, Engine, Importer, NO_INVALIDATE, NO_PEER2PEER, PIN, REMAP, STATIC,
    monotonic_ns,
};
use crate::kit::pattern;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::process::{PROMPT, within};
use crate::reset::{ByFunction, fail_the_link, reset, sleep};

pub(crate) const SUITE: Suite = Suite {
    name: "reimport",
    tests: &[
        test!(importers_map_again_after_a_reset)
            .on(&["npu-cmb", "two-root-ports", "iommu-root-ports"])
            .timeout(120),
        test!(importers_map_again_after_a_function_reset).timeout(120),
        test!(importers_map_again_after_a_reset_of_the_port).timeout(120),
        test!(importers_map_again_after_sleep).timeout(120),
        test!(importers_map_again_after_a_failed_link).timeout(120),
        test!(those_that_cannot_be_told_go_on).timeout(120),
        test!(resets_in_a_storm_of_mappings).timeout(120),
        test!(the_importers_of_an_adopted_function_are_not_told).timeout(60),
    ],
};

/// How long an importer takes to unmap.
const DELAY: Duration = Duration::from_millis(300);

/// The bytes are the right ones, by the addresses that the importer has: what the CPU wrote is what the
/// device reads, and what the device writes is what the CPU reads.
pub(crate) fn moves_bytes(importer: &Importer, map: &Mapping, seed: u64) -> Result<()> {
    let page = ENGINE as u64;
    fill(map, 0, page, seed)?;
    importer.load(0, ENGINE).context("the device reads")?;
    let mut found = vec![0; ENGINE];
    importer.store_host(&mut found)?;
    ensure!(
        found == pattern::bytes(seed, 0, ENGINE),
        "the device read something else"
    );
    importer.load_host(&pattern::bytes(!seed, page, ENGINE))?;
    importer.store(page, ENGINE).context("the device writes")?;
    verify(map, page, page, !seed)
}

/// The same for bytes that were written before a reset, and are only looked at.
pub(crate) fn still_reads(importer: &Importer, seed: u64) -> Result<()> {
    importer.load(0, ENGINE).context("the device reads")?;
    let mut found = vec![0; ENGINE];
    importer.store_host(&mut found)?;
    ensure!(
        found == pattern::bytes(seed, 0, ENGINE),
        "what was there before the reset is not there after it"
    );
    Ok(())
}

fn condition(provider: &Provider, buffer: &Buffer) -> Result<(u32, u64)> {
    let raw = provider.node.query(buffer)?.raw;
    Ok((raw.out_state, raw.out_generation))
}

/// Four importers live through two resets, each of which `reset` waits for.
fn live_through(ctx: &Ctx, reset: impl Fn(&Provider, &Buffer) -> Result<()>) -> Result<()> {
    live_through_of(ctx, &Provider::bind(ctx.npu(0)?)?, reset)
}

/// The same for importers of another function's memory.
fn live_through_of(
    ctx: &Ctx,
    provider: &Provider,
    reset: impl Fn(&Provider, &Buffer) -> Result<()>,
) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let map = Mapping::whole(&buffer)?;
    let [slow, pinned, eager] = [0, PIN, REMAP].map(|flags| -> Result<Importer> {
        let importer = engine.importer()?;
        let delay = if flags == 0 { DELAY } else { Duration::ZERO };
        importer.attach_delayed(&buffer, flags, delay)?;
        importer.map(BIDIRECTIONAL)?;
        Ok(importer)
    });
    let (slow, pinned, eager) = (slow?, pinned?, eager?);
    let idle = engine.attached(&buffer)?;
    moves_bytes(&slow, &map, 1)?;
    for round in 1..=2u32 {
        let start = monotonic_ns();
        reset(provider, &buffer)?;
        let end = monotonic_ns();
        // Told that it goes, and that it is back; waited for in between.
        for (what, importer) in [("slow", &slow), ("pinned", &pinned)] {
            let state = importer.state()?;
            ensure!(
                state.mapped == 0 && state.invalidations == 2 * round,
                "{what}: {state:?}"
            );
            ensure!(
                start < state.unmapped_ns && state.unmapped_ns <= end,
                "{what}: the reset took from {start} to {end}: {state:?}"
            );
        }
        ensure!(
            end - start >= DELAY.as_nanos() as u64,
            "the reset took {} ns",
            end - start
        );
        ensure_eq!(idle.state()?.invalidations, 2 * round);
        ensure_eq!(
            condition(provider, &buffer)?,
            (BARBUF_STATE_LIVE, 1 + u64::from(round))
        );
        // The eager one has mapped because it was told to, and nobody else asked it.
        let remapped = || {
            eager.state().is_ok_and(|state| {
                (state.mapped, state.remap_errno, state.invalidations) == (1, 0, 2 * round)
            })
        };
        wait_until("the eager importer's new mapping", remapped)?;
        still_reads(&eager, u64::from(round))?;
        for importer in [&slow, &pinned] {
            ensure_eq!(importer.map(BIDIRECTIONAL)?.bytes, MIB);
        }
        moves_bytes(&pinned, &map, 7)?;
        moves_bytes(&slow, &map, u64::from(round) + 1)?;
    }
    let (count, list) = provider.node.attachments(&buffer)?;
    let bytes: Vec<_> = list.iter().map(|info| info.mapped_bytes).collect();
    ensure!(
        count == 4 && bytes.iter().sum::<u64>() == 3 * MIB,
        "{list:?}"
    );
    // All of them can still be told: REVOKE waits for the slow one, and for nobody else.
    within(PROMPT, "REVOKE", || provider.node.revoke(&buffer))??;
    for importer in [slow, pinned, eager, idle] {
        ensure_eq!(importer.state()?.mapped, 0);
        importer.detach()?;
    }
    ensure_eq!(provider.node.attachments(&buffer)?, (0, vec![]));
    Ok(())
}

/// R5: a reset of the function through sysfs, twice.
pub(crate) fn importers_map_again_after_a_reset(ctx: &Ctx) -> Result<()> {
    live_through(ctx, |provider, _| {
        let method = within(PROMPT, "the reset", || reset(&provider.function))??;
        ctx.note(format!("reset by {method}"));
        Ok(())
    })
}

/// R5: the same by FLR, which the NPU does not have.
fn importers_map_again_after_a_function_reset(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.nvme(0)?)?;
    let alone = ByFunction::new(&provider.function)?;
    live_through_of(ctx, &provider, |provider, _| {
        let method = within(PROMPT, "the reset", || reset(&provider.function))??;
        ensure_eq!(method.trim(), "flr");
        Ok(())
    })?;
    drop(alone);
    drop(provider);
    the_drive_is_back(ctx)
}

/// R6: a reset of everything below the port, through the port's file in sysfs.
pub(crate) fn importers_map_again_after_a_reset_of_the_port(ctx: &Ctx) -> Result<()> {
    live_through(ctx, |provider, _| {
        let place = fs::canonicalize(provider.function.dir())?;
        let port = place.parent().context("the port above the function")?;
        let file = port.join("reset_subordinate");
        within(PROMPT, "the reset", || sysfs::write(&file, "1"))?
            .with_context(|| format!("resetting by {}", file.display()))
    })
}

/// R22: the importing device sleeps too.
fn importers_map_again_after_sleep(ctx: &Ctx) -> Result<()> {
    if sysfs::read("/sys/power/pm_test").is_err() {
        return ctx.skip("this kernel has no /sys/power/pm_test");
    }
    live_through(ctx, |_, _| sleep().map(drop))
}

/// R33: a fatal error on the link above the function, from which the kernel recovers by itself.
fn importers_map_again_after_a_failed_link(ctx: &Ctx) -> Result<()> {
    live_through(ctx, |provider, buffer| {
        let before = condition(provider, buffer)?.1;
        fail_the_link(ctx)?;
        wait_until("the recovery", || {
            condition(provider, buffer).is_ok_and(|(_, generation)| generation > before)
        })?;
        // The generation comes first, then the importers are told.
        thread::sleep(DELAY);
        Ok(())
    })
}

/// Who was let in by consent, and cannot be told or need not obey, is not waited for, keeps its
/// addresses, and they lead to the same bytes afterwards.
pub(crate) fn those_that_cannot_be_told_go_on(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let consents = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let buffer = provider.node.export(&consents)?;
    let map = Mapping::whole(&buffer)?;
    let kinds = [
        ("static", STATIC),
        ("without invalidate", NO_INVALIDATE),
        ("pinned without invalidate", NO_INVALIDATE | PIN),
    ];
    let importers = kinds.map(|(what, flags)| -> Result<_> {
        let importer = engine.importer()?;
        importer.attach(&buffer, flags).context(what)?;
        importer.map(BIDIRECTIONAL).context(what)?;
        Ok((what, importer))
    });
    // One that could be told, but does not say that it can address other devices' memory: it is told as
    // a courtesy, after so long that waiting for it would be seen.
    let lazy = engine.importer()?;
    lazy.attach_delayed(&buffer, NO_PEER2PEER, 200 * DELAY)?;
    lazy.map(BIDIRECTIONAL)?;
    let cpu = engine.importer()?;
    cpu.vmap(&buffer)?;
    fill(&map, 0, ENGINE as u64, 3)?;
    within(PROMPT, "the reset", || reset(&provider.function))??;
    ensure_eq!(condition(&provider, &buffer)?, (BARBUF_STATE_LIVE, 2));
    let state = lazy.state()?;
    ensure!(
        state.mapped == 1 && state.invalidations == 2,
        "the reset waited: {state:?}"
    );
    for importer in importers {
        let (what, importer) = importer?;
        let state = importer.state()?;
        ensure!(
            state.mapped == 1 && state.invalidations == 0,
            "{what}: {state:?}"
        );
        still_reads(&importer, 3).context(what)?;
    }
    ensure_eq!(cpu.peek(8)?, (pattern::word(3, 8), false));
    cpu.vunmap()?;
    drop(lazy);
    let raw = provider.node.query(&buffer)?.raw;
    ensure_eq!((raw.out_flags, raw.out_attachments), (0, 0));
    within(PROMPT, "REVOKE", || provider.node.revoke(&buffer))??;
    Ok(())
}

/// Two importers map and unmap without a pause, and one maps whenever it is told, while the function is
/// reset again and again: nobody hears anything but that it must try again, and nothing is left.
fn resets_in_a_storm_of_mappings(ctx: &Ctx) -> Result<()> {
    let resets = 5;
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let map = Mapping::whole(&buffer)?;
    let eager = engine.importer()?;
    eager.attach(&buffer, REMAP)?;
    eager.map(BIDIRECTIONAL)?;
    let end = AtomicBool::new(false);
    let (mapped, refused) = thread::scope(|scope| -> Result<_> {
        let mapper = || -> Result<(u32, u32)> {
            let (mut mapped, mut refused) = (0, 0);
            while !end.load(Ordering::Relaxed) {
                let importer = match engine.attached(&buffer) {
                    Ok(importer) => importer,
                    Err(error) if error.downcast_ref() == Some(&Errno::EAGAIN) => {
                        refused += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                match importer.map(BIDIRECTIONAL) {
                    Ok(map) if map.bytes == MIB => mapped += 1,
                    Err(Errno::EAGAIN) => refused += 1,
                    other => bail!("{other:?}"),
                }
            }
            Ok((mapped, refused))
        };
        let mappers = [scope.spawn(mapper), scope.spawn(mapper)];
        let outcome = (|| {
            for _ in 0..resets {
                within(PROMPT, "the reset", || reset(&provider.function))??;
            }
            Ok(())
        })();
        end.store(true, Ordering::Relaxed);
        let mut sums = (0, 0);
        for mapper in mappers {
            let (mapped, refused) = mapper.join().expect("a thread that maps")?;
            sums = (sums.0 + mapped, sums.1 + refused);
        }
        outcome.map(|()| sums)
    })?;
    ctx.note(format!("{mapped} mappings, {refused} refusals"));
    ensure!(
        mapped > 0 && refused > 0,
        "{mapped} mappings, {refused} refusals"
    );
    ensure_eq!(
        condition(&provider, &buffer)?,
        (BARBUF_STATE_LIVE, 1 + resets)
    );
    wait_until("the eager importer's new mapping", || {
        let state = eager.state();
        state.is_ok_and(|state| (state.mapped, state.remap_errno) == (1, 0))
    })?;
    moves_bytes(&eager, &map, 5)?;
    ensure_eq!(provider.node.query(&buffer)?.raw.out_attachments, 1);
    drop(eager);
    ensure_eq!(provider.node.attachments(&buffer)?, (0, vec![]));
    Ok(())
}

/// An adopted function's driver resets it and tells nobody: importers keep what they have, and it leads
/// to the buffer's bytes when the driver is done.
fn the_importers_of_an_adopted_function_are_not_told(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let map = Mapping::whole(&buffer)?;
    let importer = engine.attached(&buffer)?;
    importer.map(BIDIRECTIONAL)?;
    moves_bytes(&importer, &map, 1)?;
    reset(&provider.function)?;
    let state = importer.state()?;
    ensure!((state.mapped, state.invalidations) == (1, 0), "{state:?}");
    ensure_eq!(condition(&provider, &buffer)?, (BARBUF_STATE_LIVE, 1));
    // Its driver goes on by itself.
    let function = &provider.function;
    let back = || sysfs::read(function.dir().join("p2pmem/available")).is_ok();
    wait_until("the drive", back)?;
    moves_bytes(&importer, &map, 2)
}
