// SPDX-License-Identifier: GPL-2.0

//! Whether a device reaches a provider's memory by DMA.
//!
//! The kernel walks the bridges; here is what its findings mean. The values are those of
//! `uapi/linux/barbuf.h`; a host test compares the two.

/// How a device reaches the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Not at all.
    None = 0,
    /// By bus addresses, through a switch above both.
    Switch = 1,
    /// Through the host bridge.
    HostBridge = 2,
}

impl Kind {
    /// The number that user space knows.
    pub const fn to_uapi(self) -> u32 {
        // CAST: The enum is `repr(u8)`, so the cast keeps the value.
        self as u32
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Switch => "switch",
            Kind::HostBridge => "host-bridge",
        }
    }
}

/// Why a device cannot import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// It can.
    None = 0,
    /// There is no such PCI function.
    NoDevice = 1,
    /// The host bridge is not known to forward between its ports.
    HostBridge = 2,
    /// ACS redirection sends requests up to such a host bridge.
    AcsRedirect = 3,
    /// Its DMA mask is below the addresses.
    DmaMask = 4,
    /// The provider has no peer-to-peer DMA.
    NoP2pdma = 5,
}

impl Reason {
    /// The number that user space knows.
    pub const fn to_uapi(self) -> u32 {
        // CAST: The enum is `repr(u32)`, so the cast keeps the value.
        self as u32
    }

    /// For people: the rest of a sentence about an importer that was refused.
    pub const fn text(self) -> &'static str {
        match self {
            Reason::None => "nothing is in the way",
            Reason::NoDevice => "it is no PCI function",
            Reason::HostBridge => {
                "no switch is above both, and the host bridge is not in the kernel's P2PDMA list"
            }
            Reason::AcsRedirect => {
                "ACS redirection on the way leads to a host bridge that is not in the kernel's P2PDMA list"
            }
            Reason::DmaMask => "its DMA mask does not cover the memory",
            Reason::NoP2pdma => "the kernel offers no peer-to-peer DMA for this memory",
        }
    }
}

/// The memory that is to be reached.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The BAR that it lies in.
    pub bar: u32,
    /// Its last byte as CPUs see it.
    pub last: u64,
    /// How many bytes there are.
    pub size: u64,
}

/// What is known of the way between a provider and a device.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The kernel's distance; `None` when it says that there is no way.
    pub distance: Option<u32>,
    /// A bridge or function is above both, or one of them is above the other.
    pub common: bool,
    /// A port between them and what is above both redirects.
    pub redirected: bool,
    /// An IOMMU translates for the device.
    pub translated: bool,
    /// The highest address that the device can form; `None` when no driver has said.
    pub mask: Option<u64>,
    /// The last byte of the memory as the bus sees it.
    pub last_bus: u64,
    /// The memory.
    pub memory: Memory,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// How.
    pub kind: Kind,
    /// Why not.
    pub reason: Reason,
    /// The kernel's distance, 0 when there is no way.
    pub distance: u32,
}

impl Route {
    /// No way, because of `reason`.
    pub const fn none(reason: Reason) -> Self {
        Route {
            kind: Kind::None,
            reason,
            distance: 0,
        }
    }
}

/// The last address that a device has to form to reach `memory`, whose last byte the bus sees at
/// `last_bus`, over a route of this kind.
///
/// Behind an IOMMU that is one range of addresses of its own, for which only the length is known.
pub const fn last_address(kind: Kind, translated: bool, memory: &Memory, last_bus: u64) -> u64 {
    match kind {
        Kind::Switch => last_bus,
        _ if translated => memory.size.saturating_sub(1),
        _ => memory.last,
    }
}

/// How many bytes the kernel's helper may be given in one piece.
///
/// It cuts what is longer than 4 GiB less a page into entries of the scatterlist. Without an IOMMU
/// on the way of a host bridge, it maps the piece as a whole and unmaps every entry, which the DMA
/// API forbids. Pieces of 2 GiB are never cut, and keep the alignment of the memory.
pub const fn piece_limit(kind: Kind, translated: bool) -> u64 {
    match kind {
        Kind::HostBridge if !translated => 1 << 31,
        _ => u64::MAX,
    }
}

impl Facts {
    /// What the findings mean.
    pub const fn judge(&self) -> Route {
        let distance = match self.distance {
            Some(distance) => distance,
            None if self.common && self.redirected => return Route::none(Reason::AcsRedirect),
            None => return Route::none(Reason::HostBridge),
        };
        let kind = if self.common && !self.redirected {
            Kind::Switch
        } else {
            Kind::HostBridge
        };
        match self.mask {
            Some(mask)
                if last_address(kind, self.translated, &self.memory, self.last_bus) > mask =>
            {
                Route::none(Reason::DmaMask)
            }
            _ => Route {
                kind,
                reason: Reason::None,
                distance,
            },
        }
    }
}
