// SPDX-License-Identifier: GPL-2.0

//! Providers whose PCI driver barbuf is.
//!
//! The id table is empty: a function is bound only when root writes `barbuf` into its
//! `driver_override`.

use crate::{
    ext::{
        global,
        node::Node,
        pci::Function,
        recovery::Recovers, //
    },
    node::{
        ProviderNode,
        Session, //
    },
    provider::Provider,
    registry::Registry,
    Shared,
};
use kernel::{
    device::Core,
    pci,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        Arc, //
    },
};

/// The permissions of a provider's node: root's, unless a udev rule says otherwise.
const NODE_MODE: u16 = 0o600;

/// A provider that can be found and opened. Dropped from top to bottom: the node goes first, the
/// memory after it.
pub(crate) struct Published {
    _node: Pin<KBox<Node<Session>>>,
    listed: Listed,
}

impl Published {
    /// Lists `provider` and creates its node.
    ///
    /// # Errors
    ///
    /// `EEXIST` when its function is a provider already, `ENOMEM`.
    pub(crate) fn new(provider: Arc<Provider>, shared: &Shared) -> Result<Self> {
        shared.registry.add(&provider)?;
        let listed = Listed {
            provider: provider.clone(),
            registry: shared.registry.clone(),
        };
        let node = ProviderNode {
            provider,
            all: shared.quota.clone(),
        };
        let path = CString::try_from_fmt(kernel::prelude::fmt!(
            "barbuf/{}",
            listed.provider.function.address()
        ))?;
        let node = KBox::pin_init(
            Node::new(path, NODE_MODE, Arc::new(node, GFP_KERNEL)?),
            GFP_KERNEL,
        )?;
        Ok(Self {
            _node: node,
            listed,
        })
    }

    /// The provider.
    pub(crate) fn provider(&self) -> &Arc<Provider> {
        &self.listed.provider
    }
}

/// A provider in the registry. Retires when it leaves.
struct Listed {
    provider: Arc<Provider>,
    registry: Arc<Registry>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.provider.retire();
        self.registry.remove(&self.provider);
    }
}

/// The driver.
pub(crate) struct BoundDriver;

kernel::pci_device_table!(ID_TABLE, <BoundDriver as pci::Driver>::IdInfo, []);

impl pci::Driver for BoundDriver {
    type IdInfo = ();
    type Data<'bound> = Published;

    const ID_TABLE: pci::IdTable<()> = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound pci::Device<Core<'_>>,
        _: Option<&'bound ()>,
    ) -> impl PinInit<Published, Error> + 'bound {
        pin_init::pin_init_scope(move || {
            let shared = global::shared().ok_or(ENODEV)?;
            let device: ARef<pci::Device> = dev.into();
            let provider = Provider::bound(Function::new(device), shared.settings, shared.layout)?;
            Ok(Published::new(provider, &shared))
        })
    }
}

/// The provider that a bound function is; `None` while it comes or goes.
fn provider(function: &Function) -> Option<Arc<Provider>> {
    global::shared()?.registry.of(function)
}

impl Recovers for BoundDriver {
    fn suspend(function: &Function) {
        if let Some(provider) = provider(function) {
            provider.suspend();
        }
    }

    fn resume(function: &Function) {
        if let Some(provider) = provider(function) {
            // Said so in the log; whoever waits goes on waiting.
            let _ = provider.resume();
        }
    }

    fn lost(function: &Function) {
        if let Some(provider) = provider(function) {
            pr_err!(
                "{}: has failed, all its buffers are revoked\n",
                function.address()
            );
            provider.retire();
        }
    }
}
