// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that fail: each errno of the header's table, with all else right, and with nothing changed
//! by the call.

use crate::export::main_region;
use crate::kit::prelude::*;
use crate::kit::process::no_fd_leaks;

use barbuf_sys::ioctl::{BARBUF_INFO, BARBUF_QUERY};

use std::os::fd::AsRawFd as _;

pub(crate) const SUITE: Suite = Suite {
    name: "errors",
    tests: &[
        test!(export_names_each_error),
        test!(export_of_an_adopted_pool_names_each_error),
        test!(info_names_each_error),
        test!(query_names_each_error),
    ],
};

/// What calls may end in: the table of uapi/linux/barbuf.h, but for [`ELSEWHERE`].
pub(crate) const DOCUMENTED: [Errno; 17] = [
    Errno::ENOTTY,
    Errno::E2BIG,
    Errno::EFAULT,
    Errno::EINVAL,
    Errno::EOPNOTSUPP,
    Errno::EBADF,
    Errno::ENODEV,
    Errno::EBADFD,
    Errno::EBUSY,
    Errno::ENOSPC,
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::EPERM,
    Errno::EACCES,
    Errno::ENOMEM,
    Errno::EINTR,
    Errno::EEXIST,
];

/// What the table has for importers, for resets, and for functions whose own driver has registered
/// them. None of these may come of others.
#[cfg(test)]
const ELSEWHERE: [Errno; 4] = [
    Errno::EAGAIN,
    Errno::ERANGE,
    Errno::EREMOTEIO,
    Errno::ECONNREFUSED,
];

/// Exports, and insists on the error and on nothing having changed.
fn refused(provider: &Provider, what: &str, export: &Export, errno: Errno) -> Result<()> {
    let before = provider.node.info()?.regions;
    let answer = no_fd_leaks(|| provider.node.export(export).map(|buffer| buffer.raw))?;
    ensure!(answer == Err(errno), "{what}: {answer:?} and not {errno}");
    ensure!(
        provider.node.info()?.regions == before,
        "{what}: the call changed what is free"
    );
    Ok(())
}

/// Every member of EXPORT with a value that is wrong, one at a time.
fn export_names_each_error(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let region = main_region(&provider.node.info()?)?;
    let end = region.length;
    let many =
        |count: u64| Export::ranges(&(0..count).map(|i| (i * PAGE, PAGE)).collect::<Vec<_>>());
    let page = || Export::any(PAGE);
    let invalid = [
        ("an unknown flag", page().flag(1 << 5)),
        ("the highest flag", page().flag(1 << 31)),
        (
            "a region that does not exist",
            page().with(|e| e.region = 6),
        ),
        (
            "the last region number",
            page().with(|e| e.region = u32::MAX),
        ),
        ("an unknown backing", page().backing(2)),
        ("an unknown cache mode", page().cache(2)),
        ("write-only access", page().open_flags(libc::O_WRONLY)),
        (
            "both access bits",
            page().open_flags(libc::O_WRONLY | libc::O_RDWR),
        ),
        (
            "an unknown open flag",
            page().open_flags(libc::O_RDWR | libc::O_APPEND),
        ),
        ("a page size that does not exist", page().leaf(13)),
        ("a page size out of the world", page().leaf(64)),
        ("a reserved member", page().with(|e| e.reserved = 1)),
        ("no range", many(0)),
        ("65 ranges", many(65)),
        ("any, in two ranges", many(2).flag(BARBUF_EXPORT_ANY)),
        (
            "any, at a place",
            Export::at(PAGE, PAGE).flag(BARBUF_EXPORT_ANY),
        ),
        ("an empty range", Export::at(0, 0)),
        ("an empty range for any", Export::any(0)),
        ("half a page", Export::at(0, PAGE / 2)),
        ("half a page for any", Export::any(PAGE / 2)),
        ("an offset inside a page", Export::at(PAGE / 2, PAGE)),
        ("a range behind the region", Export::at(end, PAGE)),
        ("a range across the end", Export::at(end - PAGE, 2 * PAGE)),
        (
            "a range that wraps",
            Export::at(u64::MAX - PAGE + 1, 2 * PAGE),
        ),
        ("a length that wraps", Export::at(PAGE, u64::MAX - PAGE + 1)),
        (
            "ranges that overlap",
            Export::ranges(&[(0, 2 * PAGE), (PAGE, 2 * PAGE)]),
        ),
        (
            "the same range twice",
            Export::ranges(&[(0, PAGE), (0, PAGE)]),
        ),
        (
            "lengths whose sum wraps",
            Export::ranges(&[(0, 1 << 63), (1 << 63, 1 << 63)]),
        ),
    ];
    for (what, export) in invalid {
        refused(&provider, what, &export, Errno::EINVAL)?;
    }
    let zero = page().flag(BARBUF_EXPORT_ZERO);
    refused(
        &provider,
        "zeros over what may be registers",
        &zero,
        Errno::EOPNOTSUPP,
    )?;
    let combined = page().page().cache(BARBUF_CACHE_WC);
    refused(
        &provider,
        "write combining with struct pages",
        &combined,
        Errno::EOPNOTSUPP,
    )?;
    refused(
        &provider,
        "more than there is",
        &Export::any(end + PAGE),
        Errno::ENOSPC,
    )?;
    refused(
        &provider,
        "more than anything has",
        &Export::any(1 << 62),
        Errno::ENOSPC,
    )?;
    let most = many(64);
    ensure!(
        provider.node.export(&most)?.size() == 64 * PAGE,
        "64 ranges are possible"
    );
    Ok(())
}

/// What a pool cannot do is EOPNOTSUPP; what is full is ENOSPC.
fn export_of_an_adopted_pool_names_each_error(ctx: &Ctx) -> Result<()> {
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let region = main_region(&provider.node.info()?)?;
    ensure!(region.flags & BARBUF_REGION_POOL != 0, "{region:?}");
    refused(
        &provider,
        "a fixed range",
        &Export::at(0, PAGE),
        Errno::EOPNOTSUPP,
    )?;
    refused(
        &provider,
        "more than the pool has",
        &Export::any(region.length + PAGE),
        Errno::ENOSPC,
    )?;
    for (bit, export) in [
        (
            region.backings >> BARBUF_BACKING_PAGE,
            Export::any(PAGE).page(),
        ),
        (
            region.caches >> BARBUF_CACHE_WC,
            Export::any(PAGE).cache(BARBUF_CACHE_WC),
        ),
    ] {
        match bit & 1 {
            0 => refused(
                &provider,
                "what INFO does not offer",
                &export,
                Errno::EOPNOTSUPP,
            )?,
            _ => drop(provider.node.export(&export).context("what INFO offers")?),
        }
    }
    Ok(())
}

/// One ioctl with a structure of any type.
pub(crate) fn call<T>(node: &Node, request: u32, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: The structure lives; arrays in it are those that the tests put there.
    unsafe { node.raw_ioctl(u64::from(request), std::ptr::from_mut(argument) as u64) }.map(drop)
}

/// INFO with a member that is wrong.
fn info_names_each_error(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let mut room = [barbuf_region_info::default(); 8];
    let right = barbuf_info {
        nr_regions: 8,
        region_stride: 64,
        regions: room.as_mut_ptr() as u64,
        ..barbuf_info::new()
    };
    let cases = [
        ("right", right, Ok(())),
        (
            "a flag",
            barbuf_info { flags: 1, ..right },
            Err(Errno::EINVAL),
        ),
        (
            "a stride of 0",
            barbuf_info {
                region_stride: 0,
                ..right
            },
            Err(Errno::EINVAL),
        ),
        (
            "a stride too short",
            barbuf_info {
                region_stride: 56,
                ..right
            },
            Err(Errno::EINVAL),
        ),
        (
            "a stride off 8",
            barbuf_info {
                region_stride: 68,
                ..right
            },
            Err(Errno::EINVAL),
        ),
        (
            "no array",
            barbuf_info {
                regions: 0,
                ..right
            },
            Err(Errno::EFAULT),
        ),
        (
            "an array in the kernel",
            barbuf_info {
                regions: 0xffff_8000_0000_0000,
                ..right
            },
            Err(Errno::EFAULT),
        ),
    ];
    for (what, mut info, wanted) in cases {
        let answer = call(&provider.node, BARBUF_INFO, &mut info);
        ensure!(answer == wanted, "{what}: {answer:?}");
    }
    Ok(())
}

/// QUERY with a member that is wrong, and of descriptors that are none of ours.
fn query_names_each_error(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let control = Node::control()?;
    let buffer = provider.node.export(&Export::any(PAGE))?;
    let file = std::fs::File::open("/dev/null")?;
    let closed = file.try_clone()?.as_raw_fd();
    let right = barbuf_query {
        fd: buffer.number(),
        ..barbuf_query::new()
    };
    let cases = [
        ("right", right, Ok(())),
        (
            "a flag",
            barbuf_query { flags: 1, ..right },
            Err(Errno::EINVAL),
        ),
        (
            "a reserved member",
            barbuf_query {
                reserved: 1,
                ..right
            },
            Err(Errno::EINVAL),
        ),
        ("-1", barbuf_query { fd: -1, ..right }, Err(Errno::EBADF)),
        (
            "a closed descriptor",
            barbuf_query {
                fd: closed,
                ..right
            },
            Err(Errno::EBADF),
        ),
        (
            "no dma-buf",
            barbuf_query {
                fd: file.as_raw_fd(),
                ..right
            },
            Err(Errno::EINVAL),
        ),
        (
            "no array",
            barbuf_query {
                nr_ranges: 1,
                ..right
            },
            Err(Errno::EFAULT),
        ),
    ];
    for (what, query, wanted) in cases {
        for (node, which) in [(&provider.node, "provider"), (&control, "control")] {
            let answer = no_fd_leaks(|| call(node, BARBUF_QUERY, &mut { query }))?;
            ensure!(answer == wanted, "{what}, {which}: {answer:?}");
        }
    }
    let other = Provider::adopt(ctx.nvme(0)?)?;
    let answer = other.node.query(&buffer).map(drop);
    ensure!(
        answer == Err(Errno::ENODEV),
        "at another provider's node: {answer:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header has a line for each errno, and no other, once.
    #[test]
    fn the_header_documents_these() {
        let header = include_str!("../../../uapi/linux/barbuf.h");
        let mut tables = header.split(" * ======================  ");
        let table = tables.nth(1).expect("the table");
        let (_, table) = table.split_once('\n').expect("its rule");
        let mut found: Vec<String> = table
            .lines()
            .filter_map(|line| line.strip_prefix(" * "))
            .filter(|line| line.starts_with('E'))
            .filter_map(|line| line.split_once("   "))
            .flat_map(|(names, _)| names.split(", ").map(str::to_owned))
            .collect();
        let mut wanted: Vec<String> = DOCUMENTED
            .iter()
            .chain(&ELSEWHERE)
            .map(|errno| format!("{errno:?}"))
            .collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
    }
}
