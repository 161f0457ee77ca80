// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the bytes of a buffer are, in the words of Vulkan, GStreamer and DRM devices.

use std::fmt;

use drm_fourcc::{DrmFormat, DrmFourcc, DrmModifier, UnrecognizedFourcc};

/// The bit of a fourcc that says big-endian: `DRM_FORMAT_BIG_ENDIAN` of `drm/drm_fourcc.h`.
const BIG_ENDIAN: u32 = 1 << 31;

/// A fourcc code of `drm/drm_fourcc.h`, known to this crate or not.
///
/// ```
/// use barbuf::PixelFormat;
///
/// let known = PixelFormat::from(drm_fourcc::DrmFourcc::Xrgb8888);
/// assert_eq!(known.to_string(), "XR24");
/// let newer = PixelFormat::from_code(u32::from_le_bytes(*b"AB48"));
/// assert_eq!(newer.to_string(), "AB48");
/// assert!(drm_fourcc::DrmFourcc::try_from(newer).is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PixelFormat(u32);

impl PixelFormat {
    /// Bytes without meaning, as an image of one line with 8 bits per pixel: `R8  `.
    pub const BYTES: PixelFormat = PixelFormat(DrmFourcc::R8 as u32);

    /// From the number.
    pub const fn from_code(code: u32) -> Self {
        PixelFormat(code)
    }

    /// The number.
    pub const fn code(self) -> u32 {
        self.0
    }
}

impl From<DrmFourcc> for PixelFormat {
    fn from(code: DrmFourcc) -> Self {
        PixelFormat(code as u32)
    }
}

impl TryFrom<PixelFormat> for DrmFourcc {
    type Error = UnrecognizedFourcc;

    /// Fails for a code that drm-fourcc does not know, and for the big-endian flag alone, which it
    /// knows but panics on when it is printed.
    fn try_from(format: PixelFormat) -> Result<Self, UnrecognizedFourcc> {
        if format.0 & BIG_ENDIAN != 0 {
            // Its error can be made only by failing.
            return DrmFourcc::try_from(u32::MAX);
        }
        DrmFourcc::try_from(format.0)
    }
}

impl fmt::Display for PixelFormat {
    /// The four characters as `drm/drm_fourcc.h` has them, `XR24`, with `_BE` behind them if the
    /// big-endian bit is set; hexadecimal if they are no characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let characters = (self.0 & !BIG_ENDIAN).to_le_bytes();
        let is_text = characters
            .iter()
            .all(|b| b.is_ascii_graphic() || *b == b' ');
        match std::str::from_utf8(&characters) {
            Ok(text) if is_text => {
                f.write_str(text)?;
                f.write_str(if self.0 & BIG_ENDIAN != 0 { "_BE" } else { "" })
            }
            _ => write!(f, "{:#010x}", self.0),
        }
    }
}

impl fmt::Debug for PixelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PixelFormat({self})")
    }
}

/// A format with the way its bytes are arranged.
///
/// Displayed, it is what GStreamer calls `drm-format`: `XR24` if the arrangement is linear,
/// `XR24:0x0100000000000001` otherwise.
///
/// ```
/// use barbuf::Format;
/// use drm_fourcc::{DrmFormat, DrmFourcc, DrmModifier};
///
/// let format = Format::from(DrmFormat {
///     code: DrmFourcc::Nv12,
///     modifier: DrmModifier::I915_x_tiled,
/// });
/// assert_eq!(format.to_string(), "NV12:0x0100000000000001");
/// assert_eq!("NV12:0x0100000000000001".parse(), Ok(format));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    /// The format.
    pub pixel: PixelFormat,
    /// The arrangement: a modifier of `drm/drm_fourcc.h`, 0 for linear.
    pub modifier: u64,
}

impl Format {
    /// Bytes without meaning, one behind the other.
    pub const BYTES: Format = Format {
        pixel: PixelFormat::BYTES,
        modifier: 0,
    };

    /// The arrangement as drm-fourcc has it, which keeps unknown ones.
    pub fn drm_modifier(self) -> DrmModifier {
        DrmModifier::from(self.modifier)
    }
}

impl From<DrmFormat> for Format {
    fn from(format: DrmFormat) -> Self {
        Format {
            pixel: format.code.into(),
            modifier: format.modifier.into(),
        }
    }
}

impl TryFrom<Format> for DrmFormat {
    type Error = UnrecognizedFourcc;

    fn try_from(format: Format) -> Result<Self, UnrecognizedFourcc> {
        Ok(DrmFormat {
            code: format.pixel.try_into()?,
            modifier: format.drm_modifier(),
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.modifier {
            0 => write!(f, "{}", self.pixel),
            modifier => write!(f, "{}:{modifier:#018x}", self.pixel),
        }
    }
}

/// The text is no format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseFormatError;

impl fmt::Display for ParseFormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a format; one looks like XR24, XR24:0x0100000000000001 or 0x34325258")
    }
}

impl std::error::Error for ParseFormatError {}

/// Four characters, perhaps with `_BE`, and what comes behind.
fn characters(text: &str) -> Option<(u32, &str)> {
    let (name, rest) = text.split_at_checked(4)?;
    let (flag, rest) = match rest.strip_prefix("_BE") {
        Some(rest) => (BIG_ENDIAN, rest),
        None => (0, rest),
    };
    let bytes = <[u8; 4]>::try_from(name.as_bytes()).ok()?;
    let is_text = bytes.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
    // A character can be a colon too, so that the length decides.
    (is_text && (rest.is_empty() || rest.starts_with(':')))
        .then(|| (u32::from_le_bytes(bytes) | flag, rest))
}

impl std::str::FromStr for Format {
    type Err = ParseFormatError;

    fn from_str(text: &str) -> Result<Self, ParseFormatError> {
        let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let digits = |text: &'_ str| {
            let end = text.find(':').unwrap_or(text.len());
            u32::try_from(hex(&text[..end])?)
                .ok()
                .map(|code| (code, end))
        };
        let (code, rest) = match characters(text) {
            Some(found) => found,
            None => digits(text)
                .map(|(code, end)| (code, &text[end..]))
                .ok_or(ParseFormatError)?,
        };
        let modifier = match rest.strip_prefix(':') {
            Some(modifier) => hex(modifier).ok_or(ParseFormatError)?,
            None => 0,
        };
        Ok(Format {
            pixel: PixelFormat(code),
            modifier,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// drm-fourcc 2.2.0 panics when it prints what it makes of this number.
    #[test]
    fn the_big_endian_flag_alone_is_harmless() {
        let format = PixelFormat::from_code(BIG_ENDIAN);
        assert_eq!(format.to_string(), "0x80000000");
        assert_eq!(format!("{format:?}"), "PixelFormat(0x80000000)");
        let error = DrmFourcc::try_from(format).unwrap_err();
        let _ = format!("{error} {error:?}");
        let theirs = DrmFourcc::try_from(BIG_ENDIAN).unwrap();
        assert!(
            std::panic::catch_unwind(|| format!("{theirs:?}")).is_err(),
            "drm-fourcc got better: the guard is not needed any more"
        );
    }

    /// What drm-fourcc is too old for.
    #[test]
    fn unknown_codes_and_modifiers_are_kept() {
        for name in ["AB48", "XR48", "P030", "NV20", "D8  "] {
            let format: Format = format!("{name}:0x0200000000000001").parse().unwrap();
            assert_eq!(format.pixel.to_string(), name);
            assert!(DrmFormat::try_from(format).is_err());
            assert_eq!(u64::from(format.drm_modifier()), 0x0200_0000_0000_0001);
        }
    }

    #[test]
    fn what_is_no_format() {
        for text in [
            "",
            "XR2",
            "XR245",
            "XR24:",
            "XR24:1",
            "0x1ffffffff",
            "XR\u{e9}",
            "XR2\n",
        ] {
            assert_eq!(text.parse::<Format>(), Err(ParseFormatError), "{text:?}");
        }
    }

    /// A property test has found the first.
    #[test]
    fn colons_and_digits_are_characters_too() {
        for (text, characters, modifier) in [
            (" -w:_BE", *b" -w:", 0),
            ("A:0x", *b"A:0x", 0),
            ("0x12:0x5", *b"0x12", 5),
        ] {
            let format: Format = text.parse().unwrap();
            let code = format.pixel.code() & !BIG_ENDIAN;
            assert_eq!(
                (code, format.modifier),
                (u32::from_le_bytes(characters), modifier)
            );
        }
    }

    proptest! {
        #[test]
        fn any_number_survives_text(code: u32, modifier: u64) {
            let format = Format { pixel: PixelFormat::from_code(code), modifier };
            prop_assert_eq!(format.to_string().parse(), Ok(format));
            // Whatever conversion gives can be printed.
            if let Ok(known) = DrmFourcc::try_from(format.pixel) {
                let _ = format!("{known} {known:?}");
            }
        }
    }
}
