/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What /dev/importer answers. An open file is one importer: it attaches to at
 * most one dma-buf and has at most one mapping of it. Closing it lets go of
 * everything. tests/suites/src/kit/importer.rs has the same in Rust.
 */
#ifndef IMPORTER_H
#define IMPORTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* How an importer behaves; nothing of it is the usual, dynamic one. */
/* Attach as drivers do that know of no revocation. */
#define IMPORTER_STATIC (1u << 0)
/* Do not say that memory of other devices is welcome. */
#define IMPORTER_NO_PEER2PEER (1u << 1)
/* Have no invalidate_mappings(). */
#define IMPORTER_NO_INVALIDATE (1u << 2)
/* Pin as well. */
#define IMPORTER_PIN (1u << 3)
/* Map again as soon as an invalidation has been obeyed, and at each one. */
#define IMPORTER_REMAP (1u << 4)
/* Attach a device that is on no PCI bus. */
#define IMPORTER_NO_PCI (1u << 5)
/* Attach a part of the PCI function, which is none itself. */
#define IMPORTER_CHILD (1u << 6)

/**
 * struct importer_attach - ioctl(IMPORTER_ATTACH)
 * @fd: the dma-buf
 * @flags: IMPORTER_*
 * @delay_ms: from an invalidation to the unmap that it asks for
 * @reserved: 0
 */
struct importer_attach {
	__s32 fd;
	__u32 flags;
	__u32 delay_ms;
	__u32 reserved;
};

/**
 * struct importer_map - ioctl(IMPORTER_MAP)
 * @direction: enum dma_data_direction
 * @nents: out, entries with DMA addresses
 * @ranges: out, ranges of addresses that those make up
 * @unaligned: out, entries that do not begin on a multiple of 2 MiB
 * @bytes: out, sum of their lengths
 * @last: out, the highest address
 */
struct importer_map {
	__u32 direction;
	__u32 nents;
	__u32 ranges;
	__u32 unaligned;
	__u64 bytes;
	__u64 last;
};

/**
 * struct importer_move - ioctl(IMPORTER_LOAD), ioctl(IMPORTER_STORE)
 * @offset: in the mapping, or with @memory of no meaning
 * @memory: pointer to user memory, or 0 for the mapping
 * @length: bytes, at most 4096
 * @reserved: 0
 *
 * LOAD moves bytes by DMA into the engine's own memory, STORE out of it.
 */
struct importer_move {
	__u64 offset;
	__u64 memory;
	__u32 length;
	__u32 reserved;
};

/**
 * struct importer_state - ioctl(IMPORTER_STATE)
 * @invalidations: times that the exporter has called
 * @mapped: whether there is a mapping now
 * @remap_errno: how IMPORTER_REMAP went last, 0 for good, positive
 * @unmapped_ns: CLOCK_MONOTONIC when the last mapping was undone
 */
struct importer_state {
	__u32 invalidations;
	__u32 mapped;
	__u32 remap_errno;
	__u32 reserved;
	__u64 unmapped_ns;
};

/**
 * struct importer_cycle - ioctl(IMPORTER_CYCLE)
 * @fd: the dma-buf
 * @flags: IMPORTER_*
 * @rounds: of attach, map, unmap, detach
 * @nents: out, entries of the last mapping
 * @least_cycles: out, shortest time of attach and map together, in cycles
 */
struct importer_cycle {
	__s32 fd;
	__u32 flags;
	__u32 rounds;
	__u32 nents;
	__u64 least_cycles;
};

/**
 * struct importer_word - ioctl(IMPORTER_PEEK), ioctl(IMPORTER_POKE)
 * @offset: in the vmap()
 * @value: out for PEEK
 * @is_iomem: out, whether the mapping has to be treated as I/O memory
 */
struct importer_word {
	__u64 offset;
	__u64 value;
	__u32 is_iomem;
	__u32 reserved;
};

#define IMPORTER_ATTACH _IOW('i', 0, struct importer_attach)
#define IMPORTER_DETACH _IO('i', 1)
#define IMPORTER_MAP _IOWR('i', 2, struct importer_map)
#define IMPORTER_UNMAP _IO('i', 3)
#define IMPORTER_LOAD _IOW('i', 4, struct importer_move)
#define IMPORTER_STORE _IOW('i', 5, struct importer_move)
#define IMPORTER_STATE _IOR('i', 6, struct importer_state)
/* The argument is the number of bits of the engine's DMA mask. */
#define IMPORTER_MASK _IO('i', 7)
#define IMPORTER_CYCLE _IOWR('i', 8, struct importer_cycle)
/* Announces DMA by a fence that ends after so many milliseconds. */
#define IMPORTER_FENCE _IO('i', 9)
/* The argument is a dma-buf, which need not be the attached one. */
#define IMPORTER_VMAP _IO('i', 10)
#define IMPORTER_VUNMAP _IO('i', 11)
#define IMPORTER_PEEK _IOWR('i', 12, struct importer_word)
#define IMPORTER_POKE _IOWR('i', 13, struct importer_word)

#endif /* IMPORTER_H */
