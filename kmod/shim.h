/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What Rust cannot call: inline functions, macros and tracepoints.
 *
 * kmod/ext/shim.rs declares the same functions to Rust; the two files change
 * together. Nothing here decides anything.
 */
#ifndef BARBUF_SHIM_H
#define BARBUF_SHIM_H

#include <linux/types.h>

struct dev_pagemap;
struct eventfd_ctx;
struct file;
struct folio;
struct pci_dev;
struct vm_area_struct;

/* Leaves that page tables of this machine can hold. */
bool barbuf_helper_has_pmd_leaf(void);
bool barbuf_helper_has_pud_leaf(void);

/* A VMA that is being set up, or whose mmap lock is held for writing. */
void barbuf_helper_vma_set_cache(struct vm_area_struct *vma, bool wc);
void barbuf_helper_vma_start_write(struct vm_area_struct *vma);

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

/* S_DAX on the inode behind a dma-buf; false where this kernel has no S_DAX. */
bool barbuf_helper_file_set_dax(struct file *file);

void barbuf_helper_eventfd_signal(struct eventfd_ctx *ctx);
bool barbuf_helper_fatal_signal_pending(void);
void barbuf_helper_cond_resched(void);

unsigned long barbuf_helper_pci_resource_flags(struct pci_dev *pdev, int bar);
int barbuf_helper_pci_domain(struct pci_dev *pdev);
void barbuf_helper_pci_lock(struct pci_dev *pdev);
void barbuf_helper_pci_unlock(struct pci_dev *pdev);
bool barbuf_helper_pci_has_p2pmem(struct pci_dev *pdev);
u64 barbuf_helper_pci_free_p2pmem(struct pci_dev *pdev);

void barbuf_helper_memset_io(void __iomem *dst, int value, size_t len);

/* Tracepoints, see kmod/trace.h. */
void barbuf_helper_trace_export(u64 id, u32 region, u64 size, u32 backing,
				u32 cache);
void barbuf_helper_trace_state(u64 id, u32 state, u64 generation);
void barbuf_helper_trace_fault(u64 id, u64 offset, u32 shift, u32 leaves,
			       u32 result);
void barbuf_helper_trace_release(u64 id);

#endif /* BARBUF_SHIM_H */
