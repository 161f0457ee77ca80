// SPDX-License-Identifier: GPL-2.0
/*
 * An importer of dma-bufs on QEMU's edu device. It does what drivers do, well or
 * badly, as importer.h says: /dev/importer, and the kernel's own mappings.
 */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

struct workqueue_struct *importer_workers;

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
		return dma_set_mask_and_coherent(engine_device(),
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

struct miscdevice importer_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "importer",
	.mode = 0600,
	.fops = &importer_fops,
};

static int __init importer_init(void)
{
	int result;

	importer_workers = alloc_workqueue("importer", WQ_UNBOUND, 0);
	if (!importer_workers)
		return -ENOMEM;
	result = pci_register_driver(&importer_driver);
	if (result)
		destroy_workqueue(importer_workers);
	return result;
}

/* A fence that has not ended keeps the module: see importer_fence(). */
static void __exit importer_exit(void)
{
	pci_unregister_driver(&importer_driver);
	destroy_workqueue(importer_workers);
}

module_init(importer_init);
module_exit(importer_exit);
MODULE_IMPORT_NS("DMA_BUF");
MODULE_DESCRIPTION("Test importer of dma-bufs on QEMU's edu device");
MODULE_LICENSE("GPL");
