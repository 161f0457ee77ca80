// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Each map and unmap of a dma-buf of vfio-pci leaks its scatterlist.
 *
 * dma_buf_phys_vec_to_sgt() sets orig_nents to 0, and dma_buf_free_sgt() calls
 * sg_free_table(), which frees as many entries as orig_nents says.
 * (drivers/dma-buf/dma-buf-mapping.c, lib/scatterlist.c)
 *
 * The importer is tests/kmod/importer/, because none that a virtual machine
 * can have takes memory of other devices.
 *
 * usage: sg-leak BDF	(BAR 2, bound to vfio-pci; importer.ko loaded)
 */
#include "reproducer.h"
#include "../kmod/importer/importer.h"

#define ROUNDS 20000

/* From include/uapi/linux/vfio.h, which is newer than most installed ones. */
#define FEATURE_DMA_BUF 11

struct feature_dma_buf {
	__u32 region_index;
	__u32 open_flags;
	__u32 flags;
	__u32 nr_ranges;
	__u64 offset;
	__u64 length;
};

static long slab_kib(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[256];
	long kib = -1;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "SUnreclaim: %ld", &kib) == 1)
			break;
	if (file)
		fclose(file);
	if (kib < 0)
		errx(UNKNOWN, "/proc/meminfo has no SUnreclaim");
	return kib;
}

static int dma_buf_of(int device, size_t len)
{
	struct {
		__u32 argsz;
		__u32 flags;
		struct feature_dma_buf buf;
	} request = {
		.argsz = sizeof(request),
		.flags = VFIO_DEVICE_FEATURE_GET | FEATURE_DMA_BUF,
		.buf.region_index = VFIO_PCI_BAR2_REGION_INDEX,
		.buf.open_flags = O_RDWR | O_CLOEXEC,
		.buf.nr_ranges = 1,
		.buf.length = len,
	};
	int fd = ioctl(device, VFIO_DEVICE_FEATURE, &request);

	if (fd < 0)
		err(UNKNOWN, "VFIO_DEVICE_FEATURE_DMA_BUF");
	return fd;
}

int main(int argc, char **argv)
{
	struct importer_cycle cycle = { .rounds = ROUNDS };
	long before, after;
	off_t offset;
	size_t len;
	int device, importer;

	if (argc != 2)
		errx(UNKNOWN, "usage: %s BDF", argv[0]);
	device = open_vfio(argv[1], &offset, &len);
	cycle.fd = dma_buf_of(device, len);
	importer = open("/dev/importer", O_RDWR);
	if (importer < 0)
		err(UNKNOWN, "/dev/importer");
	before = slab_kib();
	if (ioctl(importer, IMPORTER_CYCLE, &cycle))
		err(UNKNOWN, "IMPORTER_CYCLE");
	after = slab_kib();
	printf("%d rounds of %u entries: slab memory went from %ld to %ld KiB\n",
	       ROUNDS, cycle.nents, before, after);
	/* Half of what the entries alone take, 32 bytes each. */
	return (after - before) * KIB >
			       (size_t)ROUNDS * cycle.nents * 32 / 2 ?
		       HAS_IT :
		       HAS_IT_NOT;
}
