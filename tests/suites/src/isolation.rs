// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who may do what: other ways to the same memory, permissions of the nodes, capabilities.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use nix::sched::{CloneFlags, unshare};

use crate::export::main_region;
use crate::kit::map::mmap;
use crate::kit::node::CONTROL;
use crate::kit::pci::Function;
use crate::kit::prelude::*;
use crate::kit::process::{CAP_SYS_ADMIN, CAP_SYS_RAWIO, Child, become_nobody, drop_capability};
use crate::kit::touch;

pub(crate) const SUITE: Suite = Suite {
    name: "isolation",
    tests: &[
        test!(other_doors_to_a_bound_bar_are_shut),
        test!(earlier_mappings_die_when_it_is_bound),
        test!(nodes_have_the_documented_modes),
        test!(nobody_can_ask_about_what_was_handed_over),
        test!(nobody_can_export_on_an_inherited_node),
        test!(export_of_registers_needs_rawio),
        test!(adopting_needs_admin),
        test!(root_of_a_user_namespace_is_nobody),
        test!(bus_mastering_stays_off),
    ],
};

fn open(path: &str) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_SYNC)
        .open(path)
}

/// Maps a page of a file, or says why not.
fn map_page(file: &File, offset: u64) -> Result<*mut u8, Errno> {
    // SAFETY: At an address that the kernel chooses.
    unsafe { mmap(0, PAGE, READ_WRITE, libc::MAP_SHARED, file, offset) }
}

/// R34: while barbuf has the BAR, neither sysfs nor /dev/mem maps it.
fn other_doors_to_a_bound_bar_are_shut(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let bar = provider.function.bar(2)?;
    for file in ["resource2", "resource2_wc"] {
        let path = provider.function.dir().join(file);
        let file_of = open(path.to_str().context("a path")?).context(file)?;
        let answer = map_page(&file_of, 0);
        ensure!(answer == Err(Errno::EINVAL), "{file}: {answer:?}");
    }
    let mem = open("/dev/mem").context("/dev/mem")?;
    let answer = map_page(&mem, bar.start);
    ensure!(
        matches!(answer, Err(Errno::EPERM | Errno::EINVAL)),
        "/dev/mem: {answer:?}"
    );
    Ok(())
}

/// R34: who had it mapped before sees nothing of what the buffers' owners do.
fn earlier_mappings_die_when_it_is_bound(ctx: &Ctx) -> Result<()> {
    let function = Function::of(ctx.npu(0)?)?;
    let bar = function.bar(2)?;
    barbuf_guest::sysfs::write(function.dir().join("enable"), "1")?;
    let sysfs_map = map_page(
        &open(
            function
                .dir()
                .join("resource2")
                .to_str()
                .context("a path")?,
        )?,
        0,
    )?;
    let mem_map = map_page(&open("/dev/mem")?, bar.start)?;
    for map in [sysfs_map, mem_map] {
        ensure!(touch::load(map).is_ok(), "not readable before it was bound");
    }
    let provider = Provider::bind(ctx.npu(0)?)?;
    for (which, map) in [("sysfs", sysfs_map), ("/dev/mem", mem_map)] {
        ensure!(
            touch::load(map) == Err(Fault::bus(map)),
            "{which}: {:x?}",
            touch::load(map)
        );
        // SAFETY: Mapped above.
        unsafe { libc::munmap(map.cast(), PAGE as usize) };
    }
    drop(provider);
    Ok(barbuf_guest::sysfs::write(
        function.dir().join("enable"),
        "0",
    )?)
}

/// 0600 root for a provider, 0666 for the control node.
fn nodes_have_the_documented_modes(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    for (path, mode) in [
        (provider.function.node_path(), 0o600),
        (CONTROL.to_owned(), 0o666),
    ] {
        let data = fs::metadata(&path)?;
        ensure!(data.mode() & 0o7777 == mode, "{path}: {:o}", data.mode());
        ensure!((data.uid(), data.gid()) == (0, 0), "{path}");
    }
    Ok(())
}

/// An unprivileged process maps a buffer that it was handed and asks what it is, and can do no
/// more.
fn nobody_can_ask_about_what_was_handed_over(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(GIB))?;
    Child::start(|| {
        become_nobody()?;
        let refused =
            File::open(provider.function.node_path()).map_err(|error| error.raw_os_error());
        ensure!(
            refused.is_err_and(|errno| errno == Some(libc::EACCES)),
            "nobody opens a provider's node"
        );
        let control = Node::control().context("nobody opens the control node")?;
        let query = control.query(&buffer)?.raw;
        ensure!(
            query.out_state == BARBUF_STATE_LIVE && query.out_size == GIB,
            "{query:?}"
        );
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, 1) == Ok(()) && map.load(0) == Ok(1));
        ensure!(control.export(&Export::any(PAGE)).map(drop) == Err(Errno::ENOTTY));
        ensure!(control.revoke(&buffer) == Err(Errno::ENOTTY));
        for answer in [
            control.adopt(provider.bdf()),
            control.release(provider.bdf()),
            control.adopt("nonsense"),
        ] {
            ensure!(answer == Err(Errno::EPERM), "{answer:?}");
        }
        Ok(())
    })?
    .join()
}

/// B7: a node that a privileged process has opened does not make its heir privileged.
fn nobody_can_export_on_an_inherited_node(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    Child::start(|| {
        become_nobody()?;
        ensure!(!provider.node.info()?.regions.is_empty());
        let answer = provider.node.export(&Export::any(PAGE)).map(drop);
        ensure!(answer == Err(Errno::EPERM), "{answer:?}");
        Ok(())
    })?
    .join()
}

/// B7: a BAR that may hold registers needs CAP_SYS_RAWIO, memory out of a pool does not.
fn export_of_registers_needs_rawio(ctx: &Ctx) -> Result<()> {
    let (bound, adopted) = (Provider::bind(ctx.npu(0)?)?, Provider::adopt(ctx.nvme(0)?)?);
    ensure!(main_region(&bound.node.info()?)?.flags & BARBUF_REGION_MEMORY_ONLY == 0);
    let buffer = bound.node.export(&Export::at(0, PAGE))?;
    Child::start(|| {
        drop_capability(CAP_SYS_RAWIO)?;
        // A node of its own, opened without the capability, and the one that was opened with it.
        for node in [&bound.reopen()?, &bound.node] {
            let answer = node.export(&Export::at(PAGE, PAGE)).map(drop);
            ensure!(
                answer == Err(Errno::EPERM),
                "of a bound function: {answer:?}"
            );
        }
        ensure!(adopted.node.export(&Export::any(PAGE)).is_ok(), "of a pool");
        // To take back is always allowed.
        Ok(bound.node.revoke(&buffer)?)
    })?
    .join()
}

/// ADOPT and RELEASE need CAP_SYS_ADMIN, and say so before anything else.
fn adopting_needs_admin(ctx: &Ctx) -> Result<()> {
    let bdf = Function::of(ctx.nvme(0)?)?.bdf;
    Child::start(|| {
        drop_capability(CAP_SYS_ADMIN)?;
        let control = Node::control()?;
        let answers = (control.adopt(&bdf), control.release(&bdf));
        ensure!(
            answers == (Err(Errno::EPERM), Err(Errno::EPERM)),
            "{answers:?}"
        );
        Ok(())
    })?
    .join()
}

/// All capabilities in a user namespace of one's own are none here.
fn root_of_a_user_namespace_is_nobody(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    Child::start(|| {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        let answer = provider.node.export(&Export::any(PAGE)).map(drop);
        ensure!(answer == Err(Errno::EPERM), "EXPORT: {answer:?}");
        let answer = Node::control()?.adopt(provider.bdf());
        ensure!(answer == Err(Errno::EPERM), "ADOPT: {answer:?}");
        Ok(())
    })?
    .join()
}

/// A bound function decodes memory, but is not made a bus master: nobody has a use for its DMA.
fn bus_mastering_stays_off(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let _buffer = provider.node.export(&Export::any(GIB))?;
    let config = fs::read(provider.function.dir().join("config"))?;
    let command = u16::from_le_bytes([config[4], config[5]]);
    ensure!(command & 2 != 0, "memory is not decoded: {command:#x}");
    ensure!(command & 4 == 0, "a bus master: {command:#x}");
    Ok(())
}
