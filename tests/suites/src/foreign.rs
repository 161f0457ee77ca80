// SPDX-License-Identifier: MIT OR Apache-2.0

//! Others who try to look at a process's mappings: debuggers, core dumps, /proc/pid/mem.
//!
//! Reading a register can change a device. So nothing but the process's own loads reaches the
//! memory, unless it asks for file I/O on page backing itself.

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use barbuf_guest::sysfs;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::WaitStatus;
use nix::unistd::getpid;

use crate::kit::prelude::*;
use crate::kit::process::Child;
use crate::map::SHAPES;

pub(crate) const SUITE: Suite = Suite {
    name: "foreign",
    tests: &[
        test!(a_debugger_cannot_read_or_write).timeout(60),
        test!(proc_mem_cannot_read_or_write).timeout(60),
        test!(process_vm_calls_cannot_read_or_write).timeout(60),
        test!(a_core_dump_has_nothing_of_it).timeout(120),
    ],
};

const SECRET: u64 = 0x5ec7_e7ba_4b0f_f00d;

/// Gives each shape's mapping, touched, with a secret at its start.
fn each_mapping(ctx: &Ctx, test: impl Fn(&Mapping) -> Result<()>) -> Result<()> {
    for (backing, shift, len) in SHAPES {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let buffer = provider
            .node
            .export(&Export::any(len).backing(backing).leaf(shift))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, SECRET) == Ok(()));
        test(&map).with_context(|| format!("backing {backing}, leaves of 2^{shift}"))?;
        ensure!(map.load(0) == Ok(SECRET), "the memory has changed");
    }
    Ok(())
}

/// R14: PTRACE_PEEKDATA and PTRACE_POKEDATA are EIO.
fn a_debugger_cannot_read_or_write(ctx: &Ctx) -> Result<()> {
    each_mapping(ctx, |map| {
        let mut child = Child::start(|| {
            // SAFETY: No arguments.
            Errno::result(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) })?;
            raise(Signal::SIGSTOP)?;
            Ok(())
        })?;
        ensure!(matches!(
            child.wait()?,
            WaitStatus::Stopped(_, Signal::SIGSTOP)
        ));
        let pid = child.pid.as_raw();
        Errno::clear();
        // SAFETY: Reads a word of the stopped child; the wrapper puts it into a variable of its
        // own.
        let word = unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, pid, map.at(0), 0) };
        let peek = Errno::last();
        ensure!((word, peek) == (-1, Errno::EIO), "peek: {word:#x}, {peek}");
        // SAFETY: Would write to the device's memory, and must be refused.
        let poke = Errno::result(unsafe { libc::ptrace(libc::PTRACE_POKEDATA, pid, map.at(0), 1) });
        ensure!(poke == Err(Errno::EIO), "poke: {poke:?}");
        Ok(())
    })
}

/// R14: /proc/pid/mem is EIO, for others and for the process itself.
fn proc_mem_cannot_read_or_write(ctx: &Ctx) -> Result<()> {
    each_mapping(ctx, |map| {
        let at = map.at(0) as u64;
        let path = format!("/proc/{}/mem", getpid());
        let try_both = |file: File| {
            let errno =
                |result: std::io::Result<usize>| result.map_err(|error| error.raw_os_error());
            let eio = Err(Some(libc::EIO));
            let read = errno(file.read_at(&mut [0; 8], at));
            ensure!(read == eio, "read: {read:?}");
            let write = errno(file.write_at(&[0; 8], at));
            ensure!(write == eio, "write: {write:?}");
            Ok(())
        };
        let open = |path: &str| File::options().read(true).write(true).open(path);
        try_both(open("/proc/self/mem")?).context("itself")?;
        Child::start(|| try_both(open(&path)?))?
            .join()
            .context("another")
    })
}

/// R14: process_vm_readv and process_vm_writev are EFAULT.
fn process_vm_calls_cannot_read_or_write(ctx: &Ctx) -> Result<()> {
    each_mapping(ctx, |map| {
        let remote = [RemoteIoVec {
            base: map.at(0) as usize,
            len: 8,
        }];
        let mut bytes = [0; 8];
        let read = process_vm_readv(getpid(), &mut [IoSliceMut::new(&mut bytes)], &remote);
        ensure!(read == Err(Errno::EFAULT), "read: {read:?}");
        let write = process_vm_writev(getpid(), &[IoSlice::new(&bytes)], &remote);
        ensure!(write == Err(Errno::EFAULT), "write: {write:?}");
        Ok(())
    })
}

/// The pattern for core files, put back at the end.
struct CorePattern(String);

impl CorePattern {
    const FILE: &'static str = "/proc/sys/kernel/core_pattern";

    fn set(pattern: &str) -> Result<CorePattern> {
        let before = sysfs::read(Self::FILE)?;
        sysfs::write(Self::FILE, pattern)?;
        Ok(CorePattern(before))
    }
}

impl Drop for CorePattern {
    fn drop(&mut self) {
        if let Err(error) = sysfs::write(Self::FILE, &self.0) {
            eprintln!("{error}");
        }
    }
}

/// R15: a core dump holds the process's own memory, and nothing of the mapping.
fn a_core_dump_has_nothing_of_it(ctx: &Ctx) -> Result<()> {
    let core = Path::new("/tmp/barbuf-core");
    let _pattern = CorePattern::set("/tmp/barbuf-core")?;
    each_mapping(ctx, |map| {
        let _ = fs::remove_file(core);
        let mut child = Child::start(|| {
            setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY)?;
            // Everything that a process may ask to have dumped.
            sysfs::write("/proc/self/coredump_filter", "0x1ff")?;
            ensure!(map.load(0) == Ok(SECRET));
            // SAFETY: Ends the process, which is the point.
            unsafe { libc::abort() }
        })?;
        let status = child.wait()?;
        ensure!(
            matches!(status, WaitStatus::Signaled(_, Signal::SIGABRT, true)),
            "no core: {status:?}"
        );
        let dump = fs::read(core)?;
        fs::remove_file(core)?;
        let stack = 0u64;
        let ordinary = elf_file_bytes_of(&dump, &raw const stack as u64)?;
        ensure!(
            ordinary > 0,
            "the core does not hold the process's own stack"
        );
        let segment = elf_file_bytes_of(&dump, map.at(0) as u64)?;
        ensure!(
            segment == 0,
            "{segment} bytes of the mapping are in the core"
        );
        Ok(())
    })
}

/// How many bytes of the segment that holds an address are in an ELF core file.
fn elf_file_bytes_of(dump: &[u8], address: u64) -> Result<u64> {
    let word = |at: usize| -> Result<u64> {
        let bytes = dump
            .get(at..at + 8)
            .context("a core file that ends early")?;
        Ok(u64::from_le_bytes(bytes.try_into()?))
    };
    let half = |at: usize| Ok::<_, anyhow::Error>((word(at & !7)? >> (at % 8 * 8)) as u16 as usize);
    ensure!(
        dump.starts_with(b"\x7fELF\x02"),
        "the core is no 64-bit ELF file"
    );
    let (table, size, count) = (word(32)? as usize, half(54)?, half(56)?);
    for header in (0..count).map(|i| table + i * size) {
        let (start, in_file, in_memory) =
            (word(header + 16)?, word(header + 32)?, word(header + 40)?);
        if (start..start + in_memory).contains(&address) {
            return Ok(in_file);
        }
    }
    Ok(0)
}
