// SPDX-License-Identifier: MIT OR Apache-2.0

//! The words of the interface as types. A value that this version does not know is kept, because a
//! newer kernel may use it.

use std::fmt;

use barbuf_sys::*;

/// An enum over numbers of the kernel's interface that keeps unknown ones.
macro_rules! kernel_enum {
    (
        $(#[$outer:meta])*
        $name:ident { $($(#[$inner:meta])* $variant:ident = $value:expr, $text:literal;)* }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$inner])* $variant,)*
            /// A number that this version of the crate does not know.
            Unknown(u32),
        }

        impl $name {
            /// From the number of `linux/barbuf.h`.
            pub fn from_raw(raw: u32) -> Self {
                match raw {
                    $(value if value == $value => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }

            /// The number of `linux/barbuf.h`.
            pub fn to_raw(self) -> u32 {
                match self {
                    $(Self::$variant => $value,)*
                    Self::Unknown(raw) => raw,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.pad($text),)*
                    Self::Unknown(raw) => f.pad(&format!("unknown ({raw})")),
                }
            }
        }
    };
}

kernel_enum! {
    /// How a function became a provider.
    Kind {
        /// barbuf is its PCI driver.
        Bound = BARBUF_KIND_BOUND, "bound";
        /// Its own driver has published p2pmem; barbuf takes ranges from that pool.
        Adopted = BARBUF_KIND_ADOPTED, "adopted";
        /// Its own driver has registered regions.
        Registered = BARBUF_KIND_REGISTERED, "registered";
    }
}

kernel_enum! {
    /// What stands behind the bytes of a buffer.
    Backing {
        /// No struct pages. Costs no memory; file I/O into the mapping fails with `EFAULT`.
        Pfn = BARBUF_BACKING_PFN, "pfn";
        /// Compound struct pages. `O_DIRECT` works on the mapping, which consists of whole pages
        /// of one size.
        Page = BARBUF_BACKING_PAGE, "page";
    }
}

kernel_enum! {
    /// How the CPU accesses the bytes of a buffer.
    Cache {
        /// Uncached: every access reaches the device, in order.
        Uncached = BARBUF_CACHE_UC, "UC";
        /// Write combining: stores are gathered. Prefetchable regions with pfn backing only.
        WriteCombining = BARBUF_CACHE_WC, "WC";
    }
}

kernel_enum! {
    /// The life of a buffer.
    State {
        /// Usable.
        Live = BARBUF_STATE_LIVE, "live";
        /// Its function is being reset; it comes back by itself.
        Suspended = BARBUF_STATE_SUSPENDED, "suspended";
        /// Gone for good.
        Revoked = BARBUF_STATE_REVOKED, "revoked";
    }
}

kernel_enum! {
    /// How a device reaches a provider's memory.
    RouteKind {
        /// Not at all.
        None = BARBUF_ROUTE_NONE, "none";
        /// By bus addresses, through a PCIe switch above both, or as functions of one device.
        Switch = BARBUF_ROUTE_SWITCH, "switch";
        /// Through the host bridge.
        HostBridge = BARBUF_ROUTE_HOST_BRIDGE, "host bridge";
    }
}

kernel_enum! {
    /// Why a device cannot be an importer.
    Reason {
        /// It can.
        None = BARBUF_REASON_NONE, "";
        /// There is no such PCI function.
        NoDevice = BARBUF_REASON_NO_DEVICE, "there is no such function";
        /// The way leads through a host bridge of which the kernel does not know that it forwards
        /// between its ports.
        HostBridge = BARBUF_REASON_HOST_BRIDGE,
            "the host bridge on the way is not known to forward between its ports";
        /// A switch is above both, but the ACS settings of a port on the way send requests up to
        /// such a host bridge.
        AcsRedirect = BARBUF_REASON_ACS_REDIRECT,
            "ACS redirects requests up to a host bridge that is not known to forward them";
        /// The device cannot form the addresses: its driver has set a DMA mask below them.
        DmaMask = BARBUF_REASON_DMA_MASK, "its DMA mask is below the memory's addresses";
        /// The kernel offers no peer-to-peer DMA for the provider.
        NoP2pdma = BARBUF_REASON_NO_P2PDMA,
            "the kernel offers no peer-to-peer DMA for the provider";
    }
}

/// What may be done to a buffer or through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Loads, by CPUs and by importing devices.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
        })
    }
}

/// The three sizes that a page of a mapping can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// log2 of the bytes.
    pub const fn shift(self) -> u32 {
        match self {
            PageSize::Size4K => BARBUF_PAGE_SHIFT_4K,
            PageSize::Size2M => BARBUF_PAGE_SHIFT_2M,
            PageSize::Size1G => BARBUF_PAGE_SHIFT_1G,
        }
    }

    /// The largest size that is not above `1 << shift` bytes. `None` below 4 KiB.
    pub const fn at_most(shift: u32) -> Option<Self> {
        match shift {
            BARBUF_PAGE_SHIFT_1G.. => Some(PageSize::Size1G),
            BARBUF_PAGE_SHIFT_2M.. => Some(PageSize::Size2M),
            BARBUF_PAGE_SHIFT_4K.. => Some(PageSize::Size4K),
            _ => None,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PageSize::Size4K => "4 KiB",
            PageSize::Size2M => "2 MiB",
            PageSize::Size1G => "1 GiB",
        })
    }
}

/// A NUL-padded name as text.
pub(crate) fn name_of(bytes: &[u8; BARBUF_NAME_LEN]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_are_kept() {
        for raw in [0, 1, 2, 3, u32::MAX] {
            assert_eq!(Kind::from_raw(raw).to_raw(), raw);
            assert_eq!(State::from_raw(raw).to_raw(), raw);
            assert_eq!(Cache::from_raw(raw).to_raw(), raw);
            assert_eq!(Backing::from_raw(raw).to_raw(), raw);
        }
        assert_eq!(Kind::from_raw(7).to_string(), "unknown (7)");
        assert_eq!(format!("{:>5}", Backing::Pfn), "  pfn");
    }

    #[test]
    fn page_sizes_round_down() {
        assert_eq!(PageSize::at_most(11), None);
        assert_eq!(PageSize::at_most(20), Some(PageSize::Size4K));
        assert_eq!(PageSize::at_most(29), Some(PageSize::Size2M));
        assert_eq!(PageSize::at_most(39), Some(PageSize::Size1G));
        assert!(PageSize::Size2M < PageSize::Size1G);
    }
}
