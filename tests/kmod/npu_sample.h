/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What /dev/npu_sample understands. tests/suites/src/kit/vendor.rs has the same
 * in Rust.
 */
#ifndef NPU_SAMPLE_H
#define NPU_SAMPLE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define NPU_SAMPLE_MAX_REGIONS 32

/* As struct barbuf_provider_region. */
struct npu_region {
	__u32 bar;
	__u32 flags;
	__u64 offset;
	__u64 length;
	__u32 caches;
	__u32 reserved;
};

/* Registers again, differently; what was registered must be gone. */
struct npu_register {
	__u32 nr_regions;
	/* Request BAR 2, as a driver should. */
	__u32 request;
	struct npu_region regions[NPU_SAMPLE_MAX_REGIONS];
};

/* Exports from kernel code; members as in struct barbuf_provider_request. */
struct npu_export {
	__u32 region;
	__u32 flags;
	__u32 backing;
	__u32 cache;
	__u32 open_flags;
	__s32 out_fd;
	__u64 offset;
	__u64 length;
};

struct npu_counters {
	__u32 first_exports;
	__u32 last_releases;
	__u32 refusals;
	__u32 resets_prepared;
	__u32 resets_done;
	__u32 in_use;
};

#define NPU_REGISTER _IOW('N', 0, struct npu_register)
#define NPU_UNREGISTER _IO('N', 1)
#define NPU_EXPORT _IOWR('N', 2, struct npu_export)
#define NPU_REVOKE _IO('N', 3)
#define NPU_REVOKE_ALL _IO('N', 4)
#define NPU_SUSPEND _IO('N', 5)
#define NPU_RESUME _IO('N', 6)
#define NPU_REFUSE _IO('N', 7)
#define NPU_COUNTERS _IOR('N', 8, struct npu_counters)
/* As NPU_EXPORT, by way of a dma-buf that the driver could use itself. */
#define NPU_EXPORT_DMABUF _IOWR('N', 9, struct npu_export)

#endif /* NPU_SAMPLE_H */
