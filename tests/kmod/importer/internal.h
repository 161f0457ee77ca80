/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of the module share: engine.c has the device, attach.c the
 * importing, main.c what user space sees.
 *
 * Locks: importer->lock, then the reservation lock of the dma-buf, then the
 * engine's. invalidate_mappings() runs under the reservation lock and only
 * queues work.
 */
#ifndef IMPORTER_INTERNAL_H
#define IMPORTER_INTERNAL_H

#include <linux/dma-buf.h>
#include <linux/iosys-map.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/workqueue.h>

#include "importer.h"

/* An open file. */
struct importer {
	struct mutex lock;
	u32 flags;
	u32 delay_ms;
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attachment;
	bool pinned;
	struct delayed_work obey;
	struct dma_buf *vmapped;
	struct iosys_map vmap;

	/* Under the reservation lock. */
	struct sg_table *table;
	enum dma_data_direction direction;
	u32 invalidations;
	int remap_result;
	ktime_t unmapped;
};

/* main.c */
extern struct miscdevice importer_misc;
/* Invalidations that are obeyed, and fences that end. */
extern struct workqueue_struct *importer_workers;

/* engine.c; between the device's probe and its removal. */
extern struct pci_driver importer_driver;
struct device *engine_device(void);
struct device *engine_child(void);
int importer_move(struct importer *importer, struct importer_move __user *arg,
		  bool store);

/* attach.c; each ioctl holds importer->lock. */
void importer_obey(struct work_struct *work);
int importer_attach(struct importer *importer,
		    struct importer_attach __user *arg);
int importer_detach(struct importer *importer);
int importer_map(struct importer *importer, struct importer_map __user *arg);
int importer_unmap(struct importer *importer);
int importer_state(struct importer *importer,
		   struct importer_state __user *arg);
int importer_cycle(struct importer *importer,
		   struct importer_cycle __user *arg);
int importer_fence(struct importer *importer, u32 delay_ms);

#endif /* IMPORTER_INTERNAL_H */
