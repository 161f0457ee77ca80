// SPDX-License-Identifier: MIT OR Apache-2.0

//! What holds for every subcommand: documents, exit codes, colour, quiet, pages and completions. The
//! machine is an empty directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use barbuf_cli::cli::Cli;
use barbuf_cli::error::EXIT_CODES;
use barbuf_cli::rules::{Names, Rules};
use clap::{CommandFactory as _, Parser as _};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe};
use serde_json::{Value, json};

const BARBUF: &str = env!("CARGO_BIN_EXE_barbuf");

/// The command on a machine without anything.
fn barbuf(machine: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BARBUF);
    command.arg("--root").arg(machine).args(arguments);
    command.env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn empty() -> tempfile::TempDir {
    let machine = tempfile::tempdir().unwrap();
    fs::create_dir_all(machine.path().join("sys/bus/pci/devices")).unwrap();
    machine
}

fn one_document(output: &Output) -> Value {
    let value: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(value["schema"], 1, "{value}");
    value
}

/// The subcommands that people see.
fn subcommands() -> Vec<String> {
    let command = Cli::command();
    let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    visible.map(|sub| sub.get_name().to_owned()).collect()
}

#[test]
fn every_command_says_one_document_and_its_exit_code() {
    let machine = empty();
    for name in subcommands() {
        // What is needed of arguments, or nothing: both are answered.
        let needed: &[&str] = match name.as_str() {
            "bind" | "unbind" | "adopt" | "release" | "info" | "bench" => &["0000:05:00.0"],
            "export" => &["0000:05:00.0", "--hold"],
            "load" | "dump" | "revoke" => &["--fd", "0"],
            "route" => &["0000:04:00.0", "--device", "0000:05:00.0"],
            "serve" => &["--rules", "/nowhere", "--socket", "/nowhere/s"],
            "get" => &["--socket", "/nowhere", "weights"],
            _ => &[],
        };
        for arguments in [needed, &[]] {
            let output = barbuf(machine.path(), &[&name, "--json"])
                .args(arguments)
                .output()
                .unwrap();
            let value = one_document(&output);
            let code = output.status.code().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            match value.get("error") {
                Some(error) => {
                    assert_eq!(error["exit"], code, "{name}");
                    assert!(code != 0 && said.starts_with("barbuf: "), "{name}: {said}");
                }
                // `doctor` has found what is missing.
                None => assert!(code == 0 || name == "doctor", "{name}: {output:?}"),
            }
        }
    }
    let list = barbuf(machine.path(), &["list", "--json"])
        .output()
        .unwrap();
    assert_eq!(one_document(&list), json!({ "schema": 1, "bars": [] }));
    for arguments in [["--version"], ["--help"], ["help"]] {
        let output = barbuf(machine.path(), &arguments).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
    }
}

/// What the command prints to a terminal.
fn on_a_terminal(mut command: Command) -> String {
    let pty = openpty(None, None).unwrap();
    let mut child = command.stdout(pty.slave).spawn().unwrap();
    // It keeps the other end open.
    drop(command);
    let mut bytes = Vec::new();
    // The end is EIO.
    let _ = File::from(pty.master).read_to_end(&mut bytes);
    child.wait().unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn colour_is_for_terminals_that_may_have_it() {
    let machine = empty();
    let doctor = || barbuf(machine.path(), &["doctor"]);
    let with = |value: &str| {
        let mut command = doctor();
        command.env("NO_COLOR", value);
        on_a_terminal(command)
    };
    let red = "\x1b[31mFAIL\x1b[0m";
    assert!(on_a_terminal(doctor()).contains(red));
    assert!(with("").contains(red), "empty is as if it were not set");
    let plain = with("1");
    assert!(plain.contains("FAIL") && !plain.contains('\x1b'), "{plain}");
    let piped = doctor().output().unwrap();
    let piped = String::from_utf8(piped.stdout).unwrap();
    assert!(piped.contains("FAIL") && !piped.contains('\x1b'), "{piped}");
    let mut as_json = doctor();
    as_json.arg("--json");
    assert!(!on_a_terminal(as_json).contains('\x1b'));
}

#[test]
fn quiet_says_less_and_verbose_more() {
    let machine = empty();
    let pages = machine.path().join("pages");
    let manual = |option: &[&str]| {
        let output = barbuf(machine.path(), option)
            .arg("manual")
            .arg(&pages)
            .output()
            .unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(manual(&[]).contains("barbuf-list.1"));
    assert_eq!(manual(&["-q"]), "");
    // An error is an error.
    let output = barbuf(machine.path(), &["-q", "info", "0000:05:00.0"]);
    let output = { output }.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stderr.starts_with(b"barbuf: "));

    let (rules, socket) = (machine.path().join("rules"), machine.path().join("s"));
    let rule = "[[buffer]]\nname = \"a\"\ndevice = \"0000:05:00.0\"\nlength = 4096\nallow = [{ uid = 0 }]\n";
    fs::write(&rules, rule).unwrap();
    let listening = |option: &[&str]| {
        let mut broker = barbuf(machine.path(), option)
            .arg("serve")
            .arg("--rules")
            .arg(&rules)
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            assert!(broker.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // So that what it says of its beginning is there.
        std::thread::sleep(std::time::Duration::from_millis(200));
        kill(Pid::from_raw(broker.id() as i32), Signal::SIGTERM).unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(broker.stderr.take().unwrap());
        let _ = stderr.read_line(&mut said);
        assert!(broker.wait().unwrap().success());
        said.contains("listening on ")
    };
    assert!(listening(&["-v"]));
    assert!(!listening(&[]));
}

#[test]
fn every_command_has_a_page_and_is_completed_in_every_shell() {
    let machine = empty();
    let dir = machine.path().join("manual");
    let mut manual = barbuf(machine.path(), &["manual", "--json"]);
    let value = one_document(&manual.arg(&dir).output().unwrap());
    let told: BTreeSet<String> = serde_json::from_value(value["written"].clone()).unwrap();
    let found = fs::read_dir(&dir).unwrap();
    let found: BTreeSet<String> = found
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    assert_eq!(told, found);
    for name in subcommands() {
        assert!(dir.join(format!("barbuf-{name}.1")).exists(), "{name}");
        for shell in ["barbuf.bash", "_barbuf", "barbuf.fish"] {
            let text = fs::read_to_string(dir.join(shell)).unwrap();
            assert!(text.contains(&name), "{shell} does not know {name}");
        }
    }
    let checked = Command::new("bash")
        .arg("-n")
        .arg(dir.join("barbuf.bash"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

/// `barbuf list | head -n 1`
#[test]
fn a_reader_who_has_seen_enough_is_no_error() {
    let machine = empty();
    for arguments in [&["doctor"][..], &["list", "--json"], &["--help"]] {
        let (read, write) = pipe().unwrap();
        drop(read);
        let output = barbuf(machine.path(), arguments)
            .stdout(write)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let wanted = if arguments == ["doctor"] { 5 } else { 0 };
        assert_eq!(output.status.code(), Some(wanted), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

struct Alice;

impl Names for Alice {
    fn uid(&self, name: &str) -> Option<u32> {
        (name == "alice").then_some(1000)
    }

    fn gid(&self, _: &str) -> Option<u32> {
        None
    }
}

#[test]
fn what_the_readme_and_the_unit_say_is_understood() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(dir.join("README.md")).unwrap();
    let (_, rules) = readme.split_once("```toml\n").unwrap();
    Rules::parse(rules.split_once("```").unwrap().0, &Alice).unwrap();
    for (exit, _) in EXIT_CODES {
        let number = *exit as u8;
        // The last two share a line.
        let told = [format!("\n| {number} | "), format!("\n| 126, {number} | ")];
        let told = number == 126 || told.iter().any(|text| readme.contains(text));
        assert!(told, "README has no exit code {number}");
    }
    for name in subcommands() {
        let told = [format!("`barbuf {name}"), format!("`{name}`")];
        let told = name == "help" || told.iter().any(|text| readme.contains(text));
        assert!(told, "README has no {name}");
    }

    let unit = fs::read_to_string(dir.join("systemd/barbuf-broker.service")).unwrap();
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/"));
    Cli::try_parse_from(start.unwrap().split(' ')).unwrap();
}
