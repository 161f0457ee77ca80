// SPDX-License-Identifier: GPL-2.0

//! `uapi/linux/barbuf.h` as Rust types.
//!
//! The header is the contract; this is its mirror. [`write_abi`] prints what this file says, for
//! the test that compares the two in C, C++, Rust and here.

use crate::{
    provider::Kind,
    pure::{
        export::Flags,
        mode::{
            Backing,
            Cache, //
        },
        order::PageOrder,
        route::{
            self,
            Reason, //
        },
        state::State, //
    },
};
use core::mem::offset_of;
use kernel::{
    fmt,
    ioctl::_IO,
    prelude::*, //
};

/// `BARBUF_ABI_VERSION`
pub(crate) const ABI_VERSION: u32 = 1;
/// `BARBUF_NAME_LEN`
pub(crate) const NAME_LEN: usize = 32;

const MAGIC: u32 = 0xbb;
/// `BARBUF_INFO`
pub(crate) const INFO: u32 = _IO(MAGIC, 0x00);
/// `BARBUF_EXPORT`
pub(crate) const EXPORT: u32 = _IO(MAGIC, 0x01);
/// `BARBUF_QUERY`
pub(crate) const QUERY: u32 = _IO(MAGIC, 0x02);
/// `BARBUF_REVOKE`
pub(crate) const REVOKE: u32 = _IO(MAGIC, 0x03);
/// `BARBUF_ROUTE`
pub(crate) const ROUTE: u32 = _IO(MAGIC, 0x04);
/// `BARBUF_ADOPT`
pub(crate) const ADOPT: u32 = _IO(MAGIC, 0x10);
/// `BARBUF_RELEASE`
pub(crate) const RELEASE: u32 = _IO(MAGIC, 0x11);

/// `BARBUF_CAP_PAGE_BACKING`
pub(crate) const CAP_PAGE_BACKING: u64 = 1 << 0;
/// `BARBUF_CAP_LEAF_1G`
pub(crate) const CAP_LEAF_1G: u64 = 1 << 1;
/// `BARBUF_CAP_LEAF_2M`
pub(crate) const CAP_LEAF_2M: u64 = 1 << 2;

/// `BARBUF_REGION_MEMORY_ONLY`
pub(crate) const REGION_MEMORY_ONLY: u32 = 1 << 0;
/// `BARBUF_REGION_PREFETCHABLE`
pub(crate) const REGION_PREFETCHABLE: u32 = 1 << 1;
/// `BARBUF_REGION_POOL`
pub(crate) const REGION_POOL: u32 = 1 << 2;

/// `BARBUF_ATTACHMENT_PEER2PEER`
pub(crate) const ATTACHMENT_PEER2PEER: u32 = 1 << 0;
/// `BARBUF_ATTACHMENT_REVOCABLE`
pub(crate) const ATTACHMENT_REVOCABLE: u32 = 1 << 1;
/// `BARBUF_ATTACHMENT_PINNED`
pub(crate) const ATTACHMENT_PINNED: u32 = 1 << 2;
/// `BARBUF_ATTACHMENT_MAPPED`
pub(crate) const ATTACHMENT_MAPPED: u32 = 1 << 3;

/// `BARBUF_QUERY_HELD`
pub(crate) const QUERY_HELD: u32 = 1 << 0;
/// `BARBUF_QUERY_VMAPPED`
pub(crate) const QUERY_VMAPPED: u32 = 1 << 1;

/// `BARBUF_ROUTE_IOMMU`
pub(crate) const ROUTE_IOMMU: u32 = 1 << 0;
/// `BARBUF_ROUTE_DMA_MASK_KNOWN`
pub(crate) const ROUTE_DMA_MASK_KNOWN: u32 = 1 << 1;

/// Declares the structs of the header, with the table that [`write_abi`] prints.
macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident = $c:literal, min $min:ident {
        $($field:ident: $ty:ty,)*
    })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, FromBytes, IntoBytes)]
            pub(crate) struct $name {
                $(pub(crate) $field: $ty,)*
            }

            impl Struct for $name {
                const MIN: usize = offset_of!($name, $min) + size_of_member(|s: &$name| s.$min);
            }
        )*

        /// Prints sizes, offsets and numbers, one a line.
        pub(crate) fn write_abi(f: &mut fmt::Formatter<'_>) -> fmt::Result {
            $(
                writeln!(f, "struct {} {}", $c, size_of::<$name>())?;
                $(writeln!(f, "struct {}.{} {}", $c, stringify!($field), offset_of!($name, $field))?;)*
            )*
            for (name, number) in [
                ("BARBUF_INFO", INFO),
                ("BARBUF_EXPORT", EXPORT),
                ("BARBUF_QUERY", QUERY),
                ("BARBUF_REVOKE", REVOKE),
                ("BARBUF_ROUTE", ROUTE),
                ("BARBUF_ADOPT", ADOPT),
                ("BARBUF_RELEASE", RELEASE),
            ] {
                writeln!(f, "ioctl {name} {number:#x}")?;
            }
            for (name, value) in [
                ("BARBUF_ABI_VERSION", u64::from(ABI_VERSION)),
                ("BARBUF_NAME_LEN", NAME_LEN as u64),
                ("BARBUF_MAX_RANGES", crate::pure::range::MAX_RANGES as u64),
                ("BARBUF_CAP_PAGE_BACKING", CAP_PAGE_BACKING),
                ("BARBUF_CAP_LEAF_1G", CAP_LEAF_1G),
                ("BARBUF_CAP_LEAF_2M", CAP_LEAF_2M),
                ("BARBUF_REGION_MEMORY_ONLY", u64::from(REGION_MEMORY_ONLY)),
                ("BARBUF_REGION_PREFETCHABLE", u64::from(REGION_PREFETCHABLE)),
                ("BARBUF_REGION_POOL", u64::from(REGION_POOL)),
                ("BARBUF_ATTACHMENT_PEER2PEER", u64::from(ATTACHMENT_PEER2PEER)),
                ("BARBUF_ATTACHMENT_REVOCABLE", u64::from(ATTACHMENT_REVOCABLE)),
                ("BARBUF_ATTACHMENT_PINNED", u64::from(ATTACHMENT_PINNED)),
                ("BARBUF_ATTACHMENT_MAPPED", u64::from(ATTACHMENT_MAPPED)),
                ("BARBUF_QUERY_HELD", u64::from(QUERY_HELD)),
                ("BARBUF_QUERY_VMAPPED", u64::from(QUERY_VMAPPED)),
                ("BARBUF_ROUTE_IOMMU", u64::from(ROUTE_IOMMU)),
                ("BARBUF_ROUTE_DMA_MASK_KNOWN", u64::from(ROUTE_DMA_MASK_KNOWN)),
                ("BARBUF_IOC_MAGIC", u64::from(MAGIC)),
            ] {
                writeln!(f, "const {name} {value:#x}")?;
            }
            for (name, value) in MODES {
                writeln!(f, "const {name} {value:#x}")?;
            }
            Ok(())
        }
    };
}

/// The values that have types of their own in the module.
const MODES: [(&str, u32); 27] = [
    ("BARBUF_KIND_BOUND", Kind::Bound as u32),
    ("BARBUF_KIND_ADOPTED", Kind::Adopted as u32),
    ("BARBUF_KIND_REGISTERED", Kind::Registered as u32),
    ("BARBUF_BACKING_PFN", Backing::Pfn.to_uapi()),
    ("BARBUF_BACKING_PAGE", Backing::Page.to_uapi()),
    ("BARBUF_CACHE_UC", Cache::Uncached.to_uapi()),
    ("BARBUF_CACHE_WC", Cache::WriteCombining.to_uapi()),
    ("BARBUF_STATE_LIVE", State::Live.to_uapi()),
    ("BARBUF_STATE_SUSPENDED", State::Suspended.to_uapi()),
    ("BARBUF_STATE_REVOKED", State::Revoked.to_uapi()),
    ("BARBUF_PAGE_SHIFT_4K", PageOrder::Page4K.shift()),
    ("BARBUF_PAGE_SHIFT_2M", PageOrder::Pmd.shift()),
    ("BARBUF_PAGE_SHIFT_1G", PageOrder::Pud.shift()),
    ("BARBUF_EXPORT_ANY", Flags::ANY.bits()),
    ("BARBUF_EXPORT_SHARED", Flags::SHARED.bits()),
    ("BARBUF_EXPORT_ZERO", Flags::ZERO.bits()),
    (
        "BARBUF_EXPORT_REVOKE_ON_CLOSE",
        Flags::REVOKE_ON_CLOSE.bits(),
    ),
    ("BARBUF_EXPORT_STATIC_IMPORT", Flags::STATIC_IMPORT.bits()),
    ("BARBUF_ROUTE_NONE", route::Kind::None.to_uapi()),
    ("BARBUF_ROUTE_SWITCH", route::Kind::Switch.to_uapi()),
    (
        "BARBUF_ROUTE_HOST_BRIDGE",
        route::Kind::HostBridge.to_uapi(),
    ),
    ("BARBUF_REASON_NONE", Reason::None.to_uapi()),
    ("BARBUF_REASON_NO_DEVICE", Reason::NoDevice.to_uapi()),
    ("BARBUF_REASON_HOST_BRIDGE", Reason::HostBridge.to_uapi()),
    ("BARBUF_REASON_ACS_REDIRECT", Reason::AcsRedirect.to_uapi()),
    ("BARBUF_REASON_DMA_MASK", Reason::DmaMask.to_uapi()),
    ("BARBUF_REASON_NO_P2PDMA", Reason::NoP2pdma.to_uapi()),
];

const fn size_of_member<S, M>(_: fn(&S) -> M) -> usize {
    size_of::<M>()
}

/// A struct whose first member is its size.
pub(crate) trait Struct: FromBytes + IntoBytes + Copy {
    /// Its size when it was first published: up to and with its last member of then.
    const MIN: usize;
}

structs! {
    /// One region; an element of the array in [`Info`].
    RegionInfo = "barbuf_region_info", min nr_buffers {
        index: u32,
        bar: u32,
        offset: u64,
        length: u64,
        free: u64,
        phys_class: u64,
        max_page_shift: u32,
        page_shift: u32,
        backings: u32,
        caches: u32,
        flags: u32,
        nr_buffers: u32,
    }
    /// `BARBUF_INFO`
    Info = "barbuf_info", min out_name {
        size: u32,
        flags: u32,
        out_abi: u32,
        out_kind: u32,
        out_capabilities: u64,
        nr_regions: u32,
        region_stride: u32,
        regions: u64,
        out_name: [u8; NAME_LEN],
    }
    /// Bytes of a region.
    UserRange = "barbuf_range", min length {
        offset: u64,
        length: u64,
    }
    /// `BARBUF_EXPORT`
    Export = "barbuf_export", min out_phys_class {
        size: u32,
        flags: u32,
        region: u32,
        backing: u32,
        cache: u32,
        open_flags: u32,
        eventfd: i32,
        page_shift: u32,
        ranges: u64,
        nr_ranges: u32,
        out_fd: i32,
        out_page_shift: u32,
        reserved: u32,
        out_size: u64,
        out_cookie: u64,
        out_phys_class: u64,
    }
    /// `BARBUF_QUERY`
    Query = "barbuf_query", min out_name {
        size: u32,
        flags: u32,
        fd: i32,
        out_state: u32,
        out_generation: u64,
        out_size: u64,
        out_cookie: u64,
        out_phys_class: u64,
        out_kind: u32,
        out_region: u32,
        out_backing: u32,
        out_cache: u32,
        out_page_shift: u32,
        out_export_flags: u32,
        out_access: u32,
        out_attachments: u32,
        out_faults_4k: u64,
        out_faults_2m: u64,
        out_faults_1g: u64,
        out_faults: u64,
        out_mappings: u64,
        out_mapped_bytes: u64,
        nr_ranges: u32,
        reserved: u32,
        ranges: u64,
        out_name: [u8; NAME_LEN],
        nr_attachments: u32,
        attachment_stride: u32,
        attachments: u64,
        out_flags: u32,
        reserved2: u32,
    }
    /// A device that is attached to a buffer; an element of the array in [`Query`].
    AttachmentInfo = "barbuf_attachment_info", min mapped_bytes {
        name: [u8; NAME_LEN],
        flags: u32,
        route: u32,
        nr_maps: u32,
        nr_pins: u32,
        mapped_bytes: u64,
    }
    /// `BARBUF_ROUTE`
    Route = "barbuf_route", min out_dma_mask {
        size: u32,
        flags: u32,
        fd: i32,
        region: u32,
        name: [u8; NAME_LEN],
        out_kind: u32,
        out_reason: u32,
        out_distance: u32,
        out_flags: u32,
        out_dma_mask: u64,
    }
    /// `BARBUF_REVOKE`
    Revoke = "barbuf_revoke", min reserved {
        size: u32,
        flags: u32,
        fd: i32,
        reserved: u32,
    }
    /// `BARBUF_ADOPT` and `BARBUF_RELEASE`
    Adopt = "barbuf_adopt", min name {
        size: u32,
        flags: u32,
        name: [u8; NAME_LEN],
    }
}
