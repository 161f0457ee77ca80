// SPDX-License-Identifier: MIT OR Apache-2.0

//! The broker in this process, with memory for buffers, and clients that are processes of their own:
//! the command itself, killed at random moments, or sockets that behave badly.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use barbuf::{Buffer, Watch};
use barbuf_cli::broker::{Broker, Made, Provider};
use barbuf_cli::error::Result;
use barbuf_cli::rules::{BufferRule, Names, Rules};
use barbuf_cli::wire::{self, Answer, Request};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect,
    listen, sendmsg, socket,
};

const BARBUF: &str = env!("CARGO_BIN_EXE_barbuf");

struct NoNames;

impl Names for NoNames {
    fn uid(&self, _: &str) -> Option<u32> {
        None
    }

    fn gid(&self, _: &str) -> Option<u32> {
        None
    }
}

/// Memory for buffers, and a count of the leases that are not given up.
#[derive(Default)]
struct Memory {
    leases: Arc<AtomicUsize>,
}

struct Lease(Arc<AtomicUsize>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Provider for Memory {
    fn make(&self, rule: &BufferRule) -> Result<Made> {
        let file = memfd_create(c"buffer", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, rule.length as i64).unwrap();
        self.leases.fetch_add(1, Ordering::SeqCst);
        Ok(Made {
            buffer: Buffer::from(file),
            watch: Some(Watch::new()?),
            told: serde_json::json!({ "name": rule.name, "provider": rule.device.as_str() }),
            lease: Box::new(Lease(Arc::clone(&self.leases))),
        })
    }
}

/// A broker that serves until this is dropped.
struct Served {
    dir: tempfile::TempDir,
    broker: Arc<Broker<Memory>>,
    leases: Arc<AtomicUsize>,
    ended: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(limits: &str, buffers: &str) -> Served {
        let uid = nix::unistd::getuid();
        let text = format!(
            "[limits]\n{limits}\n{}",
            buffers.replace("UID", &uid.to_string())
        );
        let rules = Rules::parse(&text, &NoNames).unwrap();
        let memory = Memory::default();
        let leases = Arc::clone(&memory.leases);
        let broker = Broker::new(rules, memory, None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let listener = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        bind(
            listener.as_raw_fd(),
            &UnixAddr::new(&dir.path().join("socket")).unwrap(),
        )
        .unwrap();
        listen(&listener, Backlog::new(64).unwrap()).unwrap();
        let ended = Arc::new(EventFd::new().unwrap());
        let (serving, until) = (Arc::clone(&broker), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            serving.serve(listener.as_fd(), until.as_fd()).unwrap();
        });
        Served {
            dir,
            broker,
            leases,
            ended,
            thread: Some(thread),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn get(&self, name: &str, command: &[&str]) -> Command {
        let mut get = Command::new(BARBUF);
        get.args(["get", "--socket"]).arg(self.path()).arg(name);
        if !command.is_empty() {
            get.arg("--").args(command);
        }
        get.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        get
    }

    fn connect(&self) -> OwnedFd {
        let connection = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        connect(
            connection.as_raw_fd(),
            &UnixAddr::new(&self.path()).unwrap(),
        )
        .unwrap();
        connection
    }

    fn leases(&self) -> usize {
        self.leases.load(Ordering::SeqCst)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.ended.write(1).unwrap();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        sleep(Duration::from_millis(5));
    }
}

/// How many descriptors of this process stand for the memory of that name: other tests have theirs.
fn kept(name: &str) -> usize {
    let name = format!("/memfd:{name} (deleted)");
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.as_os_str() == name.as_str())
        .count()
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

const SHARED: &str = r#"
    [[buffer]]
    name = "weights"
    device = "0000:05:00.0"
    length = "64K"
    allow = [{ uid = UID }]
    [[buffer]]
    name = "secret"
    device = "0000:05:00.0"
    length = "64K"
    allow = [{ uid = 4294967294 }]
"#;

const OWN: &str = r#"
    [[buffer]]
    name = "scratch"
    device = "0000:05:00.0"
    length = "64K"
    access = "read-write"
    per_client = true
    revoke_on_disconnect = true
    allow = [{ uid = UID }]
"#;

#[test]
fn a_command_gets_the_buffer_and_its_environment() {
    let served = Served::start("", SHARED);
    let script = "echo $BARBUF_FD $BARBUF_SIZE $BARBUF_EVENT_FD $BARBUF_CONNECTION_FD $BARBUF_PROVIDER; \
                  ls /proc/$$/fd | awk '$1 > 5' | wc -l; readlink /proc/$$/fd/3; exit 41";
    // Other tests of this program start children at the same time, which for a moment leaves them
    // descriptors to inherit. What the command itself leaves open is there every time.
    let mut surplus = Vec::new();
    for _ in 0..10 {
        let output = served
            .get("weights", &["sh", "-c", script])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("3 65536 4 5 0000:05:00.0"), "{output:?}");
        let count = "ls /proc/$$/fd | awk '$1 > 5' | wc -l; :";
        let usual = Command::new("sh").args(["-c", count]).output().unwrap();
        let usual: i64 = String::from_utf8_lossy(&usual.stdout)
            .trim()
            .parse()
            .unwrap();
        let found: i64 = lines.next().unwrap().trim().parse().unwrap();
        assert!(lines.next().unwrap().contains("memfd:buffer"));
        assert_eq!(output.status.code(), Some(41));
        // Beyond the three that are meant, only what this program leaves open to all its children.
        surplus.push(found - usual);
        if surplus.contains(&0) {
            return;
        }
    }
    panic!("descriptors besides those that are meant: {surplus:?}");
}

#[test]
fn what_others_may_have_looks_as_if_it_were_not_there() {
    let served = Served::start("", SHARED);
    let exits = |name: &str| {
        let output = served.get(name, &["true"]).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(exits("secret"), exits("missing"));
    assert_eq!(exits("secret").0, Some(3));
    let list = Command::new(BARBUF)
        .args(["--json", "get", "--list", "--socket"])
        .arg(served.path())
        .output()
        .unwrap();
    let value: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(
        value,
        serde_json::json!({ "schema": 1, "buffers": ["weights"] })
    );
}

#[test]
fn a_dead_socket_and_a_missing_command_have_their_exit_codes() {
    let served = Served::start("", SHARED);
    let code = |mut command: Command| command.output().unwrap().status.code();
    assert_eq!(code(served.get("weights", &["/nowhere/x"])), Some(127));
    assert_eq!(code(served.get("weights", &["/etc/passwd"])), Some(126));
    let path = served.path();
    drop(served);
    let mut get = Command::new(BARBUF);
    get.arg("get").arg("--socket").arg(path).arg("weights");
    assert_eq!(code(get), Some(3));
}

#[test]
fn a_lease_ends_with_the_connection() {
    let served = Served::start("", OWN);
    let mut child = served.get("scratch", &["sleep", "1000"]).spawn().unwrap();
    until("the lease", || served.leases() == 1);
    // The command has taken the place of `barbuf get`, and holds the connection.
    sleep(Duration::from_millis(50));
    assert_eq!(served.leases(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end of the lease", || served.leases() == 0);
}

#[test]
fn silent_slow_and_wrong_clients_hold_up_nobody() {
    let served = Served::start("timeout_s = 1\nclients_per_user = 16", SHARED);
    let silent: Vec<OwnedFd> = (0..4).map(|_| served.connect()).collect();
    let wrong = served.connect();
    nix::sys::socket::send(wrong.as_raw_fd(), &[b'x'; 100_000], MsgFlags::empty()).unwrap();
    // Asks and never reads.
    let slow = served.connect();
    let mut asked = 0;
    while wire::write(slow.as_fd(), &Request::get("weights")).is_ok() && asked < 10_000 {
        asked += 1;
    }
    let began = Instant::now();
    let output = served.get("weights", &["true"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
    until("the end of the silent", || served.broker.connections() == 0);
    drop((silent, wrong, slow));
}

#[test]
fn descriptors_of_clients_are_closed() {
    let served = Served::start("", SHARED);
    let connection = served.connect();
    let file = memfd_create(c"surplus", MFdFlags::MFD_CLOEXEC).unwrap();
    assert_eq!(kept("surplus"), 1);
    let request = serde_json::to_vec(&Request::get("missing")).unwrap();
    for _ in 0..50 {
        let fds = [file.as_raw_fd(); 100];
        sendmsg::<()>(
            connection.as_raw_fd(),
            &[std::io::IoSlice::new(&request)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        until("the answer", || {
            wire::read(connection.as_fd(), 4096).is_ok()
        });
    }
    drop(file);
    // The thread of the client is in this process: what it kept would be seen.
    until("the end of what was sent", || kept("surplus") == 0);
}

#[test]
fn limits_are_told_and_hold() {
    let served = Served::start("clients = 3\nclients_per_user = 2", SHARED);
    let first = served.connect();
    let second = served.connect();
    until("two clients", || served.broker.connections() == 2);
    let third = served.connect();
    let mut bytes = None;
    until("the refusal", || {
        bytes = wire::read(third.as_fd(), 4096).ok().flatten();
        bytes.is_some()
    });
    let answer: Answer = serde_json::from_slice(&bytes.unwrap()).unwrap();
    assert_eq!(answer.error.unwrap().kind, "busy");
    drop((first, third));
    until("room", || served.broker.connections() == 1);
    let output = served.get("weights", &["true"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    drop(second);
}

/// Kills clients at 200 random moments: nothing leaks, and the broker serves on.
#[test]
fn clients_killed_at_random_moments_leave_nothing() {
    let served = Served::start(
        "clients = 64\nclients_per_user = 64",
        &format!("{SHARED}{OWN}"),
    );
    // What is made once and kept.
    assert!(
        served
            .get("weights", &["true"])
            .output()
            .unwrap()
            .status
            .success()
    );
    until("quiet", || served.broker.connections() == 0);
    let (fds, leases) = (open_fds(), served.leases());
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut children: Vec<Child> = Vec::new();
    for round in 0..200 {
        let name = if round % 2 == 0 { "weights" } else { "scratch" };
        children.push(served.get(name, &["sleep", "1000"]).spawn().unwrap());
        sleep(Duration::from_micros(next() % 20_000));
        let at = next() as usize % children.len();
        if children.len() > 4 || next() % 2 == 0 {
            let mut child = children.swap_remove(at);
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    until("the end of all connections", || {
        served.broker.connections() == 0
    });
    until("the end of all leases", || served.leases() == leases);
    until("as many descriptors as before", || open_fds() <= fds);
    assert!(
        served
            .get("weights", &["true"])
            .output()
            .unwrap()
            .status
            .success()
    );
}
