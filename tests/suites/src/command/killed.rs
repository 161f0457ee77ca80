// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exporter, importer and broker are killed at random moments.

use std::fs::{self, File};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use barbuf::pass::{Descriptor, Policy, receive, send};
use barbuf::{Backing, Buffer, Device, ErrorKind};
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;

use super::broker::{RulesFile, SOCKET};
use crate::kit::MIB;
use crate::kit::command::{Actor, fetch, wait_for_socket};
use crate::kit::drive::{block_device, open_direct, read_into};
use crate::kit::importer::{BIDIRECTIONAL, Engine};
use crate::kit::ledger::{Ledger, live};
use crate::kit::pattern::word;
use crate::kit::pci::{Provider, wait_until};
use crate::kit::process::{Child, scaled};
use crate::kit::slab::Objects;
use crate::passing::pair;
use crate::support::{Ctx, ensure_eq};

const ROUNDS: u64 = 200;
/// What a page-backed buffer of A has. The broker's has pages of the same size.
const WITH_PAGES: u64 = 8 * MIB;
/// After these the slab caches hold what they always will.
const WARM: u64 = 20;
/// What else allocates in all other rounds. An object that each of them leaves is more, and so is one that each
/// leaves whose victim is of one kind.
const NOISE: u64 = 40;
const ROLES: [&str; 3] = ["exporter", "importer", "broker"];

/// A exports and sends; B receives, has a drive read and a device attach, gets from the broker, maps and writes; 200
/// times one of the three is killed, and the others come to their end by themselves. Every time all is as it was: no
/// buffer, attachment, pin, open file, used byte or reference to the module is left; and all rounds together leave no
/// memory.
pub(super) fn killed_at_random_moments(ctx: &Ctx) -> Result<()> {
    let stage = Stage {
        drive: open_direct(&block_device(ctx.nvme(0)?)?)?,
        engine: Engine::load(ctx)?,
        provider: Provider::bind(ctx.npu(0)?)?,
    };
    // The struct pages of the region stay until it is unbound, or until pages of another size are wanted.
    let device = Device::open(stage.provider.bdf())?;
    drop(
        device
            .export()
            .any(WITH_PAGES)
            .backing(Backing::Page)
            .build()?,
    );
    drop(device);
    let rules = RulesFile::write(stage.provider.bdf())?;
    let idle = files_of_an_idle_broker(&rules)?;
    let before = Ledger::take(ctx)?;
    let mut seed = [0; 8];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut seed)?;
    let seed = u64::from_ne_bytes(seed);
    ctx.say(format!("seed {seed:#x}"));
    // How many of each were killed while there were buffers, and in how many rounds there were attachments.
    let (mut hit, mut attached) = ([0; ROLES.len()], 0);
    let mut objects = Objects::count()?;
    for round in 0..ROUNDS {
        if round == WARM {
            objects = Objects::count()?;
        }
        let victim = (word(seed, 2 * round) % 3) as usize;
        let delay = scaled(Duration::from_micros(word(seed, 2 * round + 1) % 60_000));
        let broker = rules.serve()?;
        let played = stage.play(victim, delay, &broker);
        let (buffers, attachments) = played
            .and_then(|live| {
                if victim != 2 {
                    // It still has what it has handed out for good, and nothing of those who are gone.
                    let forgotten = || open_files(&broker).is_ok_and(|count| count <= idle);
                    wait_until("the broker's closing of what its clients had", forgotten)?;
                }
                // Kills it, unless that was done.
                drop(broker);
                let _ = fs::remove_file(SOCKET);
                before.wait_until_again(ctx)?;
                Ok(live)
            })
            .with_context(|| {
                let role = ROLES[victim];
                format!("seed {seed:#x}, round {round}: the {role} killed after {delay:?}")
            })?;
        hit[victim] += u64::from(buffers > 0);
        attached += u64::from(attachments > 0);
    }
    ctx.say(format!(
        "killed with buffers in use: {} exporters, {} importers, {} brokers; {attached} times with attachments",
        hit[0], hit[1], hit[2]
    ));
    let often = ROUNDS / 20;
    ensure!(
        hit.iter().all(|count| *count >= often) && attached >= often,
        "hardly any moment was one with buffers and attachments: {hit:?}, {attached}"
    );
    objects.wait_until_near(NOISE)
}

fn open_files(broker: &Actor) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", broker.pid()))?.count())
}

/// How many files a broker has open without clients, once it has the buffer that is handed out for good.
fn files_of_an_idle_broker(rules: &RulesFile) -> Result<usize> {
    let broker = rules.serve()?;
    wait_for_socket(Path::new(SOCKET))?;
    let (_weights, _connection) = fetch(Path::new(SOCKET), "weights")?;
    let with_one = open_files(&broker)?;
    drop(broker);
    fs::remove_file(SOCKET)?;
    // But for the connection.
    Ok(with_one - 1)
}

/// Where all rounds are played.
struct Stage {
    drive: File,
    engine: Engine,
    provider: Provider,
}

impl Stage {
    /// Starts A and B beside the broker, kills one, and waits for the others. Tells how many buffers and attachments
    /// there were when it was killed.
    fn play(&self, victim: usize, delay: Duration, broker: &Actor) -> Result<(usize, usize)> {
        let (ours, theirs) = pair(SockType::SeqPacket)?;
        // Each child closes the other's end: otherwise nobody would see that the other has died.
        let mut ends = (Some(ours), Some(theirs));
        let mut exporter = Child::start(|| {
            ends.1 = None;
            exports(self.provider.bdf(), ends.0.as_ref().context("an end")?)
        })?;
        let mut importer = Child::start(|| {
            ends.0 = None;
            self.imports(ends.1.as_ref().context("an end")?)
        })?;
        drop(ends);
        sleep(delay);
        let live = live()?;
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
        Ok(live)
    }

    /// B: uses what comes, and what the broker has, until A is gone.
    fn imports(&self, socket: &std::os::fd::OwnedFd) -> Result<()> {
        loop {
            let received = match receive(socket, &Policy::anybody()) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::Closed => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let tag = received.descriptor.tag;
            let importer = self.engine.attached(&received.buffer)?;
            importer.map(BIDIRECTIONAL)?;
            // A's buffers outlive it.
            ensure_eq!(use_it(&received.buffer)?, tag);
            if received.buffer.query()?.backing == Backing::Page {
                let map = received.buffer.map().build()?;
                ensure_eq!(read_into(&self.drive, map.as_mut_ptr(), MIB, 0)?, MIB);
            }
            let name = if tag % 2 == 0 { "weights" } else { "scratch" };
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
}

/// Maps a buffer, writes to it if it can, and reads its first word.
fn use_it(buffer: &Buffer) -> Result<u64, barbuf::Error> {
    let map = buffer.map().build()?;
    if map.access() == barbuf::Access::ReadWrite {
        map.write_u64(8, 1)?;
    }
    map.read_u64(0)
}

/// A: buffers of both backings, until nobody receives them any more.
fn exports(bdf: &str, socket: &std::os::fd::OwnedFd) -> Result<()> {
    // As many as fit into the socket's queue fit into the NPU as well.
    let device = Device::open(bdf)?;
    for tag in 0.. {
        let (length, backing) = match tag % 3 {
            0 => (16 * MIB, Backing::Pfn),
            1 => (WITH_PAGES, Backing::Page),
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
