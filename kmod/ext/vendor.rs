// SPDX-License-Identifier: GPL-2.0

//! What other drivers call: the C side of `vendor.rs`.
//!
//! `kmod/vendor.c` exports the functions of `<linux/barbuf_provider.h>`, and calls those below. The
//! structs here are those of that header; `vendor.c` checks sizes and offsets.

use super::{
    dmabuf::DmaBuf,
    pci::Function, //
};
use crate::{
    buffer::Buffer,
    pure::{
        size_first,
        vendor::{
            Wish,
            MAX_REGIONS, //
        }, //
    },
    vendor::{
        Registered,
        Request, //
    },
};
use core::mem::MaybeUninit;
use kernel::{
    bindings,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    fs::file::FileDescriptorReservation,
    prelude::*, //
};

/// `struct barbuf_provider_region`
#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    bar: u32,
    flags: u32,
    offset: u64,
    length: u64,
    caches: u32,
    reserved: u32,
}

/// `struct barbuf_provider_ops`
#[repr(C)]
#[derive(Clone, Copy)]
struct Ops {
    size: usize,
    region_size: usize,
    first_export: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    last_release: Option<unsafe extern "C" fn(*mut c_void)>,
}

/// `struct barbuf_provider_request`
#[repr(C)]
#[derive(Clone, Copy)]
struct RawRequest {
    size: usize,
    region: u32,
    flags: u32,
    backing: u32,
    cache: u32,
    open_flags: u32,
    page_shift: u32,
    offset: u64,
    length: u64,
}

/// A C struct of integers and nullable pointers, for which all bits zero is a value.
///
/// # Safety
///
/// That must be so, and its present size the first that was ever published.
unsafe trait Grows: Copy {}

// SAFETY: Integers.
unsafe impl Grows for Region {}
// SAFETY: Integers, and `Option`s of function pointers, which are null for `None`.
unsafe impl Grows for Ops {}
// SAFETY: Integers.
unsafe impl Grows for RawRequest {}

/// Reads a struct whose user has `size` bytes of it, after the same rules as those of user space.
///
/// # Errors
///
/// `EINVAL` when it is shorter than it ever was, `E2BIG` when a member is used that is not known
/// here.
///
/// # Safety
///
/// `from` must point to `size` readable bytes.
unsafe fn read<T: Grows>(from: *const T, size: usize) -> Result<T> {
    let bytes = from.cast::<u8>();
    let own = size_of::<T>();
    let plan = size_first::read(size, own, own, |start, len| {
        let end = start.saturating_add(len);
        // SAFETY: Within the caller's struct.
        Ok((start..end).all(|at| unsafe { *bytes.add(at) } == 0))
    })
    .map_err(crate::copy::errno)?;
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: Both have that many bytes; all bits zero is a value, and so is what C wrote over it.
    Ok(unsafe {
        core::ptr::copy_nonoverlapping(bytes, value.as_mut_ptr().cast(), plan.copy.min(own));
        value.assume_init()
    })
}

/// The functions of a driver that is to be asked and told.
///
/// # Invariants
///
/// The functions may be called with `priv_` until `barbuf_provider_unregister` returns, which
/// retires the provider and so waits for the last call.
pub(crate) struct Callbacks {
    first_export: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    last_release: Option<unsafe extern "C" fn(*mut c_void)>,
    priv_: *mut c_void,
}

// SAFETY: The driver's functions may be called from any thread, as the header says.
unsafe impl Send for Callbacks {}
// SAFETY: As above; `Provider::uses` keeps calls apart.
unsafe impl Sync for Callbacks {}

impl Callbacks {
    /// Asks whether there may be buffers.
    ///
    /// # Errors
    ///
    /// What the driver answers.
    pub(crate) fn first_export(&self) -> Result {
        let Some(ask) = self.first_export else {
            return Ok(());
        };
        // SAFETY: By the type's invariant.
        match unsafe { ask(self.priv_) } {
            0 => Ok(()),
            // What is no errno becomes `EINVAL`.
            number => Err(Error::from_errno(number)),
        }
    }

    /// Tells that there are none any more.
    pub(crate) fn last_release(&self) {
        if let Some(tell) = self.last_release {
            // SAFETY: By the type's invariant.
            unsafe { tell(self.priv_) };
        }
    }
}

/// # Safety
///
/// `provider` must come from `barbuf_vendor_register` and not have been unregistered, for all of
/// `'a`.
unsafe fn registered<'a>(provider: *mut c_void) -> &'a Registered {
    // SAFETY: `barbuf_vendor_register` made it from a box, which lives until it is unregistered.
    unsafe { &*provider.cast::<Registered>() }
}

fn code(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// Those of `barbuf_provider_register`: a live function with a driver, `ops` and `regions` as large
/// as they say.
#[no_mangle]
unsafe extern "C" fn barbuf_vendor_register(
    pdev: *mut bindings::pci_dev,
    ops: *const c_void,
    regions: *const c_void,
    nr_regions: c_uint,
    priv_: *mut c_void,
) -> *mut c_void {
    let register = || {
        let ops = ops.cast::<Ops>();
        // SAFETY: The first member of every version.
        let ops = unsafe { read(ops, (*ops).size) }?;
        let count = nr_regions as usize;
        let mut wishes = KVec::with_capacity(count.min(MAX_REGIONS), GFP_KERNEL)?;
        // One too many is enough to say that it is too many.
        for index in 0..count.min(MAX_REGIONS.saturating_add(1)) {
            // SAFETY: The array has `count` elements of that size.
            let region = unsafe {
                let at = regions.byte_add(index.wrapping_mul(ops.region_size));
                read(at.cast::<Region>(), ops.region_size)
            }?;
            let wish = Wish {
                bar: region.bar,
                flags: region.flags,
                offset: region.offset,
                len: region.length,
                caches: region.caches,
                reserved: region.reserved,
            };
            wishes.push(wish, GFP_KERNEL)?;
        }
        // SAFETY: Alive by the caller's promise.
        let function = unsafe { Function::from_raw(pdev) };
        // INVARIANT: The caller promises it.
        let callbacks = Callbacks {
            first_export: ops.first_export,
            last_release: ops.last_release,
            priv_,
        };
        Registered::new(function, callbacks, &wishes)
    };
    match register() {
        Ok(registered) => KBox::into_raw(registered).cast(),
        Err(error) => error.to_ptr(),
    }
}

/// # Safety
///
/// As [`registered`]; nobody uses the provider during and after this.
#[no_mangle]
unsafe extern "C" fn barbuf_vendor_unregister(provider: *mut c_void) {
    // SAFETY: Came from `KBox::into_raw`, and is given back once.
    drop(unsafe { KBox::from_raw(provider.cast::<Registered>()) });
}

/// # Safety
///
/// As [`registered`], and `request` as large as it says.
unsafe fn export(provider: *mut c_void, request: *const c_void) -> Result<DmaBuf<Buffer>> {
    let request = request.cast::<RawRequest>();
    // SAFETY: The first member of every version.
    let raw = unsafe { read(request, (*request).size) }?;
    // SAFETY: Promised by the caller.
    unsafe { registered(provider) }.export(&Request {
        region: raw.region,
        flags: raw.flags,
        backing: raw.backing,
        cache: raw.cache,
        open_flags: raw.open_flags,
        page_shift: raw.page_shift,
        offset: raw.offset,
        len: raw.length,
    })
}

/// # Safety
///
/// As [`export`].
#[no_mangle]
unsafe extern "C" fn barbuf_vendor_export(
    provider: *mut c_void,
    request: *const c_void,
) -> *mut bindings::dma_buf {
    // SAFETY: Promised by the caller.
    match unsafe { export(provider, request) } {
        Ok(dmabuf) => dmabuf.into_raw(),
        Err(error) => error.to_ptr(),
    }
}

/// # Safety
///
/// As [`export`].
#[no_mangle]
unsafe extern "C" fn barbuf_vendor_export_fd(
    provider: *mut c_void,
    request: *const c_void,
) -> c_int {
    let give = || {
        // SAFETY: The first member of every version is its size.
        let raw = unsafe { read(request.cast::<RawRequest>(), *request.cast::<usize>()) }?;
        let cloexec = raw.open_flags & bindings::O_CLOEXEC;
        let fd = FileDescriptorReservation::get_unused_fd_flags(cloexec)?;
        // SAFETY: Promised by the caller.
        let dmabuf = unsafe { export(provider, request) }?;
        // CAST: File descriptors are small.
        let number = fd.reserved_fd() as c_int;
        dmabuf.install(fd);
        Ok(number)
    };
    give().unwrap_or_else(|error: Error| error.to_errno())
}

/// # Safety
///
/// As [`registered`], and a live `dmabuf`.
#[no_mangle]
unsafe extern "C" fn barbuf_vendor_revoke(
    provider: *mut c_void,
    dmabuf: *mut bindings::dma_buf,
) -> c_int {
    // SAFETY: Promised by the caller.
    let (provider, dmabuf) = unsafe { (registered(provider), DmaBuf::from_raw(dmabuf)) };
    code(dmabuf.and_then(|dmabuf| provider.revoke(&dmabuf)))
}

/// # Safety
///
/// As [`registered`].
#[no_mangle]
unsafe extern "C" fn barbuf_vendor_revoke_all(provider: *mut c_void) {
    // SAFETY: Promised by the caller.
    unsafe { registered(provider) }.revoke_all();
}

/// # Safety
///
/// As [`registered`].
#[no_mangle]
unsafe extern "C" fn barbuf_vendor_suspend(provider: *mut c_void) {
    // SAFETY: Promised by the caller.
    unsafe { registered(provider) }.suspend();
}

/// # Safety
///
/// As [`registered`].
#[no_mangle]
unsafe extern "C" fn barbuf_vendor_resume(provider: *mut c_void) -> c_int {
    // SAFETY: Promised by the caller.
    code(unsafe { registered(provider) }.resume())
}
