// SPDX-License-Identifier: GPL-2.0

//! What `kernel::pci` does not tell about a PCI function.
//!
//! C header: `include/linux/pci.h`.

use super::shim;
use crate::pure::{
    address::Address,
    exclude,
    range::Range, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    container_of,
    error::to_result,
    pci,
    prelude::*,
    str::CString,
    sync::aref::ARef,
    types::NotThreadSafe, //
};

/// `PCI_D3hot` of `include/linux/pci.h`, where it is a cast that the bindings cannot hold.
const D3HOT: bindings::pci_power_t = 3;

/// The kernel's macros print what implements the kernel crate's own trait.
impl kernel::fmt::Display for Address {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// What is known of one BAR.
#[derive(Clone, Copy)]
pub(crate) struct BarFacts {
    /// Physical address; 0 when unassigned.
    pub(crate) start: u64,
    /// Bytes; 0 when there is no such BAR.
    pub(crate) len: u64,
    /// Memory and not I/O ports.
    pub(crate) memory: bool,
    /// Reads have no side effects, and writes may be merged.
    pub(crate) prefetchable: bool,
    /// The firmware and the kernel found no place for it.
    pub(crate) unassigned: bool,
}

impl BarFacts {
    /// Those of a BAR that does not exist.
    pub(crate) const ABSENT: Self = Self {
        start: 0,
        len: 0,
        memory: false,
        prefetchable: false,
        unassigned: false,
    };

    /// Whether some driver has claimed all of `range`, which is relative to the BAR.
    pub(crate) fn is_claimed(&self, range: Range) -> bool {
        let Some(start) = self.start.checked_add(range.start()) else {
            return false;
        };
        let busy = bindings::IORESOURCE_MEM | bindings::IORESOURCE_BUSY;
        // SAFETY: Looks at the tree of resources, under its lock.
        let found = unsafe {
            bindings::region_intersects(
                start,
                range.len() as usize,
                busy as usize,
                bindings::IORES_DESC_NONE as usize,
            )
        };
        // CAST: A small number.
        found == bindings::REGION_INTERSECTS as i32
    }

    /// Its addresses; `None` when it has none.
    pub(crate) fn range(&self) -> Option<Range> {
        Range::new(self.start, self.len).ok()
    }

    /// The facts that decide about exporting BAR `index`.
    pub(crate) fn facts(&self, index: u32, function: &Function) -> exclude::Bar {
        exclude::Bar {
            index,
            memory: self.memory,
            assigned: !self.unassigned,
            mappable: !function.is_unmappable(),
            start: self.start,
            len: self.len,
        }
    }
}

/// A PCI function to which somebody else holds a reference for `'a`.
pub(crate) struct Borrowed<'a>(ManuallyDrop<Function>, PhantomData<&'a Function>);

impl Borrowed<'_> {
    /// `None` for a null pointer.
    ///
    /// # Safety
    ///
    /// `raw` must be null or point to a PCI function, for as long as the result lives.
    pub(super) unsafe fn from_raw(raw: *mut bindings::pci_dev) -> Option<Self> {
        // SAFETY: Promised by the caller. The reference that `Function` would give back is not ours: it is never dropped.
        let function = unsafe { Function::from_owned(raw) }?;
        Some(Self(ManuallyDrop::new(function), PhantomData))
    }
}

impl Deref for Borrowed<'_> {
    type Target = Function;

    fn deref(&self) -> &Function {
        &self.0
    }
}

/// A reference to a PCI function, which may have gone from the bus.
#[derive(Clone)]
pub(crate) struct Function(ARef<pci::Device>);

impl Function {
    /// Wraps the device that a driver is bound to.
    pub(crate) fn new(device: ARef<pci::Device>) -> Self {
        Self(device)
    }

    /// # Safety
    ///
    /// `pdev` must be a live PCI function.
    pub(super) unsafe fn from_raw(pdev: *mut bindings::pci_dev) -> Self {
        // SAFETY: Alive by the caller's promise, and `pci::Device` is a transparent wrapper.
        let device: &pci::Device = unsafe { &*pdev.cast() };
        Self(device.into())
    }

    /// # Safety
    ///
    /// `dev` must be the device of a live PCI function.
    pub(super) unsafe fn from_device(dev: *mut bindings::device) -> Self {
        // SAFETY: By the caller's promise `dev` is the field of a `pci_dev`, of which `pci::Device` is a transparent
        // wrapper.
        let device: &pci::Device = unsafe { &*container_of!(dev, bindings::pci_dev, dev).cast() };
        Self(device.into())
    }

    /// Takes over a reference; `None` for a null pointer.
    ///
    /// # Safety
    ///
    /// `raw` must be null or come with a reference for the caller.
    pub(super) unsafe fn from_owned(raw: *mut bindings::pci_dev) -> Option<Self> {
        // SAFETY: Promised by the caller, and `pci::Device` is a transparent wrapper.
        Some(Self(unsafe { ARef::from_raw(NonNull::new(raw)?.cast()) }))
    }

    /// Looks a function up.
    pub(crate) fn find(address: Address) -> Option<Self> {
        // CAST: `Address` keeps both within their bits.
        let devfn = (u32::from(address.device) << 3) | u32::from(address.function);
        // SAFETY: Any numbers may be passed.
        let raw = unsafe {
            bindings::pci_get_domain_bus_and_slot(
                address.domain as i32,
                u32::from(address.bus),
                devfn,
            )
        };
        // SAFETY: The function has taken a reference for us.
        unsafe { Self::from_owned(raw) }
    }

    /// The only place that turns the kernel crate's type, whose `as_raw` is private, into the C one.
    pub(super) fn as_raw(&self) -> *mut bindings::pci_dev {
        let device: &pci::Device = &self.0;
        // CAST: `pci::Device` is documented as a transparent wrapper of `struct pci_dev`, behind an `UnsafeCell`.
        core::ptr::from_ref(device).cast_mut().cast()
    }

    /// Whether both are the same function.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.as_raw() == other.as_raw()
    }

    /// Where it sits.
    pub(crate) fn address(&self) -> Address {
        let id = self.0.dev_id();
        Address {
            // SAFETY: The function holds a reference to its bus.
            // CAST: Domains are not negative.
            domain: unsafe { shim::barbuf_helper_pci_domain(self.as_raw()) } as u32,
            bus: (id >> 8) as u8,
            device: ((id >> 3) & 0x1f) as u8,
            function: (id & 7) as u8,
        }
    }

    /// [`Function::address`] as text.
    pub(crate) fn name(&self) -> Result<CString> {
        CString::try_from_fmt(kernel::prelude::fmt!("{}", self.address()))
    }

    /// The type of its configuration header: 0 for an endpoint.
    pub(crate) fn header_type(&self) -> u8 {
        // SAFETY: The function is alive; the field never changes.
        unsafe { (*self.as_raw()).hdr_type }
    }

    /// Reads a word of configuration space. Whatever was written to the function before has arrived when the answer is
    /// there: a read does not overtake writes on its way.
    pub(crate) fn ping(&self) {
        let mut vendor = 0u16;
        // SAFETY: The function is alive, and the pointer is to a local.
        // CAST: 0.
        unsafe {
            bindings::pci_read_config_word(
                self.as_raw(),
                bindings::PCI_VENDOR_ID as i32,
                &mut vendor,
            )
        };
    }

    /// Whether it is an NVMe controller.
    pub(crate) fn is_nvme(&self) -> bool {
        self.0.pci_class() == pci::Class::STORAGE_EXPRESS
    }

    /// Whether the architecture forbids mapping its BARs.
    pub(crate) fn is_unmappable(&self) -> bool {
        // SAFETY: The function is alive; the field is set once, when it is found.
        unsafe { (*self.as_raw()).non_mappable_bars() != 0 }
    }

    /// What is known of BAR `index`. `None` when that is not a BAR: the kernel numbers the ROM, the BARs of virtual
    /// functions and bridge windows on behind.
    pub(crate) fn bar(&self, index: u32) -> Option<BarFacts> {
        if index >= bindings::PCI_STD_NUM_BARS {
            return None;
        }
        let index_c = i32::try_from(index).ok()?;
        // SAFETY: The index is in range.
        let flags = unsafe { shim::barbuf_helper_pci_resource_flags(self.as_raw(), index_c) };
        // CAST: Both have 64 bits on the machines that this builds for.
        let flags = flags as u64;
        let has = |bit: u32| flags & u64::from(bit) != 0;
        Some(BarFacts {
            start: self.0.resource_start(index).ok()?,
            len: self.0.resource_len(index).ok()?,
            memory: has(bindings::IORESOURCE_MEM),
            prefetchable: has(bindings::IORESOURCE_PREFETCH),
            unassigned: has(bindings::IORESOURCE_UNSET),
        })
    }

    /// The registers of the MSI-X capability that say where the table and the pending bits lie.
    ///
    /// # Errors
    ///
    /// `ENODEV` when configuration space cannot be read.
    pub(crate) fn msix(&self) -> Result<[Option<exclude::Registers>; 2]> {
        // SAFETY: The function is alive; the field is set once, when it is found.
        let cap = i32::from(unsafe { (*self.as_raw()).msix_cap });
        if cap == 0 {
            return Ok([None, None]);
        }
        // CAST: The capability lies in the first 256 bytes, and the offsets are small.
        let at = |offset: u32| cap.wrapping_add(offset as i32);
        let mut control = 0u16;
        let mut table = 0u32;
        let mut pending = 0u32;
        // SAFETY: The function is alive, and the pointers are to locals.
        let read = unsafe {
            [
                bindings::pci_read_config_word(
                    self.as_raw(),
                    at(bindings::PCI_MSIX_FLAGS),
                    &mut control,
                ),
                bindings::pci_read_config_dword(
                    self.as_raw(),
                    at(bindings::PCI_MSIX_TABLE),
                    &mut table,
                ),
                bindings::pci_read_config_dword(
                    self.as_raw(),
                    at(bindings::PCI_MSIX_PBA),
                    &mut pending,
                ),
            ]
        };
        if read.iter().any(|result| *result != 0) {
            return Err(ENODEV);
        }
        Ok(exclude::msix(control, table, pending))
    }

    /// Whether it answers accesses to its memory now: it is there, powered, and decodes.
    ///
    /// Asks the device. Somebody with root's rights can turn any of that off behind the module's
    /// back, through configuration space in sysfs.
    pub(crate) fn decodes_memory(&self) -> bool {
        let (mut command, mut power) = (0u16, 0u16);
        let read = |at: i32, value: &mut u16| {
            // SAFETY: The function is alive.
            unsafe { bindings::pci_read_config_word(self.as_raw(), at, value) == 0 }
        };
        // SAFETY: The function is alive. Its power state may change at any time, and is one word;
        // where its capability lies never changes.
        let (state, capability) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*self.as_raw()).current_state),
                (*self.as_raw()).pm_cap,
            )
        };
        // CAST: 4; a function that has been pulled out answers with ones.
        if !read(bindings::PCI_COMMAND as i32, &mut command)
            || command == u16::MAX
            || u32::from(command) & bindings::PCI_COMMAND_MEMORY == 0
        {
            return false;
        }
        if capability != 0 {
            // CAST: 4.
            let at = i32::from(capability).saturating_add(bindings::PCI_PM_CTRL as i32);
            if !read(at, &mut power) {
                return false;
            }
        }
        // In D1 and D2 as well, a function answers for its configuration space alone.
        state < D3HOT && u32::from(power) & bindings::PCI_PM_CTRL_STATE_MASK == 0
    }

    /// Whether its driver has given p2pmem to the pool and published it.
    pub(crate) fn has_p2pmem(&self) -> bool {
        // SAFETY: The function is alive.
        unsafe { shim::barbuf_helper_pci_has_p2pmem(self.as_raw()) }
    }

    /// Bytes that are free in its pool of p2pmem; 0 when it has none.
    pub(crate) fn free_p2pmem(&self) -> u64 {
        // SAFETY: The function is alive.
        unsafe { shim::barbuf_helper_pci_free_p2pmem(self.as_raw()) }
    }

    /// Keeps drivers from being bound and unbound. May sleep.
    pub(crate) fn lock(&self) -> DriverGuard<'_> {
        // SAFETY: The function is alive; the guard unlocks.
        unsafe { shim::barbuf_helper_pci_lock(self.as_raw()) };
        DriverGuard(self, NotThreadSafe)
    }

    /// Enables memory decoding until the guard is dropped.
    ///
    /// # Errors
    ///
    /// Those of `pci_enable_device_mem`.
    pub(crate) fn enable_memory(&self) -> Result<Enabled> {
        // SAFETY: The function is alive.
        to_result(unsafe { bindings::pci_enable_device_mem(self.as_raw()) })?;
        // What a failed link is brought back to. Only reads, and failing means that there is less to
        // bring back.
        // SAFETY: The function is alive.
        unsafe { bindings::pci_save_state(self.as_raw()) };
        // INVARIANT: Just enabled.
        Ok(Enabled(self.clone()))
    }

    /// Whether a driver is bound to it, or about to be. The caller keeps that from changing.
    pub(crate) fn has_driver(&self) -> bool {
        // SAFETY: The function is alive, and the field one word.
        unsafe { !core::ptr::read_volatile(&raw const (*self.as_raw()).dev.driver).is_null() }
    }

    /// Says in the log, and not too often, that its driver refuses an export.
    pub(crate) fn log_refusal(&self, error: Error) {
        // SAFETY: The function is alive.
        unsafe { shim::barbuf_helper_pci_refused(self.as_raw(), error.to_errno()) };
    }

    /// Claims BAR `index`, so that no other driver, no sysfs file and no /dev/mem maps it.
    ///
    /// # Errors
    ///
    /// `EBUSY` when somebody holds it.
    pub(crate) fn request(&self, index: u32) -> Result<Claimed> {
        if index >= bindings::PCI_STD_NUM_BARS {
            return Err(EINVAL);
        }
        // SAFETY: The function is alive, the index is that of a BAR, and the name is a static.
        // CAST: At most 5.
        to_result(unsafe {
            bindings::pci_request_region(self.as_raw(), index as i32, c"barbuf".as_char_ptr())
        })?;
        // INVARIANT: Just claimed.
        Ok(Claimed {
            function: self.clone(),
            index: index as i32,
        })
    }
}

/// While this exists, no driver is bound to or unbound from the function.
pub(crate) struct DriverGuard<'a>(&'a Function, NotThreadSafe);

impl DriverGuard<'_> {
    /// Whether a driver is bound.
    pub(crate) fn is_bound(&self) -> bool {
        // SAFETY: The function is alive, and the device lock is held.
        unsafe { !(*self.0.as_raw()).dev.driver.is_null() }
    }
}

impl Drop for DriverGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: Locked by `Function::lock`, on this thread.
        unsafe { shim::barbuf_helper_pci_unlock(self.0.as_raw()) };
    }
}

/// Memory decoding is on.
///
/// # Invariants
///
/// Holds one count of `pci_enable_device_mem`.
pub(crate) struct Enabled(Function);

impl Drop for Enabled {
    fn drop(&mut self) {
        // SAFETY: Gives back the count that the type holds.
        unsafe { bindings::pci_disable_device(self.0.as_raw()) };
    }
}

/// A BAR that nobody else can claim.
///
/// # Invariants
///
/// The BAR was claimed by `pci_request_region`.
pub(crate) struct Claimed {
    function: Function,
    index: i32,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // SAFETY: Claimed by the type's invariant.
        unsafe { bindings::pci_release_region(self.function.as_raw(), self.index) };
    }
}
