// SPDX-License-Identifier: MIT OR Apache-2.0

//! The interface as a table: for whoever compares it with another description of itself.
//!
//! This crate's tests compare it with the C header, the project's guest tests with what the running
//! module says.

use core::mem::{align_of, offset_of, size_of};

/// A structure.
#[derive(Clone, Copy, Debug)]
pub struct Struct {
    /// The name in C, without `struct`.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Bytes.
    pub align: usize,
    /// In the order of their offsets.
    pub members: &'static [Member],
}

/// A member of a structure.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// The name in C.
    pub name: &'static str,
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Whether it can be negative.
    pub signed: bool,
}

/// The types of members.
trait MemberType {
    const SIGNED: bool;
}

impl MemberType for u32 {
    const SIGNED: bool = false;
}

impl MemberType for i32 {
    const SIGNED: bool = true;
}

impl MemberType for u64 {
    const SIGNED: bool = false;
}

impl<const N: usize> MemberType for [u8; N] {
    const SIGNED: bool = false;
}

/// Describes the member that `_projection` leads to.
const fn member<T, M: MemberType>(
    name: &'static str,
    offset: usize,
    _projection: fn(&T) -> &M,
) -> Member {
    Member {
        name,
        offset,
        size: size_of::<M>(),
        signed: M::SIGNED,
    }
}

macro_rules! structs {
    ($($name:ident { $($member:ident),* $(,)? })*) => {
        /// All structures of the header.
        pub const STRUCTS: &[Struct] = &[$(Struct {
            name: stringify!($name),
            size: size_of::<crate::$name>(),
            align: align_of::<crate::$name>(),
            members: &[$(member(
                stringify!($member),
                offset_of!(crate::$name, $member),
                |value: &crate::$name| &value.$member,
            )),*],
        }),*];
    };
}

macro_rules! constants {
    ($($name:ident),* $(,)?) => {
        /// All constants of the header but the request numbers.
        pub const CONSTANTS: &[(&str, u64)] = &[$((stringify!($name), crate::$name as u64)),*];
    };
}

structs! {
    barbuf_region_info {
        index, bar, offset, length, free, phys_class, max_page_shift, page_shift, backings, caches, flags, nr_buffers,
    }
    barbuf_info {
        size, flags, out_abi, out_kind, out_capabilities, nr_regions, region_stride, regions, out_name,
    }
    barbuf_range { offset, length }
    barbuf_export {
        size, flags, region, backing, cache, open_flags, eventfd, page_shift, ranges, nr_ranges, out_fd,
        out_page_shift, reserved, out_size, out_cookie, out_phys_class,
    }
    barbuf_attachment_info { name, flags, route, nr_maps, nr_pins, mapped_bytes }
    barbuf_query {
        size, flags, fd, out_state, out_generation, out_size, out_cookie, out_phys_class, out_kind, out_region,
        out_backing, out_cache, out_page_shift, out_export_flags, out_access, out_attachments, out_faults_4k,
        out_faults_2m, out_faults_1g, out_faults, out_mappings, out_mapped_bytes, nr_ranges, reserved, ranges,
        out_name, nr_attachments, attachment_stride, attachments, out_flags, reserved2,
    }
    barbuf_revoke { size, flags, fd, reserved }
    barbuf_route {
        size, flags, fd, region, name, out_kind, out_reason, out_distance, out_flags, out_dma_mask,
    }
    barbuf_adopt { size, flags, name }
}

constants! {
    BARBUF_IOC_MAGIC,
    BARBUF_ABI_VERSION,
    BARBUF_MAX_RANGES,
    BARBUF_NAME_LEN,
    BARBUF_PAGE_SHIFT_4K,
    BARBUF_PAGE_SHIFT_2M,
    BARBUF_PAGE_SHIFT_1G,
    BARBUF_KIND_BOUND,
    BARBUF_KIND_ADOPTED,
    BARBUF_KIND_REGISTERED,
    BARBUF_BACKING_PFN,
    BARBUF_BACKING_PAGE,
    BARBUF_CACHE_UC,
    BARBUF_CACHE_WC,
    BARBUF_STATE_LIVE,
    BARBUF_STATE_SUSPENDED,
    BARBUF_STATE_REVOKED,
    BARBUF_REGION_MEMORY_ONLY,
    BARBUF_REGION_PREFETCHABLE,
    BARBUF_REGION_POOL,
    BARBUF_CAP_PAGE_BACKING,
    BARBUF_CAP_LEAF_1G,
    BARBUF_CAP_LEAF_2M,
    BARBUF_EXPORT_ANY,
    BARBUF_EXPORT_SHARED,
    BARBUF_EXPORT_ZERO,
    BARBUF_EXPORT_REVOKE_ON_CLOSE,
    BARBUF_EXPORT_STATIC_IMPORT,
    BARBUF_ROUTE_NONE,
    BARBUF_ROUTE_SWITCH,
    BARBUF_ROUTE_HOST_BRIDGE,
    BARBUF_REASON_NONE,
    BARBUF_REASON_NO_DEVICE,
    BARBUF_REASON_HOST_BRIDGE,
    BARBUF_REASON_ACS_REDIRECT,
    BARBUF_REASON_DMA_MASK,
    BARBUF_REASON_NO_P2PDMA,
    BARBUF_ATTACHMENT_PEER2PEER,
    BARBUF_ATTACHMENT_REVOCABLE,
    BARBUF_ATTACHMENT_PINNED,
    BARBUF_ATTACHMENT_MAPPED,
    BARBUF_QUERY_HELD,
    BARBUF_QUERY_VMAPPED,
    BARBUF_ROUTE_IOMMU,
    BARBUF_ROUTE_DMA_MASK_KNOWN,
}
