// SPDX-License-Identifier: GPL-2.0

//! Providers whose own driver stays: it has published p2pmem, and barbuf takes from that pool.
//!
//! All that was taken has to be back before that driver goes: the kernel has a BUG() for a pool that
//! is destroyed with memory missing. So barbuf listens for it.

use crate::{
    bound::Published,
    ext::{
        notifier::Watcher,
        pci::Function,
        pool::PoolRange, //
    },
    provider::Provider,
    pure::{
        address::Address,
        order::PageOrder, //
    },
    Shared,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

/// The adopted providers.
#[pin_data]
pub(crate) struct Adoptions {
    shared: Arc<Shared>,
    /// Taken inside the device lock, and outside of the registry's.
    #[pin]
    list: Mutex<KVec<Published>>,
}

impl Adoptions {
    /// None yet.
    pub(crate) fn new(shared: Arc<Shared>) -> impl PinInit<Self> {
        pin_init!(Self {
            shared,
            list <- new_mutex!(KVec::new()),
        })
    }

    /// Makes the function at `address` a provider.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is no such function or no driver is bound to it, `EEXIST` when it is a
    /// provider, `EOPNOTSUPP` when it has no p2pmem, `ENOMEM`.
    pub(crate) fn adopt(&self, address: Address) -> Result {
        let function = Function::find(address).ok_or(ENODEV)?;
        // While this is held, its driver is not unbound.
        let driver = function.lock();
        if !driver.is_bound() {
            return Err(ENODEV);
        }
        if self.shared.registry.has(address) {
            return Err(EEXIST);
        }
        if !function.has_p2pmem() {
            return Err(EOPNOTSUPP);
        }
        // A page from the pool tells where the pool is.
        let sample = PoolRange::alloc(&function, PageOrder::Page4K.size(), PageOrder::Page4K)?;
        let pool = sample.pool()?;
        drop(sample);

        let provider = Provider::adopted(function.clone(), pool, self.shared.settings)?;
        let published = Published::new(provider, &self.shared)?;
        Ok(self.list.lock().push(published, GFP_KERNEL)?)
    }

    /// Ends the adoption of the function at `address`.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it is not adopted.
    pub(crate) fn release(&self, address: Address) -> Result {
        self.take(|function| function.address() == address)
            .map(drop)
            .ok_or(ENODEV)
    }

    fn take(&self, is_it: impl Fn(&Function) -> bool) -> Option<Published> {
        let mut list = self.list.lock();
        let index = list
            .iter()
            .position(|published| is_it(&published.provider().function))?;
        list.remove(index).ok()
    }
}

impl Watcher for Adoptions {
    fn unbinding(&self, function: &Function) {
        // Dropping it waits until all memory is back in the pool, or belongs to pins that the
        // pool's own end waits for.
        drop(self.take(|other| other.is(function)));
    }
}
