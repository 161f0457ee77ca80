// SPDX-License-Identifier: GPL-2.0

//! Regions: the stretches of a provider that can be exported.

use crate::{
    copy::errno,
    ext::{
        fault,
        pci::{
            BarFacts,
            Function, //
        }, //
    },
    pure::{
        exclude,
        export,
        order::{
            self,
            PageOrder, //
        },
        range::Range,
        vendor::{
            self,
            Wish, //
        }, //
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
    /// What the function's own driver has registered as `wish`, which was found to be `stretch`.
    pub(super) fn registered(
        bar: &BarFacts,
        wish: &Wish,
        stretch: Range,
        pages: bool,
    ) -> Result<Self> {
        let pages = pages && wish.flags & vendor::PAGES != 0;
        let mut region = Self::new(wish.bar, bar, stretch, pages)?;
        region.facts.memory_only = wish.flags & vendor::MEMORY_ONLY != 0;
        region.facts.prefetchable = vendor::allows_write_combining(wish);
        Ok(region)
    }

    pub(super) fn new(index: u32, bar: &BarFacts, stretch: Range, pages: bool) -> Result<Self> {
        let start = bar.start.checked_add(stretch.start()).ok_or(EINVAL)?;
        let physical = Range::new(start, stretch.len()).map_err(errno)?;
        // The kernel adds memory in units of 2 MiB.
        let page_order = order::backing_order(start, stretch.len())
            .filter(|order| pages && *order >= PageOrder::Pmd && fault::has_leaf(PageOrder::Pmd))
            .map(|order| {
                if fault::has_leaf(order) {
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

/// The pages of `function` that are never exported.
///
/// # Errors
///
/// `ENODEV` when its configuration space cannot be read.
pub(crate) fn exclusions(function: &Function) -> Result<exclude::Function> {
    let registers = function.msix()?;
    Ok(exclude::Function {
        header_type: function.header_type(),
        registers: [
            registers.first().copied().flatten(),
            registers.last().copied().flatten(),
            function
                .is_nvme()
                .then(|| exclude::nvme(15, 65536))
                .flatten(),
        ],
    })
}

/// The largest leaf that fits into memory and that this machine has.
pub(super) fn largest(physical: Range) -> PageOrder {
    let mut order =
        order::region_max_order(physical.start(), physical.len()).unwrap_or(PageOrder::Page4K);
    while !fault::has_leaf(order) {
        match order.smaller() {
            Some(smaller) => order = smaller,
            None => break,
        }
    }
    order
}
