// SPDX-License-Identifier: GPL-2.0

//! barbuf: PCI BAR memory as dma-bufs with huge mappings.
//!
//! Start reading at `provider.rs` (what is exported, and the lock order), `export.rs` (how a buffer
//! comes into being), `map.rs` (where a page fault goes) and `buffer.rs` (how memory is taken back).
//! `pure/` decides, `ext/` talks to the kernel; both are free of the other.

mod adopt;
mod answer;
mod bound;
mod buffer;
mod copy;
mod debug;
mod export;
mod ext;
mod few;
mod import;
#[cfg(CONFIG_KUNIT)]
mod kunit;
mod map;
mod node;
mod provider;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with host tests, which use all of it and see it as a crate"
)]
mod pure;
mod registry;
mod route;
mod uapi;
mod vendor;

use crate::{
    adopt::{
        Adoptions,
        ReleaseAll, //
    },
    bound::BoundDriver,
    ext::{
        global::{
            self,
            Installed, //
        },
        layout,
        node::Node,
        notifier::Watch,
        recovery, //
    },
    node::{
        Control,
        Quota, //
    },
    pure::pagemap::Layout,
    registry::Registry,
};
use kernel::{
    driver,
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// The permissions of the control node: everybody may ask what a buffer is.
const CONTROL_MODE: u16 = 0o666;

module! {
    type: Barbuf,
    name: "barbuf",
    authors: ["The barbuf developers"],
    description: "PCI BAR memory (NPU HBM, NVMe CMB) as dma-bufs with 1 GiB and 2 MiB mappings",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
    params: {
        fault_around: bool {
            default: true,
            description: "Fill all leaves of a page table at the first fault in it (default 1)",
        },
        max_buffers: i64 {
            default: 16384,
            description: "Buffers in all (default 16384)",
        },
        max_buffers_per_file: i64 {
            default: 1024,
            description: "Buffers that one open file of a node can have exported (default 1024)",
        },
    },
}

/// The parameters.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// Fill neighbours at a fault.
    pub(crate) fault_around: bool,
    /// The limit for one open file.
    pub(crate) buffers_per_file: i64,
}

/// What all parts of the module share.
pub(crate) struct Shared {
    /// The parameters.
    pub(crate) settings: Settings,
    /// The layout of `struct pci_p2pdma_pagemap`, if it is safe to use.
    pub(crate) layout: Option<Layout>,
    /// All providers.
    pub(crate) registry: Arc<Registry>,
    /// The limit for all buffers.
    pub(crate) quota: Arc<Quota>,
}

/// The module. Dropped from top to bottom: first nobody can come in any more, then what exists goes.
#[pin_data]
struct Barbuf {
    #[pin]
    _files: debug::Files,
    _control: Pin<KBox<Node<Control>>>,
    /// Unbinds all functions.
    _driver: Pin<KBox<driver::Registration<recovery::Adapter<BoundDriver>>>>,
    _adopted: ReleaseAll,
    _watch: Pin<KBox<Watch<Adoptions>>>,
    _shared: Installed,
}

impl kernel::InPlaceModule for Barbuf {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let settings = Settings {
                fault_around: module_parameters::fault_around.value(),
                buffers_per_file: module_parameters::max_buffers_per_file.value(),
            };
            let most = module_parameters::max_buffers.value();
            if settings.buffers_per_file < 0 || most < 0 {
                pr_err!("max_buffers and max_buffers_per_file must not be negative\n");
                return Err(EINVAL);
            }
            let shared = Arc::new(
                Shared {
                    settings,
                    layout: layout::verified(),
                    registry: Arc::pin_init(Registry::new(), GFP_KERNEL)?,
                    quota: Arc::new(Quota::new(most), GFP_KERNEL)?,
                },
                GFP_KERNEL,
            )?;
            let adoptions = Arc::pin_init(Adoptions::new(shared.clone()), GFP_KERNEL)?;
            // Fields are initialised from top to bottom; each makes the next one reachable, and the
            // driver comes last of those that user space can use.
            let installed = global::install(module, shared.clone());
            let watch = KBox::pin_init(Watch::new(adoptions.clone()), GFP_KERNEL)?;
            let driver = KBox::pin_init(
                driver::Registration::new(<LocalModule as kernel::ModuleMetadata>::NAME, module),
                GFP_KERNEL,
            )?;
            let control = KBox::pin_init(
                Node::new(
                    CString::try_from(c"barbuf/control")?,
                    CONTROL_MODE,
                    Arc::new(adoptions.clone(), GFP_KERNEL)?,
                ),
                GFP_KERNEL,
            )?;
            Ok(try_pin_init!(Self {
                _files <- debug::Files::new(shared),
                _control: control,
                _driver: driver,
                _adopted: ReleaseAll(adoptions),
                _watch: watch,
                _shared: installed,
            }? Error))
        })
    }
}
