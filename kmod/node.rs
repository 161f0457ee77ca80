// SPDX-License-Identifier: GPL-2.0

//! The nodes in /dev/barbuf: who has opened them, and which request goes where.

use crate::{
    adopt::Adoptions,
    answer,
    buffer::Buffer,
    export,
    ext::{
        access,
        dmabuf::DmaBuf,
        node::{
            Opener,
            Placement, //
        },
        vma::NewVma, //
    },
    provider::Provider,
    pure::{
        export::Flags,
        order::PageOrder, //
    },
    route,
    uapi, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
};

/// How many buffers somebody has, and may have.
pub(crate) struct Quota {
    used: Atomic<i64>,
    most: i64,
}

impl Quota {
    /// Room for `most` buffers.
    pub(crate) fn new(most: i64) -> Self {
        Self {
            used: Atomic::new(0),
            most,
        }
    }

    fn take(&self) -> Result {
        if self.used.fetch_add(1, Full) >= self.most {
            self.give_back();
            return Err(ENOSPC);
        }
        Ok(())
    }

    fn give_back(&self) {
        self.used.add(-1, Relaxed);
    }

    /// How many there are.
    pub(crate) fn used(&self) -> i64 {
        self.used.load(Relaxed)
    }

    /// How many there may be.
    pub(crate) fn most(&self) -> i64 {
        self.most
    }
}

/// The right to one buffer, counted against its exporter's limit and the module's.
pub(crate) struct Ticket {
    own: Arc<Quota>,
    all: Arc<Quota>,
}

impl Ticket {
    /// Takes one.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when one of the limits is reached.
    pub(crate) fn new(own: &Arc<Quota>, all: &Arc<Quota>) -> Result<Self> {
        own.take()?;
        all.take().inspect_err(|_| own.give_back())?;
        Ok(Self {
            own: own.clone(),
            all: all.clone(),
        })
    }

    /// Whether it is counted against `quota`.
    pub(crate) fn is_from(&self, quota: &Arc<Quota>) -> bool {
        Arc::ptr_eq(&self.own, quota)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.own.give_back();
        self.all.give_back();
    }
}

/// What a provider's node knows.
pub(crate) struct ProviderNode {
    /// The provider.
    pub(crate) provider: Arc<Provider>,
    /// The module's limit.
    pub(crate) all: Arc<Quota>,
}

/// An open file of a provider's node.
pub(crate) struct Session {
    /// The provider.
    pub(crate) provider: Arc<Provider>,
    /// This file's limit.
    pub(crate) own: Arc<Quota>,
    /// The module's limit.
    pub(crate) all: Arc<Quota>,
}

impl Opener for Session {
    type Node = ProviderNode;

    fn open(node: ArcBorrow<'_, ProviderNode>) -> Result<Arc<Self>> {
        let provider = node.provider.clone();
        if provider.gate.is_closed() {
            return Err(ENODEV);
        }
        let most = provider.settings.buffers_per_file;
        let session = Self {
            provider,
            own: Arc::new(Quota::new(most), GFP_KERNEL_ACCOUNT)?,
            all: node.all.clone(),
        };
        Ok(Arc::new(session, GFP_KERNEL_ACCOUNT)?)
    }

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        let known = matches!(
            cmd,
            uapi::INFO | uapi::EXPORT | uapi::QUERY | uapi::REVOKE | uapi::ROUTE
        );
        if !known {
            return Err(ENOTTY);
        }
        // Requests that need the hardware look again, and hold on to it.
        if this.provider.gate.is_closed() {
            return Err(ENODEV);
        }
        match cmd {
            uapi::INFO => answer::info(&this.provider, arg)?,
            uapi::EXPORT => export::export(&this, arg)?,
            uapi::QUERY => answer::query(Some(&this.provider), arg)?,
            uapi::ROUTE => route::route(&this.provider, arg)?,
            _ => answer::revoke(&this.provider, arg)?,
        }
        Ok(0)
    }

    fn mmap(this: ArcBorrow<'_, Self>, vma: NewVma<'_>, offset: u64) -> Result {
        let buffer = this.provider.find(offset).ok_or(ENODEV)?;
        let dmabuf: DmaBuf<Buffer> = buffer.dmabuf().ok_or(ENODEV)?;
        dmabuf.mmap(vma, offset.wrapping_sub(buffer.cookie))
    }

    fn placement(this: ArcBorrow<'_, Self>, offset: u64) -> Option<Placement> {
        let buffer = this.provider.find(offset)?;
        let place = crate::pure::range::locate(&buffer.ranges, offset.checked_sub(buffer.cookie)?)?;
        Some(Placement {
            order: buffer.order,
            class: buffer.base.checked_add(place.offset)?,
        })
    }

    fn release(this: Arc<Self>) {
        let ours = |buffer: &Arc<Buffer>| {
            buffer.terms.flags.contains(Flags::REVOKE_ON_CLOSE) && buffer.ticket.is_from(&this.own)
        };
        if this.own.used() == 0 {
            return;
        }
        for buffer in this.provider.buffers().filter(ours) {
            // Somebody else may have done it.
            let _ = buffer.revoke();
        }
    }
}

/// An open file of /dev/barbuf/control.
pub(crate) struct Control {
    adoptions: Arc<Adoptions>,
}

impl Opener for Control {
    type Node = Arc<Adoptions>;

    fn open(node: ArcBorrow<'_, Arc<Adoptions>>) -> Result<Arc<Self>> {
        let control = Self {
            adoptions: (*node).clone(),
        };
        Ok(Arc::new(control, GFP_KERNEL_ACCOUNT)?)
    }

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            uapi::QUERY => answer::query(None, arg)?,
            uapi::ADOPT => {
                access::admin()?;
                this.adoptions.adopt(answer::adoptee(arg)?)?;
            }
            uapi::RELEASE => {
                access::admin()?;
                this.adoptions.release(answer::adoptee(arg)?)?;
            }
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn mmap(_: ArcBorrow<'_, Self>, _: NewVma<'_>, _: u64) -> Result {
        Err(ENODEV)
    }

    fn placement(_: ArcBorrow<'_, Self>, _: u64) -> Option<Placement> {
        None
    }

    fn release(_: Arc<Self>) {}
}

/// The capabilities that INFO tells.
pub(crate) fn capabilities(provider: &Provider) -> u64 {
    let leaf = crate::ext::fault::has_leaf;
    let mut bits = 0;
    if provider.has_pages() {
        bits |= uapi::CAP_PAGE_BACKING;
    }
    if leaf(PageOrder::Pud) {
        bits |= uapi::CAP_LEAF_1G;
    }
    if leaf(PageOrder::Pmd) {
        bits |= uapi::CAP_LEAF_2M;
    }
    bits
}
