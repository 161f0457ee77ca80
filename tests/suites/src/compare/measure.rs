// SPDX-License-Identifier: MIT OR Apache-2.0

//! The numbers: each path over the memory of every device of the machine.

use std::fs::File;

use barbuf_guest::protocol::{Device, DeviceKind};
use barbuf_measure::clock::Clock;
use barbuf_measure::mapping::{Anchor, life};
use barbuf_measure::memory::struct_page_bytes;
use barbuf_measure::report::{Measurement, Metric};
use barbuf_measure::table::bytes;
use barbuf_measure::{direct, process};

use super::TOPOLOGIES;
use super::paths::{How, Memory, PATHS, Path, region, size};
use crate::kit::drive::{Aligned, block_device, open_direct, read_into};
use crate::kit::importer::Engine;
use crate::kit::prelude::*;
use crate::kit::stopwatch::Probes;
use crate::support::Test;

const CLOCK: Clock = Clock::Instructions;

/// The one for file I/O.
const DRIVE: &str = "nvme1";

const fn path_test(name: &'static str, body: fn(&Ctx) -> Result<()>) -> Test {
    Test::new(name, body).on(TOPOLOGIES).timeout(1800)
}

/// One for each of [`PATHS`], in their order.
pub(crate) const TESTS: &[Test] = &[
    path_test("base-sysfs-4k", measure::<0>),
    path_test("s-2m", measure::<1>),
    path_test("s-1g", measure::<2>),
    path_test("r-2m", measure::<3>),
    path_test("r-1g", measure::<4>),
    path_test("barbuf-pfn-4k", measure::<5>),
    path_test("barbuf-pfn-2m", measure::<6>),
    path_test("barbuf-pfn-1g", measure::<7>),
    path_test("barbuf-page-4k", measure::<8>),
    path_test("barbuf-page-2m", measure::<9>),
    path_test("barbuf-page-1g", measure::<10>),
    path_test("vfio-pci", measure::<11>),
    path_test("device-dax-2m", measure::<12>),
    path_test("device-dax-1g", measure::<13>),
    path_test("host-memory", host_memory),
];

/// With pages of 4 KiB, time grows with the size, and would grow beyond all else: what is larger is registered only.
const MOST_MAPPED_4K: u64 = 32 * GIB;

/// Where everything is measured, and not only what a mapping costs its process and a child. With pages of 4 KiB the rest
/// grows with the size as that does, and would take longer than all other paths together.
fn is_measured_fully(path: &Path, size: u64) -> bool {
    size <= GIB || path.leaf > PAGE
}

fn is_cmb(device: &Device) -> bool {
    matches!(device.kind, DeviceKind::Nvme { .. })
}

fn measure<const PATH: usize>(ctx: &Ctx) -> Result<()> {
    if !ctx.topology().icount {
        return ctx.skip("guest time does not count instructions on this machine");
    }
    let path = &PATHS[PATH];
    let _mm = path.prepare(ctx)?;
    let is_drive = |device: &&Device| device.id == DRIVE;
    let drive = ctx.topology().devices.iter().find(is_drive);
    let drive = drive
        .map(|device| open_direct(&block_device(device)?))
        .transpose()?;
    for device in &ctx.topology().devices {
        if device.kind.memory_bar().is_some() && path.fits(device) {
            let subject = Subject {
                ctx,
                path,
                device,
                drive: drive.as_ref(),
            };
            subject
                .measure()
                .with_context(|| format!("{} of {} ({})", path.name, device.id, size(device)))?;
        }
    }
    Ok(())
}

/// A path and the device whose memory it is to show.
struct Subject<'a> {
    ctx: &'a Ctx,
    path: &'a Path,
    device: &'a Device,
    /// On a machine that has drives only that is measured for which they are needed.
    drive: Option<&'a File>,
}

impl Subject<'_> {
    fn tell(&self, metric: Metric, samples: Vec<u64>) -> Result<()> {
        let measured = Measurement {
            path: self.path.name.into(),
            region: region(self.device).into(),
            size: size(self.device),
            metric,
            samples,
        };
        self.ctx.say(measured.to_line()?);
        Ok(())
    }

    fn register(&self) -> Result<Memory> {
        self.path.register(self.ctx, self.device)
    }

    fn measure(&self) -> Result<()> {
        let fully = is_measured_fully(self.path, size(self.device));
        if let Some(drive) = self.drive {
            if fully {
                self.direct(drive, &self.register()?)?;
            }
            if !is_cmb(self.device) {
                return Ok(());
            }
        }
        self.registration()?;
        if self.path.leaf == PAGE && size(self.device) > MOST_MAPPED_4K {
            return Ok(());
        }
        let memory = self.register()?;
        self.life(&memory)?;
        if fully || size(self.device) == MOST_MAPPED_4K {
            self.child(&memory)?;
        }
        if fully {
            self.another_process(&memory)?;
            self.attachment(&memory)?;
            drop(memory);
            self.allocation()?;
            self.revocation()?;
            self.removal()?;
        }
        Ok(())
    }

    /// Time and struct pages. What is registered by its own driver at boot is left as it is.
    fn registration(&self) -> Result<()> {
        if is_cmb(self.device) {
            return Ok(());
        }
        let (mut times, mut pages) = (Vec::new(), Vec::new());
        // What else there is to do, loading the driver for one, belongs to the test.
        let ready = self.path.ready(self.ctx, self.device)?;
        let driver = ready.driver();
        if let Some((function, _)) = driver {
            function.unbind()?;
        }
        let without = struct_page_bytes()?;
        CLOCK.repeat(|| {
            let took = if let Some((function, name)) = driver {
                let (took, bound) = CLOCK.time(|| function.bind(name));
                bound?;
                pages.push(struct_page_bytes()? - without);
                function.unbind()?;
                took
            } else {
                let (took, memory) = CLOCK.time(|| self.register());
                let _memory = memory?;
                pages.push(struct_page_bytes()? - without);
                took
            };
            times.push(took);
            let after = struct_page_bytes()?;
            ensure!(
                after == without,
                "{without} bytes of struct pages before, {after} after the memory has gone"
            );
            Ok(())
        })?;
        drop(ready);
        self.tell(Metric::Register, times)?;
        self.tell(Metric::StructPages, pages)
    }

    fn life(&self, memory: &Memory) -> Result<()> {
        let life = life(CLOCK, &memory.target())?;
        let runs = life.mmap.len() as u64;
        for (metric, samples) in life.into_samples() {
            self.tell(metric, samples)?;
        }
        // Only barbuf can be asked what the mappings were made of.
        if let Some((provider, buffer)) = memory.barbuf() {
            let target = memory.target();
            let mut wanted = Leaves::default();
            match target.leaf {
                GIB => wanted.of_1g = target.len / GIB * runs,
                PAGE => wanted.of_4k = target.len / PAGE * runs,
                _ => wanted.of_2m = target.len / (2 * MIB) * runs,
            }
            ensure_eq!(provider.node.query(buffer)?.leaves(), wanted);
        }
        Ok(())
    }

    fn child(&self, memory: &Memory) -> Result<()> {
        match process::fork_touch(CLOCK, &memory.target()) {
            Ok(samples) => self.tell(Metric::ForkTouch, samples),
            // The verdicts say so too.
            Err(error) if error.to_string().contains("SIGBUS") => {
                self.ctx.say(format!(
                    "{}, {}, fork: {error:#}",
                    self.path.name,
                    bytes(size(self.device))
                ));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn another_process(&self, memory: &Memory) -> Result<()> {
        if memory.can_be_passed_on() {
            let samples = process::send_map_touch(CLOCK, &memory.target())?;
            self.tell(Metric::SendMapTouch, samples)?;
        }
        Ok(())
    }

    /// File I/O, where there are struct pages: only what the processor does, QEMU's drive is nobody's.
    fn direct(&self, drive: &File, memory: &Memory) -> Result<()> {
        let mut pins = false;
        for (metric, samples) in direct::into_mapping(CLOCK, drive, &memory.target())? {
            if matches!(
                metric,
                Metric::Direct4kProcessor | Metric::Direct1mProcessor
            ) {
                self.tell(metric, samples)?;
                pins = true;
            }
        }
        if pins {
            self.pinning(drive, memory)?;
        }
        Ok(())
    }

    /// The share of pinning in it, by probes: not together with the above, which they would make slower.
    fn pinning(&self, drive: &File, memory: &Memory) -> Result<()> {
        let target = memory.target();
        let _anchor = Anchor::behind(&target)?;
        let mapped = target.map()?;
        mapped.touch();
        for (metric, samples) in pinning(self.ctx, drive, mapped.at(0))? {
            self.tell(metric, samples)?;
        }
        Ok(())
    }

    /// Attaching edu and mapping everything for its DMA, where the memory can be had as a dma-buf.
    fn attachment(&self, memory: &Memory) -> Result<()> {
        let Some(buffer) = memory.dma_buf()? else {
            return Ok(());
        };
        let engine = Engine::load(self.ctx)?;
        let importer = engine.importer()?;
        let (mut times, mut entries) = (Vec::new(), Vec::new());
        CLOCK.repeat(|| {
            let cycle = match importer.cycle(&buffer, 0, 1) {
                // Nothing to measure is told by the row that is missing.
                Err(Errno::EOPNOTSUPP) => return Ok(()),
                other => other?,
            };
            times.push(cycle.least_cycles);
            entries.push(u64::from(cycle.nents));
            Ok(())
        })?;
        if times.is_empty() {
            return Ok(());
        }
        self.tell(Metric::AttachMap, times)?;
        self.tell(Metric::SgEntries, entries)
    }

    /// BARBUF_EXPORT and close(2): what all that is mapped through sysfs has in mmap and munmap.
    fn allocation(&self) -> Result<()> {
        let How::Barbuf(backing) = self.path.how else {
            return Ok(());
        };
        let (provider, wanted) = self.path.provider(self.device, backing)?;
        // Only the first makes the struct pages.
        drop(provider.node.export(&wanted)?);
        let (mut exports, mut closes) = (Vec::new(), Vec::new());
        CLOCK.repeat(|| {
            let (took, buffer) = CLOCK.time(|| provider.node.export(&wanted));
            exports.push(took);
            let buffer = buffer?;
            closes.push(CLOCK.time(|| drop(buffer)).0);
            Ok(())
        })?;
        self.tell(Metric::Export, exports)?;
        self.tell(Metric::Close, closes)
    }

    /// BARBUF_REVOKE with everything mapped and touched.
    fn revocation(&self) -> Result<()> {
        if !matches!(self.path.how, How::Barbuf(_)) {
            return Ok(());
        }
        let mut samples = Vec::new();
        CLOCK.repeat(|| {
            let memory = self.register()?;
            let (provider, buffer) = memory.barbuf().context("a buffer")?;
            let _anchor = Anchor::behind(&memory.target())?;
            let mapped = memory.target().map()?;
            mapped.touch();
            let (took, answer) = CLOCK.time(|| provider.node.revoke(buffer));
            answer?;
            samples.push(took);
            Ok(())
        })?;
        self.tell(Metric::Revoke, samples)
    }

    /// Unbinding the driver with everything mapped and touched.
    fn removal(&self) -> Result<()> {
        if is_cmb(self.device) || self.path.how == How::Vfio {
            return Ok(());
        }
        let mut samples = Vec::new();
        CLOCK.repeat(|| {
            let memory = self.register()?;
            let function = memory.removable().context("a function")?;
            let _anchor = Anchor::behind(&memory.target())?;
            let mapped = memory.target().map()?;
            mapped.touch();
            let (took, answer) = CLOCK.time(|| function.unbind());
            answer?;
            samples.push(took);
            Ok(())
        })?;
        self.tell(Metric::Remove, samples)
    }
}

/// What reads of [`direct::LENGTHS`] spend in pinning the pages of `memory` and in letting go of them.
fn pinning(ctx: &Ctx, drive: &File, memory: *mut u8) -> Result<Vec<(Metric, Vec<u64>)>> {
    const METRICS: [[Metric; 2]; direct::LENGTHS.len()] = [
        [Metric::Direct4kPin, Metric::Direct4kUnpin],
        [Metric::Direct1mPin, Metric::Direct1mUnpin],
    ];
    let Some(probes) = Probes::of(&["pin_user_pages_fast", "__bio_release_pages"])? else {
        ctx.say("this kernel has no probes: what pinning takes is not measured");
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for ((len, ..), [pin, unpin]) in direct::LENGTHS.into_iter().zip(METRICS) {
        let (mut pins, mut unpins) = (Vec::new(), Vec::new());
        CLOCK.repeat(|| {
            let mut done = Ok(0);
            let times = probes.time(|| done = read_into(drive, memory, len, 0))?;
            ensure_eq!(done, Ok(len));
            pins.push(times[0]);
            unpins.push(times[1]);
            Ok(())
        })?;
        found.extend([(pin, pins), (unpin, unpins)]);
    }
    Ok(found)
}

/// What the same file I/O costs with ordinary memory: what is more elsewhere is the price of the device's pages.
fn host_memory(ctx: &Ctx) -> Result<()> {
    if !ctx.topology().icount {
        return ctx.skip("guest time does not count instructions on this machine");
    }
    let drive = open_direct(&block_device(ctx.nvme(1)?)?)?;
    for (path, advice) in [
        ("host memory 4K", libc::MADV_NOHUGEPAGE),
        ("host memory 2M", libc::MADV_HUGEPAGE),
    ] {
        let memory = Aligned::new(4 * MIB)?;
        let start = memory.as_ptr() as u64;
        let at = start.next_multiple_of(2 * MIB) as *mut u8;
        // SAFETY: The memory is ours; the advice changes no byte of it.
        Errno::result(unsafe { libc::madvise(at.cast(), 2 * MIB as usize, advice) })?;
        for offset in (0..2 * MIB).step_by(PAGE as usize) {
            // SAFETY: Inside of the memory, which no slice borrows.
            unsafe { at.add(offset as usize).write_volatile(1) };
        }
        let mut found = Vec::new();
        for (len, metric, _) in direct::LENGTHS {
            // SAFETY: The memory is ours, and no slice of it is alive.
            let direct = unsafe { direct::read(CLOCK, &drive, at, len) }?;
            found.push((metric, direct.processor));
        }
        found.extend(pinning(ctx, &drive, at)?);
        for (metric, samples) in found {
            let measured = Measurement {
                path: path.into(),
                region: "host".into(),
                size: 2 * MIB,
                metric,
                samples,
            };
            ctx.say(measured.to_line()?);
        }
    }
    Ok(())
}
