// SPDX-License-Identifier: GPL-2.0

//! The list of all providers.

use crate::{
    ext::pci::Function,
    provider::Provider,
    pure::address::Address, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

/// All providers.
#[pin_data]
pub(crate) struct Registry {
    #[pin]
    inner: Mutex<KVec<Arc<Provider>>>,
}

impl Registry {
    /// An empty one.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(KVec::new()),
        })
    }

    /// Adds a provider.
    ///
    /// # Errors
    ///
    /// `EEXIST` when its function is one already, `ENOMEM`.
    pub(crate) fn add(&self, provider: &Arc<Provider>) -> Result {
        let mut list = self.inner.lock();
        if list
            .iter()
            .any(|other| other.function.is(&provider.function))
        {
            return Err(EEXIST);
        }
        Ok(list.push(provider.clone(), GFP_KERNEL)?)
    }

    /// Removes a provider.
    pub(crate) fn remove(&self, provider: &Provider) {
        self.inner
            .lock()
            .retain(|other| !core::ptr::eq(&**other, provider));
    }

    /// Whether the function at `address` is a provider.
    pub(crate) fn has(&self, address: Address) -> bool {
        self.inner
            .lock()
            .iter()
            .any(|provider| provider.function.address() == address)
    }

    /// The provider that `function` is.
    pub(crate) fn of(&self, function: &Function) -> Option<Arc<Provider>> {
        let list = self.inner.lock();
        let provider = list.iter().find(|other| other.function.is(function));
        provider.cloned()
    }

    /// The provider number `index`.
    pub(crate) fn get(&self, index: usize) -> Option<Arc<Provider>> {
        self.inner.lock().get(index).cloned()
    }
}
