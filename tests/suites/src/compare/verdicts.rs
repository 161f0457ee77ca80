// SPDX-License-Identifier: MIT OR Apache-2.0

//! In words: how each path answers to calls that are not about time.
//!
//! Every test is one call on one path, over 2 GiB that hold known words. First it says that it hangs, in case nothing
//! follows; then what came. It fails if anything was lost: the host then goes on with a new machine, because this one
//! may be damaged.

use std::os::fd::AsFd as _;
use std::thread::sleep;
use std::time::Duration;

use barbuf_guest::protocol::{Device, DeviceKind};
use barbuf_measure::report::{Answer, Verdict};

use super::TOPOLOGIES;
use super::paths::{How, Memory, PATHS, Path};
use crate::kit::drive::{Aligned, block_device, open_direct, read_into, write_from};
use crate::kit::map::Room;
use crate::kit::prelude::*;
use crate::kit::process::Child;
use crate::kit::touch;
use crate::support::Test;

/// What is done to a mapping.
struct Call {
    /// As the report has it.
    name: &'static str,
    ask: fn(&Subject<'_>) -> Result<(), Trouble>,
}

const CALLS: &[Call] = &[
    call("fork, child reads and writes", fork),
    call("read smaps", read_smaps),
    call("MADV_DONTNEED", dontneed),
    call("munmap of 4 KiB inside", partial_munmap),
    call("mprotect of 4 KiB inside", partial_mprotect),
    call("mremap", remap),
    call("O_DIRECT into it", direct),
    call("descriptor in another process", another_process),
    call("unbind while mapped", unbind),
];

const fn call(name: &'static str, ask: fn(&Subject<'_>) -> Result<(), Trouble>) -> Call {
    Call { name, ask }
}

const fn test<const PATH: usize, const CALL: usize>(name: &'static str) -> Test {
    Test::new(name, answer::<PATH, CALL>)
        .on(TOPOLOGIES)
        .timeout(30)
}

/// Every call on one path.
macro_rules! calls {
    ($($path:literal $name:literal),*) => {
        &[$(
            test::<$path, 0>(concat!($name, "-fork")),
            test::<$path, 1>(concat!($name, "-smaps")),
            test::<$path, 2>(concat!($name, "-dontneed")),
            test::<$path, 3>(concat!($name, "-partial-munmap")),
            test::<$path, 4>(concat!($name, "-partial-mprotect")),
            test::<$path, 5>(concat!($name, "-mremap")),
            test::<$path, 6>(concat!($name, "-direct")),
            test::<$path, 7>(concat!($name, "-another-process")),
            test::<$path, 8>(concat!($name, "-unbind")),
        )*]
    };
}

/// In the order of [`PATHS`].
pub(crate) const TESTS: &[Test] = calls![
    0 "base-sysfs-4k",
    1 "s-2m",
    2 "s-1g",
    3 "r-2m",
    4 "r-1g",
    5 "barbuf-pfn-4k",
    6 "barbuf-pfn-2m",
    7 "barbuf-pfn-1g",
    8 "barbuf-page-4k",
    9 "barbuf-page-2m",
    10 "barbuf-page-1g",
    11 "vfio-pci",
    12 "device-dax-2m",
    13 "device-dax-1g"
];

const LEN: u64 = 2 * GIB;
/// Where the mapping is hurt: in the middle of a leaf of any size.
const WOUND: u64 = GIB / 2 + PAGE;
/// Words that must survive: at borders of leaves of all sizes, and next to the wound.
const PLACES: &[u64] = &[
    0,
    PAGE,
    2 * MIB,
    WOUND - PAGE,
    WOUND + PAGE,
    GIB - 8,
    GIB,
    LEN - 8,
];

fn word_at(offset: u64) -> u64 {
    0x5eed_0000_0000_0000 | offset
}

/// What is not as it should be.
struct Trouble(Verdict, String);

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Trouble(Verdict::Broken, format!("{error:#}"))
    }
}

fn broken<T>(what: String) -> Result<T, Trouble> {
    Err(Trouble(Verdict::Broken, what))
}

/// The mapping, and all around it.
struct Subject<'a> {
    ctx: &'a Ctx,
    path: &'a Path,
    memory: &'a Memory,
    map: &'a Mapping,
}

fn answer<const PATH: usize, const CALL: usize>(ctx: &Ctx) -> Result<()> {
    let (path, call) = (&PATHS[PATH], &CALLS[CALL]);
    let _mm = path.prepare(ctx)?;
    let say = |verdict: Verdict, detail: &str| -> Result<()> {
        let answer = Answer {
            path: path.name.into(),
            region: "NPU".into(),
            what: call.name.into(),
            verdict,
            detail: detail.into(),
        };
        ctx.say(answer.to_line()?);
        Ok(())
    };
    say(Verdict::Hangs, "")?;
    let memory = path.register(ctx, npu(ctx)?)?;
    let target = memory.target();
    let map = Mapping::of(
        target.file,
        target.phys_class,
        Window::new(target.offset, LEN),
        READ_WRITE,
        Place::Congruent,
    )?;
    for &place in PLACES {
        ensure!(map.store(place, word_at(place)) == Ok(()));
    }
    let result = (call.ask)(&Subject {
        ctx,
        path,
        memory: &memory,
        map: &map,
    });
    let (verdict, detail) = match result {
        Ok(()) => (Verdict::Ok, String::new()),
        Err(Trouble(verdict, detail)) => (verdict, detail),
    };
    // What was lost may keep the device from ever being given back.
    say(
        Verdict::Hangs,
        &format!("giving the device back afterwards; {detail}"),
    )?;
    drop(map);
    drop(memory);
    say(verdict, &detail)?;
    ensure!(verdict.is_harmless(), "{}: {detail}", verdict.label());
    Ok(())
}

/// The NPU that has as much memory as is mapped.
fn npu(ctx: &Ctx) -> Result<&Device> {
    let mut devices = ctx.topology().devices.iter();
    devices
        .find(|device| device.kind == DeviceKind::Npu { bar_bytes: LEN })
        .context("this machine has no NPU of 2 GiB")
}

impl Subject<'_> {
    /// Every word is where it was.
    fn intact(&self) -> Result<(), Trouble> {
        intact(self.map, LEN)
    }
}

fn intact(map: &Mapping, len: u64) -> Result<(), Trouble> {
    for &place in PLACES.iter().filter(|place| **place < len) {
        match map.load(place) {
            Ok(word) if word == word_at(place) => {}
            Ok(word) => return broken(format!("byte {place:#x} is {word:#x}")),
            Err(fault) => return Err(lost(place, fault)),
        }
    }
    Ok(())
}

fn lost(place: u64, fault: Fault) -> Trouble {
    let verdict = match fault.signal {
        libc::SIGBUS => Verdict::Sigbus,
        _ => Verdict::Broken,
    };
    Trouble(
        verdict,
        format!("byte {place:#x}: {}", signal_name(fault.signal)),
    )
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map_or(signal.to_string(), |s| s.to_string())
}

/// A call that was refused must have changed nothing.
fn refused(subject: &Subject<'_>, errno: Errno) -> Result<(), Trouble> {
    subject.intact()?;
    Err(Trouble(Verdict::Refused, format!("{errno:?}")))
}

fn fork(subject: &Subject<'_>) -> Result<(), Trouble> {
    let map = subject.map;
    let child = Child::start(|| {
        match intact(map, LEN) {
            Ok(()) => {}
            // For the parent, who sees only text.
            Err(Trouble(Verdict::Sigbus, what)) => bail!("SIGBUS {what}"),
            Err(Trouble(_, what)) => bail!("{what}"),
        }
        ensure!(map.store(PAGE, 7) == Ok(()), "the child cannot write");
        Ok(())
    })?;
    if let Err(error) = child.join() {
        let text = format!("{error:#}");
        let verdict = match text.contains("SIGBUS") {
            true => Verdict::Sigbus,
            false => Verdict::Broken,
        };
        return Err(Trouble(verdict, text));
    }
    if map.load(PAGE) != Ok(7) {
        return broken("the parent does not see what the child wrote".into());
    }
    map.store(PAGE, word_at(PAGE))
        .map_err(|fault| lost(PAGE, fault))?;
    subject.intact()
}

fn read_smaps(subject: &Subject<'_>) -> Result<(), Trouble> {
    barbuf_guest::sysfs::read("/proc/self/smaps").map_err(anyhow::Error::from)?;
    subject.intact()
}

fn dontneed(subject: &Subject<'_>) -> Result<(), Trouble> {
    match subject.map.room.advise(0, LEN, libc::MADV_DONTNEED) {
        Ok(()) => subject.intact(),
        Err(errno) => refused(subject, errno),
    }
}

fn partial_munmap(subject: &Subject<'_>) -> Result<(), Trouble> {
    let room = &subject.map.room;
    if let Err(errno) = room.unmap(WOUND, PAGE) {
        return refused(subject, errno);
    }
    let hole = touch::load(room.at(WOUND));
    if hole != Err(Fault::unmapped(room.at(WOUND))) {
        return broken(format!("what was unmapped: {hole:?}"));
    }
    subject.intact()
}

fn partial_mprotect(subject: &Subject<'_>) -> Result<(), Trouble> {
    let room = &subject.map.room;
    if let Err(errno) = room.protect(WOUND, PAGE, READ) {
        return refused(subject, errno);
    }
    let written = subject.map.store(WOUND, 1);
    if written != Err(Fault::protected(room.at(WOUND))) {
        return broken(format!("what was protected took a store: {written:?}"));
    }
    let place = WOUND + PAGE;
    subject
        .map
        .store(place, word_at(place))
        .map_err(|fault| lost(place, fault))?;
    subject.intact()
}

fn remap(subject: &Subject<'_>) -> Result<(), Trouble> {
    let to =
        Room::new(LEN, subject.memory.target().phys_class, GIB).map_err(anyhow::Error::from)?;
    let room = &subject.map.room;
    if let Err(errno) = room.remap(0, LEN, LEN, 0, Some((&to, 0))) {
        return refused(subject, errno);
    }
    for &place in PLACES {
        let old = touch::load(room.at(place));
        if old != Err(Fault::unmapped(room.at(place))) {
            return broken(format!("the old address still answers: {old:x?}"));
        }
    }
    for &place in PLACES {
        match touch::load(to.at(place)) {
            Ok(word) if word == word_at(place) => {}
            Ok(word) => return broken(format!("byte {place:#x} is {word:#x}")),
            Err(fault) => return Err(lost(place, fault)),
        }
    }
    Ok(())
}

fn direct(subject: &Subject<'_>) -> Result<(), Trouble> {
    const SIZE: u64 = 64 * KIB;
    let drive = open_direct(&block_device(subject.ctx.nvme(1)?)?)?;
    let mut sent = Aligned::new(SIZE)?;
    for (index, byte) in sent.bytes_mut().iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    let written = write_from(&drive, sent.as_ptr(), SIZE, 0).map_err(anyhow::Error::from)?;
    if written != SIZE {
        return broken(format!("the drive took {written} bytes"));
    }
    let at = 4 * MIB;
    match read_into(&drive, subject.map.at(at), SIZE, 0) {
        Ok(SIZE) => {}
        Ok(done) => return broken(format!("{done:#x} of {SIZE:#x} bytes")),
        Err(errno) => return refused(subject, errno),
    }
    for offset in (0..SIZE).step_by(8) {
        let part = &sent.bytes()[offset as usize..][..8];
        let wanted = part
            .iter()
            .rev()
            .fold(0, |word, byte| (word << 8) | u64::from(*byte));
        let found = subject.map.load(at + offset);
        if found != Ok(wanted) {
            return broken(format!(
                "byte {offset:#x} of the file arrived as {found:x?}"
            ));
        }
    }
    subject.intact()
}

fn another_process(subject: &Subject<'_>) -> Result<(), Trouble> {
    const HALF: u64 = GIB;
    // A pool must have something left for the other.
    subject
        .map
        .room
        .unmap(HALF, LEN - HALF)
        .map_err(|errno| Trouble(Verdict::Broken, format!("munmap: {errno}")))?;
    let target = subject.memory.target();
    let (file, offset, class) = (target.file.as_fd(), target.offset, target.phys_class);
    let child = Child::start(|| {
        let window = Window::new(offset, HALF);
        let map = Mapping::of(file, class, window, READ_WRITE, Place::Congruent)?;
        match intact(&map, HALF) {
            Ok(()) => Ok(()),
            Err(Trouble(_, what)) => bail!("{what}"),
        }
    })?;
    match child.join() {
        Ok(()) => intact(subject.map, HALF),
        Err(error) if !subject.memory.can_be_passed_on() => Err(Trouble(
            Verdict::Absent,
            format!("the other process gets other memory: {error:#}"),
        )),
        Err(error) => broken(format!("{error:#}")),
    }
}

fn unbind(subject: &Subject<'_>) -> Result<(), Trouble> {
    if subject.path.how == How::Vfio {
        return unbind_vfio(subject);
    }
    let function = subject.memory.removable().context("a PCI function")?;
    function.unbind()?;
    for &place in PLACES {
        let after = subject.map.load(place);
        if after != Err(Fault::bus(subject.map.at(place))) {
            return broken(format!("byte {place:#x} after it: {after:x?}"));
        }
    }
    Ok(())
}

/// Whether whoever unbinds has to wait until the user lets go.
fn unbind_vfio(subject: &Subject<'_>) -> Result<(), Trouble> {
    let device = npu(subject.ctx)?;
    let function = crate::kit::pci::Function::of(device)?;
    // No child: that would have the device open as well.
    let waits = std::thread::spawn(move || function.unbind());
    sleep(Duration::from_secs(2));
    subject.intact()?;
    if waits.is_finished() {
        return broken("unbinding ended, and the memory is mapped still".into());
    }
    // It ends as soon as the device is closed.
    Err(Trouble(
        Verdict::Absent,
        "whoever unbinds it waits until the user has closed it".into(),
    ))
}
