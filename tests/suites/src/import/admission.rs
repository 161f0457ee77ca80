// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who is let in and for what, and that the kernel and QUERY say so.

use crate::export::main_region;
use crate::kit::importer::{
    BIDIRECTIONAL, CHILD, Engine, FROM_DEVICE, NO_INVALIDATE, NO_PCI, NO_PEER2PEER, PIN, STATIC,
    TO_DEVICE,
};
use crate::kit::klog::logged;
use crate::kit::node::name;
use crate::kit::prelude::*;

use barbuf_guest::sysfs;

/// A device may read a read-only buffer and not write it.
pub(crate) fn read_only_buffers_are_read_only_for_devices(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    for (export, writable) in [
        (Export::any(PAGE).read_only(), false),
        (Export::any(PAGE), true),
    ] {
        let buffer = provider.node.export(&export)?;
        let importer = engine.attached(&buffer)?;
        for (direction, writes) in [
            (TO_DEVICE, false),
            (FROM_DEVICE, true),
            (BIDIRECTIONAL, true),
        ] {
            let answer = importer.map(direction).map(drop);
            let wanted = if writes && !writable {
                Err(Errno::EACCES)
            } else {
                Ok(())
            };
            ensure!(
                answer == wanted,
                "direction {direction}, writable {writable}: {answer:?}"
            );
            importer.unmap()?;
        }
        // DMA_NONE.
        ensure_eq!(importer.map(3).map(drop), Err(Errno::EINVAL));
    }
    Ok(())
}

/// L3: who cannot be told to stop is let in only by consent, and QUERY says so.
pub(crate) fn consent_is_asked_of_importers_that_cannot_stop(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let strict = provider.node.export(&Export::any(MIB))?;
    let consents = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let lenient = provider.node.export(&consents)?;
    let held = |buffer: &Buffer| -> Result<bool> {
        let raw = provider.node.query(buffer)?.raw;
        Ok(raw.out_flags & BARBUF_QUERY_HELD != 0)
    };
    for (what, flags) in [
        ("static", STATIC),
        ("without peer2peer", NO_PEER2PEER),
        ("without invalidate", NO_INVALIDATE),
        ("pinned without invalidate", NO_INVALIDATE | PIN),
        ("static, on no PCI bus", STATIC | NO_PCI),
        ("static, a part of a PCI function", STATIC | CHILD),
    ] {
        let importer = engine.importer()?;
        let answer = importer.attach(&strict, flags);
        ensure!(answer == Err(Errno::EOPNOTSUPP), "{what}: {answer:?}");
        ensure!(!held(&lenient)?, "{what}: held before anybody is there");
        importer
            .attach(&lenient, flags)
            .with_context(|| format!("{what}, with consent"))?;
        ensure!(held(&lenient)?, "{what}: QUERY does not say so");
        let answer = importer.map(BIDIRECTIONAL).map(|map| map.bytes);
        let wanted = if flags & (NO_PCI | CHILD) != 0 {
            // Good for CPUs only.
            Err(Errno::EREMOTEIO)
        } else {
            Ok(MIB)
        };
        ensure!(answer == wanted, "{what}: {answer:?}");
        importer.unmap()?;
        importer.detach()?;
        ensure!(!held(&lenient)?, "{what}: held after the detach");
    }
    // One that can be told is let in by both, and holds neither.
    for buffer in [&strict, &lenient] {
        let importer = engine.attached(buffer)?;
        importer.map(BIDIRECTIONAL)?;
        ensure!(!held(buffer)?, "a dynamic importer holds");
    }
    // A device that is nowhere, and one that the kernel maps nothing for, but they promise to stop.
    for flags in [NO_PCI, CHILD] {
        let answer = engine.importer()?.attach(&strict, flags);
        ensure!(
            answer == Err(Errno::EREMOTEIO),
            "no PCI device, {flags}: {answer:?}"
        );
    }
    Ok(())
}

/// R36, the part without a route: refused at attach, with one line in the log however often it is
/// tried, and the reason in ROUTE.
pub(crate) fn devices_without_a_route_are_refused(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let lenient = provider
        .node
        .export(&Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT))?;
    let line = format!("cannot import memory of {}", provider.bdf());
    let before = logged(&engine.function.bdf, &line)?;
    for _ in 0..20 {
        for (buffer, flags) in [(&buffer, 0), (&buffer, PIN), (&lenient, STATIC)] {
            let answer = engine.importer()?.attach(buffer, flags);
            ensure!(answer == Err(Errno::EREMOTEIO), "{flags}: {answer:?}");
        }
    }
    ensure_eq!(logged(&engine.function.bdf, &line)? - before, 1);
    ensure_eq!(provider.node.query(&buffer)?.raw.out_attachments, 0);
    let route = provider.node.route(&buffer, 0, &engine.function.bdf)?;
    ensure!(
        route.out_kind == BARBUF_ROUTE_NONE && route.out_reason == BARBUF_REASON_HOST_BRIDGE,
        "{route:?}"
    );
    Ok(())
}

/// A device that cannot form the addresses is told so, whatever the way; and is let in again.
pub(crate) fn a_small_dma_mask_is_erange(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let all = main_region(&provider.node.info()?)?.length;
    // Behind an IOMMU only the length counts, and 32 bits are enough for little: not for 6 GiB, which is what this
    // makes of the smallest NPU there.
    let small = provider.node.export(&Export::any(MIB))?;
    let large = provider.node.export(&Export::any(all / 4 * 3))?;
    let importer = engine.importer()?;
    importer.mask(32)?;
    let outcome = (|| -> Result<()> {
        for (buffer, fits) in [(&small, ctx.topology().iommu), (&large, false)] {
            let answer = importer.attach(buffer, 0);
            let wanted = if fits { Ok(()) } else { Err(Errno::ERANGE) };
            ensure!(answer == wanted, "{:#x} bytes: {answer:?}", buffer.size());
            let route = provider.node.route(buffer, 0, &engine.function.bdf)?;
            let reason = if fits {
                BARBUF_REASON_NONE
            } else {
                BARBUF_REASON_DMA_MASK
            };
            ensure!(
                route.out_reason == reason && route.out_dma_mask == u64::from(u32::MAX),
                "{route:?}"
            );
            if fits {
                ensure!(importer.map(BIDIRECTIONAL)?.last <= u64::from(u32::MAX));
                importer.detach()?;
            }
        }
        Ok(())
    })();
    importer.mask(64)?;
    outcome?;
    // The mask shrinks while it is attached: the mapping is refused.
    importer.attach(&large, 0)?;
    importer.map(BIDIRECTIONAL)?;
    importer.unmap()?;
    importer.mask(32)?;
    let answer = importer.map(BIDIRECTIONAL).map(drop);
    importer.mask(64)?;
    ensure!(
        answer == Err(Errno::ERANGE),
        "a mask that shrank: {answer:?}"
    );
    Ok(())
}

/// QUERY and debugfs name every device, with what it has.
pub(crate) fn query_lists_the_attachments(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider
        .node
        .export(&Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT))?;
    ensure_eq!(provider.node.attachments(&buffer)?, (0, vec![]));

    let usual = engine.importer()?;
    usual.attach(&buffer, PIN)?;
    let fixed = engine.importer()?;
    fixed.attach(&buffer, STATIC)?;
    fixed.map(BIDIRECTIONAL)?;
    let (count, list) = provider.node.attachments(&buffer)?;
    ensure!(count == 2 && list.len() == 2, "{count}: {list:?}");
    let usual_flags =
        BARBUF_ATTACHMENT_PEER2PEER | BARBUF_ATTACHMENT_REVOCABLE | BARBUF_ATTACHMENT_PINNED;
    // A static importer is pinned as long as it has a mapping: the core does that.
    let fixed_flags = BARBUF_ATTACHMENT_PINNED | BARBUF_ATTACHMENT_MAPPED;
    for (flags, maps, bytes) in [(usual_flags, 0, 0), (fixed_flags, 1, MIB)] {
        let found = list.iter().find(|info| info.flags == flags);
        let info = found.with_context(|| format!("no attachment with {flags:#x}: {list:?}"))?;
        ensure!(
            name(&info.name) == engine.function.bdf
                && info.route == BARBUF_ROUTE_SWITCH
                && info.nr_maps == maps
                && info.nr_pins == 1
                && info.mapped_bytes == bytes,
            "{info:?}"
        );
    }
    // Room for one: that one, and the true number.
    let (count, list) = provider.node.attachments_in(&buffer, 1)?;
    ensure!(count == 2 && list.len() == 1, "{count}: {list:?}");
    ensure_eq!(provider.node.query(&buffer)?.raw.out_attachments, 2);

    let text = sysfs::read("/sys/kernel/debug/barbuf/attachments")?;
    let bdf = &engine.function.bdf;
    for wanted in [
        format!("live {bdf} switch 1 0 0 1 0x0"),
        format!("live {bdf} switch 0 1 1 1 {MIB:#x}"),
    ] {
        ensure!(
            text.lines().any(|line| line.ends_with(&wanted)),
            "no line ends with {wanted:?}:\n{text}"
        );
    }
    drop((usual, fixed));
    ensure_eq!(provider.node.attachments(&buffer)?, (0, vec![]));
    Ok(())
}
