// SPDX-License-Identifier: MIT OR Apache-2.0

//! `serve` and `get` with buffers of the NPU.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use barbuf::{State, Watch};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use serde_json::json;

use crate::kit::command::{
    Actor, Barbuf, NOBODY, answer, barbuf, fetch, parse, refusal, wait_for_socket,
};
use crate::kit::pci::{Provider, wait_until};
use crate::kit::{GIB, MIB};
use crate::support::{Ctx, ensure_eq};

pub(super) const SOCKET: &str = "/run/command.sock";
const RULES: &str = "/run/command.toml";

/// A file of rules, until this is dropped: `weights` for everybody, 1 GiB that all share;
/// `scratch`, a part of 4 MiB for each connection; `secret` for root.
pub(super) struct RulesFile;

impl RulesFile {
    pub(super) fn write(npu: &str) -> Result<RulesFile> {
        let everybody = format!("[{{ uid = {NOBODY} }}, {{ uid = 0 }}]");
        let text = format!(
            r#"
            [[buffer]]
            name = "weights"
            device = "{npu}"
            offset = "4G"
            length = "1G"
            allow = {everybody}
            [[buffer]]
            name = "scratch"
            device = "{npu}"
            length = "4M"
            backing = "page"
            access = "read-write"
            per_client = true
            revoke_on_disconnect = true
            allow = {everybody}
            [[buffer]]
            name = "secret"
            device = "{npu}"
            length = "4K"
            allow = [{{ gid = 0 }}]
            "#
        );
        fs::write(RULES, text)?;
        Ok(RulesFile)
    }

    /// A broker that goes by them.
    pub(super) fn serve(&self) -> Result<Actor> {
        Actor::start(barbuf(&[
            "--json", "serve", "--rules", RULES, "--socket", SOCKET,
        ]))
    }
}

impl Drop for RulesFile {
    fn drop(&mut self) {
        for path in [RULES, SOCKET] {
            let _ = fs::remove_file(path);
        }
    }
}

/// `get` as nobody.
fn get(name: &str, command: &[&str]) -> Barbuf {
    let get = barbuf(&["--json", "get", "--socket", SOCKET, name]).nobody();
    if command.is_empty() {
        get
    } else {
        get.arg("--").args(command)
    }
}

pub(super) fn rules_decide_who_gets_what(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    let rules = RulesFile::write(provider.bdf())?;
    let mut broker = rules.serve()?;
    wait_for_socket(Path::new(SOCKET))?;
    let list = barbuf(&["--json", "get", "--list", "--socket", SOCKET]).nobody();
    ensure_eq!(
        parse(&list.output()?)?,
        json!({ "schema": 1, "buffers": ["weights", "scratch"] })
    );
    ensure_eq!(
        answer(&["get", "--list", "--socket", SOCKET])?["buffers"],
        json!(["weights", "scratch", "secret"])
    );
    let told = parse(&get("weights", &[]).output()?)?;
    ensure_eq!(
        (&told["told"]["access"], &told["told"]["ranges"]),
        (
            &json!("read-only"),
            &json!([{ "offset": 4 * GIB, "length": GIB }])
        )
    );
    // All have the same; of the other each has one of its own.
    let id = |name: &str| -> Result<_> { Ok(parse(&get(name, &[]).output()?)?["id"].clone()) };
    ensure_eq!(id("weights")?, told["id"]);
    ensure!(id("scratch")? != id("scratch")?, "one of its own");
    let script = "echo $BARBUF_FD $BARBUF_SIZE $BARBUF_EVENT_FD $BARBUF_CONNECTION_FD; \
                  barbuf -q load --length 1 /suites; echo $?";
    let said = get("weights", &["sh", "-c", script]).exits(0)?;
    ensure_eq!(said, format!("3 {GIB} 4 5\n4\n"));
    let script = "barbuf -q load --length 1 /suites; exit 40";
    get("scratch", &["sh", "-c", script]).exits(40)?;
    // What nobody may not have looks as if it were not there.
    let refused = |name| get(name, &["true"]).exits(3);
    ensure_eq!(
        refused("secret")?.replace("secret", "missing"),
        refused("missing")?
    );
    answer(&["get", "--socket", SOCKET, "secret"])?;
    refusal(
        &["get", "--socket", SOCKET, "--from-uid", "7", "weights"],
        4,
    )?;
    refusal(&["serve", "--rules", RULES, "--socket", SOCKET], 7)?;

    broker.signal(Signal::SIGTERM)?;
    let handed = broker.document()?;
    ensure!(handed["handed_out"].as_u64() >= Some(8), "{handed}");
    ensure_eq!(broker.wait()?.code(), Some(0));
    ensure!(!Path::new(SOCKET).exists(), "the socket is left");
    refusal(&["get", "--socket", SOCKET, "weights"], 3)?;
    fs::set_permissions(RULES, fs::Permissions::from_mode(0o666))?;
    refusal(&["serve", "--rules", RULES, "--socket", SOCKET], 4)?;
    provider.wait_until_free(&before)
}

/// As systemd does: the socket is there first, and is descriptor 3.
pub(super) fn a_supervisor_hands_the_socket_over(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    let _rules = RulesFile::write(provider.bdf())?;
    let listener = || -> Result<OwnedFd> {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?)
    };
    let ours = listener()?;
    bind(ours.as_raw_fd(), &UnixAddr::new(SOCKET)?)?;
    // SocketMode= of the unit.
    fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o666))?;
    listen(&ours, Backlog::new(8)?)?;
    let serve = |prefix: &str| {
        let script = format!("{prefix} exec barbuf --json serve --rules {RULES} 3<&0 </dev/null");
        Barbuf::shell(&script)
    };
    let mut broker = Actor::start(serve("LISTEN_FDS=1 LISTEN_PID=$$").stdin(ours.try_clone()?))?;
    // Whoever connects before it has begun waits for it.
    let script = "barbuf --json info --fd 3";
    let info = parse(&get("weights", &["sh", "-c", script]).output()?)?;
    ensure_eq!(info["buffer"]["provider"], provider.bdf());
    broker.signal(Signal::SIGTERM)?;
    ensure_eq!(broker.document()?["handed_out"], 1);
    ensure_eq!(broker.wait()?.code(), Some(0));
    ensure!(Path::new(SOCKET).exists(), "the socket is the supervisor's");
    // What is meant for another process, two at once, and none.
    for (prefix, why) in [
        ("LISTEN_FDS=1 LISTEN_PID=1", "no socket is named"),
        ("LISTEN_FDS=2 LISTEN_PID=$$", "2 sockets"),
        ("", "no socket is named"),
    ] {
        let said = serve(prefix).stdin(ours.try_clone()?).exits(2)?;
        ensure!(said.contains(why), "{said}");
    }
    provider.wait_until_free(&before)
}

/// With `revoke_on_disconnect` a buffer ends with its connection, whoever else has it by then.
pub(super) fn disconnecting_revokes(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let before = provider.node.info()?.regions;
    let rules = RulesFile::write(provider.bdf())?;
    let mut broker = rules.serve()?;
    let socket = Path::new(SOCKET);
    wait_for_socket(socket)?;
    let is =
        |buffer: &barbuf::Buffer, state| buffer.query().is_ok_and(|query| query.state == state);
    let (weights, connection) = fetch(socket, "weights")?;
    let (scratch, leased) = fetch(socket, "scratch")?;
    let map = scratch.map().build()?;
    map.write_u64(MIB as usize, 1)?;
    drop(connection);
    // A whole round, after which the broker has seen the end of the first connection.
    drop(fetch(socket, "scratch")?);
    ensure!(is(&weights, State::Live) && is(&scratch, State::Live));
    drop(leased);
    wait_until("the revocation", || is(&scratch, State::Revoked))?;
    let error = map
        .read_u64(MIB as usize)
        .err()
        .context("it is still there")?;
    ensure!(error.is_revoked(), "{error}");
    drop((map, scratch));

    // The command of `get` holds the connection: the buffer goes with it, and its eventfd tells.
    let script = "echo {}; exec sleep 1000";
    let mut client = Actor::start(get("scratch", &["sh", "-c", script]))?;
    client.document()?;
    let held = super::take(&format!("{}:3", client.pid()))?;
    let event = barbuf::pass::take_from_process(client.pid(), 4)?;
    ensure!(is(&held, State::Live));
    client.signal(Signal::SIGKILL)?;
    client.wait()?;
    wait_until("the revocation", || is(&held, State::Revoked))?;
    ensure!(Watch::from(event).is_revoked()?, "no event");
    drop(held);

    // The broker's death is one too.
    let (scratch, _connection) = fetch(socket, "scratch")?;
    broker.signal(Signal::SIGKILL)?;
    broker.wait()?;
    wait_until("the revocation", || is(&scratch, State::Revoked))?;
    ensure!(is(&weights, State::Live), "what was handed out for good");
    drop((scratch, weights));
    provider.wait_until_free(&before)
}
