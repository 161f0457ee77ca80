// SPDX-License-Identifier: GPL-2.0
/*
 * A driver for an NPU that keeps its device and offers the memory behind BAR 2
 * through barbuf: what a vendor's driver does, in as few lines as show it all.
 * The NPU is QEMU's ivshmem-plain device.
 *
 * A real driver would have the device's ids in its table. This one must not
 * take devices away from other tests, so it is bound by driver_override alone.
 */
#include <linux/atomic.h>
#include <linux/cleanup.h>
#include <linux/dma-buf.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/barbuf_provider.h>

#include "npu_sample.h"

#define NPU_BAR 2

struct npu {
	struct kref kref;
	struct pci_dev *pdev;
	struct miscdevice misc;

	/* Inside of @lock. For the callbacks, and held while barbuf suspends. */
	struct mutex power;
	/*
	 * Protects the members below. Held around calls to barbuf, so the
	 * callbacks must do without it.
	 */
	struct mutex lock;
	/* NULL before registration, and when the device has gone. */
	struct barbuf_provider *provider;
	bool requested;
	bool gone;

	/* For the callbacks. */
	atomic_t refuse;
	atomic_t first_exports, last_releases, refusals;
	atomic_t resets_prepared, resets_done;
	atomic_t in_use;
};

static void npu_free(struct kref *kref)
{
	kfree(container_of(kref, struct npu, kref));
}

/* barbuf's questions. A real driver would power memory up and down here. */

static int npu_first_export(void *priv)
{
	struct npu *npu = priv;
	int refuse = atomic_read(&npu->refuse);

	if (refuse) {
		atomic_inc(&npu->refusals);
		return refuse;
	}
	guard(mutex)(&npu->power);
	atomic_inc(&npu->first_exports);
	WARN_ON(atomic_inc_return(&npu->in_use) != 1);
	return 0;
}

static void npu_last_release(void *priv)
{
	struct npu *npu = priv;

	guard(mutex)(&npu->power);
	atomic_inc(&npu->last_releases);
	WARN_ON(atomic_dec_return(&npu->in_use) != 0);
}

static const struct barbuf_provider_ops npu_ops = {
	.size = sizeof(npu_ops),
	.region_size = sizeof(struct barbuf_provider_region),
	.first_export = npu_first_export,
	.last_release = npu_last_release,
};

static int npu_request(struct npu *npu, bool request)
{
	int ret = 0;

	if (request && !npu->requested)
		ret = pci_request_region(npu->pdev, NPU_BAR, "npu_sample");
	else if (!request && npu->requested)
		pci_release_region(npu->pdev, NPU_BAR);
	if (!ret)
		npu->requested = request;
	return ret;
}

static int npu_register(struct npu *npu,
			const struct barbuf_provider_region *regions,
			unsigned int nr_regions)
{
	struct barbuf_provider *provider;

	provider = barbuf_provider_register(npu->pdev, &npu_ops, regions,
					    nr_regions, npu);
	if (IS_ERR(provider))
		return PTR_ERR(provider);
	npu->provider = provider;
	return 0;
}

static void npu_unregister(struct npu *npu)
{
	barbuf_provider_unregister(npu->provider);
	npu->provider = NULL;
}

/* The character device. */

static int npu_open(struct inode *inode, struct file *file)
{
	struct npu *npu = container_of(file->private_data, struct npu, misc);

	kref_get(&npu->kref);
	file->private_data = npu;
	return 0;
}

static int npu_close(struct inode *inode, struct file *file)
{
	struct npu *npu = file->private_data;

	kref_put(&npu->kref, npu_free);
	return 0;
}

static long npu_ioctl_register(struct npu *npu, void __user *arg)
{
	unsigned int i;
	int ret;

	if (npu->provider)
		return -EALREADY;
	struct npu_register *wanted __free(kfree) =
		memdup_user(arg, sizeof(*wanted));
	if (IS_ERR(wanted))
		return PTR_ERR(wanted);
	if (wanted->nr_regions > NPU_SAMPLE_MAX_REGIONS)
		return -EINVAL;
	struct barbuf_provider_region *regions __free(kfree) =
		kcalloc(NPU_SAMPLE_MAX_REGIONS, sizeof(*regions), GFP_KERNEL);
	if (!regions)
		return -ENOMEM;
	for (i = 0; i < wanted->nr_regions; i++) {
		regions[i].bar = wanted->regions[i].bar;
		regions[i].flags = wanted->regions[i].flags;
		regions[i].offset = wanted->regions[i].offset;
		regions[i].length = wanted->regions[i].length;
		regions[i].caches = wanted->regions[i].caches;
		regions[i].reserved = wanted->regions[i].reserved;
	}
	ret = npu_request(npu, wanted->request);
	if (ret)
		return ret;
	return npu_register(npu, regions, wanted->nr_regions);
}

/* For a driver that does something with the dma-buf before it hands it on. */
static int npu_export_dmabuf(struct npu *npu,
			     const struct barbuf_provider_request *request)
{
	struct dma_buf *dmabuf;
	int fd;

	dmabuf = barbuf_provider_export(npu->provider, request);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	fd = dma_buf_fd(dmabuf, request->open_flags);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}

static long npu_ioctl_export(struct npu *npu, unsigned int cmd,
			     void __user *arg)
{
	struct npu_export wanted;
	struct barbuf_provider_request request = {
		.size = sizeof(request),
	};
	int fd;

	if (!npu->provider)
		return -ENODEV;
	if (copy_from_user(&wanted, arg, sizeof(wanted)))
		return -EFAULT;
	request.region = wanted.region;
	request.flags = wanted.flags;
	request.backing = wanted.backing;
	request.cache = wanted.cache;
	request.open_flags = wanted.open_flags;
	request.offset = wanted.offset;
	request.length = wanted.length;
	if (cmd == NPU_EXPORT)
		fd = barbuf_provider_export_fd(npu->provider, &request);
	else
		fd = npu_export_dmabuf(npu, &request);
	if (fd < 0)
		return fd;
	/* From here on the descriptor is the task's, whatever happens. */
	wanted.out_fd = fd;
	return copy_to_user(arg, &wanted, sizeof(wanted)) ? -EFAULT : 0;
}

static long npu_ioctl_revoke(struct npu *npu, int fd)
{
	struct dma_buf *dmabuf;
	long ret;

	if (!npu->provider)
		return -ENODEV;
	dmabuf = dma_buf_get(fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	ret = barbuf_provider_revoke(npu->provider, dmabuf);
	dma_buf_put(dmabuf);
	return ret;
}

static long npu_ioctl_counters(struct npu *npu, void __user *arg)
{
	struct npu_counters counters = {
		.first_exports = atomic_read(&npu->first_exports),
		.last_releases = atomic_read(&npu->last_releases),
		.refusals = atomic_read(&npu->refusals),
		.resets_prepared = atomic_read(&npu->resets_prepared),
		.resets_done = atomic_read(&npu->resets_done),
		.in_use = atomic_read(&npu->in_use),
	};

	return copy_to_user(arg, &counters, sizeof(counters)) ? -EFAULT : 0;
}

static long npu_ioctl_locked(struct npu *npu, unsigned int cmd,
			     unsigned long arg)
{
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case NPU_REGISTER:
		return npu_ioctl_register(npu, user);
	case NPU_UNREGISTER:
		npu_unregister(npu);
		return 0;
	case NPU_EXPORT:
	case NPU_EXPORT_DMABUF:
		return npu_ioctl_export(npu, cmd, user);
	case NPU_REVOKE:
		return npu_ioctl_revoke(npu, arg);
	}
	if (!npu->provider)
		return -ENODEV;
	switch (cmd) {
	case NPU_REVOKE_ALL:
		barbuf_provider_revoke_all(npu->provider);
		return 0;
	case NPU_SUSPEND:
		barbuf_provider_suspend(npu->provider);
		return 0;
	case NPU_RESUME:
		return barbuf_provider_resume(npu->provider);
	default:
		return -ENOTTY;
	}
}

static long npu_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct npu *npu = file->private_data;

	if (cmd == NPU_COUNTERS)
		return npu_ioctl_counters(npu, (void __user *)arg);
	if (cmd == NPU_REFUSE) {
		atomic_set(&npu->refuse, -(int)arg);
		return 0;
	}
	guard(mutex)(&npu->lock);
	return npu->gone ? -ENODEV : npu_ioctl_locked(npu, cmd, arg);
}

static const struct file_operations npu_fops = {
	.owner = THIS_MODULE,
	.open = npu_open,
	.release = npu_close,
	.unlocked_ioctl = npu_ioctl,
};

/* The device comes and goes. */

static int npu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct barbuf_provider_region region = {
		.bar = NPU_BAR,
		.flags = BARBUF_PROVIDER_MEMORY_ONLY | BARBUF_PROVIDER_PAGES,
		.length = pci_resource_len(pdev, NPU_BAR),
		.caches = BIT(BARBUF_CACHE_UC) | BIT(BARBUF_CACHE_WC),
	};
	struct npu *npu;
	int ret;

	npu = kzalloc_obj(*npu, GFP_KERNEL);
	if (!npu)
		return -ENOMEM;
	kref_init(&npu->kref);
	mutex_init(&npu->lock);
	mutex_init(&npu->power);
	npu->pdev = pdev;
	pci_set_drvdata(pdev, npu);

	ret = pci_enable_device_mem(pdev);
	if (ret)
		goto out_free;
	/* What npu_slot_reset() restores. */
	pci_save_state(pdev);
	ret = npu_request(npu, true);
	if (ret)
		goto out_disable;
	ret = npu_register(npu, &region, 1);
	if (ret)
		goto out_release;
	npu->misc.minor = MISC_DYNAMIC_MINOR;
	npu->misc.name = "npu_sample";
	npu->misc.fops = &npu_fops;
	npu->misc.mode = 0600;
	ret = misc_register(&npu->misc);
	if (ret)
		goto out_unregister;
	return 0;

out_unregister:
	npu_unregister(npu);
out_release:
	npu_request(npu, false);
out_disable:
	pci_disable_device(pdev);
out_free:
	kref_put(&npu->kref, npu_free);
	return ret;
}

static void npu_remove(struct pci_dev *pdev)
{
	struct npu *npu = pci_get_drvdata(pdev);

	misc_deregister(&npu->misc);
	mutex_lock(&npu->lock);
	npu->gone = true;
	npu_unregister(npu);
	npu_request(npu, false);
	mutex_unlock(&npu->lock);
	pci_disable_device(pdev);
	kref_put(&npu->kref, npu_free);
}

/* Resets, errors and sleep. */

static void npu_quiesce(struct npu *npu)
{
	guard(mutex)(&npu->lock);
	guard(mutex)(&npu->power);
	if (npu->provider)
		barbuf_provider_suspend(npu->provider);
}

static int npu_restart(struct npu *npu)
{
	guard(mutex)(&npu->lock);
	guard(mutex)(&npu->power);
	return npu->provider ? barbuf_provider_resume(npu->provider) : 0;
}

/* For good: ends all waiting, also for a resume that will not come. */
static void npu_lost(struct npu *npu)
{
	guard(mutex)(&npu->lock);
	if (npu->provider) {
		pci_err(npu->pdev, "has failed, its memory is taken back\n");
		npu_unregister(npu);
	}
}

static void npu_reset_prepare(struct pci_dev *pdev)
{
	struct npu *npu = pci_get_drvdata(pdev);

	atomic_inc(&npu->resets_prepared);
	npu_quiesce(npu);
}

static void npu_reset_done(struct pci_dev *pdev)
{
	struct npu *npu = pci_get_drvdata(pdev);

	/* barbuf has logged a failure. All stays suspended, for another reset. */
	if (!npu_restart(npu))
		atomic_inc(&npu->resets_done);
}

static pci_ers_result_t npu_error_detected(struct pci_dev *pdev,
					   pci_channel_state_t state)
{
	struct npu *npu = pci_get_drvdata(pdev);

	switch (state) {
	case pci_channel_io_normal:
		npu_quiesce(npu);
		return PCI_ERS_RESULT_CAN_RECOVER;
	case pci_channel_io_frozen:
		npu_quiesce(npu);
		return PCI_ERS_RESULT_NEED_RESET;
	default:
		npu_lost(npu);
		return PCI_ERS_RESULT_DISCONNECT;
	}
}

/* The link is back. A real driver would set its device up again here. */
static pci_ers_result_t npu_slot_reset(struct pci_dev *pdev)
{
	u16 command;

	pci_restore_state(pdev);
	pci_read_config_word(pdev, PCI_COMMAND, &command);
	if (PCI_POSSIBLE_ERROR(command) || !(command & PCI_COMMAND_MEMORY)) {
		npu_lost(pci_get_drvdata(pdev));
		return PCI_ERS_RESULT_DISCONNECT;
	}
	return PCI_ERS_RESULT_RECOVERED;
}

/* All functions below the port have recovered: nothing can be refused now. */
static void npu_error_resume(struct pci_dev *pdev)
{
	struct npu *npu = pci_get_drvdata(pdev);

	if (npu_restart(npu))
		npu_lost(npu);
}

static const struct pci_error_handlers npu_err_handler = {
	.error_detected = npu_error_detected,
	.slot_reset = npu_slot_reset,
	.resume = npu_error_resume,
	.reset_prepare = npu_reset_prepare,
	.reset_done = npu_reset_done,
};

static int npu_suspend(struct device *dev)
{
	npu_quiesce(dev_get_drvdata(dev));
	return 0;
}

static int npu_resume(struct device *dev)
{
	return npu_restart(dev_get_drvdata(dev));
}

static DEFINE_SIMPLE_DEV_PM_OPS(npu_pm_ops, npu_suspend, npu_resume);

/* Empty on purpose, see above. */
static const struct pci_device_id npu_ids[] = {
	{ }
};

static struct pci_driver npu_driver = {
	.name = "npu_sample",
	.id_table = npu_ids,
	.probe = npu_probe,
	.remove = npu_remove,
	.err_handler = &npu_err_handler,
	.driver.pm = pm_sleep_ptr(&npu_pm_ops),
};
module_pci_driver(npu_driver);

MODULE_DESCRIPTION("Sample driver that offers an NPU's memory through barbuf");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
