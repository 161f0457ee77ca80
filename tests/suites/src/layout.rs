// SPDX-License-Identifier: MIT OR Apache-2.0

//! The layout of the kernel's private struct, which page backing needs: the module is loaded on a kernel
//! that describes another one than it was built for.
//!
//! The kernel's description of itself is a file, and another one is put over it.

use std::fs;

use nix::mount::{MsFlags, mount, umount};

use crate::export::main_region;
use crate::kit::klog::logged;
use crate::kit::node::Info;
use crate::kit::prelude::*;

use barbuf_guest::modules;

pub(crate) const SUITE: Suite = Suite {
    name: "layout",
    tests: &[test!(another_layout_costs_page_backing_alone).timeout(120)],
};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const STRUCT: &str = "pci_p2pdma_pagemap";
/// BTF_KIND_STRUCT
const KIND: u32 = 4;

/// The module, loaded where the kernel describes itself in these bytes; as usual once this is dropped.
struct Misled<'a>(&'a Ctx);

impl<'a> Misled<'a> {
    fn by(ctx: &'a Ctx, bytes: &[u8]) -> Result<Self> {
        const FILE: &str = "/run/btf";
        fs::write(FILE, bytes)?;
        modules::unload(ctx.product())?;
        mount(
            Some(FILE),
            BTF,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("hiding the kernel's BTF")?;
        let misled = Misled(ctx);
        ctx.modules().load(ctx.product(), "")?;
        Ok(misled)
    }
}

impl Drop for Misled<'_> {
    fn drop(&mut self) {
        let undo = || -> Result<()> {
            umount(BTF)?;
            modules::unload(self.0.product())?;
            Ok(self.0.modules().load(self.0.product(), "")?)
        };
        if let Err(error) = undo() {
            eprintln!("cannot undo {BTF}: {error:#}");
        }
    }
}

fn word(btf: &[u8], at: usize) -> Result<u32> {
    let bytes = btf.get(at..at + 4).context("BTF that ends early")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

/// Where the record of the struct begins: its name, its kind and number of members, its size; then, for
/// each member, name, type, and place in bits.
fn record(btf: &[u8]) -> Result<usize> {
    let header = word(btf, 4)? as usize;
    let types = header + word(btf, 8)? as usize;
    let strings = header + word(btf, 16)? as usize;
    let wanted = format!("\0{STRUCT}\0");
    let name = btf[strings..]
        .windows(wanted.len())
        .position(|window| window == wanted.as_bytes())
        .context("BTF without the struct's name")?;
    let name = name as u32 + 1;
    let is_it = |at: usize| -> Result<bool> {
        let info = word(btf, at + 4)?;
        Ok(word(btf, at)? == name && (info >> 24) & 0x1f == KIND && info & 0xffff == 2)
    };
    for at in (types..types + word(btf, 12)? as usize).step_by(4) {
        if is_it(at)? {
            return Ok(at);
        }
    }
    bail!("BTF without {STRUCT}")
}

/// The same BTF with `more` added to one word of the struct's record.
fn changed(btf: &[u8], at: usize, more: u32) -> Result<Vec<u8>> {
    let at = record(btf)? + at;
    let value = word(btf, at)? + more;
    let mut btf = btf.to_vec();
    btf[at..at + 4].copy_from_slice(&value.to_le_bytes());
    Ok(btf)
}

/// What every kernel must do, with struct pages or without.
fn frames_work(provider: &Provider) -> Result<()> {
    let buffer = provider.node.export(&Export::any(GIB))?;
    let map = Mapping::whole(&buffer)?;
    ensure!(map.store(GIB - 8, 0x1234) == Ok(()) && map.load(GIB - 8) == Ok(0x1234));
    ensure_eq!(provider.node.query(&buffer)?.leaves().of_1g, 1);
    Ok(())
}

fn another_layout_costs_page_backing_alone(ctx: &Ctx) -> Result<()> {
    let btf = fs::read(BTF)?;
    let has_pages = |info: &Info| info.has(BARBUF_CAP_PAGE_BACKING);
    let differs = "struct pci_p2pdma_pagemap differs";
    for (what, bytes, message) in [
        ("a larger struct", changed(&btf, 8, 8)?, differs),
        ("a member elsewhere", changed(&btf, 32, 64)?, differs),
        ("another name", changed(&btf, 0, 1)?, "BTF of this kernel: "),
        (
            "half of it",
            btf[..btf.len() / 2].to_vec(),
            "BTF of this kernel: ",
        ),
        ("nothing", Vec::new(), "BTF of this kernel: "),
    ] {
        let off = "barbuf: page backing is off";
        let before = logged(off, message)?;
        let _misled = Misled::by(ctx, &bytes).context(what)?;
        ensure!(
            logged(off, message)? == before + 1,
            "{what}: not in the log"
        );

        let provider = Provider::bind(ctx.npu(0)?)?;
        let info = provider.node.info()?;
        let region = main_region(&info)?;
        ensure!(
            !has_pages(&info) && region.backings == 1 << BARBUF_BACKING_PFN,
            "{what}: {region:?}"
        );
        let answer = provider.node.export(&Export::any(GIB).page()).map(drop);
        ensure!(answer == Err(Errno::EOPNOTSUPP), "{what}: {answer:?}");
        frames_work(&provider).context(what)?;
        // The pool's pages are its driver's, whose struct nobody has to know.
        let drive = Provider::adopt(ctx.nvme(0)?)?;
        let pooled = drive.node.export(&Export::any(MIB).page())?;
        ensure!(Mapping::whole(&pooled)?.store(0, 1) == Ok(()), "{what}");
    }
    let provider = Provider::bind(ctx.npu(0)?)?;
    ensure!(has_pages(&provider.node.info()?), "it does not come back");
    provider.node.export(&Export::any(GIB).page())?;
    frames_work(&provider)
}
