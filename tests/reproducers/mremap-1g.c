// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * mremap() of a leaf of 1 GiB leaves the old address readable.
 *
 * get_old_pud() in mm/mremap.c calls pud_none_or_clear_bad(), for which a leaf
 * is a damaged table: "bad pud". It is cleared, nothing is moved, and nobody
 * flushes the TLB, so that a processor that has the translation goes on with
 * it. An interrupt between the calls may flush it by chance: hence the tries.
 *
 * usage: mremap-1g BDF	(BAR 2 of at least 2 GiB, bound to vfio-pci)
 */
#define _GNU_SOURCE
#include "reproducer.h"

#define TRIES 20

int main(int argc, char **argv)
{
	volatile uint64_t *map;
	off_t offset;
	size_t len;
	int device, i;

	if (argc != 2)
		errx(UNKNOWN, "usage: %s BDF", argv[0]);
	device = open_vfio(argv[1], &offset, &len);
	for (i = 0; i < TRIES; i++) {
		char *from = room(GIB), *to = room(GIB);
		uint64_t word = 0;

		map = map_at(from, GIB, PROT_READ | PROT_WRITE, device, offset);
		map[0] = 0x5eed + i;
		if (mremap(from, GIB, GIB, MREMAP_MAYMOVE | MREMAP_FIXED, to) ==
		    MAP_FAILED) {
			printf("mremap was refused: %s\n", strerror(errno));
			return HAS_IT_NOT;
		}
		if (read_word(map, &word) == 0 && word == 0x5eedu + i) {
			printf("the unmapped address still reads the BAR\n");
			return HAS_IT;
		}
		munmap(to, GIB);
	}
	printf("the old address was gone after each of %d moves\n", TRIES);
	return HAS_IT_NOT;
}
