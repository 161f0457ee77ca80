// SPDX-License-Identifier: MIT OR Apache-2.0

//! Devices that import what a driver has registered: that the bytes move, and what they hear while the
//! driver has its device away.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use barbuf::Direction;

use super::Vendor;
use crate::export::main_region;
use crate::import::sync;
use crate::kit::importer::{
    BIDIRECTIONAL, ENGINE, Engine, FROM_DEVICE, PIN, REMAP, STATIC, TO_DEVICE, monotonic_ns,
};
use crate::kit::pattern;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::process::{PROMPT, within};
use crate::kit::slab;
use crate::kit::vendor::Wanted;
use crate::reimport::{moves_bytes, still_reads};
use crate::support::hash;

/// How long something that waits is watched not to go on.
const A_WHILE: Duration = Duration::from_millis(300);

/// The driver exports a megabyte from its own code, the drive's driver is adopted, and another device's
/// engine moves the megabyte from the one's memory into the other's, and some of it back. The
/// host, behind the guest's back, computes the same hash over the NPU's memory.
pub(super) fn a_megabyte_to_the_drives_memory_and_back(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let vendor = Vendor::new(ctx)?;
    let drive = Provider::adopt(ctx.nvme(0)?)?;
    let ours = vendor.received(vendor.sample.export(Wanted {
        offset: 3 * GIB,
        length: MIB,
        ..Wanted::default()
    })?)?;
    let theirs = drive.node.export(&Export::any(MIB))?;
    let (our_map, their_map) = (Mapping::whole(&ours)?, Mapping::whole(&theirs)?);
    let (npu, cmb) = (engine.attached(&ours)?, engine.attached(&theirs)?);

    let bytes = pattern::bytes(17, 0, MIB as usize);
    fill(&our_map, 0, MIB, 17)?;
    fill(&their_map, 0, MIB, 18)?;
    ensure_eq!(npu.map(TO_DEVICE)?.bytes, MIB);
    ensure_eq!(cmb.map(FROM_DEVICE)?.bytes, MIB);
    for at in (0..MIB).step_by(ENGINE) {
        npu.load(at, ENGINE)?;
        cmb.store(at, ENGINE)?;
    }
    let mut arrived = Vec::new();
    for at in (0..MIB).step_by(8) {
        let word = their_map.load(at);
        let word = word.map_err(|fault| anyhow::anyhow!("byte {at:#x}: {fault:?}"))?;
        arrived.extend(word.to_le_bytes());
    }
    let wanted = hash(&bytes);
    ensure_eq!(hash(&arrived), wanted);
    let place = main_region(&vendor.provider.node.info()?)?.offset + 3 * GIB;
    ensure_eq!(ctx.host_hash("npu0", place, MIB)?, wanted);

    // The other way round.
    let back = 16 * ENGINE as u64;
    npu.unmap()?;
    cmb.unmap()?;
    ensure_eq!(npu.map(FROM_DEVICE)?.bytes, MIB);
    ensure_eq!(cmb.map(TO_DEVICE)?.bytes, MIB);
    fill(&their_map, 0, back, 19)?;
    for at in (0..back).step_by(ENGINE) {
        cmb.load(at, ENGINE)?;
        npu.store(at, ENGINE)?;
    }
    let mut wanted = pattern::bytes(19, 0, back as usize);
    wanted.extend(&bytes[back as usize..]);
    ensure_eq!(ctx.host_hash("npu0", place, MIB)?, hash(&wanted));

    // The driver takes it back, and the devices are out.
    vendor.sample.revoke(ours.number())?;
    ensure_eq!(npu.state()?.mapped, 0);
    ensure_eq!(npu.map(FROM_DEVICE).map(drop), Err(Errno::ENODEV));
    Ok(())
}

/// Between the driver's two calls: who can be told has unmapped before the first returns, and is refused
/// until the second; who cannot goes on; QUERY answers; and detaching waits for nobody.
pub(super) fn importers_during_a_suspension(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let vendor = Vendor::new(ctx)?;
    let node = &vendor.provider.node;
    let consents = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let buffer = node.export(&consents)?;
    let map = Mapping::whole(&buffer)?;
    let (slow, eager, fixed) = (engine.importer()?, engine.importer()?, engine.importer()?);
    slow.attach_delayed(&buffer, PIN, A_WHILE)?;
    eager.attach(&buffer, REMAP)?;
    fixed.attach(&buffer, STATIC)?;
    for importer in [&slow, &eager, &fixed] {
        importer.map(BIDIRECTIONAL)?;
    }
    let leaver = engine.attached(&buffer)?;
    leaver.map(BIDIRECTIONAL)?;
    fill(&map, 0, ENGINE as u64, 21)?;

    let start = monotonic_ns();
    within(PROMPT, "the suspension", || vendor.sample.suspend())??;
    let state = slow.state()?;
    ensure!(
        state.mapped == 0 && state.unmapped_ns >= start + A_WHILE.as_nanos() as u64,
        "from {start}: {state:?}"
    );
    ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_SUSPENDED, 1));
    wait_until("the refusal", || {
        eager.state().is_ok_and(|state| state.remap_errno != 0)
    })?;
    ensure_eq!(eager.state()?.remap_errno, Errno::EAGAIN as u32);
    ensure_eq!(slow.map(BIDIRECTIONAL).map(drop), Err(Errno::EAGAIN));
    ensure_eq!(fixed.state()?.mapped, 1);
    for flags in [0, PIN, STATIC] {
        let answer = engine.importer()?.attach(&buffer, flags);
        ensure!(
            answer == Err(Errno::EAGAIN),
            "attaching, {flags}: {answer:?}"
        );
    }
    // A kernel mapping touches nothing by itself, and the core warns about one that is refused.
    let cpu = engine.importer()?;
    cpu.vmap(&buffer)?;
    let (count, list) = within(PROMPT, "QUERY", || node.attachments(&buffer))??;
    let bytes = list.iter().map(|info| info.mapped_bytes).sum::<u64>();
    ensure!((count, bytes) == (4, MIB), "{list:?}");
    within(PROMPT, "detaching", || leaver.detach())??;

    vendor.sample.resume()?;
    ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, 2));
    wait_until("the eager importer's new mapping", || {
        let state = eager.state();
        state.is_ok_and(|state| (state.mapped, state.remap_errno) == (1, 0))
    })?;
    ensure_eq!(slow.state()?.invalidations, 2);
    slow.map(BIDIRECTIONAL)?;
    for importer in [&eager, &slow, &fixed] {
        still_reads(importer, 21)?;
    }
    moves_bytes(&slow, &map, 22)?;
    ensure_eq!(cpu.peek(0)?, (pattern::word(22, 0), false));
    cpu.vunmap()?;
    drop(fixed);

    // Taken back while it is away: nobody is waited for, and nobody comes back.
    vendor.sample.suspend()?;
    within(PROMPT, "REVOKE", || node.revoke(&buffer))??;
    vendor.sample.resume()?;
    ensure_eq!(slow.map(BIDIRECTIONAL).map(drop), Err(Errno::ENODEV));
    ensure_eq!(eager.state()?.mapped, 0);
    Ok(())
}

/// DMA_BUF_IOCTL_SYNC: a beginning is EAGAIN as long as the memory is away, an end is not held up, and
/// who uses the crate notices neither.
pub(super) fn cpu_accesses_during_a_suspension(ctx: &Ctx) -> Result<()> {
    let vendor = Vendor::new(ctx)?;
    let (buffer, map) = vendor.buffer(BARBUF_BACKING_PFN)?;
    let shared = barbuf::Buffer::import(buffer.as_fd().try_clone_to_owned()?)?;
    let before = shared.cpu_access(Direction::Write)?;
    vendor.sample.suspend()?;
    for write in [false, true] {
        let answer = within(PROMPT, "DMA_BUF_IOCTL_SYNC", || sync(&buffer, write))?;
        ensure!(answer == Err(Errno::EAGAIN), "{answer:?}");
    }
    within(PROMPT, "the end of an access", || before.finish())??;
    thread::scope(|scope| {
        let accessor = scope.spawn(|| -> barbuf::Result<()> {
            let access = shared.cpu_access(Direction::ReadWrite)?;
            access.finish()
        });
        thread::sleep(A_WHILE);
        let waited = !accessor.is_finished();
        vendor.sample.resume()?;
        let answer = accessor.join().expect("the thread that accesses");
        ensure!(waited, "the access did not wait: {answer:?}");
        Ok(answer?)
    })?;
    ensure_eq!(sync(&buffer, true), Ok(()));
    ensure!(map.load(0).is_ok());
    // Revoked while it is away: there is nothing to wait for.
    vendor.sample.suspend()?;
    let answer = thread::scope(|scope| -> Result<_> {
        let accessor = scope.spawn(|| shared.cpu_access(Direction::Read).map(drop));
        thread::sleep(A_WHILE / 3);
        vendor.provider.node.revoke(&buffer)?;
        Ok(accessor.join().expect("the thread that accesses"))
    })?;
    let errno = answer.err().and_then(|error| error.errno());
    ensure_eq!(errno, Some(Errno::ENODEV as i32));
    ensure_eq!(sync(&buffer, true), Err(Errno::ENODEV));
    vendor.sample.resume()?;
    Ok(())
}

/// Mapped, suspended, resumed, again and again: what a suspension takes from an importer is all given
/// back.
pub(super) fn suspensions_leak_nothing_of_importers(ctx: &Ctx) -> Result<()> {
    let rounds = if ctx.kernel() == "debug" { 300 } else { 10_000 };
    let engine = Engine::load(ctx)?;
    let vendor = Vendor::new(ctx)?;
    let buffer = vendor.provider.node.export(&Export::any(4 * GIB))?;
    let importer = engine.attached(&buffer)?;
    let cycle = |rounds| -> Result<()> {
        for _ in 0..rounds {
            importer.map(BIDIRECTIONAL)?;
            vendor.sample.suspend()?;
            vendor.sample.resume()?;
        }
        Ok(())
    };
    cycle(200)?;
    let before = slab::bytes()?;
    cycle(rounds)?;
    let grown = slab::bytes()? - before;
    ctx.note(format!("{rounds} rounds: {grown} bytes more"));
    ensure!(
        grown < slab::NOISE,
        "{rounds} suspensions of an importer: {grown} bytes more in slabs"
    );
    let state = importer.state()?;
    ensure!(
        state.mapped == 0 && state.invalidations == 2 * (200 + rounds),
        "{state:?}"
    );
    let generation = 1 + u64::from(200 + rounds);
    ensure_eq!(vendor.state(&buffer)?, (BARBUF_STATE_LIVE, generation));
    Ok(())
}
