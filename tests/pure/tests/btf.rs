// SPDX-License-Identifier: GPL-2.0

//! The BTF reader: on type information made here, on damaged one, and on that of a real kernel.

use barbuf_pure_tests::pure::{
    btf::{Btf, Error, Member},
    pagemap::Layout,
};
use proptest::prelude::*;

mod common;

/// Writes type information.
#[derive(Clone, Default)]
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Writer {
    fn new() -> Self {
        // The empty string is at offset 0.
        Writer {
            strings: vec![0],
            ..Writer::default()
        }
    }

    fn string(&mut self, string: &str) -> u32 {
        if string.is_empty() {
            return 0;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend(string.bytes().chain([0]));
        offset
    }

    fn words(&mut self, words: &[u32]) {
        self.types
            .extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    /// Adds a type and returns its number.
    fn add(
        &mut self,
        kind: u32,
        name: &str,
        entries: u32,
        size_or_type: u32,
        trailer: &[u32],
    ) -> u32 {
        let name = self.string(name);
        self.words(&[name, (kind << 24) | entries, size_or_type]);
        self.words(trailer);
        self.count += 1;
        self.count
    }

    /// Adds a struct with members of a name, a type and a bit offset.
    fn add_struct(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let trailer: Vec<u32> = members
            .iter()
            .flat_map(|(name, id, bits)| [self.string(name), *id, *bits])
            .collect();
        self.add(4, name, members.len() as u32, size, &trailer)
    }

    fn finish(&self) -> Vec<u8> {
        self.finish_with(24)
    }

    /// The whole, with a header of `header_len` bytes.
    fn finish_with(&self, header_len: u32) -> Vec<u8> {
        let mut data = vec![0x9f, 0xeb, 1, 0];
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [header_len, 0, types, types, strings] {
            data.extend(word.to_le_bytes());
        }
        data.resize(header_len as usize, 0xcc);
        data.extend(&self.types);
        data.extend(&self.strings);
        data
    }
}

/// One of every kind, and the two structs of the kernel that matter to us as 7.3 has them.
fn kernel() -> Writer {
    let mut btf = Writer::new();
    let long = btf.add(1, "unsigned long", 0, 8, &[64]);
    let pointer = btf.add(2, "", 0, 0, &[]);
    let array = btf.add(3, "", 0, 0, &[long, long, 18]);
    let matrix = btf.add(3, "", 0, 0, &[array, long, 3]);
    let union = btf.add(5, "", 2, 8, &[0, long, 0, 0, pointer, 0]);
    btf.add(6, "memory_type", 2, 4, &[0, 1, 0, 2]);
    let forward = btf.add(7, "dev_pagemap_ops", 0, 0, &[]);
    btf.add(12, "function", 0, 14, &[]);
    btf.add(13, "", 1, long, &[0, long]);
    btf.add(14, "variable", 0, long, &[1]);
    btf.add(15, ".data", 1, 8, &[9, 0, 8]);
    btf.add(16, "double", 0, 8, &[]);
    btf.add(17, "tag", 0, long, &[0]);
    let tagged = btf.add(18, "rcu", 0, pointer, &[]);
    let wide = btf.add(19, "wide", 1, 8, &[0, 0, 1]);
    let alias = btf.add(8, "u64", 0, long, &[]);
    let volatile = btf.add(9, "", 0, alias, &[]);
    let constant = btf.add(10, "", 0, volatile, &[]);
    let restrict = btf.add(11, "", 0, tagged, &[]);
    let members = [("ref", array, 0), ("ops", forward, 144 * 8)];
    let pagemap = btf.add_struct("dev_pagemap", 152, &members);
    btf.add_struct(
        "pci_p2pdma_pagemap",
        160,
        &[("pgmap", pagemap, 0), ("mem", pointer, 152 * 8)],
    );
    let all = [
        ("pointer", pointer, 0),
        ("array", array, 64),
        ("", union, 128),
        ("union", union, 192),
        ("wide", wide, 256),
        ("constant", constant, 320),
        ("restrict", restrict, 384),
        ("void", 0, 448),
        ("crooked", long, 449),
        ("forward", forward, 512),
        ("matrix", matrix, 576),
        // Beyond 2 MiB, where a struct with bit fields would keep their width.
        ("far", pointer, 1 << 24),
    ];
    btf.add_struct("all", 1024, &all);
    btf
}

const LAYOUT: Layout = Layout {
    size: 160,
    pgmap: 0,
    pgmap_size: 152,
    mem: 152,
};

#[test]
fn the_private_pagemap() {
    assert_eq!(Layout::read(&kernel().finish()), Ok(LAYOUT));
    // A longer header, as newer formats have.
    assert_eq!(Layout::read(&kernel().finish_with(32)), Ok(LAYOUT));
}

#[test]
fn a_private_pagemap_that_is_another() {
    let layout = |members: &[(&str, u32, u32)]| {
        let mut btf = Writer::new();
        let pointer = btf.add(2, "", 0, 0, &[]);
        let int = btf.add(1, "int", 0, 4, &[32]);
        assert_eq!((pointer, int), (1, 2));
        btf.add_struct("dev_pagemap", 152, &[]);
        btf.add_struct("pci_p2pdma_pagemap", 168, members);
        Layout::read(&btf.finish())
    };
    let swapped = Layout {
        size: 168,
        pgmap: 8,
        pgmap_size: 152,
        mem: 0,
    };
    assert_eq!(layout(&[("mem", 1, 0), ("pgmap", 3, 64)]), Ok(swapped));
    assert_eq!(layout(&[("pgmap", 3, 0)]), Err(Error::NotFound));
    assert_eq!(
        layout(&[("pgmap", 3, 0), ("provider", 1, 1216)]),
        Err(Error::NotFound)
    );
    assert_eq!(
        layout(&[("pgmap", 3, 0), ("mem", 2, 1216)]),
        Err(Error::NotFound)
    );
    assert_eq!(
        layout(&[("pgmap", 3, 0), ("mem", 1, 1216), ("more", 1, 1280)]),
        Err(Error::NotFound)
    );
    assert_eq!(
        layout(&[("pgmap", 3, 0), ("mem", 9, 1216)]),
        Err(Error::Malformed)
    );
}

#[test]
fn members_of_every_kind() {
    let data = kernel().finish();
    let all = Btf::parse(&data).unwrap().find_struct("all").unwrap();
    assert_eq!((all.size(), all.members()), (1024, 12));
    let member = |name, offset, size| {
        assert_eq!(all.member(name), Ok(Member { offset, size }), "{name}");
    };
    member("pointer", 0, Some(8));
    member("array", 8, Some(144));
    member("union", 24, Some(8));
    member("wide", 32, Some(8));
    member("constant", 40, Some(8));
    member("restrict", 48, Some(8));
    member("void", 56, None);
    member("forward", 64, None);
    member("matrix", 72, Some(432));
    member("far", 2 << 20, Some(8));
    assert_eq!(all.member("crooked"), Err(Error::BitField));
    assert_eq!(all.member("point"), Err(Error::NotFound));
    assert_eq!(all.member("pointers"), Err(Error::NotFound));
}

#[test]
fn bit_fields() {
    let mut btf = Writer::new();
    let int = btf.add(1, "int", 0, 4, &[32]);
    let names = [btf.string("whole"), btf.string("bits")];
    // The flag in bit 31 says that offsets carry a width in their upper byte.
    btf.add(
        4 | (1 << 7),
        "flagged",
        2,
        8,
        &[names[0], int, 32, names[1], int, 3 << 24],
    );
    let data = btf.finish();
    let flagged = Btf::parse(&data).unwrap().find_struct("flagged").unwrap();
    assert_eq!(
        flagged.member("whole"),
        Ok(Member {
            offset: 4,
            size: Some(4)
        })
    );
    assert_eq!(flagged.member("bits"), Err(Error::BitField));
}

#[test]
fn names_are_whole_and_of_structs() {
    let data = kernel().finish();
    let btf = Btf::parse(&data).unwrap();
    for name in [
        "",
        "unsigned long",
        "memory_type",
        "u64",
        "dev_page",
        "dev_pagemap2",
        "wide",
    ] {
        assert_eq!(btf.find_struct(name).err(), Some(Error::NotFound), "{name}");
    }
    let mut twice = kernel();
    twice.add_struct("dev_pagemap", 152, &[]);
    let data = twice.finish();
    assert_eq!(
        Btf::parse(&data).unwrap().find_struct("dev_pagemap").err(),
        Some(Error::Ambiguous)
    );
}

#[test]
fn a_kind_of_the_future() {
    let mut btf = kernel();
    btf.add(20, "new", 0, 0, &[]);
    assert_eq!(Layout::read(&btf.finish()), Err(Error::UnknownKind));
    let mut zero = kernel();
    zero.add(0, "unknown", 0, 0, &[]);
    assert_eq!(Layout::read(&zero.finish()), Err(Error::UnknownKind));
}

#[test]
fn types_that_go_round_in_a_circle() {
    let mut btf = Writer::new();
    btf.add(8, "a", 0, 2, &[]);
    btf.add(8, "b", 0, 1, &[]);
    let array = btf.add(3, "", 0, 0, &[3, 1, u32::MAX]);
    btf.add_struct("round", 8, &[("alias", 1, 0), ("array", array, 0)]);
    let data = btf.finish();
    let round = Btf::parse(&data).unwrap().find_struct("round").unwrap();
    assert_eq!(round.member("alias"), Err(Error::Malformed));
    assert_eq!(round.member("array"), Err(Error::Malformed));
}

/// A name at the very end of the strings must still have its final zero.
#[test]
fn a_string_without_an_end() {
    let mut data = kernel().finish();
    let mut btf = Writer::new();
    btf.add_struct("last", 8, &[]);
    let whole = btf.finish();
    data.clone_from(&whole);
    assert!(Btf::parse(&data).unwrap().find_struct("last").is_ok());
    *data.last_mut().unwrap() = b'x';
    assert_eq!(
        Btf::parse(&data).unwrap().find_struct("last").err(),
        Some(Error::NotFound)
    );
}

#[test]
fn every_truncation() {
    let data = kernel().finish();
    for len in 0..data.len() {
        assert_eq!(
            Layout::read(&data[..len]),
            Err(Error::Malformed),
            "{len} bytes"
        );
    }
    // Types that end inside of a record, below a header that is right.
    let mut btf = kernel();
    let full = btf.types.len();
    for len in full - 200..full {
        btf.types.truncate(full);
        let mut cut = btf.clone();
        cut.types.truncate(len);
        let read = Layout::read(&cut.finish());
        assert!(
            read == Err(Error::Malformed) || read == Err(Error::NotFound) || read == Ok(LAYOUT)
        );
    }
}

#[test]
fn headers_that_are_none() {
    let good = kernel().finish();
    for (at, byte) in [
        (0, 0xeb),
        (1, 0x9f),
        (2, 2),
        (7, 0x7f),
        (11, 0xff),
        (15, 0xff),
        (23, 0xff),
    ] {
        let mut data = good.clone();
        data[at] = byte;
        assert_eq!(Layout::read(&data), Err(Error::Malformed), "byte {at}");
    }
    assert_eq!(Layout::read(&[]), Err(Error::Malformed));
}

/// Run with `BARBUF_TEST_BTF=FILE cargo test --test btf -- --ignored`, where FILE is
/// `/sys/kernel/btf/vmlinux` or the `.BTF` section of a kernel. The numbers are those of Linux 7.3
/// on x86-64.
#[test]
#[ignore = "needs the type information of a kernel in BARBUF_TEST_BTF"]
fn a_real_kernel() {
    let file = std::env::var_os("BARBUF_TEST_BTF").expect("BARBUF_TEST_BTF names no file");
    let data = std::fs::read(file).unwrap();
    assert_eq!(Layout::read(&data), Ok(LAYOUT));
    let btf = Btf::parse(&data).unwrap();
    let list = btf.find_struct("list_head").unwrap();
    assert_eq!(list.size(), 16);
    assert_eq!(
        list.member("prev"),
        Ok(Member {
            offset: 8,
            size: Some(8)
        })
    );
    let pagemap = btf.find_struct("dev_pagemap").unwrap();
    assert_eq!(u64::from(pagemap.size()), LAYOUT.pgmap_size);
    assert_eq!(pagemap.member("vmemmap_shift").unwrap().size, Some(8));
}

/// Everything that the driver does with bytes it has not made.
fn use_it(data: &[u8]) {
    let _ = Layout::read(data);
    if let Ok(btf) = Btf::parse(data) {
        for name in ["all", "dev_pagemap", ""] {
            if let Ok(found) = btf.find_struct(name) {
                for member in ["array", "constant", "restrict", "ops", ""] {
                    let _ = found.member(member);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(common::cases(20_000))]

    #[test]
    fn random_bytes(data in prop::collection::vec(any::<u8>(), 0..200), header in any::<bool>()) {
        let mut data = data;
        if header && data.len() >= 24 {
            // A header that leads into the bytes, so that the types are looked at too.
            let len = data.len() as u8 - 24;
            data[..24].copy_from_slice(&[
                0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, len, 0, 0, 0, 0, 0, 0, 0, len, 0, 0, 0,
            ]);
        }
        use_it(&data);
    }

    #[test]
    fn damaged_bytes(
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![Just(0u8), Just(0xff), 0u8..32, any::<u8>()]),
            1..6,
        ),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut data = kernel().finish();
        for (at, byte) in damage {
            let at = at.index(data.len());
            data[at] = byte;
        }
        use_it(&data);
        data.truncate(cut.index(data.len()));
        use_it(&data);
    }
}
