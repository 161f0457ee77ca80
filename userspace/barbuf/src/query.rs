// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel says of a buffer.

use std::ops::Range;

use barbuf_sys::*;
use nix::libc;

use crate::values::{Access, Backing, Cache, Kind, PageSize, RouteKind, State, name_of};

/// The answer of [`Control::query`](crate::Control::query) and of
/// [`Device::query`](crate::Device::query): a moment's picture of a buffer of barbuf's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Query {
    /// Whether it is usable.
    pub state: State,
    /// Starts at 1; raised when the buffer is revoked and each time it comes back from a reset.
    pub generation: u64,
    /// Bytes.
    pub size: u64,
    /// The offset at which the provider's node maps this buffer, as long as it is live.
    pub cookie: u64,
    /// Physical address of the first byte modulo 1 GiB.
    pub phys_class: u64,
    /// The PCI address of the provider.
    pub provider: String,
    /// How the provider became one.
    pub kind: Kind,
    /// The region's index.
    pub region: u32,
    /// The bytes of the region that it consists of, in this order.
    pub ranges: Vec<Range<u64>>,
    /// What stands behind its bytes.
    pub backing: Backing,
    /// How the CPU accesses them.
    pub cache: Cache,
    /// What may be done to it.
    pub access: Access,
    /// The largest page that a mapping can have if its address is congruent.
    pub largest_page: PageSize,
    /// Others may cover the same bytes.
    pub shared: bool,
    /// It is revoked when the file of the node that exported it is closed.
    pub revoke_on_close: bool,
    /// Importers that cannot be told to stop are let in.
    pub static_import: bool,
    /// Devices attached to it now.
    pub attachments: Vec<Attachment>,
    /// Somebody is attached, or maps it in the kernel, for whom revoking waits.
    pub held: bool,
    /// The kernel's own CPU mapping is in use.
    pub vmapped: bool,
    /// What page faults have put into page tables so far.
    pub faults: Faults,
    /// VMAs that map it now, in all processes.
    pub mappings: u64,
    /// Address space that those take, in bytes.
    pub mapped_bytes: u64,
}

/// What page faults on a buffer have put into page tables since its export, in all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// Page faults that were served.
    pub served: u64,
    /// 1 GiB leaves.
    pub of_1g: u64,
    /// 2 MiB leaves.
    pub of_2m: u64,
    /// 4 KiB leaves.
    pub of_4k: u64,
}

/// A device that is attached to a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attachment {
    /// The kernel's name of the device; of a PCI function its address.
    pub device: String,
    /// How the device reaches the memory, as it was when it attached.
    pub route: RouteKind,
    /// It says that it can address memory of other devices.
    pub peer2peer: bool,
    /// It can be told to stop, so that revoking does not wait for it.
    pub revocable: bool,
    /// It has pinned the buffer this many times.
    pub pins: u32,
    /// It has DMA addresses of the buffer this many times.
    pub maps: u32,
    /// Bytes that those cover, counted once for each.
    pub mapped_bytes: u64,
}

impl Attachment {
    fn new(raw: &barbuf_attachment_info) -> Self {
        Attachment {
            device: name_of(&raw.name),
            route: RouteKind::from_raw(raw.route),
            peer2peer: raw.flags & BARBUF_ATTACHMENT_PEER2PEER != 0,
            revocable: raw.flags & BARBUF_ATTACHMENT_REVOCABLE != 0,
            pins: raw.nr_pins,
            maps: raw.nr_maps,
            mapped_bytes: raw.mapped_bytes,
        }
    }
}

impl Query {
    pub(crate) fn new(
        raw: &barbuf_query,
        ranges: &[barbuf_range],
        attachments: &[barbuf_attachment_info],
    ) -> Self {
        Query {
            state: State::from_raw(raw.out_state),
            generation: raw.out_generation,
            size: raw.out_size,
            cookie: raw.out_cookie,
            phys_class: raw.out_phys_class,
            provider: name_of(&raw.out_name),
            kind: Kind::from_raw(raw.out_kind),
            region: raw.out_region,
            ranges: ranges
                .iter()
                .map(|range| range.offset..range.offset.saturating_add(range.length))
                .collect(),
            backing: Backing::from_raw(raw.out_backing),
            cache: Cache::from_raw(raw.out_cache),
            access: access_of(raw.out_access),
            largest_page: PageSize::at_most(raw.out_page_shift).unwrap_or(PageSize::Size4K),
            shared: raw.out_export_flags & BARBUF_EXPORT_SHARED != 0,
            revoke_on_close: raw.out_export_flags & BARBUF_EXPORT_REVOKE_ON_CLOSE != 0,
            static_import: raw.out_export_flags & BARBUF_EXPORT_STATIC_IMPORT != 0,
            attachments: attachments.iter().map(Attachment::new).collect(),
            held: raw.out_flags & BARBUF_QUERY_HELD != 0,
            vmapped: raw.out_flags & BARBUF_QUERY_VMAPPED != 0,
            faults: Faults {
                served: raw.out_faults,
                of_1g: raw.out_faults_1g,
                of_2m: raw.out_faults_2m,
                of_4k: raw.out_faults_4k,
            },
            mappings: raw.out_mappings,
            mapped_bytes: raw.out_mapped_bytes,
        }
    }
}

pub(crate) fn access_of(open_flags: u32) -> Access {
    match open_flags as libc::c_int & libc::O_ACCMODE {
        libc::O_RDONLY => Access::ReadOnly,
        _ => Access::ReadWrite,
    }
}
