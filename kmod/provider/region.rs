// SPDX-License-Identifier: GPL-2.0

//! Regions: the stretches of a provider that can be exported.

use crate::{
    copy::errno,
    ext::{
        pci::BarFacts,
        vma, //
    },
    pure::{
        export,
        order::{
            self,
            PageOrder, //
        },
        range::Range, //
    }, //
};
use kernel::prelude::*;

/// One exportable stretch of a provider. Never changes.
pub(crate) struct Region {
    /// The BAR that it lies in.
    pub(crate) bar: u32,
    /// Its place in that BAR.
    pub(crate) offset: u64,
    /// Its physical addresses.
    pub(crate) physical: Range,
    /// What can be done with it.
    pub(crate) facts: export::Region,
}

impl Region {
    pub(super) fn new(index: u32, bar: &BarFacts, stretch: Range, pages: bool) -> Result<Self> {
        let start = bar.start.checked_add(stretch.start()).ok_or(EINVAL)?;
        let physical = Range::new(start, stretch.len()).map_err(errno)?;
        // The kernel adds memory in units of 2 MiB.
        let page_order = order::backing_order(start, stretch.len())
            .filter(|order| pages && *order >= PageOrder::Pmd && vma::has_leaf(PageOrder::Pmd))
            .map(|order| {
                if vma::has_leaf(order) {
                    order
                } else {
                    PageOrder::Pmd
                }
            });
        Ok(Self {
            bar: index,
            offset: stretch.start(),
            physical,
            facts: export::Region {
                memory_only: false,
                prefetchable: bar.prefetchable,
                pool: false,
                page_order,
                max_order: largest(physical),
            },
        })
    }
}

/// The largest leaf that fits into memory and that this machine has.
pub(super) fn largest(physical: Range) -> PageOrder {
    let mut order =
        order::region_max_order(physical.start(), physical.len()).unwrap_or(PageOrder::Page4K);
    while !vma::has_leaf(order) {
        match order.smaller() {
            Some(smaller) => order = smaller,
            None => break,
        }
    }
    order
}
