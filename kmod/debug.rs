// SPDX-License-Identifier: GPL-2.0

//! /sys/kernel/debug/barbuf: what exists, for people and for tests.

use crate::{
    buffer::Buffer,
    pure::order::PageOrder,
    uapi,
    Shared, //
};
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    fmt,
    prelude::*,
    sync::Arc, //
};

/// The files. They disappear when this is dropped.
#[pin_data]
pub(crate) struct Files {
    #[pin]
    abi: File<()>,
    #[pin]
    providers: File<Arc<Shared>>,
    #[pin]
    buffers: File<Arc<Shared>>,
    #[pin]
    attachments: File<Arc<Shared>>,
    _dir: Dir,
}

impl Files {
    /// Creates them.
    pub(crate) fn new(shared: Arc<Shared>) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let dir = Dir::new(c"barbuf");
            let (more, devices) = (shared.clone(), shared.clone());
            Ok(try_pin_init!(Self {
                abi <- dir.read_callback_file(c"abi", (), &write_abi),
                providers <- dir.read_callback_file(c"providers", shared, &write_providers),
                buffers <- dir.read_callback_file(c"buffers", more, &write_buffers),
                attachments <- dir.read_callback_file(c"attachments", devices, &write_attachments),
                _dir: dir,
            }? Error))
        })
    }
}

/// What the module takes the contract with user space to be.
fn write_abi((): &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    uapi::write_abi(f)
}

/// One line for each region of each provider.
fn write_providers(shared: &Arc<Shared>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "# buffers {} of {}",
        shared.quota.used(),
        shared.quota.most()
    )?;
    writeln!(
        f,
        "# provider kind region bar offset length free leaf pages buffers"
    )?;
    for index in 0.. {
        let Some(provider) = shared.registry.get(index) else {
            break;
        };
        // A pool is asked for what is free in it, which its end must not overtake.
        let Some(_hardware) = provider.gate.enter() else {
            continue;
        };
        for (index, region) in provider.regions.iter().enumerate() {
            writeln!(
                f,
                "{} {} {} {} {:#x} {:#x} {:#x} {} {} {}",
                provider.function.address(),
                provider.kind.name(),
                index,
                region.bar,
                region.offset,
                region.physical.len(),
                provider.free_bytes(index),
                region.facts.max_order.shift(),
                region.facts.page_order.map_or(0, PageOrder::shift),
                provider.buffers_of(index),
            )?;
        }
    }
    Ok(())
}

/// One line for each buffer.
fn write_buffers(shared: &Arc<Shared>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "# provider id region size state generation backing cache leaf faults 4k 2m 1g mappings bytes"
    )?;
    for index in 0.. {
        let Some(provider) = shared.registry.get(index) else {
            break;
        };
        for buffer in provider.buffers() {
            write_buffer(&buffer, f)?;
        }
    }
    Ok(())
}

/// One line for each device that is attached to a buffer, and for each vmap. Whom revoking waits for
/// is *held* here, whether it waits is in the buffer's state.
fn write_attachments(shared: &Arc<Shared>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "# provider id state device route peer2peer held maps pins bytes"
    )?;
    for index in 0.. {
        let Some(provider) = shared.registry.get(index) else {
            break;
        };
        for buffer in provider.buffers() {
            write_importers(&buffer, f)?;
        }
    }
    Ok(())
}

fn write_importers(buffer: &Buffer, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(dmabuf) = buffer.dmabuf() else {
        return Ok(());
    };
    let (provider, state) = (&buffer.provider.function, buffer.life().state().name());
    let mut result = Ok(());
    dmabuf.reserve().each(|device, importer| {
        if result.is_err() {
            return;
        }
        let maps = importer.maps();
        result = writeln!(
            f,
            "{} {} {state} {device} {} {} {} {maps} {} {:#x}",
            provider.address(),
            buffer.id(),
            importer.kind().name(),
            u8::from(device.peer2peer()),
            u8::from(!device.is_revocable()),
            importer.pins(),
            buffer.size.saturating_mul(u64::from(maps)),
        );
    });
    result?;
    if buffer.importers.is_vmapped() {
        writeln!(
            f,
            "{} {} {state} vmap cpu 0 1 1 0 {:#x}",
            provider.address(),
            buffer.id(),
            buffer.size
        )?;
    }
    Ok(())
}

fn write_buffer(buffer: &Buffer, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let life = buffer.life();
    let counters = &buffer.counters;
    writeln!(
        f,
        "{} {} {} {:#x} {} {} {} {} {} {} {} {} {} {} {:#x}",
        buffer.provider.function.address(),
        buffer.id(),
        buffer.region,
        buffer.size,
        life.state().name(),
        life.generation(),
        buffer.terms.backing.name(),
        buffer.terms.cache.name(),
        buffer.order.shift(),
        counters.faults.get(),
        counters.leaves(PageOrder::Page4K).get(),
        counters.leaves(PageOrder::Pmd).get(),
        counters.leaves(PageOrder::Pud).get(),
        counters.mappings.get(),
        counters.mapped_bytes.get(),
    )
}
