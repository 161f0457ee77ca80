// SPDX-License-Identifier: GPL-2.0
/*
 * Holds the memory BAR of an accelerator without being its driver, as a
 * careless driver of something else can, until it is unloaded.
 */
#include <linux/module.h>
#include <linux/pci.h>

/* ivshmem, whose BAR 2 is its memory */
#define BAR 2

static struct pci_dev *held;

static int __init busy_init(void)
{
	int err;

	held = pci_get_device(0x1af4, 0x1110, NULL);
	if (!held)
		return -ENODEV;
	err = pci_request_region(held, BAR, "busy");
	if (err)
		pci_dev_put(held);
	return err;
}
module_init(busy_init);

static void __exit busy_exit(void)
{
	pci_release_region(held, BAR);
	pci_dev_put(held);
}
module_exit(busy_exit);

MODULE_AUTHOR("The barbuf developers");
MODULE_DESCRIPTION("Holds a BAR, for tests");
MODULE_LICENSE("GPL");
