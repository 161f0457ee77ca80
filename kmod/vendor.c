// SPDX-License-Identifier: GPL-2.0
/*
 * The exported functions of <linux/barbuf_provider.h>, where they are
 * described. What they do is in vendor.rs, how it gets there in ext/vendor.rs.
 */
/* First, to see that it stands on its own. */
#include <linux/barbuf_provider.h>

#include <linux/build_bug.h>
#include <linux/err.h>
#include <linux/export.h>
#include <linux/kernel.h>
#include <linux/stddef.h>

#include "shim.h"

/* What ext/vendor.rs believes. */
static_assert(sizeof(struct barbuf_provider_region) == 32);
static_assert(offsetof(struct barbuf_provider_region, caches) == 24);
static_assert(sizeof(struct barbuf_provider_ops) == 32);
static_assert(offsetof(struct barbuf_provider_ops, first_export) == 16);
static_assert(sizeof(struct barbuf_provider_request) == 48);
static_assert(offsetof(struct barbuf_provider_request, region) == 8);
static_assert(offsetof(struct barbuf_provider_request, offset) == 32);

struct barbuf_provider *
barbuf_provider_register(struct pci_dev *pdev,
			 const struct barbuf_provider_ops *ops,
			 const struct barbuf_provider_region *regions,
			 unsigned int nr_regions, void *priv)
{
	might_sleep();
	return barbuf_vendor_register(pdev, ops, regions, nr_regions, priv);
}
EXPORT_SYMBOL_GPL(barbuf_provider_register);

void barbuf_provider_unregister(struct barbuf_provider *provider)
{
	might_sleep();
	if (!IS_ERR_OR_NULL(provider))
		barbuf_vendor_unregister(provider);
}
EXPORT_SYMBOL_GPL(barbuf_provider_unregister);

struct dma_buf *
barbuf_provider_export(struct barbuf_provider *provider,
		       const struct barbuf_provider_request *request)
{
	might_sleep();
	return barbuf_vendor_export(provider, request);
}
EXPORT_SYMBOL_GPL(barbuf_provider_export);

int barbuf_provider_export_fd(struct barbuf_provider *provider,
			      const struct barbuf_provider_request *request)
{
	might_sleep();
	return barbuf_vendor_export_fd(provider, request);
}
EXPORT_SYMBOL_GPL(barbuf_provider_export_fd);

int barbuf_provider_revoke(struct barbuf_provider *provider,
			   struct dma_buf *dmabuf)
{
	might_sleep();
	return barbuf_vendor_revoke(provider, dmabuf);
}
EXPORT_SYMBOL_GPL(barbuf_provider_revoke);

void barbuf_provider_revoke_all(struct barbuf_provider *provider)
{
	might_sleep();
	barbuf_vendor_revoke_all(provider);
}
EXPORT_SYMBOL_GPL(barbuf_provider_revoke_all);

void barbuf_provider_suspend(struct barbuf_provider *provider)
{
	might_sleep();
	barbuf_vendor_suspend(provider);
}
EXPORT_SYMBOL_GPL(barbuf_provider_suspend);

int barbuf_provider_resume(struct barbuf_provider *provider)
{
	might_sleep();
	return barbuf_vendor_resume(provider);
}
EXPORT_SYMBOL_GPL(barbuf_provider_resume);
