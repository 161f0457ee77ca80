// SPDX-License-Identifier: MIT OR Apache-2.0

//! Faults against revocation, and everything against everything, on several threads.

use std::os::fd::AsFd as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use crate::export::main_region;
use crate::kit::map::mmap;
use crate::kit::pattern::word;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::process::{PROMPT, scaled};
use crate::kit::touch;

pub(crate) const SUITE: Suite = Suite {
    name: "races",
    tests: &[
        test!(a_revoked_mapping_never_shows_the_next_owner).timeout(600),
        test!(faults_against_unbind).timeout(120),
        test!(mmap_against_revoke).timeout(120),
        test!(struct_pages_change_under_mapped_frames).timeout(120),
        test!(storm).timeout(120),
    ],
};

/// What the owner of a buffer writes into it, and what the next owner does.
const MINE: u64 = 0xaaaa_aaaa_aaaa_aaaa;
const THEIRS: u64 = 0xbbbb_bbbb_bbbb_bbbb;

/// What a reader is doing.
#[derive(Default)]
struct Reader {
    /// The address to read, 0 for none.
    address: AtomicU64,
    /// The address that it has seen a signal at, or has let go.
    ended: AtomicU64,
    reads: AtomicU64,
    saw_theirs: AtomicBool,
    trouble: Mutex<Option<Fault>>,
    stop: AtomicBool,
}

impl Reader {
    /// Reads the address that it is given until the signal comes.
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let at = self.address.load(Ordering::Acquire);
            if at == 0 || self.ended.load(Ordering::Relaxed) == at {
                yield_now();
                continue;
            }
            match touch::load(at as *const u8) {
                Ok(MINE) => drop(self.reads.fetch_add(1, Ordering::Relaxed)),
                Ok(_) => self.saw_theirs.store(true, Ordering::Release),
                Err(fault) => {
                    if fault != Fault::bus(at as *const u8) {
                        *self.trouble.lock().expect("no panic") = Some(fault);
                    }
                    self.ended.store(at, Ordering::Release);
                }
            }
        }
    }

    fn give(&self, at: *const u8) {
        self.ended.store(0, Ordering::Release);
        self.address.store(at as u64, Ordering::Release);
    }

    /// Takes the address away once the reader has seen the signal there.
    fn take(&self) -> Result<()> {
        let at = self.address.load(Ordering::Acquire);
        let deadline = Instant::now() + scaled(2 * PROMPT);
        while self.ended.load(Ordering::Acquire) != at {
            ensure!(
                Instant::now() < deadline,
                "the reader of a revoked mapping gets no signal"
            );
            yield_now();
        }
        self.address.store(0, Ordering::Release);
        Ok(())
    }
}

/// R26, L10: a reader spins on a mapping that is revoked; the next owner writes at once. 10,000
/// rounds, half of them with a next owner whose mapping exists before, and on leaves of every kind.
fn a_revoked_mapping_never_shows_the_next_owner(ctx: &Ctx) -> Result<()> {
    const ROUNDS: u64 = 10_000;
    let shapes = [
        (BARBUF_BACKING_PFN, BARBUF_PAGE_SHIFT_1G, GIB),
        (BARBUF_BACKING_PAGE, BARBUF_PAGE_SHIFT_1G, GIB),
        (BARBUF_BACKING_PFN, BARBUF_PAGE_SHIFT_2M, 2 * MIB),
        (BARBUF_BACKING_PFN, BARBUF_PAGE_SHIFT_4K, PAGE),
    ];
    let reader = Reader::default();
    std::thread::scope(|scope| {
        scope.spawn(|| reader.run());
        let result = shapes.into_iter().try_for_each(|shape| {
            let provider = Provider::bind(ctx.npu(0)?)?;
            (0..ROUNDS / 4).try_for_each(|round| {
                reuse(&provider, &reader, shape, round)
                    .with_context(|| format!("{shape:?}, round {round}"))
            })
        });
        reader.stop.store(true, Ordering::Release);
        result
    })?;
    let reads = reader.reads.load(Ordering::Relaxed);
    ensure!(reads > ROUNDS / 4, "the reader hardly ever read: {reads}");
    ctx.note(format!("{reads} reads in {ROUNDS} rounds"));
    Ok(())
}

/// One round of it.
fn reuse(
    provider: &Provider,
    reader: &Reader,
    (backing, shift, len): (u32, u32, u64),
    round: u64,
) -> Result<()> {
    let shared = round % 2 == 0;
    let wanted = Export::at(0, len).backing(backing).leaf(shift);
    let wanted = if shared { wanted.shared() } else { wanted };
    let buffer = provider.node.export(&wanted)?;
    let map = Mapping::whole(&buffer)?;
    let early = if shared {
        Some(provider.node.export(&wanted)?)
    } else {
        None
    };
    let early = early.as_ref().map(Mapping::whole).transpose()?;
    // In half of the rounds the reader's own fault races with the revocation.
    let at = if round % 4 < 2 { 0 } else { PAGE % len };
    ensure!(map.store(at, MINE) == Ok(()));
    if round % 4 < 2 {
        map.room.protect(0, len, libc::PROT_NONE)?;
        map.room.protect(0, len, READ_WRITE)?;
    }
    reader.give(map.at(at));
    for _ in 0..word(round, 26) % 2000 {
        std::hint::spin_loop();
    }
    provider.node.revoke(&buffer)?;
    let next = match early {
        Some(next) => next,
        None => Mapping::whole(&provider.node.export(&wanted)?)?,
    };
    ensure!(next.store(at, THEIRS) == Ok(()));
    reader.take()?;
    ensure!(
        !reader.saw_theirs.load(Ordering::Acquire),
        "the next owner's bytes were read through a revoked mapping"
    );
    let trouble = reader.trouble.lock().expect("no panic").take();
    ensure!(trouble.is_none(), "the signal was {trouble:x?}");
    Ok(())
}

/// L10: threads fault all over a buffer while its driver is unbound; 30 times.
pub(crate) fn faults_against_unbind(ctx: &Ctx) -> Result<()> {
    for round in 0..30u64 {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let backing = (round % 2) as u32;
        let shift = [30, 21][(round / 2 % 2) as usize];
        let buffer = provider
            .node
            .export(&Export::any(GIB).backing(backing).leaf(shift))?;
        let map = Mapping::whole(&buffer)?;
        let base = map.at(0) as usize;
        let (faults, started) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let threads = (0..4u64).map(|thread| {
                let (faults, started) = (&faults, &started);
                scope.spawn(move || {
                    for i in 0.. {
                        let at = (base as u64 + word(thread, i) % GIB / 8 * 8) as *const u8;
                        match touch::load(at) {
                            Ok(_) => drop(started.fetch_add(1, Ordering::Relaxed)),
                            Err(fault) if fault == Fault::bus(at) => break,
                            Err(_) => {
                                faults.fetch_add(1, Ordering::Relaxed);
                                break;
                            }
                        }
                    }
                })
            });
            let threads: Vec<_> = threads.collect();
            let result = wait_until("the threads", || started.load(Ordering::Relaxed) > 100)
                .and_then(|()| provider.function.unbind());
            if result.is_err() {
                // Lets the threads end.
                let _ = provider.node.revoke(&buffer);
            }
            threads.into_iter().for_each(|thread| drop(thread.join()));
            result
        })?;
        ensure!(
            faults.load(Ordering::Relaxed) == 0,
            "round {round}: another signal than SIGBUS"
        );
    }
    Ok(())
}

/// Mapping and unmapping race with revocation: either the mapping comes to be and dies, or it is
/// ENODEV.
fn mmap_against_revoke(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let regions = provider.node.info()?.regions;
    for round in 0..300u64 {
        let buffer = provider.node.export(&Export::any(2 * MIB))?;
        let fd = buffer.as_fd();
        let cookie = buffer.raw.out_cookie;
        let node = provider.node.as_fd();
        std::thread::scope(|scope| {
            let mapper = scope.spawn(move || -> Result<u64> {
                let mut count = 0;
                loop {
                    let (file, offset) = if count % 2 == 0 {
                        (fd, 0)
                    } else {
                        (node, cookie)
                    };
                    // SAFETY: At an address that the kernel chooses.
                    let map =
                        unsafe { mmap(0, 2 * MIB, READ_WRITE, libc::MAP_SHARED, file, offset) };
                    let map = match map {
                        Ok(map) => map,
                        Err(Errno::ENODEV) => return Ok(count),
                        Err(errno) => bail!("mmap: {errno}"),
                    };
                    let touched = touch::load(map);
                    // SAFETY: Mapped above.
                    unsafe { libc::munmap(map.cast(), 2 << 20) };
                    match touched {
                        Ok(_) => count += 1,
                        Err(fault) if fault == Fault::bus(map) => {}
                        Err(fault) => bail!("{fault:x?}"),
                    }
                }
            });
            for _ in 0..word(round, 1) % 20_000 {
                std::hint::spin_loop();
            }
            provider.node.revoke(&buffer)?;
            mapper
                .join()
                .map_err(|_| anyhow::anyhow!("the mapper panicked"))??;
            Ok::<_, anyhow::Error>(())
        })?;
        let query = Node::control()?.query(&buffer)?.raw;
        ensure!(
            (query.out_mappings, query.out_mapped_bytes) == (0, 0),
            "round {round}: {query:?}"
        );
    }
    wait_until("all free", || {
        provider
            .node
            .info()
            .is_ok_and(|info| info.regions == regions)
    })
}

/// Frames are valid for the kernel before their struct pages are filled in: while those change,
/// nothing of the region may be mapped as frames. A page-backed export makes what is mapped refault;
/// then threads map, touch and unmap frames of every size while struct pages come and go beside them.
fn struct_pages_change_under_mapped_frames(ctx: &Ctx) -> Result<()> {
    const ROUNDS: u64 = 16;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let node = &provider.node;
    let frames: Vec<_> = [(30, GIB), (21, 16 * MIB), (12, 16 * PAGE)]
        .into_iter()
        .map(|(shift, len)| Ok((shift, len, node.export(&Export::any(len).leaf(shift))?)))
        .collect::<Result<_>>()?;
    let values = |len: u64, shift: u32| (0..len >> shift).map(move |i| (i << shift, word(len, i)));
    for (shift, len, buffer) in &frames {
        let map = Mapping::whole(buffer)?;
        for (at, value) in values(*len, *shift) {
            ensure!(map.store(at, value) == Ok(()));
        }
    }
    // The last multiples of 1 GiB are not those that `any` chose.
    let top = main_region(&node.info()?)?.length / GIB - 1;
    let pages = |round: u64| {
        let shift = [BARBUF_PAGE_SHIFT_2M, BARBUF_PAGE_SHIFT_1G][(round % 2) as usize];
        node.export(&Export::at(top * GIB, GIB).page().leaf(shift))
    };

    let (_, _, large) = &frames[0];
    let (map, faults) = (Mapping::whole(large)?, || -> Result<u64> {
        Ok(node.query(large)?.raw.out_faults)
    });
    ensure!(map.load(0).is_ok());
    let before = faults()?;
    ensure!(map.load(0).is_ok() && faults()? == before);
    for round in 0..2 {
        drop(pages(round)?);
        ensure!(
            map.load(0).is_ok() && faults()? == before + 1 + round,
            "round {round}: mapped frames stayed while struct pages came: {} faults, {before} before",
            faults()?
        );
    }
    // The same pages again: nothing changes.
    drop(pages(1)?);
    ensure!(map.load(0).is_ok() && faults()? == before + 2);
    drop(map);

    let (stop, lives) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = frames
            .iter()
            .map(|(shift, len, buffer)| {
                let (stop, lives) = (&stop, &lives);
                scope.spawn(move || -> Result<()> {
                    while !stop.load(Ordering::Acquire) {
                        let map = Mapping::whole(buffer)?;
                        for (at, value) in values(*len, *shift) {
                            let read = map.load(at);
                            ensure!(read == Ok(value), "1 << {shift} at {at:#x}: {read:x?}");
                        }
                        lives.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let result = (0..ROUNDS).try_for_each(|round| -> Result<()> {
            let buffer = pages(round).with_context(|| format!("round {round}"))?;
            let map = Mapping::whole(&buffer)?;
            ensure!(map.store(0, round) == Ok(()) && map.load(0) == Ok(round));
            Ok(())
        });
        stop.store(true, Ordering::Release);
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ends.into_iter()
            .try_for_each(|end| end.map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .and(result)
    })?;
    let lives = lives.load(Ordering::Relaxed);
    ensure!(lives > ROUNDS, "hardly anything was mapped: {lives}");
    ctx.note(format!("{lives} mappings in {ROUNDS} rounds"));
    Ok(())
}

/// R25: eight threads export, copy, map, touch, split, revoke, unmap and close as they like, for 20
/// seconds. Only the documented errnos come back, and at the end all is free.
fn storm(ctx: &Ctx) -> Result<()> {
    const THREADS: u64 = 8;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    let deadline = Instant::now() + Duration::from_secs(20);
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (provider, count) = (&provider, &count);
                scope.spawn(move || -> Result<()> {
                    let mut dice = (0..).map(|i| word(thread + 1000, i));
                    while Instant::now() < deadline {
                        one_life(provider, &mut || dice.next().unwrap_or(0))
                            .with_context(|| format!("thread {thread}"))?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        // All of them, so that none is left behind when one has failed.
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ends.into_iter()
            .try_for_each(|end| end.map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    ctx.note(format!(
        "{} lives of buffers",
        count.load(Ordering::Relaxed)
    ));
    wait_until("all free", || {
        provider
            .node
            .info()
            .is_ok_and(|info| info.regions == before)
    })?;
    ensure!(main_region(&provider.node.info()?)?.nr_buffers == 0);
    Ok(())
}

/// A buffer's life, as the dice say.
fn one_life(provider: &Provider, dice: &mut impl FnMut() -> u64) -> Result<()> {
    let shift = [12, 21, 30][(dice() % 3) as usize];
    let len = (1 + dice() % 3) << shift;
    let wanted = match dice() % 4 {
        0 => Export::any(len),
        1 => Export::at((dice() % 4) << shift, len),
        2 => Export::at((dice() % 4) << shift, len).shared(),
        // All page-backed buffers have pages of one size, or they are in each other's way.
        _ => Export::any((1 + dice() % 2) * GIB).page().shared(),
    };
    let buffer = match provider.node.export(&wanted) {
        Ok(buffer) => buffer,
        Err(Errno::EBUSY | Errno::ENOSPC) => return Ok(()),
        Err(errno) => bail!("EXPORT: {errno}"),
    };
    let copy = buffer.fd.try_clone()?;
    let map = Mapping::whole(&buffer)?;
    let len = buffer.size();
    let page_backed = wanted.raw.backing == BARBUF_BACKING_PAGE;
    let mut dead = false;
    for _ in 0..dice() % 12 {
        let at = dice() % (len / 8) * 8;
        match dice() % 8 {
            0 => match map.load(at) {
                Ok(_) => ensure!(!dead, "a revoked mapping is readable"),
                Err(fault) => ensure!(dead && fault == Fault::bus(map.at(at)), "{fault:x?}"),
            },
            1 => match map.store(at, at) {
                Ok(()) => ensure!(!dead, "a revoked mapping is writable"),
                Err(fault) => ensure!(dead && fault == Fault::bus(map.at(at)), "{fault:x?}"),
            },
            2 => drop(provider.node.query(&copy)?),
            3 => match provider.node.revoke(&copy) {
                Ok(()) => dead = true,
                Err(Errno::EBADFD) if dead => {}
                Err(errno) => bail!("REVOKE: {errno}"),
            },
            4 => match map.room.protect(at / PAGE * PAGE, PAGE, READ_WRITE) {
                Ok(()) => {}
                Err(Errno::EINVAL) if page_backed => {}
                Err(errno) => bail!("mprotect: {errno}"),
            },
            5 => match map
                .room
                .map(at / PAGE * PAGE, PAGE, READ_WRITE, &copy, at / PAGE * PAGE)
            {
                Ok(()) => {}
                Err(Errno::EINVAL) if page_backed => {}
                // The hole may have been made before the new mapping is refused.
                Err(Errno::ENODEV) if dead => break,
                Err(errno) => bail!("mmap over a part: {errno}"),
            },
            6 => drop(provider.node.info()?),
            _ => yield_now(),
        }
    }
    Ok(())
}
