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

/// A file's contents.
///
/// # Invariants
///
/// `buffer` was allocated by the kernel for us, and its first `len` bytes are initialised.
struct Contents {
    buffer: *mut kernel::ffi::c_void,
    len: usize,
}

impl Contents {
    fn read(path: &CStr) -> Result<Self> {
        let mut buffer = null_mut();
        // SAFETY: A null buffer asks the function to allocate one; `path` is a string.
        let read = unsafe {
            bindings::kernel_read_file_from_path(
                path.as_char_ptr(),
                0,
                &mut buffer,
                BTF_LIMIT,
                null_mut(),
                bindings::kernel_read_file_id_READING_UNKNOWN,
            )
        };
        if read < 0 {
            // CAST: Errnos are small.
            return Err(Error::from_errno(read as i32));
        }
        // INVARIANT: The function has allocated it and read that many bytes.
        Ok(Self {
            buffer,
            len: read as usize,
        })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: By the type's invariant.
        unsafe { core::slice::from_raw_parts(self.buffer.cast(), self.len) }
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        // SAFETY: Allocated by `kernel_read_file`, with vmalloc.
        unsafe { bindings::kvfree(self.buffer) };
    }
}
