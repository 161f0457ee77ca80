// SPDX-License-Identifier: MIT OR Apache-2.0

//! One boot of one guest: start it, follow it, serve it, and say how each of its tests ended.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use barbuf_guest::protocol::{BOOT_SPEC, BootSpec, Job, ORACLES, SuitePlan};

use super::backing::Stores;
use super::initramfs::Initramfs;
use super::judge::{self, Console};
use super::ktap::{self, Ktap, Status};
use super::parts::Parts;
use super::python;
use super::qemu::Guest;
use super::qmp::Qmp;
use super::topology::Topology;
use crate::cache::{self, Lock};
use crate::cmd::make_dir;
use crate::ctx::Ctx;

/// How long a guest may take to its first result, before the time scale.
const BOOT_WITHIN: Duration = Duration::from_secs(180);
/// How much longer than its own limit a test may keep the host waiting: the guest itself ends
/// it, cleans up and looks at the machine.
const GRACE: Duration = Duration::from_secs(30);
/// From the end of the plan, or a panic, to the end of QEMU.
const END_WITHIN: Duration = Duration::from_secs(20);
/// How long a result waits for the console to come as far.
const CONSOLE_LAG: Duration = Duration::from_secs(5);

/// The example in Python, and the suite that runs it.
const SCRIPT: &str = "/examples/receive.py";
const NEEDS_PYTHON: &str = "passing";

/// What the failure of a test begins with during which the kernel died.
pub(crate) const PANICKED: &str = "the kernel panicked during ";

/// What to boot.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) parts: &'a Parts,
    pub(crate) suites: Vec<SuitePlan>,
    /// Texts that the console must show.
    pub(crate) console: Vec<String>,
    /// The guest is to die of a panic.
    pub(crate) panics: bool,
    /// Devices are unplugged in it.
    pub(crate) hotplug: bool,
    /// The guest is ended as soon as a test has failed.
    pub(crate) stop_at_failure: bool,
    /// See [`GRACE`].
    pub(crate) grace: Duration,
    pub(crate) dir: BootDir,
    pub(crate) keep: bool,
}

/// The directory of a boot: what QEMU needs, and what is left to read afterwards.
#[derive(Debug)]
pub(crate) struct BootDir {
    pub(crate) path: PathBuf,
    /// As the user knows it.
    shown: String,
    /// Another run of the same boot waits.
    _lock: Lock,
}

impl BootDir {
    /// An empty directory.
    pub(crate) fn create(ctx: &Ctx, name: &str) -> Result<Self> {
        let path = ctx.target.join("vm").join(name);
        let lock = cache::lock(ctx, &path.with_extension("lock"), &format!("boot {name}"))?;
        let _ = fs::remove_dir_all(&path);
        make_dir(&path)?;
        let shown = ctx.show(&path);
        Ok(BootDir {
            path,
            shown,
            _lock: lock,
        })
    }

    fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// A test of a boot that has ended, or the boot itself.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// `suite::test`.
    pub(crate) test: String,
    pub(crate) status: Status,
    pub(crate) time: Option<Duration>,
}

/// What the boot tells while it runs.
#[derive(Debug)]
pub(crate) enum Progress<'a> {
    Begin(&'a str),
    Say(&'a str),
    Ended(Ended),
}

enum Event {
    Console(String),
    Report(String),
    /// QEMU has closed its console: it has ended.
    Gone,
}

/// The state of a boot that runs.
struct Run<'a> {
    boot: &'a Boot<'a>,
    ktap: Ktap,
    console: Console,
    /// Results for which the console has not come far enough yet.
    waiting: Vec<(Ended, Instant)>,
    /// Tests whose end the console has shown.
    shown: BTreeSet<String>,
    current: Option<String>,
    /// What is wrong with the boot as a whole.
    problems: Vec<String>,
    /// It ended before its time: the last lines are of interest.
    died: Option<String>,
    deadline: Instant,
    /// What happens at the deadline.
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Booting,
    Testing,
    /// The plan is complete, or the kernel has panicked.
    Ending,
}

impl<'a> Boot<'a> {
    /// A boot of which nothing special is expected.
    pub(crate) fn new(
        topology: &'a Topology,
        parts: &'a Parts,
        suites: Vec<SuitePlan>,
        dir: BootDir,
    ) -> Self {
        Boot {
            topology,
            parts,
            suites,
            console: Vec::new(),
            panics: false,
            hotplug: false,
            stop_at_failure: false,
            grace: GRACE,
            dir,
            keep: false,
        }
    }

    /// Runs the guest to its end. The result for the boot as a whole comes last.
    pub(crate) fn run(&self, tell: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
        let started = Instant::now();
        let scale = self.parts.time_scale(self.topology);
        let initramfs = self.dir.join("initramfs.cpio");
        let spec = self
            .parts
            .spec(self.topology, scale, Job::Run(self.suites.clone()));
        fs::write(&initramfs, build_initramfs(self.parts, &spec)?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        let mut stores = Stores::create(self.topology.machine().devices, &self.dir.path, scale)?;
        let guest = self.parts.guest(self.topology, &initramfs);
        let (child, lines) = guest.start(&stores, &self.dir.join("qemu.log"))?;
        let mut child = KillOnDrop(child);
        let (sender, events) = channel();
        follow(
            lines.console,
            &self.dir.join("console.log"),
            sender.clone(),
            true,
        )?;
        follow(lines.channel, &self.dir.join("report.ktap"), sender, false)?;
        let mut run = Run {
            boot: self,
            ktap: Ktap::new(&self.suites),
            console: Console::new(&self.console, self.hotplug),
            waiting: Vec::new(),
            shown: BTreeSet::new(),
            current: None,
            problems: Vec::new(),
            died: None,
            deadline: started + BOOT_WITHIN * scale,
            stage: Stage::Booting,
        };
        match Qmp::new(lines.qmp) {
            Ok(mut qmp) => {
                run.follow(&events, lines.answers, &mut stores, &mut qmp, scale, tell)?
            }
            Err(error) => run.die(format!("{error:#}: {}", self.qemu_log())),
        }
        if run.died.is_none() {
            match child.wait(END_WITHIN)? {
                Some(status) if status.success() => {}
                Some(status) => run.die(format!("QEMU ended with {status}: {}", self.qemu_log())),
                None => run.die("QEMU does not end".into()),
            }
        }
        drop(child);
        let good = run.finish(started.elapsed(), tell);
        self.clean(good);
        Ok(())
    }

    fn name(&self) -> String {
        let name = self.dir.path.file_name().unwrap_or_default();
        name.to_string_lossy().into()
    }

    fn qemu_log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
        text.lines().last().unwrap_or("it says nothing").to_owned()
    }

    /// Leaves the logs, and what is large only if asked to.
    fn clean(&self, good: bool) {
        if self.keep {
            return;
        }
        let Ok(entries) = fs::read_dir(&self.dir.path) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let large = path
                .extension()
                .is_some_and(|end| end == "img" || end == "cpio");
            if large || (good && path.ends_with("qemu.log")) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl Run<'_> {
    fn follow(
        &mut self,
        events: &Receiver<Event>,
        mut answers: File,
        stores: &mut Stores,
        qmp: &mut Qmp,
        scale: u32,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        loop {
            if self.release(tell, false) && self.boot.stop_at_failure {
                self.die("ended after a failure".into());
                return Ok(());
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            match events.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(Event::Console(line)) => match self.console.line(&line) {
                    judge::Line::End(test) => {
                        self.shown.insert(test);
                    }
                    judge::Line::Panic => {
                        let test = self.console.test().map(str::to_owned);
                        if !self.boot.panics {
                            let place = test.clone().unwrap_or("boot".into());
                            self.die(format!("{PANICKED}{place}"));
                        }
                        self.stage = Stage::Ending;
                        self.deadline = Instant::now() + END_WITHIN;
                    }
                    judge::Line::Finding | judge::Line::Plain => {}
                },
                Ok(Event::Report(line)) => match self.ktap.line(&line) {
                    ktap::Line::Nothing => {}
                    ktap::Line::Begin { test, timeout } => {
                        self.stage = Stage::Testing;
                        self.deadline = Instant::now() + (timeout + self.boot.grace) * scale;
                        tell(Progress::Begin(&test));
                        self.current = Some(test);
                    }
                    ktap::Line::Say(text) => tell(Progress::Say(&text)),
                    ktap::Line::Host(op) => {
                        let before = Instant::now();
                        let reply = stores.serve(&op, qmp);
                        self.deadline += before.elapsed();
                        let text = serde_json::to_string(&reply)? + "\n";
                        // If the guest is gone, the end of its console says so.
                        let _ = answers.write_all(text.as_bytes());
                    }
                    ktap::Line::Result { test, status, time } => {
                        self.current = None;
                        self.waiting
                            .push((Ended { test, status, time }, Instant::now()));
                    }
                    ktap::Line::Done => {
                        self.stage = Stage::Ending;
                        self.deadline = Instant::now() + END_WITHIN * scale;
                    }
                    ktap::Line::BailOut(why) => self.die(format!("the guest gave up: {why}")),
                    ktap::Line::Problem(what) => self.problems.push(what),
                },
                Ok(Event::Gone) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() > self.deadline {
                self.time_out();
                return Ok(());
            }
        }
    }

    fn time_out(&mut self) {
        match (&self.stage, &self.current) {
            (Stage::Booting, _) => self.die("the guest did not get as far as its tests".into()),
            (Stage::Testing, Some(test)) => {
                let text = format!("the guest hung in {test}");
                self.die(text);
            }
            (Stage::Testing, None) => self.die("the guest hung between two tests".into()),
            (Stage::Ending, _) => self.die("the guest did not power off".into()),
        }
    }

    fn die(&mut self, why: String) {
        self.died.get_or_insert(why);
    }

    /// Hands out results for which the console is complete; at the end, all. True if one of them is a failure.
    fn release(&mut self, tell: &mut dyn FnMut(Progress<'_>), all: bool) -> bool {
        let mut failed = false;
        while let Some((ended, since)) = self.waiting.first() {
            let complete = self.shown.contains(&ended.test) || since.elapsed() > CONSOLE_LAG;
            if !complete && !all {
                return failed;
            }
            let (mut ended, _) = self.waiting.remove(0);
            if let Some(complaint) = self.console.about(Some(&ended.test)) {
                ended.status = Status::Failed(match ended.status {
                    Status::Failed(why) => format!("{why}\n{complaint}"),
                    Status::Passed | Status::Skipped(_) => complaint,
                });
            }
            failed |= matches!(ended.status, Status::Failed(_));
            tell(Progress::Ended(ended));
        }
        failed
    }

    /// Says how the rest and the boot as a whole ended. True if all was well.
    fn finish(mut self, took: Duration, tell: &mut dyn FnMut(Progress<'_>)) -> bool {
        self.release(tell, true);
        let expected_panic = self.boot.panics && self.stage == Stage::Ending;
        let missing = self.ktap.missing();
        if !missing.is_empty() && self.died.is_none() && !expected_panic {
            self.die("the guest ended before its plan did".into());
        }
        if self.boot.panics && !expected_panic {
            self.problems
                .push("the kernel should have panicked and has not".into());
        }
        let why = self.died.clone().unwrap_or_default();
        let culprit = self
            .current
            .clone()
            .or(self.console.test().map(str::to_owned));
        for test in missing {
            let status = if expected_panic {
                // The panic is what this boot is for; there is nothing to run after it.
                if test.ends_with(&format!("::{ORACLES}")) {
                    continue;
                }
                Status::Passed
            } else if culprit.as_ref() == Some(&test) {
                let complaint = self.console.about(Some(&test));
                Status::Failed(
                    [Some(why.clone()), complaint]
                        .into_iter()
                        .flatten()
                        .collect::<Vec<_>>()
                        .join("\n"),
                )
            } else {
                Status::Failed(format!("did not run: {why}"))
            };
            tell(Progress::Ended(Ended {
                test,
                status,
                time: None,
            }));
        }
        let mut problems = std::mem::take(&mut self.problems);
        problems.extend(self.console.about(None));
        let unseen = self.console.unseen();
        problems.extend(unseen.map(|text| format!("the console never showed {text:?}")));
        if let Some(why) = &self.died {
            problems.insert(0, why.clone());
            problems.push("the last lines of its console:".into());
            problems.extend(self.console.last_lines().map(|line| format!("  {line}")));
        }
        let good = problems.is_empty();
        let status = if good {
            Status::Passed
        } else {
            problems.push(format!("console: {}/console.log", self.boot.dir.shown));
            Status::Failed(problems.join("\n"))
        };
        let test = format!("boot::{}", self.boot.name());
        tell(Progress::Ended(Ended {
            test,
            status,
            time: Some(took),
        }));
        good
    }
}

/// QEMU must not outlive the boot, however that ends.
struct KillOnDrop(Child);

impl KillOnDrop {
    /// Waits for its end; None if that does not come in time.
    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.0.try_wait()?;
            if status.is_some() || Instant::now() > deadline {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Copies a stream into a file, and line by line into the event queue.
fn follow(stream: File, copy: &Path, events: Sender<Event>, console: bool) -> Result<()> {
    let mut copy =
        File::create(copy).with_context(|| format!("cannot create {}", copy.display()))?;
    thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            // A full disk must not end the run; what is missing then is the copy.
            let _ = copy.write_all(&line);
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']).to_owned();
            let event = if console {
                Event::Console(text)
            } else {
                Event::Report(text)
            };
            if events.send(event).is_err() {
                return;
            }
            line.clear();
        }
        if console {
            let _ = events.send(Event::Gone);
        }
    });
    Ok(())
}

/// The guest's root file system.
pub(crate) fn build_initramfs(parts: &Parts, spec: &BootSpec) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    archive.file_from("/init", 0o755, &parts.programs.init)?;
    archive.file_from("/suites", 0o755, &parts.programs.suites)?;
    archive.file_from("/bin/barbuf", 0o755, &parts.programs.command)?;
    for (path, program) in &parts.programs.others {
        archive.file_from(path, 0o755, program)?;
    }
    if let Job::Run(suites) = &spec.job {
        if suites.iter().any(|suite| suite.name == NEEDS_PYTHON) {
            python::add(&mut archive, &parts.programs.script)?;
        }
    }
    archive.file_from(SCRIPT, 0o755, &parts.programs.script)?;
    archive.file_from("/bin/busybox", 0o755, Path::new("/usr/bin/busybox"))?;
    for applet in ["sh", "true", "sleep", "sha256sum"] {
        archive.symlink(&format!("/bin/{applet}"), "busybox");
    }
    for module in &parts.modules {
        archive.file(&module.file.path, 0o644, &module.contents);
    }
    archive.file(BOOT_SPEC, 0o644, &serde_json::to_vec(spec)?);
    for directory in ["/dev", "/proc", "/sys", "/tmp", "/run", "/mnt"] {
        archive.directory(directory);
    }
    Ok(archive.finish())
}

impl Parts {
    pub(crate) fn guest<'a>(&'a self, topology: &'a Topology, initramfs: &'a Path) -> Guest<'a> {
        Guest {
            topology,
            kernel: &self.kernel.image,
            initramfs,
            parameters: [self.kernel_parameters(), topology.parameters].join(" "),
            memory_mib: self.memory_mib(topology),
        }
    }
}
