// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exporter, importer and broker are killed at random moments.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use barbuf::pass::{Descriptor, Policy, receive, send};
use barbuf::{Backing, Buffer, Device, ErrorKind};
use barbuf_guest::sysfs::{self, dma_buf_count};
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;

use super::broker::{RulesFile, SOCKET};
use crate::export::main_region;
use crate::kit::MIB;
use crate::kit::command::fetch;
use crate::kit::pattern::word;
use crate::kit::pci::{Provider, wait_until};
use crate::kit::process::{Child, open_fds, scaled};
use crate::passing::pair;
use crate::support::{Ctx, ensure_eq};

const ROUNDS: u64 = 200;
/// All buffers that the module knows.
const BUFFERS: &str = "/sys/kernel/debug/barbuf/buffers";
const ROLES: [&str; 3] = ["exporter", "importer", "broker"];

/// A exports and sends, B receives, gets from the broker, maps and writes; 200 times one of the
/// three is killed, and the others come to their end by themselves. Every time all bytes are free
/// again, and no buffer and no dma-buf is left.
pub(super) fn killed_at_random_moments(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let (before, dma_bufs, fds) = (provider.node.info()?.regions, dma_buf_count()?, open_fds()?);
    let rules = RulesFile::write(provider.bdf())?;
    let mut seed = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
    let seed = u64::from_ne_bytes(seed);
    ctx.say(format!("seed {seed:#x}"));
    // How many of each were killed while there were buffers.
    let mut hit = [0; ROLES.len()];
    for round in 0..ROUNDS {
        let victim = (word(seed, 2 * round) % 3) as usize;
        let delay = scaled(Duration::from_micros(word(seed, 2 * round + 1) % 60_000));
        let live = one_round(&provider, &rules, victim, delay)
            .and_then(|live| {
                provider.wait_until_free(&before)?;
                let gone = || dma_buf_count().is_ok_and(|count| count == dma_bufs);
                wait_until("the end of every dma-buf", gone)?;
                wait_until("the end of every buffer", || {
                    // A line says what the columns are.
                    sysfs::read(BUFFERS).is_ok_and(|text| text.lines().count() == 1)
                })?;
                ensure_eq!(open_fds()?, fds);
                Ok(live)
            })
            .with_context(|| {
                let role = ROLES[victim];
                format!("seed {seed:#x}, round {round}: the {role} killed after {delay:?}")
            })?;
        hit[victim] += u64::from(live > 0);
    }
    ctx.say(format!(
        "killed with buffers in use: {} exporters, {} importers, {} brokers",
        hit[0], hit[1], hit[2]
    ));
    ensure!(
        hit.iter().all(|count| *count >= ROUNDS / 20),
        "hardly any moment was one with buffers: {hit:?}"
    );
    Ok(())
}

/// Starts all three, kills one, and waits for the others. Tells how many buffers there were when it
/// was killed.
fn one_round(
    provider: &Provider,
    rules: &RulesFile,
    victim: usize,
    delay: Duration,
) -> Result<u32> {
    let mut broker = rules.serve()?;
    let (ours, theirs) = pair(SockType::SeqPacket)?;
    // Each child closes the other's end: otherwise nobody would see that the other has died.
    let mut ends = (Some(ours), Some(theirs));
    let bdf = provider.bdf();
    let mut exporter = Child::start(|| {
        ends.1 = None;
        exports(bdf, ends.0.as_ref().context("an end")?)
    })?;
    let mut importer = Child::start(|| {
        ends.0 = None;
        imports(ends.1.as_ref().context("an end")?)
    })?;
    drop(ends);
    sleep(delay);
    let live = main_region(&provider.node.info()?)?.nr_buffers;
    match victim {
        0 => exporter.signal(Signal::SIGKILL)?,
        1 => importer.signal(Signal::SIGKILL)?,
        _ => {
            broker.signal(Signal::SIGKILL)?;
            // A and B go on without it, until one of them is told to end.
            exporter.signal(Signal::SIGKILL)?;
        }
    }
    if victim == 1 {
        importer.wait()?;
        exporter.join().context("the exporter")?;
    } else {
        exporter.wait()?;
        importer.join().context("the importer")?;
    }
    broker.signal(Signal::SIGKILL)?;
    broker.wait()?;
    let _ = std::fs::remove_file(SOCKET);
    Ok(live)
}

/// A: buffers of both backings, until nobody receives them any more.
fn exports(bdf: &str, socket: &std::os::fd::OwnedFd) -> Result<()> {
    // As many as fit into the socket's queue fit into the NPU as well.
    let device = Device::open(bdf)?;
    for tag in 0.. {
        let (length, backing) = match tag % 3 {
            0 => (16 * MIB, Backing::Pfn),
            1 => (8 * MIB, Backing::Page),
            _ => (4 * MIB, Backing::Pfn),
        };
        let buffer = device.export().any(length).backing(backing).build()?;
        buffer.map().build()?.write_u64(0, tag)?;
        let descriptor = Descriptor {
            tag,
            ..Descriptor::default()
        };
        match send(socket, &buffer, None, &descriptor) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Closed => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// B: maps what comes, and what the broker has, until A is gone.
fn imports(socket: &std::os::fd::OwnedFd) -> Result<()> {
    let use_it = |buffer: &Buffer| -> Result<u64, barbuf::Error> {
        let map = buffer.map().build()?;
        if map.access() == barbuf::Access::ReadWrite {
            map.write_u64(8, 1)?;
        }
        map.read_u64(0)
    };
    loop {
        let received = match receive(socket, &Policy::anybody()) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::Closed => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // A's buffers outlive it.
        ensure_eq!(use_it(&received.buffer)?, received.descriptor.tag);
        let name = if received.descriptor.tag % 2 == 0 {
            "weights"
        } else {
            "scratch"
        };
        // The broker may not be there yet, or no more; then it has revoked what it lent.
        let Ok((buffer, _connection)) = fetch(Path::new(SOCKET), name) else {
            continue;
        };
        match use_it(&buffer) {
            Ok(_) => {}
            Err(error) if error.is_revoked() && name == "scratch" => {}
            Err(error) => return Err(error.into()),
        }
    }
}
