/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the reproducers share. Each ends with 0 if the kernel has the defect,
 * with 1 if it has not, with 2 if it could not find out.
 */
#ifndef REPRODUCER_H
#define REPRODUCER_H

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/vfio.h>

#define HAS_IT 0
#define HAS_IT_NOT 1
#define UNKNOWN 2

#define KIB (1ul << 10)
#define MIB (1ul << 20)
#define GIB (1ul << 30)
#define PAGE (4 * KIB)

/* Address space for len bytes that begins at a multiple of 1 GiB. */
static inline char *room(size_t len)
{
	char *at = mmap(NULL, len + GIB, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		err(UNKNOWN, "address space");
	return (char *)(((uintptr_t)at + GIB - 1) & ~(GIB - 1));
}

static inline volatile uint64_t *map_at(char *at, size_t len, int prot, int fd,
					off_t offset)
{
	void *found = mmap(at, len, prot, MAP_SHARED | MAP_FIXED, fd, offset);

	if (found == MAP_FAILED)
		err(UNKNOWN, "mmap");
	return found;
}

/* The only place where a read may fault is here. */
static sigjmp_buf no_memory;

static inline void on_fault(int signal)
{
	siglongjmp(no_memory, signal);
}

/* 0, or the signal that reading gives. */
static inline int read_word(const volatile uint64_t *at, uint64_t *word)
{
	struct sigaction action = { .sa_handler = on_fault };
	int got;

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	got = sigsetjmp(no_memory, 1);
	if (!got)
		*word = *at;
	return got;
}

/*
 * Opens a function that is bound to vfio-pci, and tells where BAR 2 can be
 * mapped. QEMU's IOMMU remaps no interrupts: there it needs
 * /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts to be Y.
 */
static inline int open_vfio(const char *bdf, off_t *offset, size_t *len)
{
	struct vfio_region_info region = {
		.argsz = sizeof(region),
		.index = VFIO_PCI_BAR2_REGION_INDEX,
	};
	char path[PATH_MAX], link[PATH_MAX] = "";
	int container, group, device;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
	if (readlink(path, link, sizeof(link) - 1) < 0)
		err(UNKNOWN, "%s", path);
	snprintf(path, sizeof(path), "/dev/vfio/%s", basename(link));
	group = open(path, O_RDWR);
	if (group < 0)
		err(UNKNOWN, "%s (is %s bound to vfio-pci?)", path, bdf);
	container = open("/dev/vfio/vfio", O_RDWR);
	if (container < 0)
		err(UNKNOWN, "/dev/vfio/vfio");
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container))
		err(UNKNOWN, "VFIO_GROUP_SET_CONTAINER");
	if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU))
		err(UNKNOWN, "VFIO_SET_IOMMU");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
	if (device < 0)
		err(UNKNOWN, "VFIO_GROUP_GET_DEVICE_FD");
	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region))
		err(UNKNOWN, "VFIO_DEVICE_GET_REGION_INFO");
	if (!(region.flags & VFIO_REGION_INFO_FLAG_MMAP))
		errx(UNKNOWN, "BAR 2 of %s cannot be mapped", bdf);
	*offset = region.offset;
	*len = region.size;
	return device;
}

/* Two leaves of 1 GiB of BAR 2, both in page tables. */
static inline volatile uint64_t *two_leaves(const char *bdf)
{
	volatile uint64_t *map;
	off_t offset;
	size_t len;
	int device = open_vfio(bdf, &offset, &len);

	if (len < 2 * GIB)
		errx(UNKNOWN, "BAR 2 of %s is smaller than 2 GiB", bdf);
	map = map_at(room(2 * GIB), 2 * GIB, PROT_READ | PROT_WRITE, device,
		     offset);
	map[0] = 0x5eed;
	map[GIB / 8] = 0x5eed;
	return map;
}

#endif /* REPRODUCER_H */
