// SPDX-License-Identifier: GPL-2.0

//! The layout of the kernel's private `struct pci_p2pdma_pagemap`.
//!
//! `drivers/pci/p2pdma.c` finds it around every `dev_pagemap` of type `MEMORY_DEVICE_PCI_P2PDMA`, but no header declares
//! it. It is in the kernel's type information (BTF): once when the module is built (`kmod/btf_layout.rs` writes
//! `layout.h`), and again when it is loaded. Page backing needs the two to be equal.

use super::shim;
use crate::pure::{
    btf,
    pagemap::Layout, //
};
use core::ptr::null_mut;
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*, //
};

/// Where the running kernel shows its type information.
const BTF_PATH: &CStr = c"/sys/kernel/btf/vmlinux";

/// The largest BTF that is read, in bytes. Debian's 7.3.4 has 5.3 MiB.
const BTF_LIMIT: usize = 64 << 20;

/// The layout that the module was built for.
fn built() -> Layout {
    // SAFETY: They return constants.
    unsafe {
        Layout {
            size: shim::barbuf_helper_layout_size().into(),
            pgmap: shim::barbuf_helper_layout_pgmap().into(),
            pgmap_size: shim::barbuf_helper_layout_pgmap_size().into(),
            mem: shim::barbuf_helper_layout_mem().into(),
        }
    }
}

/// The layout, if the module was built for the one that the running kernel has.
///
/// Prints why not, when not. The module works without it, but has no page backing.
pub(crate) fn verified() -> Option<Layout> {
    let built = built();
    if built.size == 0 {
        pr_warn!("page backing is off: built without the kernel's BTF (no vmlinux in KDIR)\n");
        return None;
    }
    let contents = match Contents::read(BTF_PATH) {
        Ok(contents) => contents,
        Err(error) => {
            pr_warn!(
                "page backing is off: can't read {}: errno {}\n",
                "/sys/kernel/btf/vmlinux",
                error.to_errno()
            );
            return None;
        }
    };
    match Layout::read(contents.bytes()) {
        Ok(running) if running == built && usable(&running) => Some(running),
        Ok(_) => {
            pr_warn!("page backing is off: this kernel is not the one the module was built against (struct pci_p2pdma_pagemap differs); rebuild the module\n");
            None
        }
        Err(error) => {
            let _: btf::Error = error;
            pr_warn!(
                "page backing is off: BTF of this kernel: {}\n",
                error.text()
            );
            None
        }
    }
}

/// Whether the bindings' `struct dev_pagemap` fits into the layout.
fn usable(layout: &Layout) -> bool {
    // CAST: Sizes of structs are small.
    layout.pgmap == 0
        && layout.pgmap_size == size_of::<bindings::dev_pagemap>() as u64
        && layout.mem >= layout.pgmap_size
        && layout
            .mem
            .checked_add(size_of::<*mut bindings::p2pdma_provider>() as u64)
            .is_some_and(|end| end <= layout.size)
}

/// What a file contains.
struct Contents(KVVec<u8>);

impl Contents {
    /// Reads the file at `path`. Sleeps.
    ///
    /// This is no reading "for the kernel" in the sense of the security modules, which know files of
    /// certain kinds only: nothing in it is executed or loaded.
    fn read(path: &CStr) -> Result<Self> {
        let file = OpenFile::open(path)?;
        let len = file.len().filter(|len| *len <= BTF_LIMIT).ok_or(EFBIG)?;
        let mut bytes = KVVec::from_elem(0u8, len, GFP_KERNEL)?;
        let mut at = 0usize;
        while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match file.read(rest, at)? {
                0 => return Err(EIO),
                count => at = at.saturating_add(count),
            }
        }
        Ok(Self(bytes))
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A file that the kernel has opened for itself.
///
/// # Invariants
///
/// Owns one reference to an open file.
struct OpenFile(*mut bindings::file);

impl OpenFile {
    fn open(path: &CStr) -> Result<Self> {
        // SAFETY: `path` is a string.
        let file = unsafe { bindings::filp_open(path.as_char_ptr(), bindings::O_RDONLY as i32, 0) };
        // INVARIANT: `filp_open` returns a reference.
        Ok(Self(from_err_ptr(file)?))
    }

    fn len(&self) -> Option<usize> {
        // SAFETY: The file is open, and has an inode. Nobody changes the size of a file in sysfs.
        usize::try_from(unsafe { (*(*self.0).f_inode).i_size }).ok()
    }

    /// Reads some bytes from offset `at`; 0 at the end.
    fn read(&self, to: &mut [u8], at: usize) -> Result<usize> {
        let mut position = i64::try_from(at).map_err(|_| EFBIG)?;
        // SAFETY: The file is open, and the buffer is as long as we say.
        let count = unsafe {
            bindings::kernel_read(self.0, to.as_mut_ptr().cast(), to.len(), &mut position)
        };
        // CAST: Errnos are small.
        usize::try_from(count).map_err(|_| Error::from_errno(count as i32))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // SAFETY: Gives back the reference that the type owns.
        unsafe { bindings::filp_close(self.0, null_mut()) };
    }
}
