// SPDX-License-Identifier: GPL-2.0
/*
 * QEMU's edu device, whose DMA engine really moves bytes.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

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

struct device *engine_device(void)
{
	return &engine.pdev->dev;
}

struct device *engine_child(void)
{
	return &engine.child->dev;
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

int importer_move(struct importer *importer, struct importer_move __user *arg,
		  bool store)
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

struct pci_driver importer_driver = {
	.name = "importer",
	.id_table = importer_ids,
	.probe = importer_probe,
	.remove = importer_remove,
};
