// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * munmap() of 4 KiB inside of a leaf of 1 GiB oopses.
 *
 * A VMA that is split has what stands at the new border split first:
 * __split_vma() -> vma_adjust_trans_huge() -> split_huge_pmd_if_needed(), which
 * knows leaves of 2 MiB only. It takes the leaf of 1 GiB for a pointer to a
 * table of PMDs, and reads the device's memory as if it were one.
 *
 * usage: split-1g BDF	(BAR 2 of at least 2 GiB, bound to vfio-pci)
 */
#include "reproducer.h"

int main(int argc, char **argv)
{
	char *map;

	if (argc != 2)
		errx(UNKNOWN, "usage: %s BDF", argv[0]);
	map = (char *)two_leaves(argv[1]);
	if (munmap(map + GIB / 2 + PAGE, PAGE))
		printf("munmap was refused: %s\n", strerror(errno));
	else
		printf("munmap came back\n");
	return HAS_IT_NOT;
}
