// SPDX-License-Identifier: GPL-2.0

//! Reads the layout of a struct out of the kernel's type information (BTF).
//!
//! The module needs a struct that no header shows. Its layout in the running kernel is in
//! `/sys/kernel/btf/vmlinux`, and so is certain where a copy of the definition would be a guess.
//!
//! The format is that of `include/uapi/linux/btf.h`, little-endian. Nothing is allocated and
//! nothing is indexed: types have different lengths, so that each lookup walks the list from its
//! start. That is a few milliseconds, once.

/// Why a layout can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The bytes are no BTF, or their parts contradict each other.
    Malformed,
    /// A type of a kind that this reader does not know, so that it can't tell where the next one
    /// starts.
    UnknownKind,
    /// There is no struct, or no member, of that name.
    NotFound,
    /// There are several structs of that name.
    Ambiguous,
    /// The member is a bit field.
    BitField,
}

impl Error {
    /// The reason in words.
    pub const fn text(self) -> &'static str {
        match self {
            Error::Malformed => "the type information is damaged",
            Error::UnknownKind => "the type information has a kind of type that is not known",
            Error::NotFound => "no such struct or member",
            Error::Ambiguous => "several structs have that name",
            Error::BitField => "the member is a bit field",
        }
    }
}

type Result<T> = core::result::Result<T, Error>;

/// What kind of type a record describes, as far as a reader of structs has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The record says its size: an integer, a float, an enum, a struct or a union.
    Sized,
    /// The same, and a struct.
    Struct,
    /// An array: what of and how many follows the record.
    Array,
    /// A pointer.
    Pointer,
    /// Another name for, or a qualifier of, another type.
    Alias,
    /// Something that has no size.
    Other,
}

impl Kind {
    /// The kind that BTF numbers `kind`, and the bytes that follow the record if it has `entries`
    /// entries.
    fn decode(kind: u32, entries: usize) -> Result<(Kind, usize)> {
        let (kind, trailer) = match kind {
            1 => (Kind::Sized, 4),                           // INT
            2 => (Kind::Pointer, 0),                         // PTR
            3 => (Kind::Array, 12),                          // ARRAY
            4 => (Kind::Struct, entries.saturating_mul(12)), // STRUCT
            5 => (Kind::Sized, entries.saturating_mul(12)),  // UNION
            6 => (Kind::Sized, entries.saturating_mul(8)),   // ENUM
            7 => (Kind::Other, 0),                           // FWD
            8..=11 | 18 => (Kind::Alias, 0), // TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG
            12 => (Kind::Other, 0),          // FUNC
            13 => (Kind::Other, entries.saturating_mul(8)), // FUNC_PROTO
            14 | 17 => (Kind::Other, 4),     // VAR, DECL_TAG
            15 => (Kind::Other, entries.saturating_mul(12)), // DATASEC
            16 => (Kind::Sized, 0),          // FLOAT
            19 => (Kind::Sized, entries.saturating_mul(12)), // ENUM64
            _ => return Err(Error::UnknownKind),
        };
        Ok((kind, trailer))
    }
}

/// One type.
#[derive(Clone, Copy, Debug)]
struct Type<'a> {
    kind: Kind,
    /// The offset of its name in the strings.
    name: u32,
    /// Its size, or the number of the type that it refers to: which one, depends on the kind.
    size_or_type: u32,
    /// Whether the offsets of its members carry the width of a bit field.
    bit_fields: bool,
    /// What follows the record.
    trailer: &'a [u8],
}

/// The types of a BTF, from the first one on. After an error there is no next one.
struct Types<'a>(&'a [u8]);

impl<'a> Iterator for Types<'a> {
    type Item = Result<Type<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let next = Self::split(self.0);
        self.0 = match next {
            Ok((_, rest)) => rest,
            Err(_) => &[],
        };
        Some(next.map(|(first, _)| first))
    }
}

impl<'a> Types<'a> {
    /// The first type and all behind it.
    fn split(bytes: &'a [u8]) -> Result<(Type<'a>, &'a [u8])> {
        let (record, rest) = bytes.split_at_checked(12).ok_or(Error::Malformed)?;
        let info = word(record, 4)?;
        // Linux 7.3 made these fields wider. The bits that they took were zero before.
        let entries = index(info & 0xff_ffff)?;
        let (kind, len) = Kind::decode((info >> 24) & 0x7f, entries)?;
        let (trailer, rest) = rest.split_at_checked(len).ok_or(Error::Malformed)?;
        let first = Type {
            kind,
            name: word(record, 0)?,
            size_or_type: word(record, 8)?,
            bit_fields: info >> 31 != 0,
            trailer,
        };
        Ok((first, rest))
    }
}

/// The little-endian number at byte `at`.
fn word(bytes: &[u8], at: usize) -> Result<u32> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|four| u32::from_le_bytes(*four))
        .ok_or(Error::Malformed)
}

/// Type information whose header makes sense.
#[derive(Clone, Copy, Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Finds the types and the strings in `data`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] when `data` does not begin with a BTF header, is big-endian, or ends
    /// too soon.
    pub fn parse(data: &'a [u8]) -> Result<Self> {
        const MAGIC_AND_VERSION: [u8; 3] = [0x9f, 0xeb, 1];
        if !data.starts_with(&MAGIC_AND_VERSION) {
            return Err(Error::Malformed);
        }
        // The header says its own length, which grows with the format.
        let body = data.get(index(word(data, 4)?)?..).ok_or(Error::Malformed)?;
        let section = |offset: u32, len: u32| {
            let (offset, len) = (index(offset)?, index(len)?);
            body.get(offset..)
                .and_then(|rest| rest.get(..len))
                .ok_or(Error::Malformed)
        };
        Ok(Btf {
            types: section(word(data, 8)?, word(data, 12)?)?,
            strings: section(word(data, 16)?, word(data, 20)?)?,
        })
    }

    /// Finds the struct called `name`.
    ///
    /// All types are looked at, so that a success also says that every type could be read.
    ///
    /// # Errors
    ///
    /// Any but [`Error::BitField`].
    pub fn find_struct(&self, name: &str) -> Result<Struct<'a>> {
        let mut found = None;
        for candidate in Types(self.types) {
            let candidate = candidate?;
            if candidate.kind != Kind::Struct || !self.is_named(candidate.name, name) {
                continue;
            }
            if found.is_some() {
                return Err(Error::Ambiguous);
            }
            found = Some(Struct {
                btf: *self,
                this: candidate,
            });
        }
        found.ok_or(Error::NotFound)
    }

    /// Whether the string at `offset` is `name`.
    fn is_named(&self, offset: u32, name: &str) -> bool {
        let string = index(offset).ok().and_then(|at| self.strings.get(at..));
        string
            .and_then(|string| string.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The size of type number `id` in bytes, `None` when it has none.
    fn size_of(&self, id: u32) -> Result<Option<u64>> {
        /// How many typedefs, qualifiers and arrays may be wrapped around a type. A chain of more
        /// is a circle.
        const MAX_DEPTH: u32 = 32;

        let mut id = id;
        let mut times = 1u64;
        for _ in 0..MAX_DEPTH {
            // Number 0 is `void`, which has no record and no size.
            let Some(position) = id.checked_sub(1) else {
                return Ok(None);
            };
            let this = Types(self.types)
                .nth(index(position)?)
                .ok_or(Error::Malformed)??;
            match this.kind {
                Kind::Alias => id = this.size_or_type,
                Kind::Array => {
                    id = word(this.trailer, 0)?;
                    let elements = u64::from(word(this.trailer, 8)?);
                    times = times.checked_mul(elements).ok_or(Error::Malformed)?;
                }
                Kind::Pointer => return Ok(times.checked_mul(8)),
                Kind::Sized | Kind::Struct => {
                    return Ok(times.checked_mul(u64::from(this.size_or_type)));
                }
                Kind::Other => return Ok(None),
            }
        }
        Err(Error::Malformed)
    }
}

/// A number of the format as an index.
fn index(number: u32) -> Result<usize> {
    usize::try_from(number).map_err(|_| Error::Malformed)
}

/// A struct that was found by its name.
#[derive(Clone, Copy, Debug)]
pub struct Struct<'a> {
    btf: Btf<'a>,
    this: Type<'a>,
}

/// Where a member lies in its struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The offset, in bytes.
    pub offset: u32,
    /// The size in bytes; `None` when its type has none, as a forward declaration.
    pub size: Option<u64>,
}

impl Struct<'_> {
    /// The size in bytes.
    pub fn size(&self) -> u32 {
        self.this.size_or_type
    }

    /// The number of members; one without a name counts as one.
    pub fn members(&self) -> usize {
        self.this.trailer.chunks_exact(12).len()
    }

    /// Finds the member called `name`. Members of an unnamed struct or union inside are not looked
    /// at.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::BitField`], and [`Error::Malformed`] when its type can't be
    /// followed.
    pub fn member(&self, name: &str) -> Result<Member> {
        for member in self.this.trailer.chunks_exact(12) {
            if !self.btf.is_named(word(member, 0)?, name) {
                continue;
            }
            let bits = word(member, 8)?;
            let (width, bits) = if self.this.bit_fields {
                (bits >> 24, bits & 0xff_ffff)
            } else {
                (0, bits)
            };
            if width != 0 || bits & 7 != 0 {
                return Err(Error::BitField);
            }
            return Ok(Member {
                offset: bits >> 3,
                size: self.btf.size_of(word(member, 4)?)?,
            });
        }
        Err(Error::NotFound)
    }
}
