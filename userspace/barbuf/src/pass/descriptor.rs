// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is said about a buffer when it is passed on, as bytes.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Format, PixelFormat};

/// What travels with a buffer: which part of it is meant, what its bytes are, and whatever else the
/// two programs have agreed on.
///
/// # Encoding
///
/// All numbers are little-endian. A program in another language needs no more than this:
///
/// | offset | bytes | |
/// |---|---|---|
/// | 0 | 4 | `bBuf` |
/// | 4 | 2 | version, 1 |
/// | 6 | 2 | where the user bytes begin: 56, more in later versions of this layout |
/// | 8 | 4 | bytes of all of it, at most 65,536 |
/// | 12 | 4 | flags: bit 0, a format is given; bit 1, an eventfd comes as the second file descriptor. Others are 0 |
/// | 16 | 8 | offset of the part that is meant |
/// | 24 | 8 | its length, 0 for everything from the offset on |
/// | 32 | 8 | modifier of the format |
/// | 40 | 4 | fourcc of the format |
/// | 44 | 4 | 0 |
/// | 48 | 8 | a number by which the sender knows the buffer, 0 if it has none |
/// | 56 | | user bytes |
///
/// A reader skips what lies between byte 56 and the user bytes, and refuses another version, flags
/// that it does not know, and a byte 44 to 47 that is not 0. Without a format, its bytes are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// The part that is meant; `None` for all of the buffer.
    pub range: Option<Range<u64>>,
    /// What its bytes are.
    pub format: Option<Format>,
    /// A number by which the sender knows the buffer.
    pub tag: u64,
    /// Whatever else, at most [`Descriptor::MAX_USER`] bytes.
    pub user: Vec<u8>,
}

const MAGIC: [u8; 4] = *b"bBuf";
const VERSION: u16 = 1;
const HEADER: usize = 56;

const FLAG_FORMAT: u32 = 1 << 0;
const FLAG_EVENT: u32 = 1 << 1;
const FLAGS: u32 = FLAG_FORMAT | FLAG_EVENT;

/// What the framing has to know before all has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) total: usize,
}

impl Descriptor {
    /// Bytes of a descriptor with all its user bytes, at most.
    pub const MAX_LEN: usize = 65_536;
    /// User bytes, at most.
    pub const MAX_USER: usize = Self::MAX_LEN - HEADER;
    /// Bytes from which on the length of all is known.
    pub(crate) const HEADER: usize = HEADER;

    /// As bytes, with or without the promise of an eventfd.
    pub(crate) fn encode(&self, event: bool) -> Result<Vec<u8>> {
        let refuse = |why: &'static str| {
            Err(Error::new("send", ErrorKind::Invalid)
                .of("a descriptor")
                .hinted(why))
        };
        if self.user.len() > Self::MAX_USER {
            return refuse("it has more than 65,480 user bytes");
        }
        let (offset, length) = match &self.range {
            None => (0, 0),
            Some(range) if range.start < range.end => (range.start, range.end - range.start),
            Some(_) => return refuse("its range is empty"),
        };
        let mut flags = 0;
        if self.format.is_some() {
            flags |= FLAG_FORMAT;
        }
        if event {
            flags |= FLAG_EVENT;
        }
        let format = self.format.unwrap_or(Format {
            pixel: PixelFormat::from_code(0),
            modifier: 0,
        });
        let total = HEADER + self.user.len();
        let mut bytes = Vec::with_capacity(total);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((HEADER as u16).to_le_bytes());
        bytes.extend((total as u32).to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(format.modifier.to_le_bytes());
        bytes.extend(format.pixel.code().to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.tag.to_le_bytes());
        bytes.extend(&self.user);
        Ok(bytes)
    }

    /// As bytes: see [`Descriptor`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if there are too many user bytes, or the range is empty.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.encode(false)
    }

    /// From bytes, which are all of it and nothing else.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::decode(bytes).map(|(descriptor, _)| descriptor)
    }

    /// How long a descriptor is that begins with these bytes.
    pub(crate) fn frame(header: &[u8; HEADER]) -> Result<Frame> {
        if header[..4] != MAGIC {
            return Err(malformed("it does not begin with bBuf"));
        }
        let version = u16::from_le_bytes(field(header, 4));
        if version != VERSION {
            return Err(malformed(format!(
                "it is of version {version}, and 1 is known"
            )));
        }
        let start = usize::from(u16::from_le_bytes(field(header, 6)));
        let total = u32::from_le_bytes(field(header, 8)) as usize;
        if start < HEADER || total < start || total > Self::MAX_LEN {
            return Err(malformed(
                "its lengths contradict each other, or it is too long",
            ));
        }
        Ok(Frame { total })
    }

    /// The descriptor, and whether it promises an eventfd.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, bool)> {
        let header: &[u8; HEADER] = bytes
            .first_chunk()
            .ok_or_else(|| malformed("it is too short"))?;
        let frame = Self::frame(header)?;
        if frame.total != bytes.len() {
            return Err(malformed("it is not as long as it says"));
        }
        let flags = u32::from_le_bytes(field(header, 12));
        if flags & !FLAGS != 0 {
            return Err(malformed("it has flags that are not known"));
        }
        let offset = u64::from_le_bytes(field(header, 16));
        let length = u64::from_le_bytes(field(header, 24));
        let range = match (offset, length) {
            (0, 0) => None,
            (u64::MAX, 0) => return Err(malformed("its range is empty")),
            (offset, 0) => Some(offset..u64::MAX),
            (offset, length) => match offset.checked_add(length) {
                Some(end) => Some(offset..end),
                None => return Err(malformed("its range ends beyond 64 bits")),
            },
        };
        let modifier = u64::from_le_bytes(field(header, 32));
        let code = u32::from_le_bytes(field(header, 40));
        if field(header, 44) != [0; 4] {
            return Err(malformed("bytes 44 to 47 are not 0"));
        }
        let format = match flags & FLAG_FORMAT {
            0 if (modifier, code) != (0, 0) => {
                return Err(malformed("it has a format and does not say so"));
            }
            0 => None,
            _ => Some(Format {
                pixel: PixelFormat::from_code(code),
                modifier,
            }),
        };
        let start = usize::from(u16::from_le_bytes(field(header, 6)));
        let descriptor = Descriptor {
            range,
            format,
            tag: u64::from_le_bytes(field(header, 48)),
            // `frame` has found that it begins before the end.
            user: bytes.get(start..).unwrap_or_default().to_vec(),
        };
        Ok((descriptor, flags & FLAG_EVENT != 0))
    }
}

/// `N` bytes of the header. All offsets are written in this file.
fn field<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

fn malformed(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new("receive", ErrorKind::Malformed).hinted(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptors() -> impl Strategy<Value = Descriptor> {
        let range = prop::option::of((any::<u64>(), 1..u64::MAX)).prop_map(|range| {
            let (start, length) = range?;
            // `0..0` and `start..` have encodings of their own.
            Some(start..start.checked_add(length)?)
        });
        let format = prop::option::of((any::<u32>(), any::<u64>()));
        let user = prop::collection::vec(any::<u8>(), 0..200);
        (range, format, any::<u64>(), user).prop_map(|(range, format, tag, user)| Descriptor {
            range,
            format: format.map(|(code, modifier)| Format {
                pixel: PixelFormat::from_code(code),
                modifier,
            }),
            tag,
            user,
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(descriptor in descriptors(), event: bool) {
            let bytes = descriptor.encode(event).unwrap();
            prop_assert_eq!(Descriptor::decode(&bytes).unwrap(), (descriptor, event));
        }

        #[test]
        fn one_changed_byte_never_panics(
            descriptor in descriptors(),
            at: prop::sample::Index,
            value: u8,
        ) {
            let mut bytes = descriptor.to_bytes().unwrap();
            *at.get_mut(&mut bytes) = value;
            let _ = Descriptor::from_bytes(&bytes);
        }

        #[test]
        fn every_prefix_is_refused(descriptor in descriptors(), at: prop::sample::Index) {
            let bytes = descriptor.to_bytes().unwrap();
            let prefix = &bytes[..at.index(bytes.len())];
            prop_assert!(Descriptor::from_bytes(prefix).is_err());
        }
    }

    #[test]
    fn the_layout_is_what_the_table_says() {
        let descriptor = Descriptor {
            range: Some(0x1000..0x3000),
            format: Some(Format {
                pixel: PixelFormat::from_code(u32::from_le_bytes(*b"XR24")),
                modifier: 0x0102_0304_0506_0708,
            }),
            tag: 9,
            user: b"hi".to_vec(),
        };
        let bytes = descriptor.encode(true).unwrap();
        let mut wanted = Vec::new();
        wanted.extend(b"bBuf\x01\x00\x38\x00\x3a\x00\x00\x00\x03\x00\x00\x00");
        wanted.extend(b"\x00\x10\x00\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00");
        wanted.extend(b"\x08\x07\x06\x05\x04\x03\x02\x01XR24\x00\x00\x00\x00");
        wanted.extend(b"\x09\x00\x00\x00\x00\x00\x00\x00hi");
        assert_eq!(bytes, wanted);
    }

    #[test]
    fn a_longer_header_is_skipped() {
        let mut bytes = Descriptor::default().to_bytes().unwrap();
        bytes.extend(b"newerUSER");
        bytes[6] = 56 + 5;
        bytes[8] = 56 + 9;
        assert_eq!(Descriptor::from_bytes(&bytes).unwrap().user, b"USER");
    }

    #[test]
    fn limits() {
        let mut descriptor = Descriptor {
            user: vec![1; Descriptor::MAX_USER],
            ..Descriptor::default()
        };
        let bytes = descriptor.to_bytes().unwrap();
        assert_eq!(bytes.len(), Descriptor::MAX_LEN);
        assert_eq!(Descriptor::from_bytes(&bytes).unwrap(), descriptor);
        descriptor.user.push(1);
        assert_eq!(
            descriptor.to_bytes().unwrap_err().kind(),
            ErrorKind::Invalid
        );
        #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
        let empty = Descriptor {
            range: Some(5..4),
            ..Descriptor::default()
        };
        assert_eq!(empty.to_bytes().unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn what_is_refused() {
        let good = Descriptor::default().to_bytes().unwrap();
        for (at, value) in [
            (0, b'B'), // magic
            (4, 2),    // version
            (6, 55),   // user bytes inside of the header
            (6, 57),   // user bytes behind the end
            (8, 57),   // longer than what came
            (10, 2),   // too long
            (12, 4),   // an unknown flag
            (40, 1),   // a format without its flag
            (44, 1),   // reserved
        ] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let error = Descriptor::from_bytes(&bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "byte {at}");
            assert!(error.hint().is_some());
        }
        // A range without bytes, and one that ends beyond 64 bits.
        let mut bytes = good;
        bytes[16..24].fill(0xff);
        assert!(Descriptor::from_bytes(&bytes).is_err());
        bytes[24] = 1;
        assert!(Descriptor::from_bytes(&bytes).is_err());
    }
}
