// SPDX-License-Identifier: GPL-2.0

//! The buffers of a provider, found by the offsets of its node that map them.
//!
//! Offsets are given out in ascending order, so that a new buffer goes to the end of a sorted list,
//! or close to it. One that goes leaves its place empty; when half of the places are, all empty
//! ones are closed up at once. So coming and going cost the same however many there are.

use crate::buffer::Buffer;
use kernel::{
    prelude::*,
    sync::Arc, //
};

struct Slot {
    /// The last offset of its window.
    last: u64,
    /// `None` once it has gone.
    buffer: Option<Arc<Buffer>>,
}

/// The list.
pub(super) struct Buffers {
    /// Sorted by `last`. Windows do not overlap.
    slots: KVec<Slot>,
    /// How many of them are empty.
    empty: usize,
}

impl Buffers {
    /// No buffer.
    pub(super) fn new() -> Self {
        Self {
            slots: KVec::new(),
            empty: 0,
        }
    }

    /// The index of the first slot whose window ends at or behind `offset`.
    fn index(&self, offset: u64) -> usize {
        self.slots.partition_point(|slot| slot.last < offset)
    }

    /// Adds a buffer.
    ///
    /// # Errors
    ///
    /// `ENOMEM`
    pub(super) fn insert(&mut self, buffer: Arc<Buffer>) -> Result {
        let last = buffer.last_offset();
        self.slots.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let at = self.index(last);
        let slot = Slot {
            last,
            buffer: Some(buffer),
        };
        self.slots
            .insert_within_capacity(at, slot)
            .map_err(|_| ENOMEM)
    }

    /// Takes the buffer out whose window ends with `last`.
    pub(super) fn remove(&mut self, last: u64) -> Option<Arc<Buffer>> {
        let at = self.index(last);
        let slot = self.slots.get_mut(at).filter(|slot| slot.last == last)?;
        let buffer = slot.buffer.take()?;
        self.empty = self.empty.saturating_add(1);
        if self.empty > self.slots.len() / 2 {
            self.slots.retain(|slot| slot.buffer.is_some());
            self.empty = 0;
        }
        Some(buffer)
    }

    /// The buffer whose window `offset` lies in.
    pub(super) fn at(&self, offset: u64) -> Option<&Arc<Buffer>> {
        let buffer = self.slots.get(self.index(offset))?.buffer.as_ref()?;
        (buffer.cookie <= offset).then_some(buffer)
    }

    /// The first buffer whose window ends at or behind `offset`, and that end.
    pub(super) fn first_from(&self, offset: u64) -> Option<(u64, &Arc<Buffer>)> {
        self.slots
            .get(self.index(offset)..)?
            .iter()
            .find_map(|slot| Some((slot.last, slot.buffer.as_ref()?)))
    }
}
