// SPDX-License-Identifier: GPL-2.0

//! The ioctls that are short: INFO, QUERY, REVOKE, and the argument of ADOPT and RELEASE.

use crate::{
    buffer::Buffer,
    copy::{
        Argument,
        UserArray, //
    },
    ext::dmabuf::DmaBuf,
    node,
    provider::{
        Provider,
        Region, //
    },
    pure::{
        address::Address,
        order::{
            align_class,
            PageOrder, //
        },
    },
    uapi::{
        self,
        NAME_LEN, //
    },
};
use kernel::prelude::*;

/// A provider's name as user space gets it: NUL-padded.
fn name_of(provider: &Provider) -> [u8; NAME_LEN] {
    padded(&provider.name)
}

fn padded(text: &CStr) -> [u8; NAME_LEN] {
    let mut name = [0u8; NAME_LEN];
    // The last byte stays NUL.
    let bytes = text.to_bytes().iter().take(NAME_LEN - 1);
    for (to, from) in name.iter_mut().zip(bytes) {
        *to = *from;
    }
    name
}

fn region_info(provider: &Provider, index: usize, region: &Region) -> uapi::RegionInfo {
    let facts = &region.facts;
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    uapi::RegionInfo {
        // CAST: A provider has at most 24 regions.
        index: index as u32,
        bar: region.bar,
        offset: region.offset,
        length: region.physical.len(),
        free: provider.free_bytes(index),
        phys_class: align_class(region.physical.start()),
        max_page_shift: facts.max_order.shift(),
        page_shift: facts.page_order.map_or(0, PageOrder::shift),
        backings: facts.backings(),
        caches: facts.caches(),
        flags: flag(facts.memory_only, uapi::REGION_MEMORY_ONLY)
            | flag(facts.prefetchable, uapi::REGION_PREFETCHABLE)
            | flag(facts.pool, uapi::REGION_POOL),
        nr_buffers: provider.buffers_of(index),
    }
}

/// Serves BARBUF_INFO.
pub(crate) fn info(provider: &Provider, arg: usize) -> Result {
    let mut argument = Argument::<uapi::Info>::read(arg)?;
    let user = argument.value;
    let stride = user.region_stride as usize;
    let room = user.nr_regions;
    if user.flags != 0 {
        return Err(EINVAL);
    }
    if room != 0 && (stride < size_of::<uapi::RegionInfo>() || stride & 7 != 0 || stride > 4096) {
        return Err(EINVAL);
    }
    let array = UserArray::new(user.regions, stride, room)?;
    for (index, region) in provider.regions.iter().enumerate().take(room as usize) {
        // The pool of an adopted provider may be asked only as long as there is one; user memory is
        // for afterwards, see `provider.rs`.
        let hardware = provider.gate.enter().ok_or(ENODEV)?;
        let info = region_info(provider, index, region);
        drop(hardware);
        array.write(index, info)?;
    }
    argument.value.out_abi = uapi::ABI_VERSION;
    argument.value.out_kind = provider.kind.to_uapi();
    argument.value.out_capabilities = node::capabilities(provider);
    // CAST: A provider has at most 24 regions.
    argument.value.nr_regions = provider.regions.len() as u32;
    argument.value.out_name = name_of(provider);
    argument.write()
}

/// The buffer behind a file descriptor, which has to be `provider`'s if one is given.
pub(crate) fn buffer_of(provider: Option<&Provider>, fd: i32) -> Result<DmaBuf<Buffer>> {
    let dmabuf = DmaBuf::<Buffer>::from_fd(fd)?;
    match provider {
        Some(provider) if !core::ptr::eq(&*dmabuf.data().provider, provider) => Err(ENODEV),
        _ => Ok(dmabuf),
    }
}

/// Serves BARBUF_QUERY, on the node of `provider` or on the control node.
pub(crate) fn query(provider: Option<&Provider>, arg: usize) -> Result {
    let mut argument = Argument::<uapi::Query>::read(arg)?;
    let user = argument.value;
    let stride = user.attachment_stride as usize;
    if user.flags != 0 || user.reserved != 0 || user.reserved2 != 0 {
        return Err(EINVAL);
    }
    if user.nr_attachments != 0
        && (stride < size_of::<uapi::AttachmentInfo>() || stride & 7 != 0 || stride > 4096)
    {
        return Err(EINVAL);
    }
    let dmabuf = buffer_of(provider, user.fd)?;
    let buffer = dmabuf.data();
    let array = UserArray::new(user.ranges, size_of::<uapi::UserRange>(), user.nr_ranges)?;
    for (index, range) in buffer.ranges.iter().enumerate() {
        let range = uapi::UserRange {
            offset: range.start(),
            length: range.len(),
        };
        array.write(index, range)?;
    }
    let room = UserArray::new(user.attachments, stride, user.nr_attachments)?;
    let attachments = attachments(&dmabuf, user.nr_attachments as usize)?;
    for (index, attachment) in attachments.iter().enumerate() {
        room.write(index, *attachment)?;
    }
    let importers = &buffer.importers;
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    let life = buffer.life();
    let counters = &buffer.counters;
    argument.value = uapi::Query {
        out_state: life.state().to_uapi(),
        out_generation: life.generation(),
        out_size: buffer.size,
        out_cookie: buffer.cookie,
        out_phys_class: align_class(buffer.first_physical()),
        out_kind: buffer.provider.kind.to_uapi(),
        out_region: buffer.region,
        out_backing: buffer.terms.backing.to_uapi(),
        out_cache: buffer.terms.cache.to_uapi(),
        out_page_shift: buffer.order.shift(),
        out_export_flags: buffer.terms.flags.bits(),
        out_access: buffer.terms.open.access_bits(),
        out_attachments: importers.attached(),
        out_faults_4k: counters.leaves(PageOrder::Page4K).get(),
        out_faults_2m: counters.leaves(PageOrder::Pmd).get(),
        out_faults_1g: counters.leaves(PageOrder::Pud).get(),
        out_faults: counters.faults.get(),
        out_mappings: counters.mappings.get(),
        out_mapped_bytes: counters.mapped_bytes.get(),
        // CAST: At most 64.
        nr_ranges: buffer.ranges.len() as u32,
        out_name: name_of(&buffer.provider),
        nr_attachments: importers.attached(),
        out_flags: flag(importers.is_held(), uapi::QUERY_HELD)
            | flag(importers.is_vmapped(), uapi::QUERY_VMAPPED),
        ..user
    };
    argument.write()
}

/// The first `most` devices that are attached to a buffer.
fn attachments(dmabuf: &DmaBuf<Buffer>, most: usize) -> Result<KVec<uapi::AttachmentInfo>> {
    let mut list = KVec::new();
    if most == 0 {
        return Ok(list);
    }
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    let size = dmabuf.data().size;
    let mut result = Ok(());
    // No user memory is touched under the reservation lock, hence the detour.
    dmabuf.reserve().each(|device, importer| {
        if result.is_err() || list.len() >= most {
            return;
        }
        let maps = importer.maps();
        let info = uapi::AttachmentInfo {
            name: padded(device.name()),
            flags: flag(device.peer2peer(), uapi::ATTACHMENT_PEER2PEER)
                | flag(device.is_revocable(), uapi::ATTACHMENT_REVOCABLE)
                | flag(importer.pins() != 0, uapi::ATTACHMENT_PINNED)
                | flag(maps != 0, uapi::ATTACHMENT_MAPPED),
            route: importer.kind().to_uapi(),
            nr_maps: maps,
            nr_pins: importer.pins(),
            mapped_bytes: size.saturating_mul(u64::from(maps)),
        };
        result = list.push(info, GFP_KERNEL_ACCOUNT);
    });
    result?;
    Ok(list)
}

/// Serves BARBUF_REVOKE.
pub(crate) fn revoke(provider: &Provider, arg: usize) -> Result {
    let argument = Argument::<uapi::Revoke>::read(arg)?;
    if argument.value.flags != 0 || argument.value.reserved != 0 {
        return Err(EINVAL);
    }
    buffer_of(Some(provider), argument.value.fd)?
        .data()
        .revoke()
}

/// Reads the argument of BARBUF_ADOPT and BARBUF_RELEASE.
///
/// # Errors
///
/// `EINVAL` when the name is not that of a PCI function.
pub(crate) fn adoptee(arg: usize) -> Result<Address> {
    let argument = Argument::<uapi::Adopt>::read(arg)?;
    if argument.value.flags != 0 {
        return Err(EINVAL);
    }
    address_in(&argument.value.name)
}

/// The address of the PCI function that user space calls `name`.
///
/// # Errors
///
/// `EINVAL` when that is not the name of one.
pub(crate) fn address_in(name: &[u8; NAME_LEN]) -> Result<Address> {
    let len = name.iter().position(|byte| *byte == 0).ok_or(EINVAL)?;
    let (text, padding) = name.split_at_checked(len).ok_or(EINVAL)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(EINVAL);
    }
    Address::parse(text).ok_or(EINVAL)
}
