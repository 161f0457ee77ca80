// SPDX-License-Identifier: GPL-2.0

//! What may never be exported.
//!
//! Some BARs are refused as a whole, with a [`WhyNot`] that people can read. Of the others, pages
//! that hold the MSI-X table, its pending bits or NVMe registers are cut out; the stretches that
//! are left become regions.
//!
//! All offsets are in bytes, in the BAR.

use super::range::{
    page_aligned,
    Range,
    PAGE_SIZE, //
};

/// Why nothing of a BAR can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// The function is a bridge or has another header that is not type 0.
    Bridge,
    /// The index is that of the expansion ROM, of a virtual function's BAR or of a bridge window.
    NotABar,
    /// The function has no such BAR, or it is the upper half of a 64-bit one.
    Absent,
    /// The BAR holds I/O ports.
    IoPorts,
    /// The firmware and the kernel found no address for it.
    Unassigned,
    /// The kernel knows that CPUs can't map this device's BARs.
    NotMappable,
    /// It is smaller than a page, so that a mapping would show its neighbour.
    SubPage,
    /// It does not begin or end on a page, so that a mapping would show its neighbour.
    Unaligned,
    /// Every page of it holds registers.
    OnlyRegisters,
}

impl WhyNot {
    /// All of them.
    pub const ALL: [WhyNot; 9] = [
        WhyNot::Bridge,
        WhyNot::NotABar,
        WhyNot::Absent,
        WhyNot::IoPorts,
        WhyNot::Unassigned,
        WhyNot::NotMappable,
        WhyNot::SubPage,
        WhyNot::Unaligned,
        WhyNot::OnlyRegisters,
    ];

    /// The reason in words, fit to stand behind the name of the BAR and a colon.
    pub const fn text(self) -> &'static str {
        match self {
            WhyNot::Bridge => "the function is a bridge",
            WhyNot::NotABar => "not one of the six BARs",
            WhyNot::Absent => "not implemented, or the upper half of a 64-bit BAR",
            WhyNot::IoPorts => "I/O ports, not memory",
            WhyNot::Unassigned => "no address is assigned",
            WhyNot::NotMappable => "CPUs can't map it on this machine",
            WhyNot::SubPage => "smaller than a page",
            WhyNot::Unaligned => "does not begin and end on a page",
            WhyNot::OnlyRegisters => "every page holds MSI-X or control registers",
        }
    }
}

/// What the PCI core knows of one BAR.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Its resource index: 0 to 5, or that of something that is no BAR.
    pub index: u32,
    /// Whether it is memory, and not I/O ports.
    pub memory: bool,
    /// Whether it has an address (`IORESOURCE_UNSET` is clear).
    pub assigned: bool,
    /// Whether CPUs can map it (`pci_dev.non_mappable_bars` is clear).
    pub mappable: bool,
    /// Its physical address.
    pub start: u64,
    /// Its length; 0 when it does not exist.
    pub len: u64,
}

/// Bytes of a BAR that hold registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The BAR.
    pub bar: u32,
    /// The bytes; they may reach beyond the BAR's end.
    pub range: Range,
}

/// What is known of the function.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// The header type byte of its configuration space.
    pub header_type: u8,
    /// The MSI-X table, its pending bits, and the registers of a kind of device that the driver
    /// knows.
    pub registers: [Option<Registers>; 3],
}

/// A few ranges, sorted by start and disjoint.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// Those from `count` on mean nothing.
    slots: [Range; Ranges::CAPACITY],
    count: usize,
}

impl Ranges {
    /// As many regions as three cuts can make.
    const CAPACITY: usize = 4;

    const fn new() -> Self {
        Ranges {
            slots: [Range::PAGE_0; Ranges::CAPACITY],
            count: 0,
        }
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[Range] {
        self.slots.get(..self.count).unwrap_or_default()
    }

    fn push(&mut self, range: Range) {
        if let Some(slot) = self.slots.get_mut(self.count) {
            *slot = range;
            self.count = self.count.saturating_add(1);
        }
    }
}

/// What becomes of a BAR.
#[derive(Clone, Copy, Debug)]
pub struct Division {
    /// Pages that are never exported: at most three ranges.
    pub excluded: Ranges,
    /// All the other pages: one to four ranges.
    pub regions: Ranges,
}

/// Decides what of `bar` can be exported.
///
/// # Errors
///
/// The reason when nothing can.
pub fn divide(function: &Function, bar: &Bar) -> Result<Division, WhyNot> {
    // Bit 7 says that the device has several functions.
    if function.header_type & 0x7f != 0 {
        return Err(WhyNot::Bridge);
    }
    if bar.index > 5 {
        return Err(WhyNot::NotABar);
    }
    if bar.len == 0 {
        return Err(WhyNot::Absent);
    }
    if !bar.memory {
        return Err(WhyNot::IoPorts);
    }
    if !bar.assigned || bar.start == 0 || bar.start.checked_add(bar.len).is_none() {
        return Err(WhyNot::Unassigned);
    }
    if !bar.mappable {
        return Err(WhyNot::NotMappable);
    }
    if bar.len < PAGE_SIZE {
        return Err(WhyNot::SubPage);
    }
    if !page_aligned(bar.start | bar.len) {
        return Err(WhyNot::Unaligned);
    }

    let mut division = Division {
        excluded: Ranges::new(),
        regions: Ranges::new(),
    };
    // From page to page of interest: where does the next cut begin, and how far do cuts reach from
    // there?
    let mut cursor = 0;
    while cursor < bar.len {
        let Some(cut) = next_cut(function, bar, cursor) else {
            break;
        };
        if let Some(region) = Range::between(cursor, cut.start()) {
            division.regions.push(region);
        }
        division.excluded.push(cut);
        cursor = cut.end();
    }
    if let Some(region) = Range::between(cursor, bar.len) {
        division.regions.push(region);
    }
    if division.regions.count == 0 {
        return Err(WhyNot::OnlyRegisters);
    }
    Ok(division)
}

/// The first whole stretch of pages at or after `from` that hold registers.
fn next_cut(function: &Function, bar: &Bar, from: u64) -> Option<Range> {
    let whole = Range::new(0, bar.len).ok()?;
    let cuts = || {
        function
            .registers
            .iter()
            .flatten()
            .filter(|registers| registers.bar == bar.index)
            .filter_map(|registers| pages_around(registers.range).intersection(whole))
    };
    let first = cuts()
        .filter(|cut| cut.start() >= from)
        .min_by_key(|cut| cut.start())?;
    // Another cut can begin inside of it, or right behind, and reach further. There are three at
    // most.
    let mut end = first.end();
    for _ in 0..function.registers.len() {
        for cut in cuts() {
            if cut.start() >= first.start() && cut.start() <= end {
                end = end.max(cut.end());
            }
        }
    }
    Range::between(first.start(), end)
}

/// The pages that hold any byte of `range`.
fn pages_around(range: Range) -> Range {
    let start = range.start() & !(PAGE_SIZE - 1);
    let end = match range.end().checked_add(PAGE_SIZE - 1) {
        Some(end) => end & !(PAGE_SIZE - 1),
        None => u64::MAX,
    };
    Range::between(start, end).unwrap_or(range)
}

/// Where the MSI-X capability says that the table and the pending bits lie.
///
/// `control` is the capability's message control word, `table` and `pba` are its two offset
/// registers.
pub fn msix(control: u16, table: u32, pba: u32) -> [Option<Registers>; 2] {
    let vectors = u64::from(control & 0x7ff).saturating_add(1);
    // 16 bytes per vector, and one pending bit per vector in words of 8 bytes.
    [
        registers(table, vectors.saturating_mul(16)),
        registers(pba, vectors.div_ceil(64).saturating_mul(8)),
    ]
}

/// Splits an offset register of the MSI-X capability: the BAR is in the lowest three bits.
fn registers(offset: u32, len: u64) -> Option<Registers> {
    Some(Registers {
        bar: offset & 7,
        range: Range::new(u64::from(offset & !7), len).ok()?,
    })
}

/// The registers and doorbells of an NVMe controller, in BAR 0.
///
/// `stride` is `CAP.DSTRD`, 0 to 15: a doorbell takes `4 << stride` bytes. `queues` is the number
/// of queue pairs with the admin queues; a driver that can't know it passes 65,536, the most that
/// there can be.
pub fn nvme(stride: u32, queues: u32) -> Option<Registers> {
    const DOORBELLS: u64 = 0x1000;
    let doorbell = 4u64.checked_shl(stride.min(15))?;
    let doorbells = doorbell.checked_mul(2)?.checked_mul(u64::from(queues))?;
    Some(Registers {
        bar: 0,
        range: Range::new(0, doorbells.checked_add(DOORBELLS)?).ok()?,
    })
}
