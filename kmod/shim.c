// SPDX-License-Identifier: GPL-2.0
/*
 * What Rust cannot call: inline functions, macros and tracepoints. See shim.h.
 */
#include <linux/dax.h>
#include <linux/dma-buf-mapping.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/fs.h>
#include <linux/huge_mm.h>
#include <linux/io.h>
#include <linux/iommu-dma.h>
#include <linux/iosys-map.h>
#include <linux/kstrtox.h>
#include <linux/kernfs.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/pci-p2pdma.h>
#include <linux/pci.h>
#include <linux/pgtable.h>
#include <linux/sched/signal.h>
#include <linux/wait.h>

#include "layout.h"
#include "shim.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

bool barbuf_helper_has_pmd_leaf(void)
{
	return IS_ENABLED(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP) &&
	       has_transparent_hugepage();
}

bool barbuf_helper_has_pud_leaf(void)
{
	if (!IS_ENABLED(CONFIG_ARCH_SUPPORTS_PUD_PFNMAP))
		return false;
#ifdef CONFIG_X86
	/* No core function on the fault's way asks the CPU. */
	return boot_cpu_has(X86_FEATURE_GBPAGES);
#else
	return true;
#endif
}

void barbuf_helper_vma_set_cache(struct vm_area_struct *vma, bool wc)
{
	pgprot_t prot = pgprot_decrypted(vma->vm_page_prot);

	vma->vm_page_prot = wc ? pgprot_writecombine(prot) :
				 pgprot_noncached(prot);
}

int barbuf_helper_check_wc(phys_addr_t phys)
{
	int ret = 0;
#ifdef CONFIG_X86
	pgprotval_t wanted = pgprot_val(pgprot_writecombine(PAGE_KERNEL));
	void __iomem *page = ioremap_wc(phys, PAGE_SIZE);
	unsigned int level;
	pte_t *pte;

	if (!page)
		return -ENOMEM;
	pte = lookup_address((unsigned long)page, &level);
	if (!pte || (pte_flags(*pte) ^ wanted) & _PAGE_CACHE_MASK)
		ret = -EBUSY;
	iounmap(page);
#endif
	return ret;
}

void barbuf_helper_release_fault_lock(struct vm_fault *vmf)
{
	release_fault_lock(vmf);
}

void barbuf_helper_vma_start_write(struct vm_area_struct *vma)
{
	vma_start_write(vma);
}

struct folio *barbuf_helper_pfn_folio(unsigned long pfn)
{
	return pfn_folio(pfn);
}

/*
 * P2PDMA does not use zone_device_data. A reference count of zero is not
 * enough to hand a folio out again: the core still works on it until it calls
 * folio_free().
 */
bool barbuf_helper_folio_in_use(struct folio *folio)
{
	/* Pairs with the release below: who sees it free may hand it out. */
	return smp_load_acquire(&folio->page.zone_device_data);
}

void barbuf_helper_folio_set_in_use(struct folio *folio, bool in_use)
{
	/* Pairs with the acquire above. */
	smp_store_release(&folio->page.zone_device_data,
			  in_use ? folio : NULL);
}

void barbuf_helper_folio_first_ref(struct folio *folio)
{
	folio_set_count(folio, 1);
}

bool barbuf_helper_folio_try_get(struct folio *folio)
{
	return folio_try_get(folio);
}

void barbuf_helper_folio_put(struct folio *folio)
{
	folio_put(folio);
}

bool barbuf_helper_pagemap_tryget(struct dev_pagemap *pgmap)
{
	return percpu_ref_tryget_live(&pgmap->ref);
}

void barbuf_helper_pagemap_get(struct dev_pagemap *pgmap)
{
	percpu_ref_get(&pgmap->ref);
}

void barbuf_helper_pagemap_put(struct dev_pagemap *pgmap)
{
	percpu_ref_put(&pgmap->ref);
}

struct dev_pagemap *barbuf_helper_folio_pagemap(struct folio *folio)
{
	return folio->pgmap;
}

unsigned long barbuf_helper_virt_to_pfn(void *addr)
{
	return page_to_pfn(virt_to_page(addr));
}

u32 barbuf_helper_layout_size(void)
{
	return BARBUF_LAYOUT_SIZE;
}

u32 barbuf_helper_layout_pgmap(void)
{
	return BARBUF_LAYOUT_PGMAP;
}

u32 barbuf_helper_layout_pgmap_size(void)
{
	return BARBUF_LAYOUT_PGMAP_SIZE;
}

u32 barbuf_helper_layout_mem(void)
{
	return BARBUF_LAYOUT_MEM;
}

bool barbuf_helper_has_dax(void)
{
	return IS_ENABLED(CONFIG_FS_DAX);
}

void barbuf_helper_file_set_dax(struct file *file)
{
	/* The inode belongs to this dma-buf alone and is not visible yet. */
	file_inode(file)->i_flags |= S_DAX;
}

/* What vma_thp_disabled() looks at that a driver has not set itself. */
bool barbuf_helper_vma_huge_faults(struct vm_area_struct *vma)
{
	return !mm_flags_test(MMF_DISABLE_THP_COMPLETELY, vma->vm_mm);
}

void barbuf_helper_eventfd_signal(struct eventfd_ctx *ctx)
{
	eventfd_signal(ctx);
}

bool barbuf_helper_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

void barbuf_helper_cond_resched(void)
{
	cond_resched();
}

bool barbuf_helper_wait_between(struct wait_queue_head *queue, const s64 *word,
				s64 low, s64 high, bool freezable)
{
	unsigned int state = TASK_KILLABLE | (freezable ? TASK_FREEZABLE : 0);
	s64 now;

	return !wait_event_state(*queue,
				 (now = READ_ONCE(*word)) < low || now >= high,
				 state);
}

void barbuf_helper_wait_clear(struct wait_queue_head *queue, const s64 *word,
			      s64 mask)
{
	wait_event(*queue, !(READ_ONCE(*word) & mask));
}

void barbuf_helper_wake_all(struct wait_queue_head *queue)
{
	wake_up_all(queue);
}

unsigned long barbuf_helper_pci_resource_flags(struct pci_dev *pdev, int bar)
{
	return pci_resource_flags(pdev, bar);
}

int barbuf_helper_pci_domain(struct pci_dev *pdev)
{
	return pci_domain_nr(pdev->bus);
}

void barbuf_helper_pci_lock(struct pci_dev *pdev)
{
	device_lock(&pdev->dev);
}

void barbuf_helper_pci_unlock(struct pci_dev *pdev)
{
	device_unlock(&pdev->dev);
}

bool barbuf_helper_pci_has_p2pmem(struct pci_dev *pdev)
{
	struct kernfs_node *group;
	struct pci_dev *nearest;

	/*
	 * pci_alloc_p2pmem() follows a NULL pool where a driver has set up
	 * P2PDMA without one (vfio-pci does). The sysfs group exists exactly
	 * as long as the pool does.
	 */
	group = kernfs_find_and_get(pdev->dev.kobj.sd, "p2pmem");
	if (!group)
		return false;
	kernfs_put(group);

	/* Nobody is nearer to a function than itself, if it has published. */
	nearest = pci_p2pmem_find(&pdev->dev);
	pci_dev_put(nearest);
	return nearest == pdev;
}

/*
 * The pool is private to drivers/pci/p2pdma.c. What is free in it can be asked
 * through the attribute that shows it in sysfs.
 */
u64 barbuf_helper_pci_free_p2pmem(struct pci_dev *pdev)
{
	struct kernfs_node *group, *file = NULL;
	struct device_attribute *available;
	u64 bytes = 0;
	char *text;

	text = (char *)get_zeroed_page(GFP_KERNEL);
	if (!text)
		return 0;
	group = kernfs_find_and_get(pdev->dev.kobj.sd, "p2pmem");
	if (group)
		file = kernfs_find_and_get(group, "available");
	if (file) {
		/* The attribute is a static of the kernel's. */
		available = container_of((struct attribute *)file->priv,
					 struct device_attribute, attr);
		if (available->show(&pdev->dev, available, text) > 0 &&
		    kstrtou64(strim(text), 10, &bytes))
			bytes = 0;
	}
	kernfs_put(file);
	kernfs_put(group);
	free_page((unsigned long)text);
	return bytes;
}

void barbuf_helper_pci_refused(struct pci_dev *pdev, int error)
{
	pci_info_ratelimited(pdev,
			     "barbuf: its driver refuses the export: %pe\n",
			     ERR_PTR(error));
}

struct pci_dev *barbuf_helper_pci_of(struct device *dev)
{
	return dev_is_pci(dev) ? to_pci_dev(dev) : NULL;
}

/* As drivers/pci/p2pdma.c has it, where it is private. */
static bool redirects(struct pci_dev *pdev)
{
	u16 control = 0;

	if (!pdev->acs_cap)
		return false;
	pci_read_config_word(pdev, pdev->acs_cap + PCI_ACS_CTRL, &control);
	return control & (PCI_ACS_RR | PCI_ACS_CR | PCI_ACS_EC);
}

bool barbuf_helper_pci_meet(struct pci_dev *a, struct pci_dev *b,
			    bool *redirected)
{
	struct pci_dev *up, *other, *meet = NULL;

	*redirected = false;
	for (up = a; up && !meet; up = pci_upstream_bridge(up)) {
		*redirected |= redirects(up);
		for (other = b; other && !meet;
		     other = pci_upstream_bridge(other))
			if (other == up)
				meet = up;
	}
	for (other = b; other && other != meet;
	     other = pci_upstream_bridge(other))
		*redirected |= redirects(other);
	return meet;
}

int barbuf_helper_p2pdma_distance(struct pci_dev *provider,
				  struct pci_dev *client)
{
	return pci_p2pdma_distance(provider, &client->dev, false);
}

struct p2pdma_provider *barbuf_helper_p2pdma_provider(struct pci_dev *pdev,
						      int bar)
{
	/* The function warns if nobody has called pcim_p2pdma_init(). */
	if (!rcu_access_pointer(pdev->p2pdma))
		return NULL;
	return pcim_p2pdma_provider(pdev, bar);
}

bool barbuf_helper_dma_translated(struct device *dev)
{
	return use_dma_iommu(dev);
}

u64 barbuf_helper_dma_limit(struct device *dev)
{
	return min_not_zero(dma_get_mask(dev), dev->bus_dma_limit);
}

struct sg_table *barbuf_helper_dma_buf_map(struct dma_buf_attachment *attach,
					   struct p2pdma_provider *provider,
					   struct phys_vec *pieces,
					   size_t count, size_t size,
					   enum dma_data_direction direction)
{
	return dma_buf_phys_vec_to_sgt(attach, provider, pieces, count, size,
				       direction);
}

/* One range of addresses, and the list of it in the same piece of memory. */
struct linked {
	struct sg_table table;
	struct dma_iova_state state;
	size_t size;
	struct scatterlist entries[];
};

static void unlink_pieces(struct device *dev, struct linked *linked,
			  enum dma_data_direction direction)
{
	if (linked->size)
		dma_iova_destroy(dev, &linked->state, linked->size, direction,
				 DMA_ATTR_MMIO);
	else
		dma_iova_free(dev, &linked->state);
	kvfree(linked);
}

struct sg_table *barbuf_helper_dma_buf_link(struct dma_buf_attachment *attach,
					    struct phys_vec *pieces,
					    size_t count, size_t size,
					    enum dma_data_direction direction)
{
	const size_t most = ALIGN_DOWN(UINT_MAX, PAGE_SIZE);
	const size_t nents = DIV_ROUND_UP(size, most);
	struct device *dev = attach->dev;
	struct linked *linked;
	int result = 0;
	size_t i;

	dma_resv_assert_held(attach->dmabuf->resv);
	linked = kvzalloc_flex(*linked, entries, nents);
	if (!linked)
		return ERR_PTR(-ENOMEM);
	if (!dma_iova_try_alloc(dev, &linked->state, 0, size)) {
		kvfree(linked);
		return ERR_PTR(-ENOMEM);
	}
	for (i = 0; i < count && !result; i++) {
		result = dma_iova_link(dev, &linked->state, pieces[i].paddr,
				       linked->size, pieces[i].len, direction,
				       DMA_ATTR_MMIO);
		if (!result)
			linked->size += pieces[i].len;
	}
	if (!result)
		result = dma_iova_sync(dev, &linked->state, 0, linked->size);
	if (result) {
		unlink_pieces(dev, linked, direction);
		return ERR_PTR(result);
	}
	for (i = 0; i < nents; i++) {
		struct scatterlist *entry = &linked->entries[i];

		sg_dma_address(entry) = linked->state.addr + i * most;
		sg_dma_len(entry) = min(most, size - i * most);
	}
	sg_mark_end(&linked->entries[nents - 1]);
	linked->table.sgl = linked->entries;
	/* orig_nents stays 0: there are no pages that somebody could look for. */
	linked->table.nents = nents;
	return &linked->table;
}

void barbuf_helper_dma_buf_unmap(struct dma_buf_attachment *attach,
				 struct sg_table *table,
				 enum dma_data_direction direction, bool linked)
{
	if (linked) {
		unlink_pieces(attach->dev,
			      container_of(table, struct linked, table),
			      direction);
		return;
	}
	/*
	 * dma_buf_phys_vec_to_sgt() has set orig_nents to 0, so that nobody
	 * looks for pages; and sg_free_table() frees that many entries, which
	 * is none.
	 */
	table->orig_nents = table->nents;
	dma_buf_free_sgt(attach, table, direction);
}

void barbuf_helper_iosys_map_set(struct iosys_map *map, void __iomem *memory)
{
	/*
	 * Not as I/O memory: videobuf2's vmalloc flavour builds the map anew
	 * from its address, and dma_buf_vunmap() has a BUG() for one that
	 * differs. On x86 loads and stores are the same for both.
	 */
	iosys_map_set_vaddr(map, (void __force *)memory);
}

void __iomem *barbuf_helper_iosys_map_get(struct iosys_map *map)
{
	return (void __force __iomem *)map->vaddr;
}

void barbuf_helper_drain(void)
{
	/* Empties the write-combining buffers before the load that follows. */
	mb();
}

void barbuf_helper_memset_io(void __iomem *dst, int value, size_t len)
{
	memset_io(dst, value, len);
}

void barbuf_helper_trace_export(u64 id, u32 region, u64 size, u32 backing,
				u32 cache)
{
	trace_barbuf_export(id, region, size, backing, cache);
}

void barbuf_helper_trace_state(u64 id, u32 state, u64 generation)
{
	trace_barbuf_state(id, state, generation);
}

void barbuf_helper_trace_fault(u64 id, u64 offset, u32 shift, u32 leaves,
			       u32 result)
{
	trace_barbuf_fault(id, offset, shift, leaves, result);
}

void barbuf_helper_trace_release(u64 id)
{
	trace_barbuf_release(id);
}
