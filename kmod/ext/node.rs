// SPDX-License-Identifier: GPL-2.0

//! Device nodes with a name made at run time, an mmap hook and a say in where mappings go.
//!
//! `kernel::miscdevice` has none of the three, so this is a second wrapper of `struct miscdevice`.
//!
//! C header: `include/linux/miscdevice.h`.

use super::vma::NewVma;
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
        c_long,
        c_uint,
        c_ulong, //
    },
    module::this_module,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::Opaque, //
};

use crate::pure::order::PageOrder;

/// `MAP_FIXED` of `include/uapi/asm-generic/mman-common.h`, the same on all architectures with PCI.
const MAP_FIXED: c_ulong = 0x10;

/// Where a mapping should begin so that large pages fit.
#[derive(Clone, Copy)]
pub(crate) struct Placement {
    /// The address must be congruent to `class` for pages of this size.
    pub(crate) order: PageOrder,
    /// A physical address, or anything congruent to it.
    pub(crate) class: u64,
}

/// One open file of a node.
pub(crate) trait Opener: Send + Sync + Sized + 'static {
    /// What the node itself knows; shared by all who open it.
    type Node: Send + Sync + 'static;

    /// A process opens the node.
    fn open(node: ArcBorrow<'_, Self::Node>) -> Result<Arc<Self>>;

    /// An ioctl(2), from 64-bit and 32-bit processes alike: the layouts are the same.
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize>;

    /// mmap(2) at `offset` bytes.
    fn mmap(this: ArcBorrow<'_, Self>, vma: NewVma<'_>, offset: u64) -> Result;

    /// Where a mapping of `offset` should go; `None` for no preference.
    fn placement(this: ArcBorrow<'_, Self>, offset: u64) -> Option<Placement>;

    /// The last file descriptor is closed.
    fn release(this: Arc<Self>);
}

/// A registered node.
///
/// # Invariants
///
/// `misc` is registered, and `name` holds the string that it points to.
#[pin_data(PinnedDrop)]
pub(crate) struct Node<T: Opener> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    data: Arc<T::Node>,
    name: CString,
}

// SAFETY: A misc device can be deregistered from any thread.
unsafe impl<T: Opener> Send for Node<T> {}
// SAFETY: There are no methods on a shared reference.
unsafe impl<T: Opener> Sync for Node<T> {}

impl<T: Opener> Node<T> {
    /// Creates `/dev/<name>` with permission bits `mode`. A `/` in the name makes a directory.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EBUSY` when no minor number is left, `EEXIST` when the name is taken.
    pub(crate) fn new(name: CString, mode: u16, data: Arc<T::Node>) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            data,
            name,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let mut misc: bindings::miscdevice = pin_init::zeroed();
                misc.minor = bindings::MISC_DYNAMIC_MINOR as c_int;
                // SAFETY: `name` was initialised above and stays in place, because `Self` is pinned.
                misc.name = unsafe { (*this.as_ptr()).name.as_char_ptr() };
                misc.fops = &Ops::<T>::TABLE;
                misc.mode = mode;
                // SAFETY: `slot` is valid for writes, and pinned until it is deregistered in `drop`.
                unsafe { slot.write(misc) };
                // SAFETY: `slot` was just filled in.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
        })
    }
}

#[pinned_drop]
impl<T: Opener> PinnedDrop for Node<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type's invariant. Files that are open keep their own reference to their `Opener`.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

/// The `file_operations` of an [`Opener`].
struct Ops<T>(PhantomData<T>);

impl<T: Opener> Ops<T> {
    const TABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        unlocked_ioctl: Some(Self::ioctl),
        compat_ioctl: bindings::compat_ptr_ioctl,
        mmap: Some(Self::mmap),
        get_unmapped_area: Some(Self::get_unmapped_area),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` must be an open file of ours, for all of `'a`.
    unsafe fn opener<'a>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
        // SAFETY: `open` has stored the reference, and `release` gives it back.
        unsafe { ArcBorrow::from_raw((*file).private_data.cast::<T>()) }
    }

    /// # Safety
    ///
    /// For the VFS alone, which passes a file of a node of ours.
    unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `misc_open` has put the misc device here, and holds the lock that deregistering takes until this
        // function returns.
        let misc = unsafe { (*file).private_data }.cast::<bindings::miscdevice>();
        // SAFETY: Every misc device with these operations is the field of a `Node`; `Opaque` is transparent.
        let node = unsafe { &*container_of!(Opaque::cast_from(misc), Node<T>, misc) };
        match T::open(node.data.as_arc_borrow()) {
            Ok(opener) => {
                // SAFETY: The file is ours to set up.
                unsafe { (*file).private_data = Arc::into_raw(opener).cast_mut().cast() };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For the VFS alone, which passes a file of a node of ours.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: Called once, as the last operation on the file.
        T::release(unsafe { Arc::from_raw((*file).private_data.cast::<T>()) });
        0
    }

    /// # Safety
    ///
    /// For the VFS alone, which passes a file of a node of ours.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: The file is open.
        match T::ioctl(unsafe { Self::opener(file) }, cmd, arg) {
            Ok(value) => value as c_long,
            Err(error) => error.to_errno() as c_long,
        }
    }

    /// # Safety
    ///
    /// For the VFS alone, which passes a file of a node of ours.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The file is open, and the VMA in its mmap hook.
        let (opener, vma) = unsafe { (Self::opener(file), NewVma::from_raw(vma)) };
        let Some(offset) = vma.offset() else {
            return EINVAL.to_errno();
        };
        match T::mmap(opener, vma, offset) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For the VFS alone, which passes a file of a node of ours.
    unsafe extern "C" fn get_unmapped_area(
        file: *mut bindings::file,
        addr: c_ulong,
        len: c_ulong,
        pgoff: c_ulong,
        flags: c_ulong,
    ) -> c_ulong {
        let ask = |addr, len| {
            // SAFETY: Passes on what the kernel passed in.
            unsafe { bindings::mm_get_unmapped_area(file, addr, len, pgoff, flags) }
        };
        // A wish of the caller's own comes first.
        if addr != 0 || flags & MAP_FIXED != 0 {
            return ask(addr, len);
        }
        let placed = (pgoff as u64)
            .checked_mul(PageOrder::Page4K.size())
            // SAFETY: The file is open.
            .and_then(|offset| T::placement(unsafe { Self::opener(file) }, offset))
            .and_then(|placement| {
                // Room to move up to the next congruent address.
                let slack = placement
                    .order
                    .size()
                    .checked_sub(PageOrder::Page4K.size())?;
                let room = len.checked_add(slack as c_ulong)?;
                let floor = ask(0, room);
                // An errno is never on a page.
                if floor & PageOrder::Page4K.low_bits() as c_ulong != 0 {
                    return None;
                }
                crate::pure::order::place(placement.order, floor as u64, placement.class)
            });
        match placed {
            Some(at) => at as c_ulong,
            None => ask(0, len),
        }
    }
}
