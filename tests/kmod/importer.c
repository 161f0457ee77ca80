// SPDX-License-Identifier: GPL-2.0
/*
 * An importer of dma-bufs on QEMU's edu device, whose DMA engine really moves
 * bytes. It does what drivers do, well or badly, as importer.h says.
 *
 * Locks: importer->lock, then the reservation lock of the dma-buf, then
 * engine.lock. invalidate_mappings() runs under the reservation lock and only
 * queues work.
 */
#include <linux/delay.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/iosys-map.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/timex.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "importer.h"

/* The device's registers, see docs/specs/edu.rst of QEMU. */
#define EDU_DMA_SOURCE 0x80
#define EDU_DMA_DESTINATION 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_COMMAND 0x98
#define EDU_DMA_RUN BIT(0)
#define EDU_DMA_TO_RAM BIT(1)
#define EDU_BUFFER 0x40000
#define EDU_BUFFER_SIZE 4096

/* The one engine. */
static struct {
	struct mutex lock;
	struct pci_dev *pdev;
	/* A part of it, which is no PCI function. */
	struct platform_device *child;
	void __iomem *registers;
	void *bounce;
	dma_addr_t bounce_addr;
} engine = {
	.lock = __MUTEX_INITIALIZER(engine.lock),
};

static struct miscdevice importer_misc;
static struct workqueue_struct *workers;

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

static void importer_obey(struct work_struct *work)
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
		queue_delayed_work(workers, &importer->obey,
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
	struct device *dev = &engine.pdev->dev;

	if (flags & IMPORTER_NO_PCI)
		dev = importer_misc.this_device;
	if (flags & IMPORTER_CHILD)
		dev = &engine.child->dev;
	if (flags & IMPORTER_STATIC)
		return dma_buf_attach(dmabuf, dev);
	if (flags & IMPORTER_NO_PEER2PEER)
		ops = &importer_no_peer2peer_ops;
	if (flags & IMPORTER_NO_INVALIDATE)
		ops = &importer_no_invalidate_ops;
	return dma_buf_dynamic_attach(dmabuf, dev, ops, importer);
}

static int importer_detach(struct importer *importer)
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

static int importer_attach(struct importer *importer,
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

static int importer_map(struct importer *importer,
			struct importer_map __user *arg)
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

static int importer_unmap(struct importer *importer)
{
	if (!importer->attachment)
		return -ENOTCONN;
	dma_resv_lock(importer->dmabuf->resv, NULL);
	importer_unmap_locked(importer);
	dma_resv_unlock(importer->dmabuf->resv);
	return 0;
}

/* One transfer; under engine.lock. The device takes 100 ms for each. */
static int engine_run(u64 source, u64 destination, u64 count, u64 command)
{
	int tries;

	writeq(source, engine.registers + EDU_DMA_SOURCE);
	writeq(destination, engine.registers + EDU_DMA_DESTINATION);
	writeq(count, engine.registers + EDU_DMA_COUNT);
	writeq(command | EDU_DMA_RUN, engine.registers + EDU_DMA_COMMAND);
	for (tries = 0; tries < 2000; tries++) {
		if (!(readq(engine.registers + EDU_DMA_COMMAND) & EDU_DMA_RUN))
			return 0;
		usleep_range(2000, 10000);
	}
	return -ETIMEDOUT;
}

/* Moves bytes between the engine's memory and those DMA addresses. */
static int engine_move(u64 address, u64 at, u64 count, bool store)
{
	if (store)
		return engine_run(EDU_BUFFER + at, address, count,
				  EDU_DMA_TO_RAM);
	return engine_run(address, EDU_BUFFER + at, count, 0);
}

/* The same for bytes of a mapping; under the reservation lock. */
static int importer_move_mapped(struct importer *importer,
				const struct importer_move *move, bool store)
{
	u64 start = 0, done = 0;
	struct scatterlist *sg;
	int i, result;

	if (!importer->table)
		return -ENOTCONN;
	for_each_sgtable_dma_sg(importer->table, sg, i) {
		u64 end = start + sg_dma_len(sg);
		u64 at = move->offset + done;

		if (done < move->length && at >= start && at < end) {
			u64 count = min(move->length - done, end - at);

			result = engine_move(sg_dma_address(sg) + (at - start),
					     done, count, store);
			if (result)
				return result;
			done += count;
		}
		start = end;
	}
	return done == move->length ? 0 : -EINVAL;
}

static int importer_move(struct importer *importer,
			 struct importer_move __user *arg, bool store)
{
	struct importer_move move;
	void __user *memory;
	void *bytes;
	int result;

	if (copy_from_user(&move, arg, sizeof(move)))
		return -EFAULT;
	if (move.length > EDU_BUFFER_SIZE)
		return -EINVAL;
	memory = u64_to_user_ptr(move.memory);
	if (!memory) {
		if (!importer->attachment)
			return -ENOTCONN;
		dma_resv_lock(importer->dmabuf->resv, NULL);
		mutex_lock(&engine.lock);
		result = importer_move_mapped(importer, &move, store);
		mutex_unlock(&engine.lock);
		dma_resv_unlock(importer->dmabuf->resv);
		return result;
	}
	/* Outside of engine.lock: a fault may take the reservation lock. */
	bytes = store ? kmalloc(move.length, GFP_KERNEL) :
			memdup_user(memory, move.length);
	if (!bytes)
		return -ENOMEM;
	if (IS_ERR(bytes))
		return PTR_ERR(bytes);
	mutex_lock(&engine.lock);
	if (!store)
		memcpy(engine.bounce, bytes, move.length);
	result = engine_move(engine.bounce_addr, 0, move.length, store);
	if (!result && store)
		memcpy(bytes, engine.bounce, move.length);
	mutex_unlock(&engine.lock);
	if (!result && store && copy_to_user(memory, bytes, move.length))
		result = -EFAULT;
	kfree(bytes);
	return result;
}

static int importer_state(struct importer *importer,
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

static int importer_cycle(struct importer *importer,
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

static int importer_fence(struct importer *importer, u32 delay_ms)
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
	queue_delayed_work(workers, &fence->end, msecs_to_jiffies(delay_ms));
	return result;
}

static int importer_vmap(struct importer *importer, int fd)
{
	struct dma_buf *dmabuf;
	int result;

	if (importer->vmapped)
		return -EBUSY;
	dmabuf = dma_buf_get(fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	result = dma_buf_vmap_unlocked(dmabuf, &importer->vmap);
	if (result)
		dma_buf_put(dmabuf);
	else
		importer->vmapped = dmabuf;
	return result;
}

static int importer_vunmap(struct importer *importer)
{
	if (!importer->vmapped)
		return -ENOTCONN;
	dma_buf_vunmap_unlocked(importer->vmapped, &importer->vmap);
	dma_buf_put(importer->vmapped);
	importer->vmapped = NULL;
	return 0;
}

static int importer_word(struct importer *importer,
			 struct importer_word __user *arg, bool poke)
{
	struct importer_word word;

	if (copy_from_user(&word, arg, sizeof(word)))
		return -EFAULT;
	if (!importer->vmapped)
		return -ENOTCONN;
	if (word.offset > importer->vmapped->size - sizeof(word.value))
		return -EINVAL;
	word.is_iomem = importer->vmap.is_iomem;
	if (poke)
		iosys_map_memcpy_to(&importer->vmap, word.offset, &word.value,
				    sizeof(word.value));
	else
		iosys_map_memcpy_from(&word.value, &importer->vmap,
				      word.offset, sizeof(word.value));
	return copy_to_user(arg, &word, sizeof(word)) ? -EFAULT : 0;
}

static long importer_answer(struct importer *importer, unsigned int cmd,
			    unsigned long arg)
{
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case IMPORTER_ATTACH:
		return importer_attach(importer, user);
	case IMPORTER_DETACH:
		return importer_detach(importer);
	case IMPORTER_MAP:
		return importer_map(importer, user);
	case IMPORTER_UNMAP:
		return importer_unmap(importer);
	case IMPORTER_LOAD:
		return importer_move(importer, user, false);
	case IMPORTER_STORE:
		return importer_move(importer, user, true);
	case IMPORTER_STATE:
		return importer_state(importer, user);
	case IMPORTER_MASK:
		if (arg > 64)
			return -EINVAL;
		return dma_set_mask_and_coherent(&engine.pdev->dev,
						 DMA_BIT_MASK(arg));
	case IMPORTER_CYCLE:
		return importer_cycle(importer, user);
	case IMPORTER_FENCE:
		return importer_fence(importer, arg);
	case IMPORTER_VMAP:
		return importer_vmap(importer, arg);
	case IMPORTER_VUNMAP:
		return importer_vunmap(importer);
	case IMPORTER_PEEK:
		return importer_word(importer, user, false);
	case IMPORTER_POKE:
		return importer_word(importer, user, true);
	default:
		return -ENOTTY;
	}
}

static long importer_ioctl(struct file *file, unsigned int cmd,
			   unsigned long arg)
{
	struct importer *importer = file->private_data;
	long result;

	mutex_lock(&importer->lock);
	result = importer_answer(importer, cmd, arg);
	mutex_unlock(&importer->lock);
	return result;
}

static int importer_open(struct inode *inode, struct file *file)
{
	struct importer *importer = kzalloc_obj(*importer);

	if (!importer)
		return -ENOMEM;
	mutex_init(&importer->lock);
	INIT_DELAYED_WORK(&importer->obey, importer_obey);
	file->private_data = importer;
	return 0;
}

static int importer_release(struct inode *inode, struct file *file)
{
	struct importer *importer = file->private_data;

	importer_vunmap(importer);
	importer_detach(importer);
	mutex_destroy(&importer->lock);
	kfree(importer);
	return 0;
}

static const struct file_operations importer_fops = {
	.owner = THIS_MODULE,
	.open = importer_open,
	.release = importer_release,
	.unlocked_ioctl = importer_ioctl,
};

static struct miscdevice importer_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "importer",
	.mode = 0600,
	.fops = &importer_fops,
};

static int importer_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int result;

	if (engine.pdev)
		return -EBUSY;
	result = pcim_enable_device(pdev);
	if (result)
		return result;
	engine.registers = pcim_iomap_region(pdev, 0, "importer");
	if (IS_ERR(engine.registers))
		return PTR_ERR(engine.registers);
	result = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (result)
		return result;
	engine.bounce = dmam_alloc_coherent(&pdev->dev, EDU_BUFFER_SIZE,
					    &engine.bounce_addr, GFP_KERNEL);
	if (!engine.bounce)
		return -ENOMEM;
	/* Without this the engine runs and moves nothing. */
	pci_set_master(pdev);
	engine.child = platform_device_register_data(&pdev->dev, "importer-child",
						     PLATFORM_DEVID_NONE, NULL,
						     0);
	if (IS_ERR(engine.child))
		return PTR_ERR(engine.child);
	engine.pdev = pdev;
	result = misc_register(&importer_misc);
	if (result) {
		engine.pdev = NULL;
		platform_device_unregister(engine.child);
	}
	return result;
}

/*
 * An open file holds a reference to the module and keeps it from being
 * unloaded. Tests neither unbind the device nor unplug it while one is open.
 */
static void importer_remove(struct pci_dev *pdev)
{
	misc_deregister(&importer_misc);
	platform_device_unregister(engine.child);
	engine.pdev = NULL;
}

static const struct pci_device_id importer_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{}
};
MODULE_DEVICE_TABLE(pci, importer_ids);

static struct pci_driver importer_driver = {
	.name = "importer",
	.id_table = importer_ids,
	.probe = importer_probe,
	.remove = importer_remove,
};

static int __init importer_init(void)
{
	int result;

	workers = alloc_workqueue("importer", WQ_UNBOUND, 0);
	if (!workers)
		return -ENOMEM;
	result = pci_register_driver(&importer_driver);
	if (result)
		destroy_workqueue(workers);
	return result;
}

/* A fence that has not ended keeps the module: see importer_fence(). */
static void __exit importer_exit(void)
{
	pci_unregister_driver(&importer_driver);
	destroy_workqueue(workers);
}

module_init(importer_init);
module_exit(importer_exit);
MODULE_IMPORT_NS("DMA_BUF");
MODULE_DESCRIPTION("Test importer of dma-bufs on QEMU's edu device");
MODULE_LICENSE("GPL");
