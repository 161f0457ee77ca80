// SPDX-License-Identifier: GPL-2.0

//! Choice of the page size for a mapping.
//!
//! A huge page can stand at an address only if three things hold: the address and the physical
//! address behind it agree in their low bits (they are *congruent*), the whole page lies inside the
//! mapping, and the whole page lies inside one contiguous range of the buffer. The second and third
//! arrive here as one window of addresses, made by [`range::site`](super::range::site).
//!
//! All addresses and lengths are in bytes.

use super::range::Range;

/// Entries in one page table, of any level.
pub const TABLE_ENTRIES: u64 = 512;

/// The page sizes of x86-64, named after the level of the page table that maps them.
///
/// The values are orders as the kernel counts them: powers of two of 4 KiB pages. Larger pages
/// compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum PageOrder {
    /// 4 KiB, mapped by a page table entry.
    Page4K = 0,
    /// 2 MiB, mapped by a page middle directory entry.
    Pmd = 9,
    /// 1 GiB, mapped by a page upper directory entry.
    Pud = 18,
}

impl PageOrder {
    /// All of them, the largest first: the order in which they are tried.
    pub const LARGEST_FIRST: [PageOrder; 3] = [PageOrder::Pud, PageOrder::Pmd, PageOrder::Page4K];

    /// The page size that the kernel calls `order`, as `vm_ops->huge_fault` passes it; `None` for
    /// any other.
    pub const fn from_order(order: u32) -> Option<Self> {
        match order {
            0 => Some(PageOrder::Page4K),
            9 => Some(PageOrder::Pmd),
            18 => Some(PageOrder::Pud),
            _ => None,
        }
    }

    /// The page of `1 << shift` bytes, as user space names it; `None` for any other.
    pub const fn from_shift(shift: u32) -> Option<Self> {
        match shift {
            12 => Some(PageOrder::Page4K),
            21 => Some(PageOrder::Pmd),
            30 => Some(PageOrder::Pud),
            _ => None,
        }
    }

    /// The kernel's number for it: 0, 9 or 18.
    pub const fn order(self) -> u32 {
        // CAST: The enum is `repr(u32)`, so the cast keeps the value.
        self as u32
    }

    /// The number of address bits inside of one page: 12, 21 or 30.
    pub const fn shift(self) -> u32 {
        match self {
            PageOrder::Page4K => 12,
            PageOrder::Pmd => 21,
            PageOrder::Pud => 30,
        }
    }

    /// Bytes in one page.
    pub const fn size(self) -> u64 {
        match self {
            PageOrder::Page4K => 1 << 12,
            PageOrder::Pmd => 1 << 21,
            PageOrder::Pud => 1 << 30,
        }
    }

    /// The address bits inside of one page, as a mask.
    pub const fn low_bits(self) -> u64 {
        match self {
            PageOrder::Page4K => (1 << 12) - 1,
            PageOrder::Pmd => (1 << 21) - 1,
            PageOrder::Pud => (1 << 30) - 1,
        }
    }

    /// The next smaller page, `None` below 4 KiB.
    pub const fn smaller(self) -> Option<Self> {
        match self {
            PageOrder::Pud => Some(PageOrder::Pmd),
            PageOrder::Pmd => Some(PageOrder::Page4K),
            PageOrder::Page4K => None,
        }
    }

    /// `address` rounded down to the start of its page.
    pub const fn align_down(self, address: u64) -> u64 {
        address & !self.low_bits()
    }

    /// `address` rounded up to the start of a page, `None` when that is beyond the last address.
    pub const fn align_up(self, address: u64) -> Option<u64> {
        match address.checked_add(self.low_bits()) {
            Some(sum) => Some(self.align_down(sum)),
            None => None,
        }
    }

    /// Whether `address` is the start of a page.
    pub const fn is_aligned(self, address: u64) -> bool {
        address & self.low_bits() == 0
    }

    /// Whether `va` and `pa` have the same place inside of a page.
    pub const fn congruent(self, va: u64, pa: u64) -> bool {
        self.is_aligned(va ^ pa)
    }
}

/// The page of the given order around `va`, if it can stand there; see [`fits`].
fn leaf(order: PageOrder, va: u64, pa: u64, window: Range) -> Option<Range> {
    if !order.congruent(va, pa) {
        return None;
    }
    let leaf = Range::new(order.align_down(va), order.size()).ok()?;
    window.encloses(leaf).then_some(leaf)
}

/// Whether a page of exactly this order can stand around `va`.
///
/// `pa` is the physical address of the byte at `va`, and `window` holds the addresses for which the
/// difference of the two stays the same and that belong to the mapping.
///
/// `vm_ops->huge_fault` is called for one order at a time and answers `VM_FAULT_FALLBACK` where
/// this is false.
pub fn fits(order: PageOrder, va: u64, pa: u64, window: Range) -> bool {
    leaf(order, va, pa, window).is_some()
}

/// The largest page, at most `max`, that can stand around `va`; arguments as for [`fits`].
///
/// `None` when not even 4 KiB fit: `va` is outside of the window, or the window or the addresses
/// are not on pages.
pub fn largest(va: u64, pa: u64, window: Range, max: PageOrder) -> Option<PageOrder> {
    PageOrder::LARGEST_FIRST
        .into_iter()
        .filter(|order| *order <= max)
        .find(|order| fits(*order, va, pa, window))
}

/// The pages that one fault can fill; see [`around`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// The address of the first of them.
    pub first_va: u64,
    /// The physical address that belongs at `first_va`.
    pub first_pa: u64,
    /// How many: 1 to [`TABLE_ENTRIES`]. Each lies one page behind the one before it, at both
    /// addresses.
    pub count: u64,
    /// Which of them is the page that the fault asked for: less than `count`.
    pub index: u64,
}

/// The pages of one order around `va` that a single fault can fill; arguments as for [`fits`].
///
/// They are all the pages that can stand in the page table that `va`'s own page stands in:
/// neighbouring entries of one table need no further table and no further lock. `None` when `va`'s
/// own page can't stand.
pub fn around(order: PageOrder, va: u64, pa: u64, window: Range) -> Option<Around> {
    let own = leaf(order, va, pa, window)?;
    // A page starts where its physical page starts, since the two are congruent.
    let own_pa = order.align_down(pa);

    // Where the table begins and ends, in pages, so that a table at the very end of the address
    // space has an end too.
    let own_page = own.start() >> order.shift();
    let table_first = own_page & !(TABLE_ENTRIES - 1);
    let table_last = own_page | (TABLE_ENTRIES - 1);

    // The first and the last whole page inside the window.
    let window_first = order.align_up(window.start())? >> order.shift();
    let window_last = (window.end() >> order.shift()).checked_sub(1)?;

    let first = table_first.max(window_first);
    let last = table_last.min(window_last);
    let index = own_page.checked_sub(first)?;
    let first_pa = own_pa.checked_sub(index << order.shift())?;
    let count = last.checked_sub(first)?.checked_add(1)?;
    // The caller steps through these, so that none may lie beyond the last physical address.
    Range::new(first_pa, count << order.shift()).ok()?;
    Some(Around {
        first_va: first << order.shift(),
        first_pa,
        count,
        index,
    })
}

/// The first address at or after `floor` that is congruent to `pa` for this order.
///
/// This is where a mapping of memory at `pa` has to begin so that pages of this order can stand in
/// it. `None` when no such address is left.
pub fn place(order: PageOrder, floor: u64, pa: u64) -> Option<u64> {
    let delta = pa.wrapping_sub(floor) & order.low_bits();
    floor.checked_add(delta)
}

/// The offset of `address` modulo 1 GiB.
///
/// This is all that user space needs, to choose an address for mmap, of where memory lies; the
/// address itself stays in the kernel.
pub const fn align_class(address: u64) -> u64 {
    address & PageOrder::Pud.low_bits()
}

/// The largest page that can stand anywhere in `len` bytes of memory at `pa`, given a mapping at a
/// good address.
///
/// `None` when not one aligned 4 KiB page lies inside, or when the memory would end beyond 64 bits.
pub fn region_max_order(pa: u64, len: u64) -> Option<PageOrder> {
    let memory = Range::new(pa, len).ok()?;
    PageOrder::LARGEST_FIRST.into_iter().find(|order| {
        order
            .align_up(pa)
            .and_then(|first| Range::new(first, order.size()).ok())
            .is_some_and(|page| memory.encloses(page))
    })
}

/// The largest compound page of which `len` bytes of memory at `pa` are made without a remainder.
///
/// Stricter than [`region_max_order`]: `memremap_pages` wants both the start and the length to be
/// multiples. `None` when they are not even multiples of 4 KiB, when `len` is 0, or when the memory
/// would end beyond 64 bits.
pub fn backing_order(pa: u64, len: u64) -> Option<PageOrder> {
    let memory = Range::new(pa, len).ok()?;
    PageOrder::LARGEST_FIRST
        .into_iter()
        .find(|order| order.is_aligned(memory.start() | memory.len()))
}
