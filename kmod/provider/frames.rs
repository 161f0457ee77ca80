// SPDX-License-Identifier: GPL-2.0

//! Mappings of bare frames, and struct pages that come and go under them.
//!
//! The kernel calls a frame valid before its struct page is filled in, and some time after that page was
//! taken away. Whoever puts a valid frame into a page table, or takes one out, may look at its struct page:
//! `mm/page_table_check.c` does, and oopses. So there are no entries for frames of a region, and no fault
//! makes one, while the region's struct pages change.

use super::{
    claims::Terms,
    Provider, //
};
use crate::pure::mode::Cache;
use kernel::sync::MutexGuard;

/// While this exists, no frame of a region is mapped, and the region's struct pages may change.
pub(super) struct FramesOut<'a> {
    provider: &'a Provider,
    // Dropped last, so that who comes next finds the gate open.
    _changing: &'a MutexGuard<'a, ()>,
}

impl Provider {
    /// What [`Provider::claim`] holds while it decides about the struct pages of a region: with
    /// these `terms` they may change.
    pub(super) fn hold_pages(&self, terms: &Terms) -> Option<MutexGuard<'_, ()>> {
        let matter = terms.pages.is_some() || terms.cache == Cache::WriteCombining;
        matter.then(|| self.pages.lock())
    }

    /// Removes what is mapped of region `index` as bare frames, and keeps it so. Sleeps.
    pub(super) fn keep_frames_out<'a>(
        &'a self,
        index: u32,
        changing: &'a MutexGuard<'a, ()>,
    ) -> FramesOut<'a> {
        // Waits for the faults that are running; others wait from here on.
        self.frames.suspend();
        for buffer in self.buffers() {
            if buffer.region == index && !buffer.folios {
                if let Some(dmabuf) = buffer.dmabuf() {
                    dmabuf.zap(0, 0);
                }
            }
        }
        FramesOut {
            provider: self,
            _changing: changing,
        }
    }
}

impl Drop for FramesOut<'_> {
    fn drop(&mut self) {
        self.provider.frames.resume();
    }
}
