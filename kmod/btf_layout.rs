// SPDX-License-Identifier: GPL-2.0

//! Runs on the build machine: writes `layout.h` from the BTF of the kernel built against.
//!
//! Usage: `btf_layout VMLINUX`. `VMLINUX` is an ELF file with a `.BTF` section; a headers package
//! ships one. Without it, the header says that the layout is not known, and the module is built
//! without page backing. The running kernel is compared when the module is loaded, by the same
//! code: `ext/layout.rs`.

// Written for the module, where they are part of a crate.
#[allow(dead_code, unreachable_pub)]
#[path = "pure/btf.rs"]
mod btf;
#[allow(unreachable_pub)]
#[path = "pure/pagemap.rs"]
mod pagemap;

use std::{
    env,
    fs,
    process::ExitCode, //
};

/// The `.BTF` section of a little-endian ELF64 file.
fn section(elf: &[u8]) -> Option<&[u8]> {
    let number = |at: usize, len: usize| -> Option<usize> {
        let mut bytes = [0u8; 8];
        bytes
            .get_mut(..len)?
            .copy_from_slice(elf.get(at..at.checked_add(len)?)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = number(0x28, 8)?;
    let (size, count, names) = (number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let strings = number(header(names)?.checked_add(0x18)?, 8)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = strings.checked_add(number(header, 4)?)?;
        if !elf.get(name..)?.starts_with(b".BTF\0") {
            return None;
        }
        let start = number(header.checked_add(0x18)?, 8)?;
        let len = number(header.checked_add(0x20)?, 8)?;
        elf.get(start..start.checked_add(len)?)
    })
}

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1) else {
        eprintln!("usage: btf_layout VMLINUX");
        return ExitCode::from(2);
    };
    let layout = match fs::read(&path) {
        Ok(elf) => section(&elf)
            .ok_or_else(|| "no .BTF section".to_string())
            .and_then(|btf| pagemap::Layout::read(btf).map_err(|error| error.text().to_string())),
        Err(error) => Err(error.to_string()),
    };
    let (size, pgmap, pgmap_size, mem) = match &layout {
        Ok(layout) => (layout.size, layout.pgmap, layout.pgmap_size, layout.mem),
        Err(why) => {
            eprintln!(
                "barbuf: {}: {why}: building without page backing",
                path.to_string_lossy()
            );
            (0, 0, 0, 0)
        }
    };
    println!("/* SPDX-License-Identifier: GPL-2.0 */");
    println!("/* struct pci_p2pdma_pagemap of the kernel built against; size 0: not known. */");
    println!("#define BARBUF_LAYOUT_SIZE {size}");
    println!("#define BARBUF_LAYOUT_PGMAP {pgmap}");
    println!("#define BARBUF_LAYOUT_PGMAP_SIZE {pgmap_size}");
    println!("#define BARBUF_LAYOUT_MEM {mem}");
    ExitCode::SUCCESS
}
