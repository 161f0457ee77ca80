/* SPDX-License-Identifier: GPL-2.0 */
/*
 * barbuf's interface for drivers that keep their device and offer its memory.
 *
 * A PCI driver whose device has memory behind a BAR registers the parts of it
 * that others may have. User space then exports buffers through the function's
 * node in /dev/barbuf, exactly as for functions that barbuf drives itself; the
 * driver can export, revoke and suspend from kernel code as well. Numbers that
 * user space shares (backings, cache modes, export flags) are those of
 * <linux/barbuf.h>, the uapi header.
 *
 * docs/vendor.md has the order of the calls, tests/kmod/npu_sample.c is a whole
 * driver.
 */
#ifndef _LINUX_BARBUF_PROVIDER_H
#define _LINUX_BARBUF_PROVIDER_H

#include <linux/types.h>
#include <linux/barbuf.h>

struct barbuf_provider;
struct dma_buf;
struct pci_dev;

/**
 * DOC: Context, concurrency and lifetime
 *
 * All calls are for process context, and sleep. None may come with an mmap_lock
 * held, with the reservation lock of a dma-buf of barbuf held, or under a lock
 * that memory reclaim takes. The device lock of the function may be held. Most
 * calls forbid the locks that a callback takes, barbuf_provider_suspend() and
 * barbuf_provider_resume() do not: each call says so.
 *
 * barbuf_provider_register() and barbuf_provider_unregister() are the first and
 * the last call for a provider, and alone. Between them all others may run at
 * the same time, in any number, beside exports, page faults and importers of
 * user space. Suspending and resuming take turns; an export sees either all of a
 * suspension or nothing; of several that revoke a buffer one does it, and the
 * others return when it is done.
 *
 * A dma-buf may outlive its provider: user space, importers and the driver itself
 * may hold one after barbuf_provider_unregister(), revoked: whoever attaches or
 * maps it hears -ENODEV, and dma_buf_put() gives it back. It keeps barbuf loaded,
 * and nothing of the driver, which can be unloaded.
 */

/** BARBUF_PROVIDER_MAX_REGIONS - regions that one function can register. */
#define BARBUF_PROVIDER_MAX_REGIONS 24

/* barbuf_provider_region.flags */
/*
 * Nothing in the region makes the device do anything: no doorbell, no
 * descriptor, no register. Its bytes may then be exported without
 * CAP_SYS_RAWIO, and be overwritten with zeros before they are handed out.
 */
#define BARBUF_PROVIDER_MEMORY_ONLY (1u << 0)
/*
 * Page backing is wanted, as far as this kernel and the region's alignment
 * allow it: file I/O with O_DIRECT then works on mappings. The driver must not
 * have struct pages for these bytes itself (pci_p2pdma_add_resource()).
 */
#define BARBUF_PROVIDER_PAGES (1u << 1)

/**
 * struct barbuf_provider_region - a part of a BAR that may be exported
 * @bar: number of the BAR, 0 to 5
 * @flags: BARBUF_PROVIDER_*
 * @offset: of the first byte in the BAR, a multiple of 4 KiB
 * @length: bytes, a multiple of 4 KiB, not 0
 * @caches: bit 1 << enum barbuf_cache for each mode that is allowed.
 *	BARBUF_CACHE_UC always is. BARBUF_CACHE_WC needs a prefetchable BAR, and
 *	works only for bytes that the driver itself does not have mapped in
 *	another mode (x86 has one mode for a page; exports are refused then)
 * @reserved: 0
 *
 * The array index is the number of the region in BARBUF_INFO and BARBUF_EXPORT.
 */
struct barbuf_provider_region {
	u32 bar;
	u32 flags;
	u64 offset;
	u64 length;
	u32 caches;
	u32 reserved;
};

/**
 * struct barbuf_provider_ops - what barbuf tells and asks the driver
 * @size: sizeof(struct barbuf_provider_ops); members that come later are added
 *	at the end, and are zero for drivers that do not know them
 * @region_size: sizeof(struct barbuf_provider_region), for the same reason
 * @first_export: asked before a buffer is made while there is none, not as long
 *	as the provider is suspended, but a suspension can begin meanwhile. 0 lets it
 *	come into being. A negative errno refuses it: who exports gets
 *	ECONNREFUSED, and the kernel log the errno. Called again at the next
 *	attempt. May be NULL
 * @last_release: told when the memory of the last buffer has been given back,
 *	because the buffer was closed or revoked. No CPU and no importer reaches
 *	the memory then; file I/O that has pinned pages before a revocation may
 *	still be finishing. Comes exactly once for each @first_export that
 *	returned 0 (and was followed by an export that failed, or buffers that
 *	went). Also while the provider is suspended. May be NULL
 *
 * Context: process context, may sleep. Two calls for one provider never run at
 * the same time. barbuf holds locks of its own: the callbacks must not call
 * into barbuf, must not touch user memory, and must not take a lock that the
 * driver holds while it calls barbuf_provider_export(),
 * barbuf_provider_export_fd(), barbuf_provider_revoke(),
 * barbuf_provider_revoke_all() or barbuf_provider_unregister(), nor the device
 * lock of the function.
 * Neither is called any more when barbuf_provider_unregister() has returned.
 */
struct barbuf_provider_ops {
	size_t size;
	size_t region_size;
	int (*first_export)(void *priv);
	void (*last_release)(void *priv);
};

/**
 * struct barbuf_provider_request - what to export
 * @size: sizeof(struct barbuf_provider_request)
 * @region: index of the region
 * @flags: BARBUF_EXPORT_ANY, BARBUF_EXPORT_SHARED, BARBUF_EXPORT_ZERO and
 *	BARBUF_EXPORT_STATIC_IMPORT
 * @backing: enum barbuf_backing
 * @cache: enum barbuf_cache
 * @open_flags: O_RDONLY or O_RDWR, and O_CLOEXEC for a file descriptor
 * @page_shift: 0, or a limit as in struct barbuf_export
 * @offset: of the first byte in the region; 0 with BARBUF_EXPORT_ANY
 * @length: bytes
 *
 * As struct barbuf_export of the uapi header, with one range.
 *
 * BARBUF_EXPORT_STATIC_IMPORT lets importers in that cannot be told to stop, and
 * the kernel's vmap(). The driver is who waits for them: revoking the buffer and
 * barbuf_provider_unregister(), and so its remove(), do not return before the
 * last of them has detached, however long that takes. Its resets do not wait:
 * those importers go on through them (barbuf_provider_suspend()).
 */
struct barbuf_provider_request {
	size_t size;
	u32 region;
	u32 flags;
	u32 backing;
	u32 cache;
	u32 open_flags;
	u32 page_shift;
	u64 offset;
	u64 length;
};

/**
 * barbuf_provider_register() - offers parts of a function's BARs
 * @pdev: the function, which the calling driver is bound to
 * @ops: callbacks; copied
 * @regions: the parts; copied
 * @nr_regions: how many, 1 to BARBUF_PROVIDER_MAX_REGIONS
 * @priv: for the callbacks
 *
 * For the driver's probe, after pci_enable_device() and after it has claimed
 * the BARs (pci_request_region() or a relative). The function's node
 * /dev/barbuf/DDDD:BB:DD.F exists when this returns, and user space can use it:
 * callbacks may come before the caller has seen the result.
 *
 * barbuf takes a reference to the function and none to the driver's module.
 * None is needed: the driver cannot be unloaded without its remove(), and that
 * unregisters. Loading the driver loads barbuf, and keeps it loaded.
 *
 * Context: process context, may sleep. The device lock may be held, and is in
 * probe. No lock that a callback takes.
 *
 * Return: the provider, or an ERR_PTR(), with a line in the log that says which
 * region is at fault and why:
 *
 * * -EINVAL: no region or too many; an unknown flag or cache mode, or one that
 *   the BAR does not have; an offset or a length that is not on pages; bytes
 *   beyond the BAR, in two regions, or in a page with the MSI-X table or its
 *   pending bits; @ops or its sizes are smaller than they ever were
 * * -E2BIG: @ops, or a region, uses a member that this barbuf does not know
 * * -ENODEV: the BAR is no memory, has no address or cannot be mapped; the
 *   function is a bridge or has no driver
 * * -EACCES: the bytes are claimed by nobody: request the BAR first
 * * -EEXIST: the function is a provider already
 * * -ENOMEM
 */
struct barbuf_provider *
barbuf_provider_register(struct pci_dev *pdev,
			 const struct barbuf_provider_ops *ops,
			 const struct barbuf_provider_region *regions,
			 unsigned int nr_regions, void *priv);

/**
 * barbuf_provider_unregister() - ends what barbuf_provider_register() began
 * @provider: the provider; nothing happens for NULL and ERR_PTR()
 *
 * Removes the node and revokes all buffers: when this returns, no CPU and no
 * importer reaches the memory, no page of it is pinned, no callback runs, and
 * the pointer is invalid. Works while the provider is suspended.
 *
 * For the driver's remove, before it releases the BARs and disables the device,
 * and for the way out of a probe that fails later. A driver whose module is
 * unloaded or whose device is unplugged needs nothing else. No other call for
 * this provider may be running or come later.
 *
 * Context: process context. Sleeps until exports and page faults that are in
 * progress, importers, and file I/O with pinned pages have finished; cannot be
 * interrupted. No lock that a callback takes. The device lock may be held, and is
 * in remove.
 */
void barbuf_provider_unregister(struct barbuf_provider *provider);

/**
 * barbuf_provider_export() - makes a buffer
 * @provider: the provider
 * @request: what to export
 *
 * No capability is asked for: whoever lets user space come this far decides
 * what it may have. The buffer counts against the limits of the module, all
 * that one provider exports from kernel code against that for one open file
 * (parameters max_buffers and max_buffers_per_file).
 *
 * Context: process context, may sleep; with BARBUF_EXPORT_ZERO as long as it
 * takes to write the bytes; who suspends or unregisters meanwhile waits for a
 * part of them. No lock that a callback takes.
 *
 * Return: a dma-buf, which the caller drops with dma_buf_put(), before or after
 * it unregisters; its memory is free again after the last reference, or when it
 * is revoked. Or an ERR_PTR():
 *
 * * -EINVAL: the request makes no sense for any region
 * * -EOPNOTSUPP: not for this region
 * * -E2BIG: a member is used that this barbuf does not know
 * * -EBUSY, -ENOSPC: the bytes are taken, or nothing that large is free, or a
 *   limit is reached
 * * -EAGAIN: the provider is suspended; exporting works again after
 *   barbuf_provider_resume(). (User space waits for that instead.)
 * * -ECONNREFUSED: &barbuf_provider_ops.first_export refused
 * * -EINTR: the calling task was killed while zeros were written
 * * -ENFILE, -ENOMEM
 */
struct dma_buf *
barbuf_provider_export(struct barbuf_provider *provider,
		       const struct barbuf_provider_request *request);

/**
 * barbuf_provider_export_fd() - makes a buffer and gives it to the calling task
 * @provider: the provider
 * @request: what to export
 *
 * Context: as barbuf_provider_export(), in a task of user space.
 *
 * Return: a file descriptor of the calling task, which must be handed on: other
 * threads of the task can use it already. Or an errno of
 * barbuf_provider_export(), or -EMFILE.
 */
int barbuf_provider_export_fd(struct barbuf_provider *provider,
			      const struct barbuf_provider_request *request);

/**
 * barbuf_provider_revoke() - takes a buffer back for good
 * @provider: the provider
 * @dmabuf: a dma-buf, of which the caller holds a reference
 *
 * When this returns, with 0 or -EBADFD, no CPU and no importer reaches the
 * bytes through this buffer. Mappings give SIGBUS.
 *
 * Context: process context. Sleeps until page faults in progress and importers
 * have finished; cannot be interrupted. No lock that a callback takes, no
 * reservation lock of @dmabuf. Also while the provider is suspended.
 *
 * Return: 0; -EBADFD when it has been revoked before; -ENODEV when it is no
 * buffer of this provider.
 */
int barbuf_provider_revoke(struct barbuf_provider *provider,
			   struct dma_buf *dmabuf);

/**
 * barbuf_provider_revoke_all() - takes all buffers back for good
 * @provider: the provider
 *
 * New buffers can be made at once, also while this runs; those may survive it.
 *
 * Context: as barbuf_provider_revoke().
 */
void barbuf_provider_revoke_all(struct barbuf_provider *provider);

/**
 * barbuf_provider_suspend() - the memory will be gone for a while
 * @provider: the provider
 *
 * For reset_prepare, error_detected, suspend to memory and resets of the
 * driver's own. When this returns, no mapping reaches the memory, and no
 * importer that can be told to stop. Page faults and exports of user space wait
 * (killable), exports of kernel code fail with -EAGAIN, as do importers that
 * attach or map. Importers that were let in although they cannot be told
 * (BARBUF_EXPORT_STATIC_IMPORT, and the kernel's vmap()) go on: what they reach
 * meanwhile is the device's matter. Nothing happens when it is suspended
 * already: the calls do not nest.
 *
 * Context: process context. Sleeps until page faults in progress have finished,
 * DMA that importers have announced by fences is over, and they have unmapped;
 * cannot be interrupted. No reservation lock of a buffer.
 * The device lock may be held, and is in reset_prepare. Unlike for the other
 * calls, locks that a callback takes may be held too: barbuf never waits for a
 * callback here, nor for importers that cannot be told to stop.
 */
void barbuf_provider_suspend(struct barbuf_provider *provider);

/**
 * barbuf_provider_resume() - the memory is there again
 * @provider: the provider
 *
 * For reset_done, resume, and the end of resets of the driver's own. Memory
 * decoding must be on again. Each buffer gets a new generation, by which its
 * holders know that the contents may be lost; mappings fault anew, importers
 * are told to map again. Nothing happens when it is not suspended.
 *
 * Context: as barbuf_provider_suspend(), of which it may be the other half in
 * another task; waits for no importer to unmap.
 *
 * Return: 0; -EIO when the function does not answer accesses to its memory, in
 * which case all stays suspended: reset again, or unregister.
 */
int barbuf_provider_resume(struct barbuf_provider *provider);

#endif /* _LINUX_BARBUF_PROVIDER_H */
