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
    pure::address::Address,
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
    /// provider, `EOPNOTSUPP` when it has no p2pmem, `ENOSPC` when its pool has no page left, `ENOMEM`.
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
        let sample = PoolRange::sample(&function)?;
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
        let is_it = |function: &Function| function.address() == address;
        let function = self.find(is_it).ok_or(ENODEV)?;
        self.release_function(&function).ok_or(ENODEV)
    }

    fn release_function(&self, function: &Function) -> Option<()> {
        // Its driver must not go before all memory is back, and `unbinding` finds nothing to wait
        // for once the adoption is off the list.
        let _driver = function.lock();
        self.take(function).map(drop)
    }

    fn find(&self, is_it: impl Fn(&Function) -> bool) -> Option<Function> {
        let list = self.list.lock();
        let mut functions = list.iter().map(|published| &published.provider().function);
        functions.find(|function| is_it(function)).cloned()
    }

    fn take(&self, function: &Function) -> Option<Published> {
        let mut list = self.list.lock();
        let index = list
            .iter()
            .position(|published| published.provider().function.is(function))?;
        list.remove(index).ok()
    }
}

impl Watcher for Adoptions {
    fn unbinding(&self, function: &Function) {
        // Dropping it waits until all memory is back in the pool, or belongs to pins that the
        // pool's own end waits for.
        drop(self.take(function));
    }
}

/// Releases all adopted functions when it is dropped. They must still be watched then.
pub(crate) struct ReleaseAll(pub(crate) Arc<Adoptions>);

impl Drop for ReleaseAll {
    fn drop(&mut self) {
        while let Some(function) = self.0.find(|_| true) {
            // `None`: its driver was faster.
            let _ = self.0.release_function(&function);
        }
    }
}
