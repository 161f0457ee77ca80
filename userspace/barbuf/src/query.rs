// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel says of a buffer.

use std::ops::Range;

use barbuf_sys::*;
use nix::libc;

use crate::values::{Access, Backing, Cache, Kind, PageSize, State, name_of};

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
    /// Devices attached to it now.
    pub attachments: u32,
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

impl Query {
    pub(crate) fn new(raw: &barbuf_query, ranges: &[barbuf_range]) -> Self {
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
            attachments: raw.out_attachments,
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
