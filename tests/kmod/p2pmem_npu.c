// SPDX-License-Identifier: GPL-2.0
/*
 * Makes the memory BAR of a PCI function peer-to-peer memory and publishes
 * it, so that user space maps it through p2pmem/allocate in sysfs: what the
 * driver of an NPU would do to take part in the design that barbuf is compared
 * with.
 *
 * Nothing binds by itself; write "p2pmem_npu" into the function's
 * driver_override. The parameters are read when a function is bound, so that
 * they can be changed between two bindings.
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/pci-p2pdma.h>

static uint bar = 2;
module_param(bar, uint, 0644);
MODULE_PARM_DESC(bar, "PCI BAR that holds the memory (default: 2)");

static ulong size;
module_param(size, ulong, 0644);
MODULE_PARM_DESC(size, "bytes from the start of the BAR, 0 for all (default: 0)");

static ulong second;
module_param(second, ulong, 0644);
MODULE_PARM_DESC(second,
		 "bytes of another piece, from the middle of the BAR (default: 0)");

static bool lenient;
module_param(lenient, bool, 0644);
MODULE_PARM_DESC(lenient,
		 "bind also if the piece at the start cannot be p2pmem, as nvme does (default: N)");

static ulong align = PAGE_SIZE;
module_param(align, ulong, 0644);
MODULE_PARM_DESC(align,
		 "alignment of the memory: page size, 2 MiB or 1 GiB in bytes, or 0 for the largest that is possible; a kernel without compound-sysfs/s knows the page size only (default: page size)");

#ifdef P2PDMA_HAS_ALIGN
static int add_p2pmem(struct pci_dev *pdev, size_t bytes, u64 offset)
{
	ulong wanted = align;

	if (!wanted)
		wanted = pci_p2pdma_max_pagemap_align(pdev, bar, bytes, offset);
	return pci_p2pdma_add_resource(pdev, bar, bytes, offset, wanted);
}
#else
static int add_p2pmem(struct pci_dev *pdev, size_t bytes, u64 offset)
{
	if (align && align != PAGE_SIZE)
		return -EINVAL;
	return pci_p2pdma_add_resource(pdev, bar, bytes, offset);
}
#endif

static int p2pmem_npu_probe(struct pci_dev *pdev,
			    const struct pci_device_id *id)
{
	int ret;

	if (bar >= PCI_STD_NUM_BARS)
		return -EINVAL;

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	ret = pcim_request_region(pdev, bar, KBUILD_MODNAME);
	if (ret)
		return ret;
	ret = add_p2pmem(pdev, size, 0);
	if (ret && lenient) {
		pci_info(pdev, "no p2pmem at the start of BAR %u: %d\n", bar, ret);
		ret = 0;
	}
	if (!ret && second)
		ret = add_p2pmem(pdev, second, pci_resource_len(pdev, bar) / 2);
	if (ret)
		return dev_err_probe(&pdev->dev, ret,
				     "BAR %u cannot be p2pmem with alignment %lu\n",
				     bar, align);
	pci_p2pmem_publish(pdev, true);
	return 0;
}

/* The memory goes with the device resources; that waits for its users. */
static void p2pmem_npu_remove(struct pci_dev *pdev)
{
	pci_p2pmem_publish(pdev, false);
}

static const struct pci_device_id p2pmem_npu_ids[] = {
	{ }
};

static struct pci_driver p2pmem_npu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = p2pmem_npu_ids,
	.probe = p2pmem_npu_probe,
	.remove = p2pmem_npu_remove,
};
module_pci_driver(p2pmem_npu_driver);

MODULE_DESCRIPTION("peer-to-peer memory in sysfs, to compare with");
MODULE_LICENSE("GPL");
