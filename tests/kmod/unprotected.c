// SPDX-License-Identifier: GPL-2.0
/*
 * Folios of 1 GiB of a BAR in a VMA without barbuf's precautions, to see what
 * the kernel does to them. A machine that has loaded this is to be thrown
 * away: the references that the kernel loses never come back, so there is no
 * way to unload it.
 *
 * mmap() of /dev/unprotected gives a VM_MIXEDMAP VMA, which is the simplest
 * way to have huge_fault() called for 1 GiB. read() tells how many faults were
 * served and how many references the first folio has; 1 is its own.
 */
#include <linux/memremap.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/huge_mm.h>
#include <linux/module.h>
#include <linux/pci.h>

#define LENGTH (2ul << PUD_SHIFT)

static struct dev_pagemap pagemap = {
	.type = MEMORY_DEVICE_GENERIC,
	.vmemmap_shift = PUD_SHIFT - PAGE_SHIFT,
	.nr_range = 1,
};

static atomic_t faults;

static struct folio *folio_at(pgoff_t pgoff)
{
	return pfn_folio(PHYS_PFN(pagemap.range.start) +
			 round_down(pgoff, 1ul << pagemap.vmemmap_shift));
}

static vm_fault_t unprotected_huge_fault(struct vm_fault *vmf,
					 unsigned int order)
{
	if (order != pagemap.vmemmap_shift ||
	    !IS_ALIGNED(vmf->vma->vm_start, PUD_SIZE))
		return VM_FAULT_FALLBACK;
	atomic_inc(&faults);
	return vmf_insert_folio_pud(vmf, folio_at(vmf->pgoff), false);
}

static vm_fault_t unprotected_fault(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct unprotected_vm_ops = {
	.fault = unprotected_fault,
	.huge_fault = unprotected_huge_fault,
};

static int unprotected_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (vma->vm_pgoff || vma->vm_end - vma->vm_start > LENGTH)
		return -EINVAL;
	vm_flags_set(vma, VM_MIXEDMAP | VM_HUGEPAGE);
	vma->vm_ops = &unprotected_vm_ops;
	return 0;
}

static ssize_t unprotected_read(struct file *file, char __user *buf,
				size_t count, loff_t *pos)
{
	char text[32];
	int len = scnprintf(text, sizeof(text), "%d %d\n", atomic_read(&faults),
			    folio_ref_count(folio_at(0)));

	return simple_read_from_buffer(buf, count, pos, text, len);
}

static const struct file_operations unprotected_fops = {
	.owner = THIS_MODULE,
	.read = unprotected_read,
	.mmap = unprotected_mmap,
};

static struct miscdevice unprotected_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "unprotected",
	.fops = &unprotected_fops,
};

static int __init unprotected_init(void)
{
	/* ivshmem, whose BAR 2 is its memory */
	struct pci_dev *pdev = pci_get_device(0x1af4, 0x1110, NULL);
	void *mapped;

	if (!pdev)
		return -ENODEV;
	pagemap.range.start = pci_resource_start(pdev, 2);
	pagemap.range.end = pagemap.range.start + LENGTH - 1;
	if (pci_resource_len(pdev, 2) < LENGTH ||
	    !IS_ALIGNED(pagemap.range.start, PUD_SIZE)) {
		pci_dev_put(pdev);
		return -ENXIO;
	}
	mapped = memremap_pages(&pagemap, NUMA_NO_NODE);
	if (IS_ERR(mapped)) {
		pci_dev_put(pdev);
		return PTR_ERR(mapped);
	}
	/* Nothing drives the device, and it stays. */
	pr_warn("unprotected: this machine is to be thrown away\n");
	return misc_register(&unprotected_misc);
}
module_init(unprotected_init);

MODULE_AUTHOR("The barbuf developers");
MODULE_DESCRIPTION("Large folios of a BAR without precautions, for tests");
MODULE_LICENSE("GPL");
