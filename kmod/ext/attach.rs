// SPDX-License-Identifier: GPL-2.0

//! Attachments: devices, and their drivers, that import a dma-buf.
//!
//! C headers: `include/linux/dma-buf.h`, `include/linux/dma-buf-mapping.h`.
//!
//! Locks: the core calls pin, unpin, map, unmap, vmap and vunmap with the dma-buf's reservation lock held, and attach,
//! detach and the ends of a CPU access without.

use super::{
    dmabuf::Exporter,
    memtype::IoMapping,
    p2pdma::{
        Memory,
        Reach, //
    },
    pci::Borrowed,
    shim, //
};
use crate::pure::range::Range;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::from_err_ptr,
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    sync::ArcBorrow, //
};

/// Physical addresses that follow each other: `struct phys_vec`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    start: u64,
    len: usize,
}

impl From<Range> for Piece {
    fn from(range: Range) -> Self {
        Self {
            start: range.start(),
            // CAST: Both have 64 bits on the machines that this builds for.
            len: range.len() as usize,
        }
    }
}

/// Which way the importer is going to move data.
#[derive(Clone, Copy)]
pub(crate) struct Direction(bindings::dma_data_direction);

impl Direction {
    /// Whether the importer may write to the memory. (The C name is from the importer's point of view: "to device" reads.)
    pub(crate) fn writes(self) -> bool {
        self.0 != bindings::dma_data_direction::DMA_TO_DEVICE
    }

    /// Whether it is one at all.
    pub(crate) fn is_valid(self) -> bool {
        self.0 != bindings::dma_data_direction::DMA_NONE
    }
}

/// DMA addresses for an importer, on their way to it.
///
/// # Invariants
///
/// From `dma_buf_phys_vec_to_sgt` or `barbuf_helper_dma_buf_link`, and not unmapped.
pub(crate) struct Mapped(NonNull<bindings::sg_table>);

/// A device that imports a dma-buf, or is about to.
///
/// # Invariants
///
/// The attachment and its device are valid for `'a`.
pub(crate) struct Attachment<'a> {
    raw: NonNull<bindings::dma_buf_attachment>,
    _lifetime: PhantomData<&'a ()>,
}

impl Attachment<'_> {
    /// # Safety
    ///
    /// `raw` must be valid for as long as the result lives.
    pub(super) unsafe fn from_raw(raw: NonNull<bindings::dma_buf_attachment>) -> Self {
        // INVARIANT: Promised by the caller. An importer detaches before its device goes.
        Self {
            raw,
            _lifetime: PhantomData,
        }
    }

    fn device(&self) -> *mut bindings::device {
        // SAFETY: Valid by the type's invariant; `dev` never changes.
        unsafe { (*self.raw.as_ptr()).dev }
    }

    /// What the kernel calls the device.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: The device is valid, and its name is a C string that lives as long.
        unsafe { CStr::from_char_ptr(bindings::dev_name(self.device())) }
    }

    /// Whether the importer can be told to stop, and knows that it imports memory of a device. One that thinks that it
    /// is ordinary memory is no better than one that cannot be told.
    pub(crate) fn is_revocable(&self) -> bool {
        self.peer2peer() && self.can_be_told()
    }

    /// Whether the importer says that it can address memory of other devices.
    pub(crate) fn peer2peer(&self) -> bool {
        // SAFETY: Valid by the type's invariant; the core sets it once, before the exporter sees it.
        unsafe { (*self.raw.as_ptr()).peer2peer }
    }

    /// Whether the importer can be told to stop, and unmaps then in bounded time.
    fn can_be_told(&self) -> bool {
        // SAFETY: Valid by the type's invariant.
        unsafe { bindings::dma_buf_attach_revocable(self.raw.as_ptr()) }
    }

    /// The PCI function that the device is; `None` also for a part of one, which the kernel maps no memory of peers for.
    pub(crate) fn function(&self) -> Option<Borrowed<'_>> {
        // SAFETY: The device is valid, and is the function itself.
        unsafe { Borrowed::from_raw(shim::barbuf_helper_pci_of(self.device())) }
    }

    /// The highest address that the device can form.
    pub(crate) fn mask(&self) -> u64 {
        // SAFETY: The device is valid.
        unsafe { shim::barbuf_helper_dma_limit(self.device()) }
    }

    /// Which addresses the device can form.
    pub(crate) fn reach(&self) -> Reach {
        // SAFETY: The device is valid.
        unsafe { Reach::of(self.device()) }
    }

    /// Makes DMA addresses of `size` bytes of `memory`, which are `pieces`.
    ///
    /// The dma-buf core has called the exporter's map, so that the reservation lock is held.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the device does not reach the memory, `ENOMEM`, `EIO`.
    pub(crate) fn map(
        &self,
        memory: &Memory<'_>,
        pieces: &[Piece],
        size: u64,
        direction: Direction,
    ) -> Result<Mapped> {
        // SAFETY: All are valid for the call, which does not keep or change the pieces.
        let table = from_err_ptr(unsafe {
            shim::barbuf_helper_dma_buf_map(
                self.raw.as_ptr(),
                memory.as_raw(),
                pieces.as_ptr().cast(),
                pieces.len(),
                size as usize,
                direction.0,
            )
        })?;
        // INVARIANT: Just made.
        Ok(Mapped(NonNull::new(table).ok_or(ENOMEM)?))
    }
}

impl core::fmt::Display for Attachment<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for byte in self.name().to_bytes() {
            core::fmt::Write::write_char(f, char::from(*byte))?;
        }
        Ok(())
    }
}

/// The kernel's macros print what implements the kernel crate's own trait.
impl kernel::fmt::Display for Attachment<'_> {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl Attachment<'_> {
    /// The same for a device that an IOMMU translates for: one range of addresses, whatever the pieces.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, also when the device cannot form so many addresses; `EIO`.
    pub(crate) fn link(&self, pieces: &[Piece], size: u64, direction: Direction) -> Result<Mapped> {
        // SAFETY: All are valid for the call, which does not keep or change the pieces.
        let table = from_err_ptr(unsafe {
            shim::barbuf_helper_dma_buf_link(
                self.raw.as_ptr(),
                pieces.as_ptr().cast(),
                pieces.len(),
                size as usize,
                direction.0,
            )
        })?;
        // INVARIANT: Just made.
        Ok(Mapped(NonNull::new(table).ok_or(ENOMEM)?))
    }
}

/// The part of the `dma_buf_ops` of an [`Exporter`] that importers use.
pub(super) struct ImportOps<T>(PhantomData<T>);

/// Turns a result into what C expects.
fn to_c(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

// Every function below is for the dma-buf core alone, which passes a live dma-buf of this exporter, or an attachment to
// one.
impl<T: Exporter> ImportOps<T> {
    /// # Safety
    ///
    /// `dmabuf` must be one of this exporter that has not been released, for all of `'a`.
    unsafe fn data<'a>(dmabuf: *mut bindings::dma_buf) -> ArcBorrow<'a, T> {
        // SAFETY: `DmaBuf::export` has stored the reference, and `release` gives it back.
        unsafe { ArcBorrow::from_raw((*dmabuf).priv_.cast::<T>()) }
    }

    /// Where an attachment keeps its `T::Importer`.
    ///
    /// # Safety
    ///
    /// `raw` must be valid.
    unsafe fn place(raw: NonNull<bindings::dma_buf_attachment>) -> *mut T::Importer {
        const {
            assert!(size_of::<T::Importer>() <= size_of::<*mut c_void>());
            assert!(align_of::<T::Importer>() <= align_of::<*mut c_void>());
        }
        // SAFETY: Promised by the caller. `priv` is the exporter's, and the core never looks at it.
        unsafe { (&raw mut (*raw.as_ptr()).priv_).cast() }
    }

    /// # Safety
    ///
    /// `raw` must be an attachment to a dma-buf of this exporter that its `attach` has let in and `detach` not yet seen,
    /// for all of `'a`. The reservation lock must be held for all of `'a`, and this be the only call meanwhile.
    pub(super) unsafe fn parts<'a>(
        raw: *mut bindings::dma_buf_attachment,
    ) -> Option<(ArcBorrow<'a, T>, Attachment<'a>, &'a mut T::Importer)> {
        let raw = NonNull::new(raw)?;
        // SAFETY: Promised by the caller. `attach` has stored the importer; the lock keeps others away from it.
        unsafe {
            Some((
                Self::data((*raw.as_ptr()).dmabuf),
                Attachment::from_raw(raw),
                &mut *Self::place(raw),
            ))
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn attach(
        dmabuf: *mut bindings::dma_buf,
        raw: *mut bindings::dma_buf_attachment,
    ) -> c_int {
        let Some(raw) = NonNull::new(raw) else {
            return EINVAL.to_errno();
        };
        // SAFETY: The core has just made the attachment, for a live dma-buf of ours.
        let (data, attachment) = unsafe { (Self::data(dmabuf), Attachment::from_raw(raw)) };
        match T::attach(data, &attachment) {
            Ok(importer) => {
                // SAFETY: The attachment is valid, and nobody else knows it yet.
                unsafe { Self::place(raw).write(importer) };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn detach(
        dmabuf: *mut bindings::dma_buf,
        raw: *mut bindings::dma_buf_attachment,
    ) {
        if let Some(raw) = NonNull::new(raw) {
            // SAFETY: The importer holds a reference to the dma-buf, and the core frees the attachment after this.
            let (data, attachment) = unsafe { (Self::data(dmabuf), Attachment::from_raw(raw)) };
            T::detached(data, &attachment);
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn pin(raw: *mut bindings::dma_buf_attachment) -> c_int {
        // SAFETY: Attached, and locked by the core.
        match unsafe { Self::parts(raw) } {
            Some((data, _, importer)) => to_c(T::pin(data, importer)),
            None => EINVAL.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn unpin(raw: *mut bindings::dma_buf_attachment) {
        // SAFETY: Attached, and locked by the core.
        if let Some((data, _, importer)) = unsafe { Self::parts(raw) } {
            T::unpinned(data, importer);
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn map(
        raw: *mut bindings::dma_buf_attachment,
        direction: bindings::dma_data_direction,
    ) -> *mut bindings::sg_table {
        // SAFETY: Attached, and locked by the core.
        let Some((data, attachment, importer)) = (unsafe { Self::parts(raw) }) else {
            return EINVAL.to_ptr();
        };
        match T::map(data, &attachment, importer, Direction(direction)) {
            Ok(Mapped(table)) => table.as_ptr(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn unmap(
        raw: *mut bindings::dma_buf_attachment,
        table: *mut bindings::sg_table,
        direction: bindings::dma_data_direction,
    ) {
        // SAFETY: Attached, and locked by the core.
        if let Some((data, attachment, importer)) = unsafe { Self::parts(raw) } {
            let linked = T::is_linked(importer);
            // SAFETY: The core gives back what `map` has returned, with the same direction, and how that was made has
            // not changed.
            unsafe { shim::barbuf_helper_dma_buf_unmap(raw, table, direction, linked) };
            T::unmapped(data, &attachment, importer);
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn begin_cpu_access(
        dmabuf: *mut bindings::dma_buf,
        _direction: bindings::dma_data_direction,
    ) -> c_int {
        // SAFETY: A live dma-buf of ours.
        to_c(T::begin_access(unsafe { Self::data(dmabuf) }))
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn end_cpu_access(
        dmabuf: *mut bindings::dma_buf,
        direction: bindings::dma_data_direction,
    ) -> c_int {
        // The C name is from a device's point of view: data that goes to it was written by the CPU.
        let wrote = direction != bindings::dma_data_direction::DMA_FROM_DEVICE;
        // SAFETY: A live dma-buf of ours.
        to_c(T::end_access(unsafe { Self::data(dmabuf) }, wrote))
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn vmap(
        dmabuf: *mut bindings::dma_buf,
        map: *mut bindings::iosys_map,
    ) -> c_int {
        // SAFETY: A live dma-buf of ours.
        match T::vmap(unsafe { Self::data(dmabuf) }) {
            Ok(memory) => {
                // SAFETY: The core passes an empty map, to be filled in.
                unsafe { shim::barbuf_helper_iosys_map_set(map, memory.into_raw()) };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone.
    pub(super) unsafe extern "C" fn vunmap(
        dmabuf: *mut bindings::dma_buf,
        map: *mut bindings::iosys_map,
    ) {
        // SAFETY: The core gives back what `vmap` has filled in.
        drop(unsafe { IoMapping::from_raw(shim::barbuf_helper_iosys_map_get(map)) });
        // SAFETY: A live dma-buf of ours.
        T::vunmapped(unsafe { Self::data(dmabuf) });
    }
}
