// SPDX-License-Identifier: GPL-2.0

//! What the kernel knows of DMA between PCI functions.
//!
//! C headers: `include/linux/pci-p2pdma.h`, `include/linux/dma-mapping.h`.

use super::{
    pci::Function,
    shim, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// Prepares a function for P2PDMA. The kernel undoes it when the function's driver is unbound.
///
/// # Errors
///
/// `ENOMEM`; `EOPNOTSUPP` when its BARs cannot be mapped.
pub(crate) fn init(function: &Function) -> Result {
    // SAFETY: The function is alive; its driver, which is the caller, is bound.
    to_result(unsafe { bindings::pcim_p2pdma_init(function.as_raw()) })
}

/// Memory of a BAR, as P2PDMA knows it.
///
/// # Invariants
///
/// The pointer is valid for `'a`.
pub(crate) struct Memory<'a> {
    raw: NonNull<bindings::p2pdma_provider>,
    _lifetime: PhantomData<&'a Function>,
}

impl<'a> Memory<'a> {
    /// The memory of a BAR; `None` when P2PDMA was never prepared for the function.
    ///
    /// The function's driver must stay bound for as long as the result lives.
    pub(crate) fn of(function: &'a Function, bar: u32) -> Option<Self> {
        if bar >= bindings::PCI_STD_NUM_BARS {
            return None;
        }
        // SAFETY: The function is alive and the index that of a BAR.
        // CAST: At most 5.
        let raw = unsafe { shim::barbuf_helper_p2pdma_provider(function.as_raw(), bar as i32) };
        // INVARIANT: Lives until the driver is unbound, which the caller rules out.
        Some(Self {
            raw: NonNull::new(raw)?,
            _lifetime: PhantomData,
        })
    }

    pub(super) fn as_raw(&self) -> *mut bindings::p2pdma_provider {
        self.raw.as_ptr()
    }

    /// The address that the bus has for a physical one.
    pub(crate) fn bus(&self, physical: u64) -> u64 {
        // SAFETY: Valid by the type's invariant; the field never changes.
        physical.wrapping_add(unsafe { self.raw.as_ref() }.bus_offset)
    }
}

/// The bridges between two functions.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    /// The kernel's distance; `None` when it says that there is no way.
    pub(crate) distance: Option<u32>,
    /// Something is above both.
    pub(crate) common: bool,
    /// ACS redirects on the way.
    pub(crate) redirected: bool,
}

impl Path {
    /// Looks at the bridges now. The kernel takes note, and uses what it found from then on.
    pub(crate) fn between(provider: &Function, client: &Function) -> Self {
        let mut redirected = false;
        // SAFETY: Both functions are alive, and with them the bridges above.
        let (distance, common) = unsafe {
            (
                shim::barbuf_helper_p2pdma_distance(provider.as_raw(), client.as_raw()),
                shim::barbuf_helper_pci_meet(provider.as_raw(), client.as_raw(), &mut redirected),
            )
        };
        Self {
            distance: u32::try_from(distance).ok(),
            common,
            redirected,
        }
    }
}

/// Which addresses a device can form.
#[derive(Clone, Copy)]
pub(crate) struct Reach {
    /// An IOMMU translates for it.
    pub(crate) translated: bool,
    /// The highest address.
    pub(crate) mask: u64,
    /// A driver is bound, whose word the mask is.
    pub(crate) bound: bool,
}

impl Reach {
    /// # Safety
    ///
    /// `device` must be valid.
    pub(super) unsafe fn of(device: *mut bindings::device) -> Self {
        // SAFETY: Promised by the caller. `driver` may change at any time, and is one word.
        unsafe {
            Self {
                translated: shim::barbuf_helper_dma_translated(device),
                mask: shim::barbuf_helper_dma_limit(device),
                bound: !core::ptr::read_volatile(&raw const (*device).driver).is_null(),
            }
        }
    }
}

impl Function {
    /// Which addresses it can form.
    pub(crate) fn reach(&self) -> Reach {
        // SAFETY: The function is alive.
        unsafe { Reach::of(&raw mut (*self.as_raw()).dev) }
    }
}
