// SPDX-License-Identifier: GPL-2.0

//! Being told when a PCI function loses its driver.
//!
//! C header: `include/linux/device/bus.h`.

use core::{
    marker::PhantomData,
    pin::Pin, //
};
use kernel::{
    bindings,
    container_of,
    error::to_result,
    ffi::{
        c_int,
        c_ulong,
        c_void, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

use super::pci::Function;

/// Who wants to know.
pub(crate) trait Watcher: Send + Sync + Sized + 'static {
    /// The driver of `function` is about to be unbound; its `remove` has not been called, and waits for this to return.
    ///
    /// Called with the device lock of the function held; may sleep.
    fn unbinding(&self, function: &Function);
}

/// A subscription to the PCI bus.
///
/// # Invariants
///
/// `block` is registered with the PCI bus.
#[pin_data(PinnedDrop)]
pub(crate) struct Watch<T: Watcher> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    watcher: Arc<T>,
}

// SAFETY: May be unregistered from any thread.
unsafe impl<T: Watcher> Send for Watch<T> {}
// SAFETY: There are no methods on a shared reference.
unsafe impl<T: Watcher> Sync for Watch<T> {}

impl<T: Watcher> Watch<T> {
    /// Subscribes `watcher`.
    pub(crate) fn new(watcher: Arc<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            watcher,
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                let block = bindings::notifier_block {
                    notifier_call: Some(Callback::<T>::call),
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is valid for writes, and pinned until it is unregistered in `drop`.
                unsafe { slot.write(block) };
                // SAFETY: `slot` was just filled in; the PCI bus type is a static.
                to_result(unsafe {
                    bindings::bus_register_notifier(&raw const bindings::pci_bus_type, slot)
                })
            }),
        })
    }
}

#[pinned_drop]
impl<T: Watcher> PinnedDrop for Watch<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type's invariant. Waits for a callback that runs.
        unsafe {
            bindings::bus_unregister_notifier(&raw const bindings::pci_bus_type, self.block.get())
        };
    }
}

struct Callback<T>(PhantomData<T>);

impl<T: Watcher> Callback<T> {
    /// # Safety
    ///
    /// For the driver core alone, which passes the block of a [`Watch`] and a device of the PCI bus.
    unsafe extern "C" fn call(
        block: *mut bindings::notifier_block,
        action: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        if action == bindings::bus_notifier_event_BUS_NOTIFY_UNBIND_DRIVER as c_ulong {
            // SAFETY: Only `Watch::new` registers this function, with the block of a `Watch`, and `drop` waits for us.
            let watch = unsafe { &*container_of!(Opaque::cast_from(block), Watch<T>, block) };
            // SAFETY: The PCI bus notifies about PCI functions only, which are alive during the call.
            let function = unsafe { Function::from_device(data.cast()) };
            watch.watcher.unbinding(&function);
        }
        // NOTIFY_DONE
        0
    }
}
