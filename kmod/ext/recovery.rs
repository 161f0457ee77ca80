// SPDX-License-Identifier: GPL-2.0

//! A PCI driver that is told when its function is reset, fails, or goes to sleep with the system.
//!
//! `kernel::pci::Adapter` sets neither `err_handler` nor `pm` of its `struct pci_driver`. This one
//! sets the two and leaves the rest to it.
//!
//! C headers: `include/linux/pci.h`, `include/linux/pm.h`.

use super::pci::Function;
use core::marker::PhantomData;
use kernel::{
    bindings,
    driver,
    ffi::c_int,
    pci,
    prelude::*,
    types::Opaque, //
};

/// A driver that survives the absence of its device.
///
/// All functions are called with the device lock of the function held, so that it is not unbound
/// meanwhile, and may sleep.
pub(crate) trait Recovers: pci::Driver {
    /// The device must not be accessed from here on: it is about to be reset, it has failed, or the
    /// system goes to sleep.
    fn suspend(function: &Function);

    /// The device may be there again, configured as before.
    fn resume(function: &Function);

    /// The device has failed for good.
    fn lost(function: &Function);
}

/// Registers a [`Recovers`] driver.
pub(crate) struct Adapter<T>(PhantomData<T>);

// SAFETY: The types and the offset are those of `pci::Adapter<T>`, whose implementation is sound.
unsafe impl<T: Recovers> driver::DriverLayout for Adapter<T> {
    type DriverType = <pci::Adapter<T> as driver::DriverLayout>::DriverType;
    type DriverData<'bound> = <pci::Adapter<T> as driver::DriverLayout>::DriverData<'bound>;
    const DEVICE_DRIVER_OFFSET: usize =
        <pci::Adapter<T> as driver::DriverLayout>::DEVICE_DRIVER_OFFSET;
}

// SAFETY: Registers and unregisters what `pci::Adapter<T>` does.
unsafe impl<T: Recovers + 'static> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        pdrv: &Opaque<bindings::pci_driver>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: The caller lets us set fields until the driver is registered; the tables are
        // statics.
        unsafe {
            (*pdrv.get()).err_handler = &Self::ERRORS;
            (*pdrv.get()).driver.pm = &Self::SLEEP;
        }
        // SAFETY: Passes on what the caller promises. `pci::Adapter` sets single fields and leaves
        // the two alone.
        unsafe { <pci::Adapter<T> as driver::RegistrationOps>::register(pdrv, name, module) }
    }

    unsafe fn unregister(pdrv: &Opaque<bindings::pci_driver>) {
        // SAFETY: Registered by the above.
        unsafe { <pci::Adapter<T> as driver::RegistrationOps>::unregister(pdrv) }
    }
}

impl<T: Recovers + 'static> Adapter<T> {
    const ERRORS: bindings::pci_error_handlers = bindings::pci_error_handlers {
        error_detected: Some(Self::error_detected),
        mmio_enabled: None,
        slot_reset: Some(Self::slot_reset),
        reset_prepare: Some(Self::reset_prepare),
        reset_done: Some(Self::done),
        resume: Some(Self::done),
        cor_error_detected: None,
    };

    /// Hibernation takes the same steps as sleep: what the device holds may be lost in both.
    const SLEEP: bindings::dev_pm_ops = bindings::dev_pm_ops {
        suspend: Some(Self::sleep),
        freeze: Some(Self::sleep),
        poweroff: Some(Self::sleep),
        resume: Some(Self::wake),
        thaw: Some(Self::wake),
        restore: Some(Self::wake),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// For the PCI core alone, which passes a function that is bound to this driver and holds its
    /// device lock.
    unsafe extern "C" fn reset_prepare(pdev: *mut bindings::pci_dev) {
        // SAFETY: Alive during the call.
        T::suspend(&unsafe { Function::from_raw(pdev) });
    }

    /// # Safety
    ///
    /// As for `reset_prepare`.
    unsafe extern "C" fn done(pdev: *mut bindings::pci_dev) {
        // SAFETY: Alive during the call.
        T::resume(&unsafe { Function::from_raw(pdev) });
    }

    /// # Safety
    ///
    /// As for `reset_prepare`.
    unsafe extern "C" fn error_detected(
        pdev: *mut bindings::pci_dev,
        state: bindings::pci_channel_state_t,
    ) -> bindings::pci_ers_result_t {
        // SAFETY: Alive during the call.
        let function = unsafe { Function::from_raw(pdev) };
        if state == bindings::pci_channel_io_perm_failure {
            T::lost(&function);
            return bindings::pci_ers_result_PCI_ERS_RESULT_DISCONNECT;
        }
        T::suspend(&function);
        if state == bindings::pci_channel_io_frozen {
            bindings::pci_ers_result_PCI_ERS_RESULT_NEED_RESET
        } else {
            bindings::pci_ers_result_PCI_ERS_RESULT_CAN_RECOVER
        }
    }

    /// # Safety
    ///
    /// As for `reset_prepare`.
    unsafe extern "C" fn slot_reset(pdev: *mut bindings::pci_dev) -> bindings::pci_ers_result_t {
        // SAFETY: Alive during the call; the state was saved when memory decoding was enabled.
        let function = unsafe {
            bindings::pci_restore_state(pdev);
            Function::from_raw(pdev)
        };
        if function.decodes_memory() {
            bindings::pci_ers_result_PCI_ERS_RESULT_RECOVERED
        } else {
            T::lost(&function);
            bindings::pci_ers_result_PCI_ERS_RESULT_DISCONNECT
        }
    }

    /// # Safety
    ///
    /// For the driver core alone, which passes the device of a function that is bound to this
    /// driver and holds its device lock.
    unsafe extern "C" fn sleep(device: *mut bindings::device) -> c_int {
        // SAFETY: A PCI function, alive during the call.
        T::suspend(&unsafe { Function::from_device(device) });
        0
    }

    /// # Safety
    ///
    /// As for `sleep`.
    unsafe extern "C" fn wake(device: *mut bindings::device) -> c_int {
        // SAFETY: A PCI function, alive during the call.
        T::resume(&unsafe { Function::from_device(device) });
        0
    }
}
