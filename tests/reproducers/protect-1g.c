// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * mprotect() takes all access from a leaf of 1 GiB, and cannot give it back
 * without a warning.
 *
 * Such a leaf has no _PAGE_PRESENT. pmd_present() knows that it is there all
 * the same, pud_present() does not, so that pudp_invalidate(), which
 * change_huge_pud() calls, warns. Only where the kernel has CONFIG_DEBUG_VM.
 *
 * usage: protect-1g BDF	(BAR 2 of at least 2 GiB, bound to vfio-pci)
 */
#define _GNU_SOURCE
#include "reproducer.h"

/* How often the kernel has warned. */
static unsigned long warnings(void)
{
	FILE *file = fopen("/sys/kernel/warn_count", "r");
	unsigned long count;

	if (!file || fscanf(file, "%lu", &count) != 1)
		err(UNKNOWN, "/sys/kernel/warn_count");
	fclose(file);
	return count;
}

int main(int argc, char **argv)
{
	unsigned long before;
	void *map;

	if (argc != 2)
		errx(UNKNOWN, "usage: %s BDF", argv[0]);
	map = (void *)two_leaves(argv[1]);
	before = warnings();
	if (mprotect(map, GIB, PROT_NONE) ||
	    mprotect(map, GIB, PROT_READ | PROT_WRITE))
		err(UNKNOWN, "mprotect");
	if (warnings() == before) {
		printf("no warning; is this kernel without CONFIG_DEBUG_VM?\n");
		return HAS_IT_NOT;
	}
	printf("the kernel warns when a leaf of 1 GiB gets its access back\n");
	return HAS_IT;
}
