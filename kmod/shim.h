/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What Rust cannot call: inline functions, macros and tracepoints.
 *
 * kmod/ext/shim.rs declares the same functions to Rust; the two files change
 * together. Nothing here decides anything.
 */
#ifndef BARBUF_SHIM_H
#define BARBUF_SHIM_H

#include <linux/dma-direction.h>
#include <linux/types.h>

struct barbuf_provider;
struct dev_pagemap;
struct device;
struct dma_buf;
struct dma_buf_attachment;
struct eventfd_ctx;
struct file;
struct folio;
struct iosys_map;
struct p2pdma_provider;
struct pci_dev;
struct phys_vec;
struct sg_table;
struct vm_area_struct;
struct vm_fault;
struct wait_queue_head;

/* Leaves that page tables of this machine can hold. */
bool barbuf_helper_has_pmd_leaf(void);
bool barbuf_helper_has_pud_leaf(void);

/* A VMA that is being set up, or whose mmap lock is held for writing. */
void barbuf_helper_vma_set_cache(struct vm_area_struct *vma, bool wc);
void barbuf_helper_vma_start_write(struct vm_area_struct *vma);

/*
 * Who reserves write combining for addresses that somebody has uncached gets
 * that instead, and is not told.  A mapping of the page at @phys shows which:
 * -EBUSY if it is not write combining.
 */
int barbuf_helper_check_wc(phys_addr_t phys);

/* The lock that a fault handler was called with; VM_FAULT_RETRY comes next. */
void barbuf_helper_release_fault_lock(struct vm_fault *vmf);

/* Folios of a pagemap of ours. */
struct folio *barbuf_helper_pfn_folio(unsigned long pfn);
bool barbuf_helper_folio_in_use(struct folio *folio);
void barbuf_helper_folio_set_in_use(struct folio *folio, bool in_use);
void barbuf_helper_folio_first_ref(struct folio *folio);
bool barbuf_helper_folio_try_get(struct folio *folio);
void barbuf_helper_folio_put(struct folio *folio);
bool barbuf_helper_pagemap_tryget(struct dev_pagemap *pgmap);
void barbuf_helper_pagemap_get(struct dev_pagemap *pgmap);
void barbuf_helper_pagemap_put(struct dev_pagemap *pgmap);
struct dev_pagemap *barbuf_helper_folio_pagemap(struct folio *folio);
unsigned long barbuf_helper_virt_to_pfn(void *addr);

/* Layout of the kernel's private struct pci_p2pdma_pagemap; size 0: unknown. */
u32 barbuf_helper_layout_size(void);
u32 barbuf_helper_layout_pgmap(void);
u32 barbuf_helper_layout_pgmap_size(void);
u32 barbuf_helper_layout_mem(void);

/* Whether S_DAX means anything in this kernel, and it on a dma-buf's inode. */
bool barbuf_helper_has_dax(void);
void barbuf_helper_file_set_dax(struct file *file);
/* Whether faults on a new VMA that wants huge pages come as huge ones. */
bool barbuf_helper_vma_huge_faults(struct vm_area_struct *vma);

void barbuf_helper_eventfd_signal(struct eventfd_ctx *ctx);
bool barbuf_helper_fatal_signal_pending(void);
void barbuf_helper_cond_resched(void);

/* Sleeps while low <= *word < high; false when the task is killed. */
bool barbuf_helper_wait_between(struct wait_queue_head *queue, const s64 *word,
				s64 low, s64 high, bool freezable);
/* Sleeps while *word has bits of the mask. */
void barbuf_helper_wait_clear(struct wait_queue_head *queue, const s64 *word,
			      s64 mask);
void barbuf_helper_wake_all(struct wait_queue_head *queue);

unsigned long barbuf_helper_pci_resource_flags(struct pci_dev *pdev, int bar);
int barbuf_helper_pci_domain(struct pci_dev *pdev);
void barbuf_helper_pci_lock(struct pci_dev *pdev);
void barbuf_helper_pci_unlock(struct pci_dev *pdev);
bool barbuf_helper_pci_has_p2pmem(struct pci_dev *pdev);
u64 barbuf_helper_pci_free_p2pmem(struct pci_dev *pdev);

/*
 * The PCI function that a device is, or NULL. A part of one is none: the kernel
 * maps peers' memory for PCI functions alone.
 */
struct pci_dev *barbuf_helper_pci_of(struct device *dev);
/*
 * Whether something is above both, and whether a port up to there redirects
 * requests from peers.
 */
bool barbuf_helper_pci_meet(struct pci_dev *a, struct pci_dev *b,
			    bool *redirected);
int barbuf_helper_p2pdma_distance(struct pci_dev *provider,
				  struct pci_dev *client);
struct p2pdma_provider *barbuf_helper_p2pdma_provider(struct pci_dev *pdev,
						      int bar);
bool barbuf_helper_dma_translated(struct device *dev);
u64 barbuf_helper_dma_limit(struct device *dev);

/* An importer's DMA addresses, under the reservation lock. */
struct sg_table *barbuf_helper_dma_buf_map(struct dma_buf_attachment *attach,
					   struct p2pdma_provider *provider,
					   struct phys_vec *pieces,
					   size_t count, size_t size,
					   enum dma_data_direction direction);
/*
 * The same behind an IOMMU, as one range of addresses: dma_buf_phys_vec_to_sgt()
 * links each range at offset 0 of them, which fails for the second one, and
 * allocates three times for what is one.
 */
struct sg_table *barbuf_helper_dma_buf_link(struct dma_buf_attachment *attach,
					    struct phys_vec *pieces,
					    size_t count, size_t size,
					    enum dma_data_direction direction);
void barbuf_helper_dma_buf_unmap(struct dma_buf_attachment *attach,
				 struct sg_table *table,
				 enum dma_data_direction direction,
				 bool linked);
void barbuf_helper_iosys_map_set(struct iosys_map *map, void __iomem *memory);
void __iomem *barbuf_helper_iosys_map_get(struct iosys_map *map);

/* Stores that were issued leave the processor, before any later load. */
void barbuf_helper_drain(void);
void barbuf_helper_memset_io(void __iomem *dst, int value, size_t len);

/* Says in the log, not too often, that the function's driver refuses. */
void barbuf_helper_pci_refused(struct pci_dev *pdev, int error);

/* The other direction: kmod/ext/vendor.rs, for kmod/vendor.c. */
struct barbuf_provider *barbuf_vendor_register(struct pci_dev *pdev,
					       const void *ops,
					       const void *regions,
					       unsigned int nr_regions,
					       void *priv);
void barbuf_vendor_unregister(struct barbuf_provider *provider);
struct dma_buf *barbuf_vendor_export(struct barbuf_provider *provider,
				     const void *request);
int barbuf_vendor_export_fd(struct barbuf_provider *provider,
			    const void *request);
int barbuf_vendor_revoke(struct barbuf_provider *provider,
			 struct dma_buf *dmabuf);
void barbuf_vendor_revoke_all(struct barbuf_provider *provider);
void barbuf_vendor_suspend(struct barbuf_provider *provider);
int barbuf_vendor_resume(struct barbuf_provider *provider);

/* Tracepoints, see kmod/trace.h. */
void barbuf_helper_trace_export(u64 id, u32 region, u64 size, u32 backing,
				u32 cache);
void barbuf_helper_trace_state(u64 id, u32 state, u64 generation);
void barbuf_helper_trace_fault(u64 id, u64 offset, u32 shift, u32 leaves,
			       u32 result);
void barbuf_helper_trace_release(u64 id);

#endif /* BARBUF_SHIM_H */
