// SPDX-License-Identifier: MIT OR Apache-2.0

//! The module's idea of the interface against this side's.
//!
//! barbuf-sys is compared with the C header where it is built. Here it is compared with the running
//! module, which prints its own sizes, offsets and numbers in debugfs; and a 32-bit process, and a
//! caller that only enters the kernel as one, must get the same answers.

use std::arch::asm;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use barbuf_sys::ioctl::{
    BARBUF_EXPORT, BARBUF_INFO, BARBUF_QUERY, BARBUF_REVOKE, BARBUF_ROUTE, REQUESTS,
};
use barbuf_sys::layout::{CONSTANTS, STRUCTS};

use crate::kit::node::name;
use crate::kit::prelude::*;

pub(crate) const SUITE: Suite = Suite {
    name: "abi",
    tests: &[
        test!(the_module_agrees),
        test!(only_the_published_numbers_exist),
        test!(a_32_bit_caller_sees_the_same),
        test!(a_32_bit_process_sees_the_same),
    ],
};

/// Where the module says what it was built with.
const ABI: &str = "/sys/kernel/debug/barbuf/abi";

/// What this side believes, in the form of the module's file.
fn ours() -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for s in STRUCTS {
        lines.insert(format!("struct {}", s.name), s.size as u64);
        for m in s.members {
            lines.insert(format!("struct {}.{}", s.name, m.name), m.offset as u64);
        }
    }
    lines.extend(
        REQUESTS
            .iter()
            .map(|(name, number)| (format!("ioctl {name}"), u64::from(*number))),
    );
    lines.extend(
        CONSTANTS
            .iter()
            .map(|(name, value)| (format!("const {name}"), *value)),
    );
    lines
}

/// A line of the module's file: what, and a number in decimal or with 0x.
fn parse(line: &str) -> Option<(String, u64)> {
    let (what, number) = line.rsplit_once(' ')?;
    let value = match number.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => number.parse(),
    };
    Some((what.to_owned(), value.ok()?))
}

/// The module was built with the layouts and numbers that this side uses, and knows nothing that
/// this side does not.
fn the_module_agrees(_: &Ctx) -> Result<()> {
    let text = fs::read_to_string(ABI).with_context(|| format!("cannot read {ABI}"))?;
    let mut wrong = Vec::new();
    let mut expected = ours();
    for line in text.lines() {
        match parse(line) {
            None => wrong.push(format!("not understood: {line}")),
            Some((what, theirs)) => match expected.remove(&what) {
                Some(here) if here == theirs => {}
                Some(here) => wrong.push(format!("{what}: {theirs} in the module, {here} here")),
                None => wrong.push(format!("{what}: unknown here")),
            },
        }
    }
    wrong.extend(
        expected
            .into_keys()
            .map(|what| format!("{what}: unknown to the module")),
    );
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Each node answers its own requests, and ENOTTY to all others, whatever size and direction the
/// number carries.
fn only_the_published_numbers_exist(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let control = Node::control()?;
    let on_provider = [
        BARBUF_INFO,
        BARBUF_EXPORT,
        BARBUF_QUERY,
        BARBUF_REVOKE,
        BARBUF_ROUTE,
    ];
    let on_control = [BARBUF_QUERY, ioctl::BARBUF_ADOPT, ioctl::BARBUF_RELEASE];
    for (node, known, which) in [
        (&provider.node, &on_provider[..], "the provider's node"),
        (&control, &on_control[..], "the control node"),
    ] {
        let numbers = (0..=255u32).flat_map(|nr| {
            // The direction and the size are part of a number: with any of them it is another one.
            [0, 1, 2, 3].into_iter().flat_map(move |dir| {
                [0, 4, 40, 0x3fff].map(move |size| {
                    (dir << 30) | (size << 16) | (u32::from(BARBUF_IOC_MAGIC) << 8) | nr
                })
            })
        });
        for number in numbers {
            // A null pointer: no request that exists can succeed.
            // SAFETY: The kernel has nothing to write to.
            let answer = unsafe { node.raw_ioctl(u64::from(number), 0) };
            let wanted = if known.contains(&number) {
                Errno::EFAULT
            } else {
                Errno::ENOTTY
            };
            ensure!(
                answer == Err(wanted),
                "{which}, number {number:#x}: {answer:?} and not {wanted}"
            );
        }
    }
    Ok(())
}

/// ioctl(2) through the kernel's 32-bit entry, which `int 0x80` reaches from 64-bit code too.
///
/// # Safety
///
/// As for ioctl(2); the argument lies below 4 GiB.
unsafe fn compat_ioctl(fd: i32, request: u32, argument: u32) -> Result<i32, Errno> {
    const NR_IOCTL: u64 = 54;
    // SAFETY: Promised by the caller.
    unsafe { compat_syscall(NR_IOCTL, fd as u32, request, argument) }
}

/// # Safety
///
/// As for the system call.
unsafe fn compat_syscall(number: u64, a: u32, b: u32, c: u32) -> Result<i32, Errno> {
    let result: i64;
    // SAFETY: Promised by the caller. LLVM keeps rbx for itself, so it is swapped in and out; the
    // entry clears r8 to r11.
    unsafe {
        asm!(
            "xchg rbx, {a}",
            "int 0x80",
            "xchg rbx, {a}",
            a = inout(reg) u64::from(a) => _,
            inlateout("rax") number => result,
            in("rcx") u64::from(b),
            in("rdx") u64::from(c),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    match result as i32 {
        value @ 0.. => Ok(value),
        errno => Err(Errno::from_raw(-errno)),
    }
}

/// One page that a 32-bit pointer reaches.
struct LowPage(*mut u8);

impl LowPage {
    fn new() -> Result<LowPage> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        // SAFETY: A new mapping.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE as usize,
                READ_WRITE,
                flags,
                -1,
                0,
            )
        };
        ensure!(
            page != libc::MAP_FAILED,
            "no memory below 4 GiB: {}",
            Errno::last()
        );
        Ok(LowPage(page.cast()))
    }

    /// Puts a value at an offset and returns its address.
    fn put<T: Copy>(&self, offset: usize, value: T) -> u32 {
        assert!(offset + size_of::<T>() <= PAGE as usize && offset % align_of::<T>() == 0);
        // SAFETY: Inside the page and aligned.
        unsafe { self.0.add(offset).cast::<T>().write(value) };
        self.0 as u32 + offset as u32
    }

    fn get<T: Copy>(&self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= PAGE as usize && offset % align_of::<T>() == 0);
        // SAFETY: Inside the page, aligned, and written by `put` or by the kernel. Only plain
        // integers are read.
        unsafe { self.0.add(offset).cast::<T>().read() }
    }
}

impl Drop for LowPage {
    fn drop(&mut self) {
        // SAFETY: Made in `new`; nobody keeps a reference into it.
        unsafe { libc::munmap(self.0.cast(), PAGE as usize) };
    }
}

/// R32: a process that calls as 32-bit processes do gets the same answers.
///
/// That a 32-bit compiler lays the structures out alike is proven where barbuf-sys is built. What
/// is left is the way into the kernel, and that is the one taken here.
fn a_32_bit_caller_sees_the_same(ctx: &Ctx) -> Result<()> {
    const NR_GETPID: u64 = 20;
    // SAFETY: getpid has no arguments.
    let pid = unsafe { compat_syscall(NR_GETPID, 0, 0, 0) };
    ensure!(
        pid == Ok(std::process::id() as i32),
        "this kernel has no 32-bit entry: {pid:?}"
    );

    let provider = Provider::bind(ctx.npu(0)?)?;
    let node = provider.node.as_raw_fd();
    let page = LowPage::new()?;

    let regions = page.put(1024, [barbuf_region_info::default(); 8]);
    let info = barbuf_info {
        nr_regions: 8,
        region_stride: size_of::<barbuf_region_info>() as u32,
        regions: u64::from(regions),
        ..barbuf_info::new()
    };
    // SAFETY: All is in the page.
    unsafe { compat_ioctl(node, BARBUF_INFO, page.put(0, info)) }.context("INFO")?;
    let native = provider.node.info()?;
    let compat: barbuf_info = page.get(0);
    ensure!(
        barbuf_info {
            regions: native.raw.regions,
            ..compat
        } == native.raw,
        "{compat:?}, {:?}",
        native.raw
    );
    let elements: [barbuf_region_info; 8] = page.get(1024);
    ensure!(
        elements[..native.regions.len()] == native.regions[..],
        "regions differ"
    );

    let ranges = page.put(
        1024,
        barbuf_range {
            offset: 0,
            length: 2 * MIB,
        },
    );
    let wanted = barbuf_export {
        ranges: u64::from(ranges),
        nr_ranges: 1,
        ..Export::any(0).raw
    };
    // SAFETY: All is in the page.
    unsafe { compat_ioctl(node, BARBUF_EXPORT, page.put(0, wanted)) }.context("EXPORT")?;
    let made: barbuf_export = page.get(0);
    let range: barbuf_range = page.get(1024);
    ensure!(made.out_size == 2 * MIB && made.out_fd >= 0, "{made:?}");

    let query = barbuf_query {
        fd: made.out_fd,
        ..barbuf_query::new()
    };
    // SAFETY: All is in the page.
    unsafe { compat_ioctl(node, BARBUF_QUERY, page.put(0, query)) }.context("QUERY")?;
    let compat: barbuf_query = page.get(0);
    let native = provider.node.query_raw(made.out_fd)?;
    ensure!(
        barbuf_query {
            ranges: native.raw.ranges,
            ..compat
        } == native.raw,
        "{compat:?}, {:?}",
        native.raw
    );
    ensure!(
        native.ranges == [range] && name(&compat.out_name) == provider.bdf(),
        "{:?}",
        native.ranges
    );

    let revoke = barbuf_revoke {
        fd: made.out_fd,
        ..barbuf_revoke::new()
    };
    // SAFETY: All is in the page, and the buffer is not mapped.
    unsafe { compat_ioctl(node, BARBUF_REVOKE, page.put(0, revoke)) }.context("REVOKE")?;
    // SAFETY: As above.
    let again = unsafe { compat_ioctl(node, BARBUF_REVOKE, page.put(0, revoke)) };
    ensure!(again == Err(Errno::EBADFD), "a second REVOKE: {again:?}");
    nix::unistd::close(made.out_fd)?;
    Ok(())
}

/// R32: a C program (`tests/vm/probe`) that is compiled for 32 bits gets from every ioctl and from
/// both doors of mmap what the same program gets when it is compiled for 64.
fn a_32_bit_process_sees_the_same(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let run = |bits: u32| -> Result<String> {
        let program = format!("/probe{bits}");
        let output = Command::new(&program)
            .arg(provider.function.node_path())
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.success(),
            "{program}: {}, {text}",
            output.status
        );
        let (first, rest) = text.split_once('\n').context("it says nothing")?;
        ensure_eq!(first, format!("pointers of {bits} bits"));
        Ok(rest.to_owned())
    };
    let (narrow, wide) = (run(32)?, run(64)?);
    ensure!(
        narrow == wide,
        "32 bits:\n{narrow}\nand 64 bits:\n{wide}\ndiffer"
    );
    // That both are wrong alike is excluded here, as far as one line can tell.
    let lines: Vec<&str> = wide.lines().collect();
    for line in [
        "INFO 0",
        "EXPORT 0",
        "mmap 0",
        "mmap of the node 0",
        "read 1",
        "out_mappings 2",
        "REVOKE 0",
        "out_state 2",
    ] {
        ensure!(lines.contains(&line), "no line {line:?} in:\n{wide}");
    }
    for (what, errno) in [
        ("EXPORT of any, in two ranges", Errno::EINVAL),
        ("REVOKE again", Errno::EBADFD),
        ("ADOPT", Errno::ENOTTY),
    ] {
        let line = format!("{what} {}", errno as i32);
        ensure!(
            lines.contains(&line.as_str()),
            "no line {line:?} in:\n{wide}"
        );
    }
    Ok(())
}
