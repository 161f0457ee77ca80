// SPDX-License-Identifier: GPL-2.0

//! One value that callbacks without a context of their own can reach.
//!
//! The PCI core calls a driver's probe with nothing but the device, and `kernel::pci` has no place
//! for more.

use crate::Shared;
use kernel::{
    prelude::*,
    sync::Arc, //
};

kernel::sync::global_lock! {
    // SAFETY: `Installed::new` initialises it, and it is used only between that and the drop of the
    // value that returns.
    unsafe(uninit) static SHARED: Mutex<Option<Arc<Shared>>> = None;
}

/// While this exists, [`shared`] returns the value.
pub(crate) struct Installed(());

impl Installed {
    /// Installs the value.
    ///
    /// # Safety
    ///
    /// Called once in the life of the module, by its initialiser.
    unsafe fn new(value: Arc<Shared>) -> Self {
        // SAFETY: Called once, by the caller's promise.
        unsafe { SHARED.init() };
        *SHARED.lock() = Some(value);
        Self(())
    }
}

/// Installs the value; for the module's initialiser alone, which runs once.
pub(crate) fn install(_module: &'static ThisModule, value: Arc<Shared>) -> Installed {
    // SAFETY: Only the module's initialiser gets a `ThisModule` to pass, and it runs once.
    unsafe { Installed::new(value) }
}

/// The installed value.
pub(crate) fn shared() -> Option<Arc<Shared>> {
    SHARED.lock().clone()
}

impl Drop for Installed {
    fn drop(&mut self) {
        let value = SHARED.lock().take();
        // Outside of the lock.
        drop(value);
    }
}
