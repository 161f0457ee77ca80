// SPDX-License-Identifier: GPL-2.0

//! dma-bufs, from the exporter's side. What importers do with them is in `attach.rs`.
//!
//! C headers: `include/linux/dma-buf.h`, `include/linux/dma-resv.h`.
//!
//! A dma-buf owns one `Arc` of its exporter's data. The data knows its dma-buf through a [`Weak`], so that it can reach
//! the mappings without keeping the dma-buf alive.
//!
//! Lock order: the reservation lock of a dma-buf is taken by [`DmaBuf::reserve`] and, around some of the exporter's
//! functions, by the core. `Weak`'s mutex is taken inside every other lock of the driver and holds none.

use super::{
    attach::{
        Attachment,
        Direction,
        ImportOps,
        Mapped, //
    },
    memtype::IoMapping,
    vma::NewVma, //
};
use core::{
    marker::PhantomData,
    ptr::{
        null_mut,
        NonNull, //
    },
};
use kernel::{
    bindings,
    container_of,
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi::c_int,
    fs::{
        file::FileDescriptorReservation,
        File, //
    },
    module::this_module,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        ArcBorrow,
        Mutex, //
    },
    types::NotThreadSafe, //
};

/// The data behind a dma-buf. A module has one type that implements this.
pub(crate) trait Exporter: Send + Sync + Sized + 'static {
    /// What /proc and debugfs call the exporter.
    const NAME: &'static CStr;

    /// The way back to the dma-buf; nothing else touches it.
    fn weak(&self) -> &Weak;

    /// What is kept for each attachment: no more than the word that it has for its exporter.
    type Importer: Copy + Send + Sync;

    /// A device wants to attach. No lock is held.
    fn attach(this: ArcBorrow<'_, Self>, device: &Attachment<'_>) -> Result<Self::Importer>;

    /// It has detached, with nothing mapped. No lock is held.
    fn detached(this: ArcBorrow<'_, Self>, device: &Attachment<'_>);

    /// The importer wants the memory to stay where it is. The reservation lock is held.
    fn pin(this: ArcBorrow<'_, Self>, importer: &mut Self::Importer) -> Result;

    /// It does not any more. The reservation lock is held.
    fn unpinned(this: ArcBorrow<'_, Self>, importer: &mut Self::Importer);

    /// The importer wants DMA addresses. The reservation lock is held.
    fn map(
        this: ArcBorrow<'_, Self>,
        device: &Attachment<'_>,
        importer: &mut Self::Importer,
        direction: Direction,
    ) -> Result<Mapped>;

    /// Whether [`map`](Self::map) uses [`Attachment::link`] for this importer, always or never.
    fn is_linked(importer: &Self::Importer) -> bool;

    /// It has given them back, and does not use them any more. The reservation lock is held.
    fn unmapped(this: ArcBorrow<'_, Self>, device: &Attachment<'_>, importer: &mut Self::Importer);

    /// A CPU is about to access the memory, through a mapping that it has. No lock is held.
    fn begin_access(this: ArcBorrow<'_, Self>) -> Result;

    /// It has done so, and perhaps written. No lock is held.
    fn end_access(this: ArcBorrow<'_, Self>, wrote: bool) -> Result;

    /// The kernel wants to access the memory with the CPU. The reservation lock is held.
    fn vmap(this: ArcBorrow<'_, Self>) -> Result<IoMapping>;

    /// It does not any more. The reservation lock is held.
    fn vunmapped(this: ArcBorrow<'_, Self>);

    /// A process maps the dma-buf. `offset` and length have been checked against its size.
    fn mmap(this: ArcBorrow<'_, Self>, vma: NewVma<'_>) -> Result;

    /// The last file descriptor, mapping and attachment is gone.
    fn released(this: Arc<Self>);
}

/// A pointer that may be sent between threads, because only [`Weak`] uses it, under its lock.
struct Raw(*mut bindings::dma_buf);

// SAFETY: Just an address; see `Weak` for when it may be followed.
unsafe impl Send for Raw {}

/// The way from the data to its dma-buf, as long as that exists.
///
/// # Invariants
///
/// While the pointer is not null, the dma-buf's memory and that of its `struct file` are valid: `release` clears it,
/// under the lock, before either is freed. (The last `fput` calls `release` from `dput`, and frees the file after.)
#[pin_data]
pub(crate) struct Weak {
    #[pin]
    raw: Mutex<Raw>,
}

impl Weak {
    /// Not pointing anywhere yet; [`DmaBuf::export`] fills it in.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: The pointer is null.
            raw <- new_mutex!(Raw(null_mut())),
        })
    }

    /// The dma-buf, unless its last reference has gone. May sleep.
    pub(crate) fn upgrade<T: Exporter>(&self) -> Option<DmaBuf<T>> {
        let mut raw = self.raw.lock();
        if raw.0.is_null() {
            return None;
        }
        // SAFETY: By the type's invariant, and because the lock is held, the dma-buf and its file are valid memory, and
        // the file cannot have been freed and become another one. Its reference count may be zero: that is what
        // `get_file_active` looks at.
        let file = unsafe { bindings::get_file_active(&mut (*raw.0).file) };
        if file.is_null() {
            return None;
        }
        // INVARIANT: `get_file_active` has taken the reference, and the pointer came from `DmaBuf::export`.
        Some(DmaBuf {
            raw: NonNull::new(raw.0)?,
            _data: PhantomData,
        })
    }
}

/// A reference to a dma-buf of exporter `T`.
///
/// # Invariants
///
/// Owns one reference to the dma-buf's file, and the dma-buf's operations are `Ops<T>`.
pub(crate) struct DmaBuf<T: Exporter> {
    raw: NonNull<bindings::dma_buf>,
    _data: PhantomData<T>,
}

impl<T: Exporter> DmaBuf<T> {
    /// Makes a dma-buf of `size` bytes around `data`.
    ///
    /// `flags` are `O_RDONLY` or `O_RDWR`. With `dax` the inode behind the dma-buf is marked as DAX: only then does the
    /// kernel ask for folios of 1 GiB and drop their references again. The inode belongs to this dma-buf alone. Without
    /// `vmap` the kernel's CPUs cannot map it: the core says `EINVAL` by itself, whereas it warns about an exporter's
    /// function that fails.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EOPNOTSUPP` when `dax` is wanted and this kernel has no DAX; `ENFILE` when the system has no file left.
    pub(crate) fn export(
        data: Arc<T>,
        size: u64,
        flags: u32,
        dax: bool,
        vmap: bool,
    ) -> Result<Self> {
        // SAFETY: Only reads the kernel's configuration.
        if dax && !unsafe { super::shim::barbuf_helper_has_dax() } {
            return Err(EOPNOTSUPP);
        }
        let info = bindings::dma_buf_export_info {
            exp_name: T::NAME.as_char_ptr(),
            owner: this_module::<crate::LocalModule>().as_ptr(),
            ops: if vmap {
                &Ops::<T>::WITH_VMAP
            } else {
                &Ops::<T>::TABLE
            },
            size: size.try_into()?,
            // CAST: Only the two lowest bits are ever set.
            flags: flags as c_int,
            resv: null_mut(),
            priv_: Arc::into_raw(data).cast_mut().cast(),
        };
        // SAFETY: `info` is complete; `priv` is not null, and the three mandatory operations are set.
        let raw = match from_err_ptr(unsafe { bindings::dma_buf_export(&info) }) {
            Ok(raw) => raw,
            Err(error) => {
                // SAFETY: The dma-buf did not come into being, so the reference is still ours.
                drop(unsafe { Arc::from_raw(info.priv_.cast::<T>()) });
                return Err(error);
            }
        };
        // INVARIANT: `dma_buf_export` returns a dma-buf with these operations, whose only reference is ours.
        let dmabuf = Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _data: PhantomData,
        };
        // INVARIANT: `Ops::release` clears this pointer.
        dmabuf.data().weak().raw.lock().0 = raw;
        if dax {
            // SAFETY: The file is alive, and not visible to anybody yet.
            unsafe { super::shim::barbuf_helper_file_set_dax((*raw).file) };
        }
        Ok(dmabuf)
    }

    /// The dma-buf behind file descriptor `fd` of the calling task.
    ///
    /// # Errors
    ///
    /// `EBADF` when it is not open, `EINVAL` when it is no dma-buf, `ENODEV` when another exporter made it.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: Any number may be passed.
        let raw = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;
        let raw = NonNull::new(raw).ok_or(EBADF)?;
        // The address of a constant table is not unique, so the owner is what tells ours from others: this module has
        // one type of exporter, see `Exporter`.
        //
        // SAFETY: `dma_buf_get` has taken a reference for us.
        if unsafe { raw.as_ref() }.owner != this_module::<crate::LocalModule>().as_ptr() {
            // SAFETY: Gives that reference back.
            unsafe { bindings::dma_buf_put(raw.as_ptr()) };
            return Err(ENODEV);
        }
        // INVARIANT: The reference is ours, and all dma-bufs that this module owns are of type `T`.
        Ok(Self {
            raw,
            _data: PhantomData,
        })
    }

    fn file(&self) -> *mut bindings::file {
        // SAFETY: Alive by the type's invariant; `file` never changes.
        unsafe { (*self.raw.as_ptr()).file }
    }

    /// The exporter's data.
    pub(crate) fn data(&self) -> ArcBorrow<'_, T> {
        // SAFETY: By the type's invariant `priv` is the reference that `export` stored, and it is given back only in
        // `release`, after the last file reference.
        unsafe { ArcBorrow::from_raw((*self.raw.as_ptr()).priv_.cast::<T>()) }
    }

    /// The inode number, which no other dma-buf has had or will have: `st_ino` of the file descriptor.
    pub(crate) fn id(&self) -> u64 {
        // SAFETY: The file is alive, and neither its inode nor the number changes.
        unsafe { (*(*self.file()).f_inode).i_ino }
    }

    /// Removes the page table entries of `len` bytes at `offset` from every mapping in every process; of all bytes when
    /// `len` is 0. May sleep.
    pub(crate) fn zap(&self, offset: u64, len: u64) {
        // SAFETY: The file and so its mapping are alive. All mappings are shared ones, so `even_cows` has no effect.
        unsafe {
            bindings::unmap_mapping_range((*self.file()).f_mapping, offset as i64, len as i64, 1)
        };
    }

    /// From now on the kernel's CPUs cannot map the memory any more. Takes the reservation lock.
    pub(crate) fn forbid_vmap(&self) {
        let _reserved = self.reserve();
        // SAFETY: The dma-buf is alive. The core looks at this member for `vmap` with the lock held; for all else the two
        // tables are the same, whichever of them another CPU sees.
        unsafe { core::ptr::write_volatile(&raw mut (*self.raw.as_ptr()).ops, &Ops::<T>::TABLE) };
    }

    /// Turns a VMA that is being set up into a mapping of this dma-buf, from byte `offset` on.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the mapping reaches beyond the end, and those of [`Exporter::mmap`].
    pub(crate) fn mmap(&self, vma: NewVma<'_>, offset: u64) -> Result {
        let pages = offset >> crate::pure::order::PageOrder::Page4K.shift();
        // SAFETY: The dma-buf is alive and the VMA in setup.
        to_result(unsafe {
            bindings::dma_buf_mmap(self.raw.as_ptr(), vma.as_ptr(), pages as usize)
        })
    }

    /// Takes the reservation lock: importers neither come nor go, nor map, nor unmap, until the guard is dropped. Sleeps.
    pub(crate) fn reserve(&self) -> Reserved<'_, T> {
        // SAFETY: The dma-buf is alive; the guard unlocks. Without a context, locking does not fail.
        unsafe { bindings::dma_resv_lock((*self.raw.as_ptr()).resv, null_mut()) };
        // INVARIANT: Just locked.
        Reserved(self, NotThreadSafe)
    }

    /// The dma-buf at `raw`, with a reference of its own.
    ///
    /// # Errors
    ///
    /// `ENODEV` when another exporter made it.
    ///
    /// # Safety
    ///
    /// `raw` must be a live dma-buf.
    pub(super) unsafe fn from_raw(raw: *mut bindings::dma_buf) -> Result<Self> {
        let raw = NonNull::new(raw).ok_or(ENODEV)?;
        // SAFETY: Alive by the caller's promise.
        if unsafe { raw.as_ref() }.owner != this_module::<crate::LocalModule>().as_ptr() {
            return Err(ENODEV);
        }
        // SAFETY: The file is alive as long as the dma-buf is, and has a reference that the caller holds.
        if unsafe { bindings::get_file_active(&mut (*raw.as_ptr()).file) }.is_null() {
            return Err(ENODEV);
        }
        // INVARIANT: `get_file_active` has taken the reference; the type is right as in `from_fd`.
        Ok(Self {
            raw,
            _data: PhantomData,
        })
    }

    /// The C struct, together with the reference.
    pub(super) fn into_raw(self) -> *mut bindings::dma_buf {
        core::mem::ManuallyDrop::new(self).raw.as_ptr()
    }

    /// Gives the dma-buf to user space under the reserved file descriptor. Cannot fail.
    pub(crate) fn install(self, fd: FileDescriptorReservation) {
        let me = core::mem::ManuallyDrop::new(self);
        // SAFETY: The file is valid; nobody holds its position lock, a dma-buf has no position. The reference that `me`
        // owned moves to the file table.
        let file = unsafe { ARef::<File>::from_raw(NonNull::from(File::from_raw_file(me.file()))) };
        fd.fd_install(file);
    }
}

impl<T: Exporter> Drop for DmaBuf<T> {
    fn drop(&mut self) {
        // SAFETY: Gives back the reference that the type owns.
        unsafe { bindings::dma_buf_put(self.raw.as_ptr()) };
    }
}

/// A dma-buf whose reservation lock is held.
///
/// # Invariants
///
/// This thread holds the lock.
pub(crate) struct Reserved<'a, T: Exporter>(&'a DmaBuf<T>, NotThreadSafe);

impl<T: Exporter> Reserved<'_, T> {
    /// Tells every importer that can be told that its DMA addresses are no longer good. Each unmaps in bounded time, and
    /// may ask for new ones at any time.
    pub(crate) fn invalidate(&self) {
        // SAFETY: The dma-buf is alive and the lock held.
        unsafe { bindings::dma_buf_invalidate_mappings(self.0.raw.as_ptr()) };
    }

    /// Waits until all DMA that importers have announced by fences is over. Sleeps.
    pub(crate) fn wait_for_fences(&self) {
        // SAFETY: The dma-buf is alive. Not interruptible and without a limit, so that there is no result.
        unsafe {
            bindings::dma_resv_wait_timeout(
                (*self.0.raw.as_ptr()).resv,
                bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP,
                false,
                // `MAX_SCHEDULE_TIMEOUT`
                isize::MAX as usize,
            )
        };
    }

    /// Calls `f` for each attachment.
    pub(crate) fn each(&self, mut f: impl FnMut(&Attachment<'_>, &T::Importer)) {
        // SAFETY: The list is guarded by the lock. What is on it has been let in by `attach`; the core takes it off, under
        // the lock, before it calls `detach`.
        unsafe {
            let head = &raw mut (*self.0.raw.as_ptr()).attachments;
            let mut node = (*head).next;
            while !core::ptr::eq(node, head) {
                let raw = container_of!(node, bindings::dma_buf_attachment, node);
                if let Some((_, attachment, importer)) = ImportOps::<T>::parts(raw) {
                    f(&attachment, importer);
                }
                node = (*node).next;
            }
        }
    }
}

impl<T: Exporter> Drop for Reserved<'_, T> {
    fn drop(&mut self) {
        // SAFETY: Held, by this thread, by the type's invariant.
        unsafe { bindings::dma_resv_unlock((*self.0.raw.as_ptr()).resv) };
    }
}

/// The `dma_buf_ops` of an [`Exporter`].
struct Ops<T>(PhantomData<T>);

impl<T: Exporter> Ops<T> {
    const TABLE: bindings::dma_buf_ops = bindings::dma_buf_ops {
        attach: Some(ImportOps::<T>::attach),
        detach: Some(ImportOps::<T>::detach),
        pin: Some(ImportOps::<T>::pin),
        unpin: Some(ImportOps::<T>::unpin),
        map_dma_buf: Some(ImportOps::<T>::map),
        unmap_dma_buf: Some(ImportOps::<T>::unmap),
        release: Some(Self::release),
        begin_cpu_access: Some(ImportOps::<T>::begin_cpu_access),
        end_cpu_access: Some(ImportOps::<T>::end_cpu_access),
        mmap: Some(Self::mmap),
        vmap: None,
        // Needed for what was mapped before `forbid_vmap`.
        vunmap: Some(ImportOps::<T>::vunmap),
    };

    const WITH_VMAP: bindings::dma_buf_ops = bindings::dma_buf_ops {
        vmap: Some(ImportOps::<T>::vmap),
        ..Self::TABLE
    };

    /// # Safety
    ///
    /// `dmabuf` must be one of ours that has not been released, for all of `'a`.
    unsafe fn data<'a>(dmabuf: *mut bindings::dma_buf) -> ArcBorrow<'a, T> {
        // SAFETY: `DmaBuf::export` has stored the reference, and `release` gives it back.
        unsafe { ArcBorrow::from_raw((*dmabuf).priv_.cast::<T>()) }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone, which passes a dma-buf of this exporter.
    unsafe extern "C" fn mmap(
        dmabuf: *mut bindings::dma_buf,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: A live dma-buf of ours, and a VMA in the mmap hook of its file.
        let (data, vma) = unsafe { (Self::data(dmabuf), NewVma::from_raw(vma)) };
        match T::mmap(data, vma) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For the dma-buf core alone, which passes a dma-buf of this exporter.
    unsafe extern "C" fn release(dmabuf: *mut bindings::dma_buf) {
        // SAFETY: Called once, when nothing else can reach the dma-buf; the reference is ours again.
        let data = unsafe { Arc::from_raw((*dmabuf).priv_.cast::<T>()) };
        data.weak().raw.lock().0 = null_mut();
        T::released(data);
    }
}
