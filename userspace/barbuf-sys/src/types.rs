// SPDX-License-Identifier: MIT OR Apache-2.0

//! The structures, with the members and the order of the C header.
//!
//! `new()` of each structure that an ioctl takes gives one that has the right `size` and asks for
//! nothing. Members named `out_*` are written by the kernel.

use core::mem::{align_of, size_of};

use crate::BARBUF_NAME_LEN;

/// Gives an ioctl's structure its `new()`.
macro_rules! sized {
    ($($name:ident),*) => {$(
        impl $name {
            /// `size` is that of this structure, all else is zero.
            pub const fn new() -> Self {
                // SAFETY: All members are integers, or pointers as integers, for which zero is a
                // valid value.
                let mut value: Self = unsafe { core::mem::zeroed() };
                value.size = size_of::<Self>() as u32;
                value
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
    )*};
}

/// One exportable stretch of a provider. Elements of the array that [`barbuf_info::regions`] points
/// to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct barbuf_region_info {
    /// Names the region in [`barbuf_export`].
    pub index: u32,
    /// Number of the BAR that it lies in, 0 to 5.
    pub bar: u32,
    /// Of the region's first byte in that BAR.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that an exclusive export can still take, in pieces perhaps.
    pub free: u64,
    /// Physical address of the first byte modulo 1 GiB. A user mapping can use a leaf of a given
    /// size only if its address is congruent to the physical one modulo that size.
    pub phys_class: u64,
    /// log2 of the largest leaf that fits anywhere in the region.
    pub max_page_shift: u32,
    /// log2 of the largest compound page that page backing can use here, 0 if the region has no
    /// page backing.
    pub page_shift: u32,
    /// Bit `1 << BARBUF_BACKING_*` for each one that is possible.
    pub backings: u32,
    /// Bit `1 << BARBUF_CACHE_*` for each one that is possible.
    pub caches: u32,
    /// `BARBUF_REGION_*`.
    pub flags: u32,
    /// Live buffers of this region.
    pub nr_buffers: u32,
}

/// Argument of `BARBUF_INFO`: what a provider offers. Provider nodes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct barbuf_info {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// [`BARBUF_ABI_VERSION`](crate::BARBUF_ABI_VERSION) of the module.
    pub out_abi: u32,
    /// `BARBUF_KIND_*` of the provider.
    pub out_kind: u32,
    /// `BARBUF_CAP_*`.
    pub out_capabilities: u64,
    /// On entry the number of elements that `regions` has room for; on return the number of
    /// regions, which may be larger.
    pub nr_regions: u32,
    /// Size of [`barbuf_region_info`] as the caller knows it, a multiple of 8 that is not below its
    /// first published size. The kernel fills each element up to that size, with zeros where it
    /// knows less.
    pub region_stride: u32,
    /// Pointer to an array of [`barbuf_region_info`], may be 0 if `nr_regions` is 0.
    pub regions: u64,
    /// The provider's name, `0000:03:00.0`, NUL-padded.
    pub out_name: [u8; BARBUF_NAME_LEN],
}

/// Bytes of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct barbuf_range {
    /// Of the first byte in the region, a multiple of 4 KiB.
    pub offset: u64,
    /// Bytes, a multiple of 4 KiB, not 0.
    pub length: u64,
}

/// Argument of `BARBUF_EXPORT`: makes a dma-buf of bytes of one region. Provider nodes only.
///
/// A buffer lives as long as its file descriptors, mappings and attachments; its bytes can be
/// exported again when the last of those, and the last pin on its pages, is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct barbuf_export {
    /// Size of this structure.
    pub size: u32,
    /// `BARBUF_EXPORT_*`.
    pub flags: u32,
    /// Index of the region.
    pub region: u32,
    /// `BARBUF_BACKING_*`.
    pub backing: u32,
    /// `BARBUF_CACHE_*`.
    pub cache: u32,
    /// `O_RDONLY` or `O_RDWR`, and `O_CLOEXEC` if wanted. A read-only buffer is read-only for CPUs
    /// and for importing devices.
    pub open_flags: u32,
    /// An eventfd that is signalled once when the buffer is revoked, or -1.
    pub eventfd: i32,
    /// 0 for the largest possible, or a limit for leaves (and, with page backing, the size of the
    /// compound pages): `BARBUF_PAGE_SHIFT_*`.
    pub page_shift: u32,
    /// Pointer to `nr_ranges` elements of [`barbuf_range`]. The buffer's bytes are these ranges in
    /// this order. With [`BARBUF_EXPORT_ANY`](crate::BARBUF_EXPORT_ANY) the kernel writes the
    /// offset back.
    pub ranges: u64,
    /// 1 to [`BARBUF_MAX_RANGES`](crate::BARBUF_MAX_RANGES).
    pub nr_ranges: u32,
    /// File descriptor of the dma-buf.
    pub out_fd: i32,
    /// log2 of the largest leaf that a mapping can have if its address is congruent.
    pub out_page_shift: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Bytes of the buffer.
    pub out_size: u64,
    /// Offset at which the provider's node maps this buffer with mmap(2), as long as the buffer is
    /// live.
    pub out_cookie: u64,
    /// Physical address of the buffer's first byte modulo 1 GiB.
    pub out_phys_class: u64,
}

/// A device that is attached to a buffer. Elements of the array that [`barbuf_query::attachments`]
/// points to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct barbuf_attachment_info {
    /// The kernel's name of the device, of a PCI function `0000:03:00.0`, NUL-padded, cut if it is
    /// longer.
    pub name: [u8; BARBUF_NAME_LEN],
    /// `BARBUF_ATTACHMENT_*`.
    pub flags: u32,
    /// `BARBUF_ROUTE_NONE`, `BARBUF_ROUTE_SWITCH` or `BARBUF_ROUTE_HOST_BRIDGE`, as it was at
    /// attach.
    pub route: u32,
    /// Mappings that the importer has now.
    pub nr_maps: u32,
    /// Pins that it has now.
    pub nr_pins: u32,
    /// Bytes that those mappings cover, counted once for each.
    pub mapped_bytes: u64,
}

/// Argument of `BARBUF_QUERY`: what a dma-buf of barbuf's is. Every node; no privilege beyond
/// holding the file descriptor. A provider's node answers for its own buffers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct barbuf_query {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// File descriptor of a dma-buf.
    pub fd: i32,
    /// `BARBUF_STATE_*`.
    pub out_state: u32,
    /// Starts at 1; raised when the buffer is revoked and each time it comes back from a reset.
    pub out_generation: u64,
    /// Bytes of the buffer.
    pub out_size: u64,
    /// As in [`barbuf_export`].
    pub out_cookie: u64,
    /// As in [`barbuf_export`].
    pub out_phys_class: u64,
    /// `BARBUF_KIND_*` of the provider.
    pub out_kind: u32,
    /// Index of the region.
    pub out_region: u32,
    /// `BARBUF_BACKING_*`.
    pub out_backing: u32,
    /// `BARBUF_CACHE_*`.
    pub out_cache: u32,
    /// As in [`barbuf_export`].
    pub out_page_shift: u32,
    /// The flags of its export.
    pub out_export_flags: u32,
    /// `O_RDONLY` or `O_RDWR`.
    pub out_access: u32,
    /// Devices attached to it now.
    pub out_attachments: u32,
    /// 4 KiB leaves that page faults have put into page tables, since the export, in all processes.
    pub out_faults_4k: u64,
    /// The same for 2 MiB leaves.
    pub out_faults_2m: u64,
    /// The same for 1 GiB leaves.
    pub out_faults_1g: u64,
    /// Page faults that were served; less than the sum of the leaves, because a fault fills its
    /// neighbours.
    pub out_faults: u64,
    /// VMAs that map it now.
    pub out_mappings: u64,
    /// Address space that those take.
    pub out_mapped_bytes: u64,
    /// On entry the number of elements that `ranges` has room for; on return the number of ranges,
    /// which may be larger.
    pub nr_ranges: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Pointer to an array of [`barbuf_range`], may be 0 if `nr_ranges` is 0.
    pub ranges: u64,
    /// The provider's name, NUL-padded.
    pub out_name: [u8; BARBUF_NAME_LEN],
    /// On entry the number of elements that `attachments` has room for; on return the number of
    /// attachments, which may be larger.
    pub nr_attachments: u32,
    /// Size of [`barbuf_attachment_info`] as the caller knows it, a multiple of 8 that is not below
    /// its first published size. The kernel fills each element up to that size, with zeros where it
    /// knows less.
    pub attachment_stride: u32,
    /// Pointer to an array of [`barbuf_attachment_info`], may be 0 if `nr_attachments` is 0.
    pub attachments: u64,
    /// `BARBUF_QUERY_*`.
    pub out_flags: u32,
    /// Must be 0.
    pub reserved2: u32,
}

/// Argument of `BARBUF_REVOKE`: takes a buffer back for good. Provider nodes only.
///
/// On return no CPU and no device reaches its bytes any more: the next touch of a mapping is SIGBUS
/// (`BUS_ADRERR`), mmap and attaching fail with `ENODEV`, the eventfd has been signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct barbuf_revoke {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// File descriptor of a dma-buf of this provider.
    pub fd: i32,
    /// Must be 0.
    pub reserved: u32,
}

/// Argument of `BARBUF_ROUTE`: whether a device can read and write a provider's memory by DMA, and
/// if not, why. Provider nodes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct barbuf_route {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// File descriptor of a dma-buf of this provider, or -1 to ask for `region`.
    pub fd: i32,
    /// Index of the region if `fd` is -1, else 0.
    pub region: u32,
    /// The PCI function that would import, `0000:04:00.0`, NUL-terminated and NUL-padded.
    pub name: [u8; BARBUF_NAME_LEN],
    /// `BARBUF_ROUTE_NONE`, `BARBUF_ROUTE_SWITCH` or `BARBUF_ROUTE_HOST_BRIDGE`.
    pub out_kind: u32,
    /// `BARBUF_REASON_*`; [`BARBUF_REASON_NONE`](crate::BARBUF_REASON_NONE) if the device can
    /// import.
    pub out_reason: u32,
    /// Bridges and links between the two as the kernel counts them: 0 for the provider itself, 2
    /// for another function of it, 4 through one switch; 0 if there is no route.
    pub out_distance: u32,
    /// `BARBUF_ROUTE_IOMMU`, `BARBUF_ROUTE_DMA_MASK_KNOWN`.
    pub out_flags: u32,
    /// Highest address that the device can form; all ones if it is not limited.
    pub out_dma_mask: u64,
}

/// Argument of `BARBUF_ADOPT` and `BARBUF_RELEASE`. Control node only, `CAP_SYS_ADMIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct barbuf_adopt {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The PCI function, `0000:03:00.0`, NUL-terminated and NUL-padded.
    pub name: [u8; BARBUF_NAME_LEN],
}

sized!(
    barbuf_info,
    barbuf_query,
    barbuf_revoke,
    barbuf_route,
    barbuf_adopt
);

impl barbuf_export {
    /// `size` is that of this structure, `eventfd` is -1, all else is zero.
    pub const fn new() -> Self {
        // SAFETY: All members are integers, or pointers as integers, for which zero is a valid
        // value.
        let mut value: Self = unsafe { core::mem::zeroed() };
        value.size = size_of::<Self>() as u32;
        value.eventfd = -1;
        value
    }
}

impl Default for barbuf_export {
    fn default() -> Self {
        Self::new()
    }
}

// 32-bit x86 aligns `u64` to 4 bytes, `__aligned_u64` to 8. All such members lie at multiples of 8,
// so that saying `align(8)` for the whole is enough.
const _: () =
    assert!(size_of::<barbuf_region_info>() == 64 && align_of::<barbuf_region_info>() == 8);
const _: () = assert!(size_of::<barbuf_info>() == 72 && align_of::<barbuf_info>() == 8);
const _: () = assert!(size_of::<barbuf_range>() == 16 && align_of::<barbuf_range>() == 8);
const _: () = assert!(size_of::<barbuf_export>() == 80 && align_of::<barbuf_export>() == 8);
const _: () = assert!(size_of::<barbuf_query>() == 200 && align_of::<barbuf_query>() == 8);
const _: () =
    assert!(size_of::<barbuf_attachment_info>() == 56 && align_of::<barbuf_attachment_info>() == 8);
const _: () = assert!(size_of::<barbuf_route>() == 72 && align_of::<barbuf_route>() == 8);
const _: () = assert!(size_of::<barbuf_revoke>() == 16 && align_of::<barbuf_revoke>() == 4);
const _: () = assert!(size_of::<barbuf_adopt>() == 40 && align_of::<barbuf_adopt>() == 4);
