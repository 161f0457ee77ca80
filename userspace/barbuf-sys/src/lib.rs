// SPDX-License-Identifier: MIT OR Apache-2.0

//! The raw interface of the barbuf kernel module, as `uapi/linux/barbuf.h` has it.
//!
//! Types and constants carry the names of the C header, and the header is where their meaning is
//! defined; what stands here is a short form of it. The types need neither `std` nor `alloc`. The
//! feature `ioctl` (on by default, needs `std`) adds the module [`ioctl`] with the request numbers
//! and one raw function for each request.
//!
//! ```
//! use barbuf_sys::*;
//!
//! let mut revoke = barbuf_revoke { fd: 5, ..barbuf_revoke::new() };
//! assert_eq!(revoke.size, 16);
//! ```
//!
//! Values that the kernel returns are plain integers and not enums, because a newer kernel may
//! return one that this crate does not know.
//!
//! # Layout
//!
//! No type has padding, every type is aligned to its largest member on 32-bit and 64-bit machines
//! alike, and any bit pattern is a valid value. The tests compile the C header as C and as C++, for
//! 64 and for 32 bits, and compare each size, offset and number.

#![no_std]
#![deny(missing_docs, unsafe_op_in_unsafe_fn)]
#![allow(non_camel_case_types, reason = "the names are those of the C header")]

// The macro of ioctl-sys names it, and finds it at the root only.
#[cfg(feature = "ioctl")]
extern crate std;

pub mod layout;
mod types;

#[cfg(all(
    feature = "ioctl",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64"
    )
))]
pub mod ioctl;

pub use types::*;

/// The type of every ioctl number of this interface.
pub const BARBUF_IOC_MAGIC: u8 = 0xBB;
/// Raised when a member changes its meaning; see [`barbuf_info::out_abi`].
pub const BARBUF_ABI_VERSION: u32 = 1;
/// The largest number of ranges in one buffer.
pub const BARBUF_MAX_RANGES: u32 = 64;
/// Bytes of a provider's name, with the final NUL.
pub const BARBUF_NAME_LEN: usize = 32;

/// log2 of the bytes of a 4 KiB page.
pub const BARBUF_PAGE_SHIFT_4K: u32 = 12;
/// log2 of the bytes of a 2 MiB page.
pub const BARBUF_PAGE_SHIFT_2M: u32 = 21;
/// log2 of the bytes of a 1 GiB page.
pub const BARBUF_PAGE_SHIFT_1G: u32 = 30;

/// barbuf is the function's PCI driver.
pub const BARBUF_KIND_BOUND: u32 = 0;
/// The function's own driver has published p2pmem; barbuf takes ranges from that pool.
pub const BARBUF_KIND_ADOPTED: u32 = 1;
/// The function's own driver has registered regions.
pub const BARBUF_KIND_REGISTERED: u32 = 2;

/// No struct pages. Costs nothing; file I/O into the mapping fails with `EFAULT`.
pub const BARBUF_BACKING_PFN: u32 = 0;
/// Compound struct pages. `O_DIRECT` works on the mapping, which consists of whole pages of one size.
pub const BARBUF_BACKING_PAGE: u32 = 1;

/// Uncached.
pub const BARBUF_CACHE_UC: u32 = 0;
/// Write combining; prefetchable regions only.
pub const BARBUF_CACHE_WC: u32 = 1;

/// Usable.
pub const BARBUF_STATE_LIVE: u32 = 0;
/// The function is being reset; the buffer comes back.
pub const BARBUF_STATE_SUSPENDED: u32 = 1;
/// Gone for good.
pub const BARBUF_STATE_REVOKED: u32 = 2;

/// No control registers: `CAP_SYS_RAWIO` is not needed, [`BARBUF_EXPORT_ZERO`] is possible.
pub const BARBUF_REGION_MEMORY_ONLY: u32 = 1 << 0;
/// The BAR is prefetchable: write combining is possible.
pub const BARBUF_REGION_PREFETCHABLE: u32 = 1 << 1;
/// Ranges come from a pool: only [`BARBUF_EXPORT_ANY`], one range.
pub const BARBUF_REGION_POOL: u32 = 1 << 2;

/// This kernel's layout is known: page backing is possible.
pub const BARBUF_CAP_PAGE_BACKING: u64 = 1 << 0;
/// The CPU and the kernel have 1 GiB leaves.
pub const BARBUF_CAP_LEAF_1G: u64 = 1 << 1;
/// The kernel has 2 MiB leaves.
pub const BARBUF_CAP_LEAF_2M: u64 = 1 << 2;

/// The kernel chooses where: one range, whose offset must be 0 on entry.
pub const BARBUF_EXPORT_ANY: u32 = 1 << 0;
/// Other buffers that say the same may cover the same bytes.
pub const BARBUF_EXPORT_SHARED: u32 = 1 << 1;
/// Fill the bytes with zero before the file descriptor exists.
pub const BARBUF_EXPORT_ZERO: u32 = 1 << 2;
/// Revoke when the node's file that exported it is closed.
pub const BARBUF_EXPORT_REVOKE_ON_CLOSE: u32 = 1 << 3;
/// Let in importers that cannot be told to stop; revoking waits until they let go.
pub const BARBUF_EXPORT_STATIC_IMPORT: u32 = 1 << 4;

/// The device does not reach the memory.
pub const BARBUF_ROUTE_NONE: u32 = 0;
/// By bus addresses, through a PCIe switch above both, or as functions of one device.
pub const BARBUF_ROUTE_SWITCH: u32 = 1;
/// Through the host bridge.
pub const BARBUF_ROUTE_HOST_BRIDGE: u32 = 2;

/// The device can import.
pub const BARBUF_REASON_NONE: u32 = 0;
/// There is no such PCI function.
pub const BARBUF_REASON_NO_DEVICE: u32 = 1;
/// The way leads through a host bridge of which the kernel does not know that it forwards between
/// its ports.
pub const BARBUF_REASON_HOST_BRIDGE: u32 = 2;
/// A switch is above both, but the ACS settings of a port on the way send requests up to such a
/// host bridge.
pub const BARBUF_REASON_ACS_REDIRECT: u32 = 3;
/// The device's driver has set a DMA mask below the addresses.
pub const BARBUF_REASON_DMA_MASK: u32 = 4;
/// The kernel offers no peer-to-peer DMA for the provider.
pub const BARBUF_REASON_NO_P2PDMA: u32 = 5;

/// The importer says that it can address memory of other devices.
pub const BARBUF_ATTACHMENT_PEER2PEER: u32 = 1 << 0;
/// The importer can be told to stop: revoking does not wait for its detach.
pub const BARBUF_ATTACHMENT_REVOCABLE: u32 = 1 << 1;
/// The importer has pinned the buffer.
pub const BARBUF_ATTACHMENT_PINNED: u32 = 1 << 2;
/// The importer has DMA addresses of the buffer.
pub const BARBUF_ATTACHMENT_MAPPED: u32 = 1 << 3;

/// Somebody is attached, or has a vmap(), for whom revoking waits.
pub const BARBUF_QUERY_HELD: u32 = 1 << 0;
/// The kernel's CPU mapping, vmap(), is in use.
pub const BARBUF_QUERY_VMAPPED: u32 = 1 << 1;

/// An IOMMU translates for the device, which sees one range of addresses.
pub const BARBUF_ROUTE_IOMMU: u32 = 1 << 0;
/// A driver is bound to the device, so that [`barbuf_route::out_dma_mask`] means something.
pub const BARBUF_ROUTE_DMA_MASK_KNOWN: u32 = 1 << 1;
