// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What a C program sees of a provider's node, in lines of text.
 *
 * usage: probe NODE
 *
 * It is compiled for 64 and for 32 bits, and both must print the same but for the first line.
 * It uses every ioctl of the node, both doors of mmap, and leaves nothing behind.
 */

#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/barbuf.h>

#define LENGTH (2 << 20)
#define REGIONS 8
#define WORD 0x0123456789abcdefULL

/* Prints a member of a structure, whatever its width. */
#define SHOW(object, member) \
	printf(#member " %llu\n", (unsigned long long)(object).member)

/* Prints how a call ended; returns whether it went well. */
static int ended(const char *what, int answer)
{
	printf("%s %d\n", what, answer < 0 ? errno : 0);
	return answer >= 0;
}

static int show_info(int node)
{
	struct barbuf_region_info regions[REGIONS];
	struct barbuf_info info = { .size = sizeof(info) };
	unsigned int i;

	memset(regions, 0, sizeof(regions));
	info.nr_regions = REGIONS;
	info.region_stride = sizeof(regions[0]);
	info.regions = (uintptr_t)regions;
	if (!ended("INFO", ioctl(node, BARBUF_INFO, &info)))
		return 1;
	SHOW(info, size);
	SHOW(info, out_abi);
	SHOW(info, out_kind);
	SHOW(info, out_capabilities);
	SHOW(info, nr_regions);
	printf("out_name %s\n", info.out_name);
	for (i = 0; i < info.nr_regions && i < REGIONS; i++) {
		const unsigned char *byte = (const unsigned char *)&regions[i];
		size_t at;

		for (at = 0; at < sizeof(regions[i]); at++)
			printf("%02x", byte[at]);
		printf("\n");
	}
	return 0;
}

static void show_query(int node, int fd)
{
	struct barbuf_range range = { 0, 0 };
	struct barbuf_query query = { .size = sizeof(query) };

	query.fd = fd;
	query.nr_ranges = 1;
	query.ranges = (uintptr_t)&range;
	if (!ended("QUERY", ioctl(node, BARBUF_QUERY, &query)))
		return;
	SHOW(query, nr_ranges);
	SHOW(query, out_state);
	SHOW(query, out_generation);
	SHOW(query, out_size);
	SHOW(query, out_phys_class);
	SHOW(query, out_kind);
	SHOW(query, out_region);
	SHOW(query, out_backing);
	SHOW(query, out_cache);
	SHOW(query, out_page_shift);
	SHOW(query, out_export_flags);
	SHOW(query, out_access);
	SHOW(query, out_attachments);
	SHOW(query, out_mappings);
	SHOW(query, out_mapped_bytes);
	printf("out_name %s\n", query.out_name);
	SHOW(range, offset);
	SHOW(range, length);
}

/* Writes through the descriptor and reads through the node. */
static void show_mappings(int node, int fd, uint64_t cookie)
{
	volatile uint64_t *direct, *door;
	const int access = PROT_READ | PROT_WRITE;

	direct = mmap(NULL, LENGTH, access, MAP_SHARED, fd, 0);
	if (!ended("mmap", direct == MAP_FAILED ? -1 : 0))
		return;
	door = mmap(NULL, LENGTH, PROT_READ, MAP_SHARED, node, (off_t)cookie);
	if (ended("mmap of the node", door == MAP_FAILED ? -1 : 0)) {
		direct[0] = WORD;
		direct[LENGTH / sizeof(*direct) - 1] = ~WORD;
		printf("read %d\n", door[0] == WORD &&
				    door[LENGTH / sizeof(*door) - 1] == ~WORD);
		show_query(node, fd);
		munmap((void *)door, LENGTH);
	}
	munmap((void *)direct, LENGTH);
}

int main(int argc, char **argv)
{
	struct barbuf_range range = { 0, LENGTH };
	struct barbuf_export export_ = { .size = sizeof(export_) };
	struct barbuf_revoke revoke = { .size = sizeof(revoke) };
	int node;

	printf("pointers of %zu bits\n", 8 * sizeof(void *));
	if (argc != 2)
		return 2;
	node = open(argv[1], O_RDWR | O_CLOEXEC);
	if (!ended("open", node) || show_info(node))
		return 1;

	export_.flags = BARBUF_EXPORT_ANY;
	export_.open_flags = O_RDWR | O_CLOEXEC;
	export_.eventfd = -1;
	export_.ranges = (uintptr_t)&range;
	export_.nr_ranges = 2;
	ended("EXPORT of any, in two ranges", ioctl(node, BARBUF_EXPORT, &export_));
	export_.nr_ranges = 1;
	if (!ended("EXPORT", ioctl(node, BARBUF_EXPORT, &export_)))
		return 1;
	SHOW(export_, size);
	SHOW(export_, out_page_shift);
	SHOW(export_, out_size);
	SHOW(export_, out_phys_class);
	SHOW(range, offset);
	SHOW(range, length);

	show_mappings(node, export_.out_fd, export_.out_cookie);
	show_query(node, export_.out_fd);
	revoke.fd = export_.out_fd;
	ended("REVOKE", ioctl(node, BARBUF_REVOKE, &revoke));
	ended("REVOKE again", ioctl(node, BARBUF_REVOKE, &revoke));
	show_query(node, export_.out_fd);
	ended("ADOPT", ioctl(node, BARBUF_ADOPT, &revoke));
	close(export_.out_fd);
	return 0;
}
