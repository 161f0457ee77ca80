// SPDX-License-Identifier: GPL-2.0

//! How a PCI function is called: `0000:03:00.0`.

use core::fmt;

/// Where a function sits: `0000:03:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The PCI domain.
    pub domain: u32,
    /// The bus number.
    pub bus: u8,
    /// The device number, 0 to 31.
    pub device: u8,
    /// The function number, 0 to 7.
    pub function: u8,
}

impl Address {
    /// Reads `0000:03:00.0`: hexadecimal digits in either case, four or more of them for the domain.
    /// `None` for anything else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(text).ok()?;
        let (domain, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        // `from_str_radix` would take a sign too.
        let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if domain.len() < 4 || bus.len() != 2 || device.len() != 2 || function.len() != 1 {
            return None;
        }
        if !(hex(domain) && hex(bus) && hex(device) && hex(function)) {
            return None;
        }
        let address = Self {
            domain: u32::from_str_radix(domain, 16).ok()?,
            bus: u8::from_str_radix(bus, 16).ok()?,
            device: u8::from_str_radix(device, 16).ok()?,
            function: u8::from_str_radix(function, 16).ok()?,
        };
        (address.device < 32 && address.function < 8).then_some(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.domain, self.bus, self.device, self.function
        )
    }
}
