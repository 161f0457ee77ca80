// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A leaf of 1 GiB that maps a folio keeps its reference when it is unmapped
 * from a VM_MIXEDMAP VMA; and a look at smaps splits it, which loses the
 * reference in any VMA that is not DAX.
 *
 * zap_huge_pud() takes what VM_MIXEDMAP VMAs map for memory without folios,
 * unless they are DAX. __split_huge_pud_locked() puts the folios of DAX VMAs
 * only; the page walk behind smaps calls it for every leaf of 1 GiB that is
 * not PFNMAP. A device with such a folio can never be removed.
 *
 * usage: lost-folio	(tests/kmod/unprotected.ko loaded)
 */
#include "reproducer.h"

static void ask(unsigned int *faults, unsigned int *references)
{
	FILE *file = fopen("/dev/unprotected", "r");

	if (!file || fscanf(file, "%u %u", faults, references) != 2)
		err(UNKNOWN, "/dev/unprotected");
	fclose(file);
}

static void read_smaps(void)
{
	char text[4096];
	int fd = open("/proc/self/smaps", O_RDONLY);

	while (read(fd, text, sizeof(text)) > 0)
		;
	close(fd);
}

int main(void)
{
	int fd = open("/dev/unprotected", O_RDONLY);
	unsigned int faults, references;
	char *at = room(2 * GIB);
	volatile uint64_t *map;
	uint64_t word;

	if (fd < 0)
		err(UNKNOWN, "/dev/unprotected");
	map = map_at(at, 2 * GIB, PROT_READ, fd, 0);
	word = map[0];
	munmap(at, 2 * GIB);
	ask(&faults, &references);
	printf("after munmap the folio has %u references, one is the module's\n",
	       references);
	if (references < 2)
		return HAS_IT_NOT;

	map = map_at(at, 2 * GIB, PROT_READ, fd, 0);
	word = map[0];
	read_smaps();
	if (read_word(map, &word))
		printf("after a look at smaps the memory was gone\n");
	ask(&faults, &references);
	printf("%u faults, where 2 would do without smaps\n", faults);
	return faults > 2 ? HAS_IT : HAS_IT_NOT;
}
