// SPDX-License-Identifier: MIT OR Apache-2.0

//! Buffers between processes, with the crate and with the examples: unprivileged receivers, and a
//! storm.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use barbuf::pass::{Descriptor, Policy, Receiver, receive, send};
use barbuf::{Backing, Buffer, Control, ErrorKind, Format, Origin, State, Watch};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::kit::command::wait_for_socket;
use crate::kit::pci::wait_until;
use crate::kit::process::{Child, PROMPT, become_nobody, open_fds, scaled};
use crate::kit::{GIB, PAGE};
use crate::library::npu;
use crate::support::{Ctx, Suite, ensure_eq, test};

pub(crate) const SUITE: Suite = Suite {
    name: "passing",
    tests: &[
        test!(an_unprivileged_receiver_maps_and_is_told).timeout(60),
        test!(a_thousand_descriptors_in_a_storm).timeout(120),
        test!(the_examples_receive_what_is_sent).timeout(60),
        test!(a_stranger_follows_the_readme).timeout(90),
    ],
};

pub(crate) fn pair(kind: SockType) -> Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        kind,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

const WORDS: u64 = 0x0bad_cafe_0bad_cafe;

/// The receiver is nobody: it has the descriptor and the control node, and cannot open the
/// provider's. It maps with 1 GiB pages, reads what the sender wrote, and is told of the end.
fn an_unprivileged_receiver_maps_and_is_told(ctx: &Ctx) -> Result<()> {
    let (device, provider) = npu(ctx)?;
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let watch = Watch::new()?;
        let buffer = device.export().any(2 * GIB).watch(&watch).build()?;
        buffer.map().build()?.write_u64(GIB as usize, WORDS)?;
        let (ours, theirs) = pair(kind)?;
        let path = provider.function.node_path();
        let child = Child::start(|| {
            become_nobody()?;
            let error = barbuf::Device::open_path(&path).err().context("opened")?;
            ensure_eq!(error.errno(), Some(libc::EACCES));
            let received = receive(&theirs, &Policy::anybody().users([0]))?;
            ensure_eq!(received.descriptor.range, Some(GIB..2 * GIB));
            ensure_eq!(received.descriptor.format, Some(Format::BYTES));
            let buffer = Control::open()?.import(received.buffer)?;
            let Origin::Barbuf(query) = buffer.origin()? else {
                bail!("not barbuf's")
            };
            ensure_eq!(query.provider.as_str(), provider.bdf());
            let map = buffer.map().range(GIB..2 * GIB).build()?;
            ensure_eq!(map.read_u64(0)?, WORDS);
            ensure!(
                buffer.query()?.faults.of_1g > query.faults.of_1g,
                "no 1 GiB page"
            );
            map.write_u64(8, !WORDS)?;
            // Says that it has come this far.
            send(&theirs, &buffer, None, &Descriptor::default())?;
            let watch = received.watch.context("no eventfd came")?;
            ensure!(watch.wait(Some(scaled(PROMPT * 4)))?, "not told");
            let error = map.read_u64(0).err().context("a revoked buffer was read")?;
            ensure!(error.is_revoked(), "{error}");
            ensure_eq!(buffer.query()?.state, State::Revoked);
            Ok(())
        })?;
        let descriptor = Descriptor {
            range: Some(GIB..2 * GIB),
            format: Some(Format::BYTES),
            ..Descriptor::default()
        };
        send(&ours, &buffer, Some(&watch), &descriptor)?;
        let patient = Receiver::new(Policy::anybody()).timeout(scaled(PROMPT * 4));
        let back = patient.receive(&ours)?;
        ensure_eq!(back.buffer.id()?, buffer.id()?);
        ensure_eq!(buffer.map().build()?.read_u64(GIB as usize + 8)?, !WORDS);
        device.revoke(&buffer)?;
        child.join()?;
    }
    Ok(())
}

/// 64 buffers, sent 1,000 times to another process by four others at once. Each arrives once, and
/// afterwards nobody holds anything.
fn a_thousand_descriptors_in_a_storm(ctx: &Ctx) -> Result<()> {
    const SENDERS: u64 = 4;
    const EACH: u64 = 250;
    let (device, _provider) = npu(ctx)?;
    let before = device.info()?;
    let buffers = (0..64)
        .map(|_| device.export().any(PAGE).build())
        .collect::<Result<Vec<_>, _>>()?;
    let ids = buffers
        .iter()
        .map(Buffer::id)
        .collect::<Result<Vec<_>, _>>()?;
    let (ours, theirs) = pair(SockType::SeqPacket)?;
    let mut senders = Vec::new();
    for sender in 0..SENDERS {
        let (ours, buffers) = (&ours, &buffers);
        senders.push(Child::start(move || {
            for n in 0..EACH {
                let number = sender * EACH + n;
                let descriptor = Descriptor {
                    tag: number,
                    ..Descriptor::default()
                };
                send(ours, &buffers[(number % 64) as usize], None, &descriptor)?;
            }
            Ok(())
        })?);
    }
    drop(ours);
    let open = open_fds()?;
    let mut seen = vec![0; (SENDERS * EACH) as usize];
    loop {
        match receive(&theirs, &Policy::anybody()) {
            Ok(received) => {
                let number = received.descriptor.tag;
                seen[number as usize] += 1;
                ensure_eq!(received.buffer.id()?, ids[(number % 64) as usize]);
            }
            Err(error) if error.kind() == ErrorKind::Closed => break,
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(seen.iter().all(|times| *times == 1), "{seen:?}");
    ensure_eq!(open_fds()?, open);
    for sender in senders {
        sender.join()?;
    }
    drop(buffers);
    let is_free = || device.info().is_ok_and(|info| info == before);
    wait_until("the last buffer's end", is_free)?;
    Ok(())
}

/// The examples in C and C++, as nobody, with buffers of both backings.
fn the_examples_receive_what_is_sent(ctx: &Ctx) -> Result<()> {
    let (device, provider) = npu(ctx)?;
    let path = Path::new("/tmp/barbuf-examples.socket");
    for backing in [Backing::Pfn, Backing::Page] {
        let watch = Watch::new()?;
        let export = device.export().any(GIB).backing(backing).watch(&watch);
        let buffer = export.build()?;
        buffer.map().build()?.write_u64(PAGE as usize, WORDS)?;
        let descriptor = Descriptor {
            range: Some(PAGE..GIB),
            user: b"and more".to_vec(),
            ..Descriptor::default()
        };
        for program in ["/examples/receive-c", "/examples/receive-cxx"] {
            let _ = fs::remove_file(path);
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
            let before = buffer.query()?.faults;
            let receiver = Command::new(program)
                .arg(path)
                .uid(65534)
                .gid(65534)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {program}"))?;
            let (socket, _) = listener.accept()?;
            send(&socket, &buffer, Some(&watch), &descriptor)?;
            let output = receiver.wait_with_output()?;
            ensure_eq!(
                String::from_utf8_lossy(&output.stdout).trim_end(),
                format!(
                    "{}: {GIB} bytes, word at {PAGE}: {WORDS:016x}, an eventfd",
                    provider.bdf()
                )
            );
            ensure!(output.status.success(), "{program}: {output:?}");
            let after = buffer.query()?.faults;
            ensure!(
                after.of_1g == before.of_1g + 1 && after.of_4k == before.of_4k,
                "{program} mapped with {after:?} after {before:?}"
            );
        }
    }
    fs::remove_file(path)?;
    Ok(())
}

/// The example `send` as root, and every receiver as nobody, that of the README among them: each finds what was
/// written. When the sender is interrupted nothing is left.
fn a_stranger_follows_the_readme(ctx: &Ctx) -> Result<()> {
    const SIZE: u64 = 2 << 20;
    // The README's program knows no other.
    let path = Path::new("/run/weights.sock");
    let (device, provider) = npu(ctx)?;
    let before = device.info()?;
    let run = |program: &str| {
        let mut command = Command::new(program);
        command.arg(path).uid(65534).gid(65534);
        command
            .env("PATH", "/usr/bin:/bin")
            .output()
            .with_context(|| format!("cannot start {program}"))
    };
    let mut sender = Command::new("/examples/send")
        .args([Path::new(provider.bdf()), path])
        .spawn()?;
    let result = (|| {
        wait_for_socket(path)?;
        let output = run("/examples/first")?;
        ensure!(
            !output.status.success(),
            "nobody has let others connect: {output:?}"
        );
        fs::set_permissions(path, fs::Permissions::from_mode(0o602))?;
        let word = format!(
            "{}: {SIZE} bytes, word at {PAGE}: {PAGE:016x}, an eventfd",
            provider.bdf()
        );
        for (program, said) in [
            ("/examples/first", format!("{SIZE} bytes, the first is 0")),
            ("/examples/receive", word.clone()),
            ("/examples/receive-c", word.clone()),
            ("/examples/receive-cxx", word.clone()),
            ("/examples/receive.py", word),
        ] {
            let output = run(program)?;
            ensure!(output.status.success(), "{program}: {output:?}");
            ensure_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), said);
        }
        kill(Pid::from_raw(sender.id().try_into()?), Signal::SIGINT)?;
        Ok(())
    })();
    if result.is_err() {
        sender.kill()?;
    }
    let status = sender.wait()?;
    let _ = fs::remove_file(path);
    result?;
    ensure_eq!(status.signal(), Some(Signal::SIGINT as i32));
    wait_until("the end of what was sent", || {
        device.info().is_ok_and(|info| info == before)
    })
}
