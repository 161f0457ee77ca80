// SPDX-License-Identifier: GPL-2.0

//! Providers whose own driver stays and offers parts of its BARs.
//!
//! `include/linux/barbuf_provider.h` is what such a driver reads; `ext/vendor.rs` is called by it,
//! and calls what is here.

use crate::{
    bound::Published,
    buffer::Buffer,
    copy::errno,
    export::{
        Order,
        Wanted, //
    },
    ext::{
        dmabuf::DmaBuf,
        global,
        pci::Function,
        vendor::Callbacks, //
    },
    node::{
        Quota,
        Ticket, //
    },
    provider::{
        exclusions,
        Provider, //
    },
    pure::{
        export,
        vendor::{
            self,
            Wish,
            MAX_REGIONS, //
        }, //
    },
    Shared,
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A function that its driver has registered. Dropping it unregisters.
pub(crate) struct Registered {
    published: Published,
    shared: Arc<Shared>,
    /// The limit for exports of the driver itself.
    own: Arc<Quota>,
}

/// What a driver wants to export; the members are those of `struct barbuf_provider_request`.
pub(crate) struct Request {
    pub(crate) region: u32,
    pub(crate) flags: u32,
    pub(crate) backing: u32,
    pub(crate) cache: u32,
    pub(crate) open_flags: u32,
    pub(crate) page_shift: u32,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Registered {
    /// Makes a provider of `function`.
    ///
    /// # Errors
    ///
    /// As in the header.
    pub(crate) fn new(
        function: Function,
        callbacks: Callbacks,
        wishes: &[Wish],
    ) -> Result<KBox<Self>> {
        let shared = global::shared().ok_or(ENODEV)?;
        let address = function.address();
        if wishes.is_empty() || wishes.len() > MAX_REGIONS {
            pr_err!("{address}: register 1 to {MAX_REGIONS} regions\n");
            return Err(EINVAL);
        }
        if !function.has_driver() {
            pr_err!("{address}: only a driver that is bound to it can register regions\n");
            return Err(ENODEV);
        }
        let facts = exclusions(&function)?;
        let mut ranges = KVec::with_capacity(wishes.len(), GFP_KERNEL)?;
        for (index, wish) in wishes.iter().enumerate() {
            let others = wishes.get(..index).unwrap_or_default();
            let bar = function.bar(wish.bar);
            // A number that is no BAR's is judged by its number alone.
            let bar_facts = bar.map_or(
                crate::ext::pci::BarFacts::ABSENT.facts(wish.bar, &function),
                |bar| bar.facts(wish.bar, &function),
            );
            let prefetchable = bar.is_some_and(|bar| bar.prefetchable);
            let range =
                vendor::check(&facts, &bar_facts, prefetchable, wish, others).map_err(|why| {
                    pr_err!(
                        "{address}: region {index} of BAR {}: {}\n",
                        wish.bar,
                        why.text()
                    );
                    errno(why.errno())
                })?;
            if !bar.is_some_and(|bar| bar.is_claimed(range)) {
                pr_err!(
                    "{address}: region {index} of BAR {}: claimed by no driver, call pci_request_region() first\n",
                    wish.bar
                );
                return Err(EACCES);
            }
            ranges.push(range, GFP_KERNEL)?;
        }
        if shared.registry.of(&function).is_some() {
            pr_err!("{address}: is a provider already\n");
            return Err(EEXIST);
        }
        let provider = Provider::registered(
            function,
            callbacks,
            wishes,
            &ranges,
            shared.settings,
            shared.layout,
        )?;
        let own = Arc::new(Quota::new(shared.settings.buffers_per_file), GFP_KERNEL)?;
        Ok(KBox::new(
            Self {
                published: Published::new(provider, &shared)?,
                shared,
                own,
            },
            GFP_KERNEL,
        )?)
    }

    fn provider(&self) -> &Arc<Provider> {
        self.published.provider()
    }

    /// Makes a buffer.
    ///
    /// # Errors
    ///
    /// As in the header.
    pub(crate) fn export(&self, request: &Request) -> Result<DmaBuf<Buffer>> {
        let flags = export::Flags::from_bits(request.flags).map_err(errno)?;
        if flags.contains(export::Flags::REVOKE_ON_CLOSE) {
            // There is no file that could be closed.
            return Err(EINVAL);
        }
        let export = export::Request {
            flags: request.flags,
            backing: request.backing,
            cache: request.cache,
            open_flags: request.open_flags,
            eventfd: -1,
            page_shift: request.page_shift,
            nr_ranges: 1,
            reserved: 0,
        }
        .parse()
        .map_err(errno)?;
        let provider = self.provider();
        let region = provider
            .regions
            .get(request.region as usize)
            .ok_or(EINVAL)?;
        Order {
            provider,
            index: request.region,
            export,
            wanted: Wanted::one(&export, region, request.offset, request.len)?,
            eventfd: None,
            ticket: Ticket::new(&self.own, &self.shared.quota)?,
            patient: false,
        }
        .fulfil()
    }

    /// Revokes a buffer.
    ///
    /// # Errors
    ///
    /// `EBADFD` when it has been revoked, `ENODEV` when it is another provider's.
    pub(crate) fn revoke(&self, dmabuf: &DmaBuf<Buffer>) -> Result {
        let buffer = dmabuf.data();
        if !Arc::ptr_eq(&buffer.provider, self.provider()) {
            return Err(ENODEV);
        }
        buffer.revoke()
    }

    /// Revokes all buffers.
    pub(crate) fn revoke_all(&self) {
        for buffer in self.provider().buffers() {
            // Revoked before is fine.
            let _ = buffer.revoke();
        }
    }

    /// See [`Provider::suspend`].
    pub(crate) fn suspend(&self) {
        self.provider().suspend();
    }

    /// See [`Provider::resume`].
    ///
    /// # Errors
    ///
    /// `EIO`
    pub(crate) fn resume(&self) -> Result {
        self.provider().resume()
    }
}
