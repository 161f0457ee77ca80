// SPDX-License-Identifier: GPL-2.0
/*
 * Importing: attachments that behave as importer.h says, what they map, and how
 * they obey an invalidation.
 */
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/timex.h>
#include <linux/uaccess.h>

#include "internal.h"

/* Maps; under the reservation lock. */
static int importer_map_locked(struct importer *importer,
			       enum dma_data_direction direction)
{
	struct sg_table *table;

	if (importer->table)
		return -EBUSY;
	table = dma_buf_map_attachment(importer->attachment, direction);
	if (IS_ERR(table))
		return PTR_ERR(table);
	importer->table = table;
	importer->direction = direction;
	return 0;
}

/* Unmaps, if there is something; under the reservation lock. */
static void importer_unmap_locked(struct importer *importer)
{
	if (!importer->table)
		return;
	dma_buf_unmap_attachment(importer->attachment, importer->table,
				 importer->direction);
	importer->table = NULL;
	importer->unmapped = ktime_get();
}

void importer_obey(struct work_struct *work)
{
	struct importer *importer =
		container_of(to_delayed_work(work), struct importer, obey);
	struct dma_resv *resv = importer->dmabuf->resv;
	int result;

	dma_resv_lock(resv, NULL);
	importer_unmap_locked(importer);
	dma_resv_unlock(resv);
	if (!(importer->flags & IMPORTER_REMAP))
		return;
	dma_resv_lock(resv, NULL);
	result = importer_map_locked(importer, importer->direction);
	importer->remap_result = result;
	dma_resv_unlock(resv);
}

static void importer_invalidate(struct dma_buf_attachment *attachment)
{
	struct importer *importer = attachment->importer_priv;

	importer->invalidations++;
	if (importer->table || (importer->flags & IMPORTER_REMAP))
		queue_delayed_work(importer_workers, &importer->obey,
				   msecs_to_jiffies(importer->delay_ms));
}

static const struct dma_buf_attach_ops importer_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = importer_invalidate,
};

static const struct dma_buf_attach_ops importer_no_peer2peer_ops = {
	.invalidate_mappings = importer_invalidate,
};

static const struct dma_buf_attach_ops importer_no_invalidate_ops = {
	.allow_peer2peer = true,
};

static struct dma_buf_attachment *
importer_attach_to(struct importer *importer, struct dma_buf *dmabuf, u32 flags)
{
	const struct dma_buf_attach_ops *ops = &importer_ops;
	struct device *dev = engine_device();

	if (flags & IMPORTER_NO_PCI)
		dev = importer_misc.this_device;
	if (flags & IMPORTER_CHILD)
		dev = engine_child();
	if (flags & IMPORTER_STATIC)
		return dma_buf_attach(dmabuf, dev);
	if (flags & IMPORTER_NO_PEER2PEER)
		ops = &importer_no_peer2peer_ops;
	if (flags & IMPORTER_NO_INVALIDATE)
		ops = &importer_no_invalidate_ops;
	return dma_buf_dynamic_attach(dmabuf, dev, ops, importer);
}

int importer_detach(struct importer *importer)
{
	struct dma_buf *dmabuf = importer->dmabuf;

	if (!importer->attachment)
		return -ENOTCONN;
	/* After this nothing queues it again, or finds nothing mapped. */
	dma_resv_lock(dmabuf->resv, NULL);
	importer->flags &= ~IMPORTER_REMAP;
	importer_unmap_locked(importer);
	dma_resv_unlock(dmabuf->resv);
	flush_delayed_work(&importer->obey);
	dma_resv_lock(dmabuf->resv, NULL);
	importer_unmap_locked(importer);
	if (importer->pinned)
		dma_buf_unpin(importer->attachment);
	importer->pinned = false;
	dma_resv_unlock(dmabuf->resv);
	dma_buf_detach(dmabuf, importer->attachment);
	importer->attachment = NULL;
	importer->dmabuf = NULL;
	dma_buf_put(dmabuf);
	return 0;
}

int importer_attach(struct importer *importer,
		    struct importer_attach __user *arg)
{
	struct dma_buf_attachment *attachment;
	struct importer_attach attach;
	struct dma_buf *dmabuf;
	int result = 0;

	if (copy_from_user(&attach, arg, sizeof(attach)))
		return -EFAULT;
	if (importer->attachment)
		return -EBUSY;
	dmabuf = dma_buf_get(attach.fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	importer->flags = attach.flags;
	importer->delay_ms = attach.delay_ms;
	/* An invalidation can come before dma_buf_dynamic_attach() returns. */
	importer->dmabuf = dmabuf;
	attachment = importer_attach_to(importer, dmabuf, attach.flags);
	if (IS_ERR(attachment)) {
		result = PTR_ERR(attachment);
		goto out_put;
	}
	importer->attachment = attachment;
	if (attach.flags & IMPORTER_PIN) {
		dma_resv_lock(dmabuf->resv, NULL);
		result = dma_buf_pin(attachment);
		dma_resv_unlock(dmabuf->resv);
		if (result)
			goto out_detach;
		importer->pinned = true;
	}
	return 0;

out_detach:
	/* With a mapping that importer_obey() may have made already. */
	importer_detach(importer);
	return result;
out_put:
	flush_delayed_work(&importer->obey);
	importer->dmabuf = NULL;
	dma_buf_put(dmabuf);
	return result;
}

static void importer_describe(struct sg_table *table, struct importer_map *map)
{
	dma_addr_t next = 0;
	struct scatterlist *sg;
	int i;

	for_each_sgtable_dma_sg(table, sg, i) {
		map->nents++;
		if (!i || sg_dma_address(sg) != next)
			map->ranges++;
		if (!IS_ALIGNED(sg_dma_address(sg), SZ_2M))
			map->unaligned++;
		map->bytes += sg_dma_len(sg);
		next = sg_dma_address(sg) + sg_dma_len(sg);
		map->last = max_t(u64, map->last, next - 1);
	}
}

int importer_map(struct importer *importer, struct importer_map __user *arg)
{
	struct importer_map map, out = {};
	int result;

	if (copy_from_user(&map, arg, sizeof(map)))
		return -EFAULT;
	if (!importer->attachment)
		return -ENOTCONN;
	dma_resv_lock(importer->dmabuf->resv, NULL);
	result = importer_map_locked(importer, map.direction);
	if (!result) {
		out.direction = map.direction;
		importer_describe(importer->table, &out);
	}
	dma_resv_unlock(importer->dmabuf->resv);
	if (!result && copy_to_user(arg, &out, sizeof(out)))
		return -EFAULT;
	return result;
}

int importer_unmap(struct importer *importer)
{
	if (!importer->attachment)
		return -ENOTCONN;
	dma_resv_lock(importer->dmabuf->resv, NULL);
	importer_unmap_locked(importer);
	dma_resv_unlock(importer->dmabuf->resv);
	return 0;
}

int importer_state(struct importer *importer,
		   struct importer_state __user *arg)
{
	struct importer_state state = {};

	if (!importer->attachment)
		return -ENOTCONN;
	dma_resv_lock(importer->dmabuf->resv, NULL);
	state.invalidations = importer->invalidations;
	state.mapped = !!importer->table;
	state.remap_errno = -importer->remap_result;
	state.unmapped_ns = ktime_to_ns(importer->unmapped);
	dma_resv_unlock(importer->dmabuf->resv);
	return copy_to_user(arg, &state, sizeof(state)) ? -EFAULT : 0;
}

int importer_cycle(struct importer *importer,
		   struct importer_cycle __user *arg)
{
	struct dma_buf_attachment *attachment;
	struct importer_cycle cycle;
	struct dma_buf *dmabuf;
	struct sg_table *table;
	int result = 0;
	u64 least = U64_MAX;
	u32 i;

	if (copy_from_user(&cycle, arg, sizeof(cycle)))
		return -EFAULT;
	if (importer->attachment)
		return -EBUSY;
	dmabuf = dma_buf_get(cycle.fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	for (i = 0; i < cycle.rounds && !result; i++) {
		u64 start = get_cycles();

		attachment = importer_attach_to(importer, dmabuf, cycle.flags);
		if (IS_ERR(attachment)) {
			result = PTR_ERR(attachment);
			break;
		}
		table = dma_buf_map_attachment_unlocked(attachment,
							DMA_BIDIRECTIONAL);
		if (IS_ERR(table)) {
			result = PTR_ERR(table);
		} else {
			least = min(least, get_cycles() - start);
			cycle.nents = table->nents;
			dma_buf_unmap_attachment_unlocked(attachment, table,
							  DMA_BIDIRECTIONAL);
		}
		dma_buf_detach(dmabuf, attachment);
		cond_resched();
		if (signal_pending(current))
			result = -EINTR;
	}
	dma_buf_put(dmabuf);
	cycle.least_cycles = least;
	if (!result && copy_to_user(arg, &cycle, sizeof(cycle)))
		result = -EFAULT;
	return result;
}

/* A fence that its own timer ends. */
struct importer_fence {
	struct dma_fence base;
	spinlock_t lock;
	struct delayed_work end;
};

static const char *importer_fence_name(struct dma_fence *fence)
{
	return "importer";
}

static const struct dma_fence_ops importer_fence_ops = {
	.get_driver_name = importer_fence_name,
	.get_timeline_name = importer_fence_name,
};

static void importer_fence_end(struct work_struct *work)
{
	struct importer_fence *fence = container_of(
		to_delayed_work(work), struct importer_fence, end);

	dma_fence_signal(&fence->base);
	dma_fence_put(&fence->base);
	module_put(THIS_MODULE);
}

int importer_fence(struct importer *importer, u32 delay_ms)
{
	struct importer_fence *fence;
	struct dma_resv *resv;
	int result;

	if (!importer->attachment)
		return -ENOTCONN;
	fence = kzalloc_obj(*fence);
	if (!fence)
		return -ENOMEM;
	spin_lock_init(&fence->lock);
	INIT_DELAYED_WORK(&fence->end, importer_fence_end);
	dma_fence_init(&fence->base, &importer_fence_ops, &fence->lock,
		       dma_fence_context_alloc(1), 1);
	resv = importer->dmabuf->resv;
	dma_resv_lock(resv, NULL);
	result = dma_resv_reserve_fences(resv, 1);
	if (!result)
		dma_resv_add_fence(resv, &fence->base,
				   DMA_RESV_USAGE_BOOKKEEP);
	dma_resv_unlock(resv);
	/*
	 * Also without a place: the fence ends and is freed. This call comes
	 * through an open file, so the module is there.
	 */
	__module_get(THIS_MODULE);
	queue_delayed_work(importer_workers, &fence->end,
			   msecs_to_jiffies(delay_ms));
	return result;
}
