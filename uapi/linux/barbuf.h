/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * barbuf: PCI BAR memory as dma-bufs.
 *
 * This header is the contract between the barbuf module and user space, and
 * the only place where its numbers and layouts are written by hand.
 */
#ifndef _UAPI_LINUX_BARBUF_H
#define _UAPI_LINUX_BARBUF_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: Nodes
 *
 * ``/dev/barbuf/<domain:bus:dev.fn>`` stands for one provider, a PCI function
 * whose memory can be exported. It is created 0600 root; who may open it may
 * export and revoke. It answers BARBUF_INFO, BARBUF_EXPORT, BARBUF_QUERY,
 * BARBUF_REVOKE and BARBUF_ROUTE, and mmap() at the cookie of a buffer.
 *
 * ``/dev/barbuf/control`` belongs to the module. It is created 0666, because
 * whoever was handed a buffer's file descriptor may ask what it is: it answers
 * BARBUF_QUERY to everybody, BARBUF_ADOPT and BARBUF_RELEASE to a caller with
 * CAP_SYS_ADMIN in the initial user namespace.
 *
 * A buffer is an ordinary dma-buf: mmap(), poll(), lseek(SEEK_END) and the
 * DMA_BUF_IOCTL_* calls of linux/dma-buf.h work on its file descriptor.
 */

/**
 * DOC: Format of the ioctls
 *
 * Each ioctl takes a pointer to a structure whose first __u32 is the size of
 * that structure as the caller knows it. A shorter, older structure is
 * accepted down to its first published size; a longer, newer one is accepted
 * if all that the kernel does not know is zero. Members named ``out_*`` are
 * written by the kernel; their values on entry are ignored. Reserved members
 * and unknown flag bits must be zero.
 *
 * A call that fails has changed nothing, and nothing is written back.
 *
 * Each errno has one meaning:
 *
 * ======================  ====================================================
 * ENOTTY                  this node has no such ioctl number
 * E2BIG                   the structure is longer than the kernel knows, and
 *                         what it does not know is not zero
 * EFAULT                  a pointer cannot be read from or written to
 * EINVAL                  a member has a value that is never correct: a size
 *                         below the first published one, an unknown flag, a
 *                         reserved member that is not zero, a range that is
 *                         empty, unaligned, outside its region or overlaps
 *                         another of the same call, a region or a name that
 *                         cannot be, a file descriptor that is no dma-buf, a
 *                         mapping that is not MAP_SHARED
 * EOPNOTSUPP              correct, but this function, region or kernel does
 *                         not offer it (see the capabilities that BARBUF_INFO
 *                         returns)
 * EBADF                   the file descriptor is not open
 * ENODEV                  there is no such function or provider (any more), or
 *                         the dma-buf is not one of its buffers
 * EBADFD                  the buffer has been revoked already
 * EBUSY                   bytes are in use in a way that excludes this export:
 *                         by another buffer alone, or with another backing,
 *                         cache mode or size of struct pages
 * ENOSPC                  no room: no free range is long enough, a pool has no
 *                         page left to adopt it by, or the limit on the number
 *                         of buffers is reached
 * EMFILE, ENFILE          no file descriptor is free
 * EPERM                   the caller lacks the capability that the call needs
 *                         (CAP_SYS_RAWIO for a region that may hold control
 *                         registers, CAP_SYS_ADMIN to adopt), or the kernel
 *                         is locked down
 * EACCES                  the access asked for is not granted by the buffer
 * EAGAIN                  the function is being reset: to be tried again. Of
 *                         DMA_BUF_IOCTL_SYNC and of importing; exports wait
 * ERANGE                  an importing device cannot form the addresses: its
 *                         DMA mask is below them
 * EREMOTEIO               an importing device has no route to the memory;
 *                         BARBUF_ROUTE tells why
 * ENOMEM                  out of memory
 * EINTR                   a fatal signal ended a long operation; nothing
 *                         was exported
 * EEXIST                  the function is a provider already
 * ECONNREFUSED            the function's own driver, which has registered the
 *                         region, refused; the kernel log has its reason
 * ======================  ====================================================
 */

/** BARBUF_IOC_MAGIC - the type of every ioctl number of this header. */
#define BARBUF_IOC_MAGIC 0xBB

/** BARBUF_ABI_VERSION - raised when a member changes its meaning. */
#define BARBUF_ABI_VERSION 1

/** BARBUF_MAX_RANGES - the largest number of ranges in one buffer. */
#define BARBUF_MAX_RANGES 64

/** BARBUF_NAME_LEN - bytes of a provider's name, with the final NUL. */
#define BARBUF_NAME_LEN 32

/* The three page sizes that exist, as log2 of bytes. */
#define BARBUF_PAGE_SHIFT_4K 12
#define BARBUF_PAGE_SHIFT_2M 21
#define BARBUF_PAGE_SHIFT_1G 30

/**
 * enum barbuf_kind - how a function became a provider
 * @BARBUF_KIND_BOUND: barbuf is its PCI driver
 * @BARBUF_KIND_ADOPTED: its own driver has published p2pmem; barbuf takes
 *	ranges from that pool
 * @BARBUF_KIND_REGISTERED: its own driver has registered regions
 */
enum barbuf_kind {
	BARBUF_KIND_BOUND = 0,
	BARBUF_KIND_ADOPTED = 1,
	BARBUF_KIND_REGISTERED = 2
};

/**
 * enum barbuf_backing - what stands behind the bytes of a buffer
 * @BARBUF_BACKING_PFN: no struct pages. Costs nothing; file I/O into the
 *	mapping fails with EFAULT
 * @BARBUF_BACKING_PAGE: compound struct pages. O_DIRECT works on the mapping,
 *	which consists of whole pages of one size
 */
enum barbuf_backing {
	BARBUF_BACKING_PFN = 0,
	BARBUF_BACKING_PAGE = 1
};

/**
 * enum barbuf_cache - how the CPU accesses the bytes of a buffer
 * @BARBUF_CACHE_UC: uncached
 * @BARBUF_CACHE_WC: write combining; prefetchable regions only
 */
enum barbuf_cache {
	BARBUF_CACHE_UC = 0,
	BARBUF_CACHE_WC = 1
};

/**
 * enum barbuf_state - the life of a buffer
 * @BARBUF_STATE_LIVE: usable
 * @BARBUF_STATE_SUSPENDED: its function is being reset; comes back
 * @BARBUF_STATE_REVOKED: gone for good
 */
enum barbuf_state {
	BARBUF_STATE_LIVE = 0,
	BARBUF_STATE_SUSPENDED = 1,
	BARBUF_STATE_REVOKED = 2
};

/* barbuf_region_info.flags */
/* No control registers: CAP_SYS_RAWIO is not needed, ZERO is possible. */
#define BARBUF_REGION_MEMORY_ONLY (1u << 0)
/* The BAR is prefetchable: write combining is possible. */
#define BARBUF_REGION_PREFETCHABLE (1u << 1)
/* Ranges come from a pool: only BARBUF_EXPORT_ANY, one range. */
#define BARBUF_REGION_POOL (1u << 2)

/**
 * struct barbuf_region_info - one exportable stretch of a provider
 * @index: names the region in struct barbuf_export
 * @bar: number of the BAR that it lies in, 0 to 5
 * @offset: of the region's first byte in that BAR
 * @length: bytes
 * @free: bytes that an exclusive export can still take, in pieces perhaps (of a
 *	pool: all that its owner and others have left)
 * @phys_class: physical address of the first byte modulo 1 GiB. A user mapping
 *	can use a leaf of a given size only if its address is congruent to the
 *	physical one modulo that size
 * @max_page_shift: log2 of the largest leaf that fits anywhere in the region
 * @page_shift: log2 of the largest compound page that page backing can use
 *	here, 0 if the region has no page backing
 * @backings: bit 1 << enum barbuf_backing for each one that is possible
 * @caches: bit 1 << enum barbuf_cache for each one that is possible
 * @flags: BARBUF_REGION_*
 * @nr_buffers: live buffers of this region
 */
struct barbuf_region_info {
	__u32 index;
	__u32 bar;
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 free;
	__aligned_u64 phys_class;
	__u32 max_page_shift;
	__u32 page_shift;
	__u32 backings;
	__u32 caches;
	__u32 flags;
	__u32 nr_buffers;
};

/* barbuf_info.out_capabilities */
/* This kernel's layout is known: page backing is possible. */
#define BARBUF_CAP_PAGE_BACKING (1ull << 0)
/* The CPU and the kernel have 1 GiB leaves. */
#define BARBUF_CAP_LEAF_1G (1ull << 1)
/* The kernel has 2 MiB leaves. */
#define BARBUF_CAP_LEAF_2M (1ull << 2)

/**
 * struct barbuf_info - ioctl(BARBUF_INFO)
 * @size: sizeof(struct barbuf_info)
 * @flags: must be 0
 * @out_abi: BARBUF_ABI_VERSION of the module
 * @out_kind: enum barbuf_kind of the provider
 * @out_capabilities: BARBUF_CAP_*
 * @nr_regions: on entry the number of elements that @regions has room for; on
 *	return the number of regions, which may be larger
 * @region_stride: sizeof(struct barbuf_region_info) as the caller knows it,
 *	a multiple of 8 that is not below its first published size. The kernel
 *	fills each element up to that size, with zeros where it knows less
 * @regions: pointer to an array of struct barbuf_region_info, may be 0 if
 *	@nr_regions is 0
 * @out_name: the provider's name, ``0000:03:00.0``
 *
 * Tells what a provider offers. Provider nodes only.
 */
struct barbuf_info {
	__u32 size;
	__u32 flags;
	__u32 out_abi;
	__u32 out_kind;
	__aligned_u64 out_capabilities;
	__u32 nr_regions;
	__u32 region_stride;
	__aligned_u64 regions;
	__u8 out_name[BARBUF_NAME_LEN];
};

/**
 * struct barbuf_range - bytes of a region
 * @offset: of the first byte in the region, a multiple of 4 KiB
 * @length: bytes, a multiple of 4 KiB, not 0
 */
struct barbuf_range {
	__aligned_u64 offset;
	__aligned_u64 length;
};

/* barbuf_export.flags */
/* The kernel chooses where: one range, whose offset must be 0 on entry. */
#define BARBUF_EXPORT_ANY (1u << 0)
/* Other buffers that say the same may cover the same bytes. */
#define BARBUF_EXPORT_SHARED (1u << 1)
/* Fill the bytes with zero before the file descriptor exists. */
#define BARBUF_EXPORT_ZERO (1u << 2)
/* Revoke when the node's file that exported it is closed. */
#define BARBUF_EXPORT_REVOKE_ON_CLOSE (1u << 3)
/*
 * Let in importers that cannot be told to stop: devices that attach without
 * peer-to-peer support or without invalidation, and vmap() by the CPU. The
 * price: revoking, and so unbinding the provider, waits until they let go.
 */
#define BARBUF_EXPORT_STATIC_IMPORT (1u << 4)

/**
 * struct barbuf_export - ioctl(BARBUF_EXPORT)
 * @size: sizeof(struct barbuf_export)
 * @flags: BARBUF_EXPORT_*
 * @region: index of the region
 * @backing: enum barbuf_backing
 * @cache: enum barbuf_cache
 * @open_flags: O_RDONLY or O_RDWR, and O_CLOEXEC if wanted. A read-only buffer
 *	is read-only for CPUs and for importing devices
 * @eventfd: an eventfd(2) that is signalled once when the buffer is revoked,
 *	or -1. No CPU reaches the bytes then, nor does an importer that can be
 *	told to stop; others are waited for after it
 * @page_shift: 0 for the largest possible, or a limit for leaves (and, with
 *	page backing, the size of the compound pages): BARBUF_PAGE_SHIFT_*
 * @ranges: pointer to @nr_ranges elements of struct barbuf_range. The buffer's
 *	bytes are these ranges in this order. With BARBUF_EXPORT_ANY the kernel
 *	writes the offset back
 * @nr_ranges: 1 to BARBUF_MAX_RANGES
 * @out_fd: file descriptor of the dma-buf
 * @out_page_shift: log2 of the largest leaf that a mapping can have if its
 *	address is congruent
 * @reserved: must be 0
 * @out_size: bytes of the buffer
 * @out_cookie: offset at which the provider's node maps this buffer with
 *	mmap(2), as long as the buffer is live
 * @out_phys_class: physical address of the buffer's first byte modulo 1 GiB
 *
 * Makes a dma-buf of bytes of one region. Provider nodes only.
 *
 * A buffer lives as long as its file descriptors, mappings and attachments;
 * its bytes can be exported again when the last of those, and the last pin on
 * its pages, is gone.
 */
struct barbuf_export {
	__u32 size;
	__u32 flags;
	__u32 region;
	__u32 backing;
	__u32 cache;
	__u32 open_flags;
	__s32 eventfd;
	__u32 page_shift;
	__aligned_u64 ranges;
	__u32 nr_ranges;
	__s32 out_fd;
	__u32 out_page_shift;
	__u32 reserved;
	__aligned_u64 out_size;
	__aligned_u64 out_cookie;
	__aligned_u64 out_phys_class;
};

/**
 * enum barbuf_route_kind - how a device reaches a provider's memory
 * @BARBUF_ROUTE_NONE: not at all
 * @BARBUF_ROUTE_SWITCH: by bus addresses, through a PCIe switch above both, or
 *	as functions of one device
 * @BARBUF_ROUTE_HOST_BRIDGE: through the host bridge
 */
enum barbuf_route_kind {
	BARBUF_ROUTE_NONE = 0,
	BARBUF_ROUTE_SWITCH = 1,
	BARBUF_ROUTE_HOST_BRIDGE = 2
};

/**
 * enum barbuf_reason - why a device cannot be an importer
 * @BARBUF_REASON_NONE: it can
 * @BARBUF_REASON_NO_DEVICE: there is no such PCI function
 * @BARBUF_REASON_HOST_BRIDGE: the way leads through a host bridge of which the
 *	kernel does not know that it forwards between its ports
 * @BARBUF_REASON_ACS_REDIRECT: a switch is above both, but the ACS settings of
 *	a port on the way send requests up to such a host bridge
 * @BARBUF_REASON_DMA_MASK: the device cannot form the addresses: its driver has
 *	set a DMA mask below them
 * @BARBUF_REASON_NO_P2PDMA: the kernel offers no peer-to-peer DMA for the
 *	provider
 */
enum barbuf_reason {
	BARBUF_REASON_NONE = 0,
	BARBUF_REASON_NO_DEVICE = 1,
	BARBUF_REASON_HOST_BRIDGE = 2,
	BARBUF_REASON_ACS_REDIRECT = 3,
	BARBUF_REASON_DMA_MASK = 4,
	BARBUF_REASON_NO_P2PDMA = 5
};

/* barbuf_attachment_info.flags */
/* The importer says that it can address memory of other devices. */
#define BARBUF_ATTACHMENT_PEER2PEER (1u << 0)
/* The importer can be told to stop: revoking does not wait for its detach. */
#define BARBUF_ATTACHMENT_REVOCABLE (1u << 1)
/* The importer has pinned the buffer. */
#define BARBUF_ATTACHMENT_PINNED (1u << 2)
/* The importer has DMA addresses of the buffer. */
#define BARBUF_ATTACHMENT_MAPPED (1u << 3)

/**
 * struct barbuf_attachment_info - a device that is attached to a buffer
 * @name: the kernel's name of the device, of a PCI function ``0000:03:00.0``,
 *	NUL-padded, cut if it is longer
 * @flags: BARBUF_ATTACHMENT_*
 * @route: enum barbuf_route_kind, as it was at attach
 * @nr_maps: mappings that the importer has now
 * @nr_pins: pins that it has now
 * @mapped_bytes: bytes that those mappings cover, counted once for each
 */
struct barbuf_attachment_info {
	__u8 name[BARBUF_NAME_LEN];
	__u32 flags;
	__u32 route;
	__u32 nr_maps;
	__u32 nr_pins;
	__aligned_u64 mapped_bytes;
};

/* barbuf_query.out_flags */
/* Somebody is attached, or has a vmap(), for whom revoking waits. */
#define BARBUF_QUERY_HELD (1u << 0)
/* The kernel's CPU mapping, vmap(), is in use. */
#define BARBUF_QUERY_VMAPPED (1u << 1)

/**
 * struct barbuf_query - ioctl(BARBUF_QUERY)
 * @size: sizeof(struct barbuf_query)
 * @flags: must be 0
 * @fd: file descriptor of a dma-buf
 * @out_state: enum barbuf_state
 * @out_generation: starts at 1; raised when the buffer is revoked and each
 *	time it comes back from a reset
 * @out_size: bytes of the buffer
 * @out_cookie: as in struct barbuf_export
 * @out_phys_class: as in struct barbuf_export
 * @out_kind: enum barbuf_kind of the provider
 * @out_region: index of the region
 * @out_backing: enum barbuf_backing
 * @out_cache: enum barbuf_cache
 * @out_page_shift: as in struct barbuf_export
 * @out_export_flags: the flags of its export
 * @out_access: O_RDONLY or O_RDWR
 * @out_attachments: devices attached to it now
 * @out_faults_4k: 4 KiB leaves that page faults have put into page tables,
 *	since the export, in all processes
 * @out_faults_2m: the same for 2 MiB leaves
 * @out_faults_1g: the same for 1 GiB leaves
 * @out_faults: page faults that were served; less than the sum of the leaves,
 *	because a fault fills its neighbours
 * @out_mappings: VMAs that map it now
 * @out_mapped_bytes: address space that those take
 * @nr_ranges: on entry the number of elements that @ranges has room for; on
 *	return the number of ranges, which may be larger
 * @reserved: must be 0
 * @ranges: pointer to an array of struct barbuf_range, may be 0 if @nr_ranges
 *	is 0
 * @out_name: the provider's name
 * @nr_attachments: on entry the number of elements that @attachments has room
 *	for; on return the number of attachments, which may be larger
 * @attachment_stride: sizeof(struct barbuf_attachment_info) as the caller knows
 *	it, a multiple of 8 that is not below its first published size. The
 *	kernel fills each element up to that size, with zeros where it knows less
 * @attachments: pointer to an array of struct barbuf_attachment_info, may be 0
 *	if @nr_attachments is 0
 * @out_flags: BARBUF_QUERY_*
 * @reserved2: must be 0
 *
 * Tells what a dma-buf of barbuf's is. Every node; no privilege beyond holding
 * the file descriptor. A provider's node answers for its own buffers only.
 */
struct barbuf_query {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 out_state;
	__aligned_u64 out_generation;
	__aligned_u64 out_size;
	__aligned_u64 out_cookie;
	__aligned_u64 out_phys_class;
	__u32 out_kind;
	__u32 out_region;
	__u32 out_backing;
	__u32 out_cache;
	__u32 out_page_shift;
	__u32 out_export_flags;
	__u32 out_access;
	__u32 out_attachments;
	__aligned_u64 out_faults_4k;
	__aligned_u64 out_faults_2m;
	__aligned_u64 out_faults_1g;
	__aligned_u64 out_faults;
	__aligned_u64 out_mappings;
	__aligned_u64 out_mapped_bytes;
	__u32 nr_ranges;
	__u32 reserved;
	__aligned_u64 ranges;
	__u8 out_name[BARBUF_NAME_LEN];
	__u32 nr_attachments;
	__u32 attachment_stride;
	__aligned_u64 attachments;
	__u32 out_flags;
	__u32 reserved2;
};

/**
 * struct barbuf_revoke - ioctl(BARBUF_REVOKE)
 * @size: sizeof(struct barbuf_revoke)
 * @flags: must be 0
 * @fd: file descriptor of a dma-buf of this provider
 * @reserved: must be 0
 *
 * Takes a buffer back for good. On return no CPU and no device reaches its
 * bytes any more: the next touch of a mapping is SIGBUS (BUS_ADRERR), mmap()
 * and attaching fail with ENODEV, the eventfd has been signalled. Importers are
 * told to stop, and the call waits until they have; it waits for as long as an
 * importer likes that BARBUF_EXPORT_STATIC_IMPORT has let in (its name is in
 * the kernel log). File I/O that holds pins on its pages is let finish; until
 * then its bytes are not exported again. Provider nodes only.
 */
struct barbuf_revoke {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 reserved;
};

/* barbuf_route.out_flags */
/* An IOMMU translates for the device, which sees one range of addresses. */
#define BARBUF_ROUTE_IOMMU (1u << 0)
/* A driver is bound to the device, so that out_dma_mask means something. */
#define BARBUF_ROUTE_DMA_MASK_KNOWN (1u << 1)

/**
 * struct barbuf_route - ioctl(BARBUF_ROUTE)
 * @size: sizeof(struct barbuf_route)
 * @flags: must be 0
 * @fd: file descriptor of a dma-buf of this provider, or -1 to ask for @region
 * @region: index of the region if @fd is -1, else 0
 * @name: the PCI function that would import, ``0000:04:00.0``, NUL-terminated
 *	and NUL-padded
 * @out_kind: enum barbuf_route_kind
 * @out_reason: enum barbuf_reason; BARBUF_REASON_NONE if the device can import
 * @out_distance: bridges and links between the two as the kernel counts them:
 *	0 for the provider itself, 2 for another function of it, 4 through one
 *	switch; 0 if there is no route
 * @out_flags: BARBUF_ROUTE_*
 * @out_dma_mask: highest address that the device can form, all ones if it is
 *	not limited; without BARBUF_ROUTE_DMA_MASK_KNOWN the kernel's default
 *
 * Tells whether a device can read and write a provider's memory by DMA, and if
 * not, why. Nothing is attached. A device whose route is good can still be
 * refused: see BARBUF_EXPORT_STATIC_IMPORT. Provider nodes only.
 */
struct barbuf_route {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 region;
	__u8 name[BARBUF_NAME_LEN];
	__u32 out_kind;
	__u32 out_reason;
	__u32 out_distance;
	__u32 out_flags;
	__aligned_u64 out_dma_mask;
};

/**
 * struct barbuf_adopt - ioctl(BARBUF_ADOPT) and ioctl(BARBUF_RELEASE)
 * @size: sizeof(struct barbuf_adopt)
 * @flags: must be 0
 * @name: the PCI function, ``0000:03:00.0``, NUL-terminated and NUL-padded
 *
 * BARBUF_ADOPT makes a function whose driver has published p2pmem a provider.
 * Its driver keeps it. ENODEV if there is no such function or it is not bound
 * to a driver, EOPNOTSUPP if it has no p2pmem, EEXIST if it is a provider,
 * ENOSPC if its pool has not a page left by which to find it.
 *
 * BARBUF_RELEASE ends that: all its buffers are revoked and all memory is given
 * back to the pool. ENODEV if it was not adopted. Control node only,
 * CAP_SYS_ADMIN.
 */
struct barbuf_adopt {
	__u32 size;
	__u32 flags;
	__u8 name[BARBUF_NAME_LEN];
};

/*
 * The size of a structure is in its first member, so that it is no part of the
 * number.
 */
#define BARBUF_INFO _IO(BARBUF_IOC_MAGIC, 0x00)
#define BARBUF_EXPORT _IO(BARBUF_IOC_MAGIC, 0x01)
#define BARBUF_QUERY _IO(BARBUF_IOC_MAGIC, 0x02)
#define BARBUF_REVOKE _IO(BARBUF_IOC_MAGIC, 0x03)
#define BARBUF_ROUTE _IO(BARBUF_IOC_MAGIC, 0x04)
#define BARBUF_ADOPT _IO(BARBUF_IOC_MAGIC, 0x10)
#define BARBUF_RELEASE _IO(BARBUF_IOC_MAGIC, 0x11)

#endif /* _UAPI_LINUX_BARBUF_H */
