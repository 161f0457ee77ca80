// SPDX-License-Identifier: GPL-2.0
/*
 * Makes a device-dax of the memory BAR of a PCI function: how CXL and NVDIMM
 * give compound pages of device memory to user space, as another baseline.
 *
 * Nothing binds by itself; write "bar_dax" into the function's driver_override.
 * The module device_dax has to be there. The parameters are read when a
 * function is bound, so that they can be changed between two bindings.
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/range.h>
#include "bus.h"

static uint bar = 2;
module_param(bar, uint, 0644);
MODULE_PARM_DESC(bar, "PCI BAR that holds the memory (default: 2)");

static uint align = PMD_SIZE;
module_param(align, uint, 0644);
MODULE_PARM_DESC(align,
		 "alignment of the memory and size of its pages: page size, 2 MiB or 1 GiB in bytes (default: 2 MiB)");

static int bar_dax_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct dev_dax_data data = { .id = -1 };
	struct range range;
	int ret;

	if (bar >= PCI_STD_NUM_BARS || !pci_resource_len(pdev, bar))
		return -EINVAL;

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;

	/* The region itself is requested by the driver of the dax device */
	range.start = pci_resource_start(pdev, bar);
	range.end = pci_resource_end(pdev, bar);
	data.dax_region = alloc_dax_region(&pdev->dev, pci_dev_id(pdev), &range,
					   NUMA_NO_NODE, align, 0);
	if (!data.dax_region)
		return -ENOMEM;
	data.size = range_len(&range);
	return PTR_ERR_OR_ZERO(devm_create_dev_dax(&data));
}

static const struct pci_device_id bar_dax_ids[] = {
	{ }
};

static struct pci_driver bar_dax_driver = {
	.name = KBUILD_MODNAME,
	.id_table = bar_dax_ids,
	.probe = bar_dax_probe,
};
module_pci_driver(bar_dax_driver);

MODULE_DESCRIPTION("device-dax over a BAR, to compare with");
MODULE_LICENSE("GPL");
