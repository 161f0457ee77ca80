// SPDX-License-Identifier: MIT OR Apache-2.0

//! mmap and the first touch of every page, by barbuf and by vfio-pci.
//!
//! Every mapping is of the same 32 GiB at the same address, made anew for each run and unmapped afterwards.

use std::os::fd::AsFd;

use barbuf_guest::figure::Unit;

use super::clock::{RUNS, now, tell};
use super::with_parameters;
use crate::export::main_region;
use crate::kit::map::mmap;
use crate::kit::prelude::*;
use crate::kit::vfio::Vfio;

/// The BAR of an NPU that holds its memory.
pub(super) const MEMORY_BAR: usize = 2;

/// One page size of 1 GiB.
pub(crate) fn touch_1g(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let len = main_region(&provider.node.info()?)?.length;
    for (name, wanted) in [
        ("touch_1g_pfn", Export::at(0, len)),
        ("touch_1g_page", Export::at(0, len).page()),
    ] {
        let buffer = provider.node.export(&wanted)?;
        ensure_eq!(
            (buffer.raw.out_page_shift, buffer.raw.out_phys_class),
            (30, 0)
        );
        measure(ctx, name, &buffer, 0, len, GIB)?;
        let query = provider.node.query(&buffer)?;
        let leaves = len / GIB * RUNS as u64;
        ensure_eq!(
            query.leaves(),
            Leaves {
                of_1g: leaves,
                ..Leaves::default()
            }
        );
    }
    Ok(())
}

/// The same by vfio-pci.
pub(crate) fn touch_1g_by_vfio(ctx: &Ctx) -> Result<()> {
    let vfio = Vfio::open(ctx, ctx.npu(0)?)?;
    let (offset, len) = vfio.bar(MEMORY_BAR)?;
    measure(ctx, "touch_1g_vfio", &vfio, offset, len, GIB)
}

/// Pages of 2 MiB, a table of them per fault.
pub(crate) fn touch_2m(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    touch_2m_of(ctx, &provider, "touch_2m_pfn", false)?;
    touch_2m_of(ctx, &provider, "touch_2m_page", true)
}

/// Pages of 2 MiB, each by a fault of its own.
pub(crate) fn touch_2m_one_by_one(ctx: &Ctx) -> Result<()> {
    with_parameters(ctx, "fault_around=0", |provider| {
        touch_2m_of(ctx, provider, "touch_2m_pfn_one_by_one", false)
    })
}

fn touch_2m_of(ctx: &Ctx, provider: &Provider, name: &str, page: bool) -> Result<()> {
    let len = main_region(&provider.node.info()?)?.length;
    let wanted = Export::at(0, len).leaf(BARBUF_PAGE_SHIFT_2M);
    let buffer = provider
        .node
        .export(&if page { wanted.page() } else { wanted })?;
    measure(ctx, name, &buffer, 0, len, 2 * MIB)?;
    let query = provider.node.query(&buffer)?;
    let leaves = len / (2 * MIB) * RUNS as u64;
    ensure_eq!(
        query.leaves(),
        Leaves {
            of_2m: leaves,
            ..Leaves::default()
        }
    );
    Ok(())
}

/// Where every measured mapping begins: a multiple of 1 GiB, far from where the kernel puts anything by itself.
const ADDRESS: u64 = 0x6000_0000_0000;

/// A touched page in the 512 GiB of address space behind [`ADDRESS`], whose page table then exists already, as it does
/// for most mappings of a process. Otherwise the place that the process was loaded to would decide what is measured.
struct Anchor {
    at: u64,
}

impl Anchor {
    fn new(len: u64) -> Result<Anchor> {
        let at = ADDRESS + len;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE: the mapping takes nobody's place.
        let found = unsafe { libc::mmap(at as *mut _, PAGE as usize, READ_WRITE, flags, -1, 0) };
        ensure!(found as u64 == at, "no room at {at:#x}: {}", Errno::last());
        // SAFETY: Mapped above, and nobody else knows of it.
        unsafe { found.cast::<u8>().write_volatile(1) };
        Ok(Anchor { at })
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        // SAFETY: Mapped in `new`.
        unsafe { libc::munmap(self.at as *mut _, PAGE as usize) };
    }
}

/// Maps, touches a byte of every page, unmaps.
fn measure(ctx: &Ctx, name: &str, file: impl AsFd, offset: u64, len: u64, page: u64) -> Result<()> {
    let file = file.as_fd();
    let _anchor = Anchor::new(len)?;
    let (mut both, mut map, mut touch, mut unmap) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        let start = now();
        // SAFETY: As for the anchor.
        let at = unsafe { mmap(ADDRESS as usize, len, READ_WRITE, flags, file, offset) }?;
        let mapped = now();
        for byte in (0..len).step_by(page as usize) {
            // SAFETY: Inside of the mapping, which is of memory that nobody revokes.
            unsafe { at.add(byte as usize).read_volatile() };
        }
        let touched = now();
        // SAFETY: Nobody else knows of the mapping.
        Errno::result(unsafe { libc::munmap(at.cast(), len as usize) })?;
        unmap.push(now() - touched);
        both.push(touched - start);
        map.push(mapped - start);
        touch.push(touched - mapped);
    }
    for (part, samples) in [
        ("", both),
        ("_mmap", map),
        ("_touch", touch),
        ("_munmap", unmap),
    ] {
        tell(ctx, &format!("{name}{part}"), Unit::Ns, samples)?;
    }
    Ok(())
}
