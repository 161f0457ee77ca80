// SPDX-License-Identifier: MIT OR Apache-2.0

//! Taking buffers back from importing devices: who is told, and who is waited for.

use crate::export::main_region;
use crate::kit::importer::{
    BIDIRECTIONAL, ENGINE, Engine, FROM_DEVICE, NO_INVALIDATE, NO_PEER2PEER, PIN, REMAP, STATIC,
    monotonic_ns,
};
use crate::kit::klog::logged;
use crate::kit::pattern;
use crate::kit::pci::{Function, wait_until};
use crate::kit::prelude::*;
use crate::kit::process::{Event, PROMPT, scaled, within};

use crate::reset::reset;
use crate::support::hash;

use barbuf_guest::protocol::HostOp;
use barbuf_guest::sysfs;

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

pub(crate) const SUITE: Suite = Suite {
    name: "recall",
    tests: &[
        test!(revoke_waits_for_the_unmap),
        test!(revoke_waits_for_announced_dma),
        test!(an_importer_that_asks_again_hears_enodev),
        test!(nobody_comes_in_after_a_revocation),
        test!(revoke_waits_for_a_static_importer).timeout(120),
        test!(revoke_waits_for_a_vmap).timeout(60),
        test!(unbind_with_a_device_that_has_addresses)
            .on(&["npu-cmb", "two-root-ports", "iommu-root-ports"])
            .timeout(60),
        test!(unbinding_waits_for_a_static_importer).timeout(60),
        test!(hot_unplug_with_importers).hotplug().timeout(120),
        test!(unbinding_the_owner_of_a_pool_with_an_importer).timeout(60),
        test!(mappings_and_revocations_in_a_thousand_races).timeout(120),
        test!(no_device_sees_the_next_owner).timeout(120),
    ],
};

const DELAY: Duration = Duration::from_millis(300);

/// L4: the importer takes its time after it was told, and REVOKE returns when it has unmapped and
/// not before.
pub(crate) fn revoke_waits_for_the_unmap(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    for flags in [0, PIN] {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let event = Event::new()?;
        let buffer = provider
            .node
            .export(&Export::any(MIB).eventfd(event.number()))?;
        let importer = engine.importer()?;
        importer.attach_delayed(&buffer, flags, DELAY)?;
        importer.map(BIDIRECTIONAL)?;
        // One more that has no mapping: it is told, and not waited for.
        let idle = engine.attached(&buffer)?;
        let start = monotonic_ns();
        within(PROMPT, "REVOKE", || provider.node.revoke(&buffer))??;
        let end = monotonic_ns();
        let state = importer.state()?;
        ensure!(
            state.mapped == 0 && state.invalidations == 1,
            "flags {flags}: {state:?}"
        );
        ensure!(
            start < state.unmapped_ns && state.unmapped_ns <= end,
            "flags {flags}: REVOKE from {start} to {end}: {state:?}"
        );
        ensure!(
            end - start >= DELAY.as_nanos() as u64,
            "flags {flags}: REVOKE took {} ns",
            end - start
        );
        ensure_eq!(idle.state()?.invalidations, 1);
        ensure_eq!(event.take()?, 1);
    }
    Ok(())
}

/// The first of the two waits: DMA that an importer has announced by a fence is let end, although
/// it unmaps at once.
fn revoke_waits_for_announced_dma(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let importer = engine.attached(&buffer)?;
    importer.map(BIDIRECTIONAL)?;
    let start = Instant::now();
    importer.fence(DELAY)?;
    within(PROMPT, "REVOKE", || provider.node.revoke(&buffer))??;
    let took = start.elapsed();
    // A timer of the kernel may be a tick early by the other clock.
    ensure!(
        took + Duration::from_millis(10) >= DELAY,
        "REVOKE took {took:?}"
    );
    Ok(())
}

/// R27: "Importers are free to request a new mapping in parallel." They hear that it is over, and
/// REVOKE does not wait for the second request.
pub(crate) fn an_importer_that_asks_again_hears_enodev(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let importer = engine.importer()?;
    importer.attach(&buffer, REMAP)?;
    importer.map(BIDIRECTIONAL)?;
    within(PROMPT, "REVOKE", || provider.node.revoke(&buffer))??;
    wait_until("the second request", || {
        importer.state().is_ok_and(|state| state.remap_errno != 0)
    })?;
    let state = importer.state()?;
    ensure!(
        state.mapped == 0 && state.remap_errno == Errno::ENODEV as u32,
        "{state:?}"
    );
    ensure_eq!(importer.map(BIDIRECTIONAL).map(drop), Err(Errno::ENODEV));
    Ok(())
}

/// After a revocation: no attach, no map, no pin, no vmap, for the dynamic and for the static.
pub(crate) fn nobody_comes_in_after_a_revocation(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let consents = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let buffer = provider.node.export(&consents)?;
    let early = engine.attached(&buffer)?;
    provider.node.revoke(&buffer)?;
    ensure_eq!(early.map(FROM_DEVICE).map(drop), Err(Errno::ENODEV));
    for flags in [0, PIN, STATIC, NO_INVALIDATE] {
        let answer = engine.importer()?.attach(&buffer, flags);
        ensure!(answer == Err(Errno::ENODEV), "{flags}: {answer:?}");
    }
    // Without a warning, which the core has for exporters that refuse.
    ensure_eq!(engine.importer()?.vmap(&buffer), Err(Errno::EINVAL));
    // The early one goes as if nothing had happened.
    early.detach()?;
    Ok(())
}

/// Runs `start` in a thread, sees that it waits, lets go, and sees that it returns.
fn waits_until_released<T: Send>(
    what: &str,
    start: impl FnOnce() -> T + Send,
    while_it_waits: impl FnOnce() -> Result<()>,
    let_go: impl FnOnce() -> Result<()>,
) -> Result<T> {
    scope(|threads| {
        let thread = threads.spawn(start);
        // What comes before its wait has to be over, on a slow kernel too.
        sleep(scaled(DELAY));
        let meanwhile = if thread.is_finished() {
            Err(anyhow::anyhow!("{what} did not wait"))
        } else {
            while_it_waits()
        };
        let gone = let_go();
        let value = thread.join();
        meanwhile?;
        gone?;
        value.map_err(|_| anyhow::anyhow!("{what} panicked"))
    })
}

/// An importer that cannot be told, or does not know what it imports: REVOKE waits for its detach, says for whom, everybody else is shut out
/// meanwhile, and the bytes are not given to anybody.
pub(crate) fn revoke_waits_for_a_static_importer(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let all = main_region(&provider.node.info()?)?.length;
    let kinds = [(STATIC, 0), (NO_PEER2PEER, 0), (NO_INVALIDATE, 1)];
    let cases = kinds
        .into_iter()
        .flat_map(|kind| [(kind, true), (kind, false)]);
    for ((flags, peer2peer), mapped) in cases {
        let export = Export::at(0, all).flag(BARBUF_EXPORT_STATIC_IMPORT);
        let event = Event::new()?;
        let buffer = provider.node.export(&export.eventfd(event.number()))?;
        let map = Mapping::new(&buffer, Window::new(0, MIB), READ_WRITE, Place::Congruent)?;
        ensure!(map.store(0, 1) == Ok(()));
        let importer = engine.importer()?;
        // Who can be told, and does not know what it imports, would obey.
        importer.attach_delayed(&buffer, flags, 200 * DELAY)?;
        if mapped {
            importer.map(BIDIRECTIONAL)?;
        }
        let line = format!("waits until {} detaches", engine.function.bdf);
        let before = logged(provider.bdf(), &line)?;
        waits_until_released(
            "REVOKE",
            || provider.node.revoke(&buffer),
            || {
                let query = Node::control()?.query(&buffer)?.raw;
                ensure!(
                    query.out_state == BARBUF_STATE_REVOKED
                        && query.out_flags == BARBUF_QUERY_HELD
                        && query.out_attachments == 1,
                    "{query:?}"
                );
                ensure_eq!(map.load(0), Err(Fault::bus(map.at(0))));
                // It is told before the wait: it may be who holds the importer.
                ensure_eq!(event.take()?, 1);
                // Nor does a reset, which is others' matter too, wait for it.
                within(PROMPT, "a reset", || reset(&provider.function))??;
                let next = provider.node.export(&Export::at(0, PAGE)).map(drop);
                ensure!(next == Err(Errno::EBUSY), "the next owner: {next:?}");
                let text = sysfs::read("/sys/kernel/debug/barbuf/attachments")?;
                let bdf = &engine.function.bdf;
                let entry = format!("revoked {bdf} switch {peer2peer} 1 ");
                ensure!(text.contains(&entry), "no {entry:?}:\n{text}");
                ensure_eq!(logged(provider.bdf(), &line)?, before + 1);
                if mapped {
                    // What it has still works: nothing was taken from under it.
                    let bytes = pattern::bytes(9, 0, ENGINE);
                    importer.load_host(&bytes)?;
                    importer.store(0, ENGINE)?;
                }
                Ok(())
            },
            || Ok(importer.detach()?),
        )??;
        ensure_eq!(event.take()?, 0);
        provider.node.export(&Export::at(0, all))?;
    }
    Ok(())
}

/// The same for a kernel mapping.
fn revoke_waits_for_a_vmap(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let consents = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let buffer = provider.node.export(&consents)?;
    let importer = engine.importer()?;
    importer.vmap(&buffer)?;
    importer.poke(8, 42)?;
    let line = "waits until the kernel unmaps it (vmap)";
    let before = logged(provider.bdf(), line)?;
    waits_until_released(
        "REVOKE",
        || provider.node.revoke(&buffer),
        || {
            ensure_eq!(importer.peek(8)?, (42, false));
            let text = sysfs::read("/sys/kernel/debug/barbuf/attachments")?;
            ensure!(text.contains(" revoked vmap cpu 0 1 "), "{text}");
            ensure_eq!(logged(provider.bdf(), line)?, before + 1);
            Ok(())
        },
        || Ok(importer.vunmap()?),
    )??;
    Ok(())
}

/// L6: unbinding waits for the importer, which has DMA addresses until then; nothing is left of
/// them.
pub(crate) fn unbind_with_a_device_that_has_addresses(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(2 * GIB))?;
    let importer = engine.importer()?;
    importer.attach_delayed(&buffer, 0, DELAY)?;
    importer.map(BIDIRECTIONAL)?;
    let start = monotonic_ns();
    within(PROMPT, "unbind", || provider.function.unbind())??;
    let state = importer.state()?;
    ensure!(
        state.mapped == 0 && start < state.unmapped_ns && state.unmapped_ns <= monotonic_ns(),
        "{state:?}"
    );
    ensure_eq!(importer.map(BIDIRECTIONAL).map(drop), Err(Errno::ENODEV));
    Ok(())
}

/// The same for one that cannot be told: whoever unbinds waits until it has detached, and the function
/// still answers it until then.
pub(crate) fn unbinding_waits_for_a_static_importer(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let export = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let buffer = provider.node.export(&export)?;
    let map = Mapping::whole(&buffer)?;
    ensure!(map.store(0, 1) == Ok(()));
    let importer = engine.importer()?;
    importer.attach(&buffer, STATIC)?;
    importer.map(BIDIRECTIONAL)?;
    let place = main_region(&provider.node.info()?)?.offset + buffer.ranges[0].offset;
    waits_until_released(
        "unbind",
        || provider.function.unbind(),
        || {
            ensure_eq!(map.load(0), Err(Fault::bus(map.at(0))));
            let bytes = pattern::bytes(10, 0, ENGINE);
            importer.load_host(&bytes)?;
            importer.store(0, ENGINE)?;
            ensure_eq!(ctx.host_hash("npu0", place, PAGE)?, hash(&bytes));
            Ok(())
        },
        || Ok(importer.detach()?),
    )??;
    ensure_eq!(provider.function.driver(), None);
    Ok(())
}

/// R3 with importers: the function is unplugged while one device has addresses and takes its time, and
/// while another cannot be told. The first is waited for, then the second; nothing is left.
fn hot_unplug_with_importers(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    for flags in [0, STATIC] {
        let outcome = unplugged_under(ctx, &engine, flags);
        let device = ctx.npu(0)?;
        if Function::of(device).is_err() {
            ctx.host(HostOp::DeviceAdd { id: "npu0".into() })?;
        }
        wait_until("the device back", || {
            Function::of(device)
                .is_ok_and(|function| function.bar(2).is_ok_and(|bar| bar.start != 0))
        })?;
        outcome?;
    }
    Ok(())
}

/// Unplugs the NPU under such an importer.
fn unplugged_under(ctx: &Ctx, engine: &Engine, flags: u32) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let export = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let buffer = provider.node.export(&export)?;
    let importer = engine.importer()?;
    importer.attach_delayed(&buffer, flags, DELAY)?;
    importer.map(BIDIRECTIONAL)?;
    let unplug = || {
        ctx.host(HostOp::DeviceDel { id: "npu0".into() })?;
        wait_until("the device gone", || !provider.function.dir().exists())
    };
    if flags != STATIC {
        unplug()?;
        let state = importer.state()?;
        ensure!(state.mapped == 0 && state.invalidations == 1, "{state:?}");
        ensure_eq!(importer.map(BIDIRECTIONAL).map(drop), Err(Errno::ENODEV));
        return Ok(());
    }
    scope(|threads| {
        let unplugging = threads.spawn(unplug);
        let outcome = (|| {
            wait_until("the revocation", || {
                let query = Node::control().map(|node| node.query(&buffer));
                query.is_ok_and(|query| {
                    query.is_ok_and(|query| query.raw.out_state == BARBUF_STATE_REVOKED)
                })
            })?;
            sleep(DELAY);
            ensure!(
                provider.function.dir().exists() && !unplugging.is_finished(),
                "the device went before the importer"
            );
            importer.load_host(&pattern::bytes(11, 0, ENGINE))?;
            Ok(importer.store(0, ENGINE)?)
        })();
        importer.detach()?;
        let unplugged = unplugging.join();
        outcome?;
        unplugged.map_err(|_| anyhow::anyhow!("the unplugging thread panicked"))?
    })
}

/// The owner of a pool goes while a device has addresses of it: the importer is told, everything
/// goes back, and the drive comes back with all of its memory.
fn unbinding_the_owner_of_a_pool_with_an_importer(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let importer = engine.importer()?;
    importer.attach_delayed(&buffer, 0, DELAY)?;
    importer.map(BIDIRECTIONAL)?;
    let function = provider.function.clone();
    let outcome = within(PROMPT, "unbind", || function.unbind())?;
    let state = importer.state()?;
    function.restore()?;
    outcome?;
    ensure!(state.mapped == 0 && state.invalidations == 1, "{state:?}");
    wait_until("the pool", || {
        sysfs::read(function.dir().join("p2pmem/available")).is_ok()
    })
}

/// L5: attach, map and revoke at once, again and again; every answer is one of those that exist.
fn mappings_and_revocations_in_a_thousand_races(ctx: &Ctx) -> Result<()> {
    let rounds = if ctx.kernel() == "debug" { 100 } else { 1000 };
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let node = provider.reopen()?;
    let mut mapped = 0;
    for round in 0..rounds {
        let buffer = provider.node.export(&Export::any(MIB))?;
        let importer = engine.importer()?;
        importer.attach(&buffer, if round % 2 == 0 { 0 } else { REMAP })?;
        let (mine, theirs) = scope(|threads| {
            let revoker = threads.spawn(|| node.revoke(&buffer));
            let mut answers = Vec::new();
            for _ in 0..8 {
                answers.push(importer.map(BIDIRECTIONAL).map(drop));
                let _ = importer.unmap();
            }
            (answers, revoker.join())
        });
        let revoked = theirs.map_err(|_| anyhow::anyhow!("the revoker panicked"))?;
        ensure!(revoked == Ok(()), "round {round}: {revoked:?}");
        for answer in &mine {
            // EBUSY is the importer's own: REMAP was faster.
            ensure!(
                matches!(answer, Ok(()) | Err(Errno::ENODEV | Errno::EBUSY)),
                "round {round}: {mine:?}"
            );
        }
        mapped += mine.iter().filter(|answer| answer.is_ok()).count();
        ensure_eq!(importer.map(BIDIRECTIONAL).map(drop), Err(Errno::ENODEV));
        ensure_eq!(provider.node.revoke(&buffer), Err(Errno::EBADFD));
    }
    ctx.note(format!("{mapped} mappings in {rounds} rounds"));
    Ok(())
}

/// The reuse rule for devices: the engine stores through a mapping that is being revoked, and what
/// the next owner has written is never hit.
fn no_device_sees_the_next_owner(ctx: &Ctx) -> Result<()> {
    let rounds = if ctx.kernel() == "debug" { 3 } else { 10 };
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let node = provider.reopen()?;
    for round in 0..rounds {
        let buffer = provider.node.export(&Export::at(0, PAGE))?;
        let importer = engine.importer()?;
        // It goes on storing for a while after it has been told.
        importer.attach_delayed(&buffer, 0, DELAY)?;
        importer.map(BIDIRECTIONAL)?;
        importer.load_host(&pattern::bytes(0xdead, 0, ENGINE))?;
        scope(|threads| -> Result<()> {
            let device = threads.spawn(|| while importer.store(0, ENGINE) == Ok(()) {});
            sleep(Duration::from_millis(10 * round));
            node.revoke(&buffer)?;
            let next = provider.node.export(&Export::at(0, PAGE))?;
            let map = Mapping::whole(&next)?;
            fill(&map, 0, PAGE, round)?;
            device
                .join()
                .map_err(|_| anyhow::anyhow!("the device's thread panicked"))?;
            // Longer than a transfer takes.
            sleep(Duration::from_millis(150));
            verify(&map, 0, PAGE, round)
        })?;
    }
    Ok(())
}
