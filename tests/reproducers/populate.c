// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * MADV_POPULATE over p2pmem is ENOMEM, and a warning of the kernel.
 *
 * The pages are there, but get_user_pages() gives P2PDMA pages only to those
 * who ask for them, and says EREMOTEIO (121) to others. madvise_populate() does
 * not know that one: "unhandled return value", ENOMEM. mlock() takes the same way.
 *
 * usage: populate BDF	(a function that publishes p2pmem: an NVMe drive with
 *			 a controller memory buffer)
 */
#define _GNU_SOURCE
#include "reproducer.h"

int main(int argc, char **argv)
{
	char path[PATH_MAX];
	void *map;
	int fd;

	if (argc != 2)
		errx(UNKNOWN, "usage: %s BDF", argv[0]);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/p2pmem/allocate",
		 argv[1]);
	fd = open(path, O_RDWR);
	if (fd < 0)
		err(UNKNOWN, "%s", path);
	map = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		err(UNKNOWN, "mmap of %s", path);
	if (!madvise(map, MIB, MADV_POPULATE_READ)) {
		printf("populated\n");
		return HAS_IT_NOT;
	}
	printf("MADV_POPULATE_READ: %s\n", strerror(errno));
	return errno == ENOMEM ? HAS_IT : HAS_IT_NOT;
}
