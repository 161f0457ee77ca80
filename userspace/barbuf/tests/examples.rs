// SPDX-License-Identifier: MIT OR Apache-2.0

//! The examples in C, C++, Python and Rust receive what the crate sends, and refuse what it does not
//! send. A memfd stands in for the buffer; the guest's tests run them on the module itself.

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use barbuf::Watch;
use barbuf::pass::{Descriptor, send};
use common::buffer;

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("examples-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The repository, whose header and examples are not in the package.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where `make headers_install` puts the header.
fn install_header(scratch: &Path) -> PathBuf {
    let made = Command::new("make")
        .args(["--no-print-directory", "headers_install", "PREFIX=/usr"])
        .arg(format!("DESTDIR={}", scratch.display()))
        .current_dir(repository())
        .output()
        .expect("make");
    assert!(made.status.success(), "{made:?}");
    let include = scratch.join("usr/include");
    let ours = repository().join("uapi/linux/barbuf.h");
    let installed = fs::read(include.join("linux/barbuf.h")).expect("the installed header");
    assert_eq!(installed, fs::read(ours).unwrap());
    include
}

fn compile(include: &Path, variable: &str, usual: &str, standard: &str, source: &str, to: &Path) {
    let compiler = std::env::var_os(variable).unwrap_or_else(|| usual.into());
    let built = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-O2", standard, "-I"])
        .arg(include)
        .arg("-o")
        .arg(to)
        .arg(repository().join("examples").join(source))
        .output()
        .expect("a compiler");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{source}: {said}");
}

/// Runs a receiver and serves it once.
fn run(scratch: &Path, receiver: &[&Path], serve: impl FnOnce(&UnixListener)) -> Output {
    let path = scratch.join("s");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let child = Command::new(receiver[0])
        .args(&receiver[1..])
        .arg(&path)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    serve(&listener);
    child.wait_with_output().unwrap()
}

#[test]
fn every_language_receives_what_is_sent() {
    let scratch = Scratch::new();
    let (c, cxx) = (scratch.0.join("c"), scratch.0.join("cxx"));
    let include = install_header(&scratch.0);
    compile(&include, "CC", "cc", "-std=gnu11", "receive.c", &c);
    compile(&include, "CXX", "c++", "-std=c++17", "receive.cpp", &cxx);
    let python = repository().join("examples/receive.py");
    // Next to the tests.
    let rust = std::env::current_exe().unwrap();
    let rust = rust.ancestors().nth(2).unwrap().join("examples/receive");
    assert!(
        rust.exists(),
        "`cargo test` builds the examples, with --test only it does not"
    );

    let file = buffer(1 << 20);
    let word = 0x0123_4567_89ab_cdef;
    file.map().build().unwrap().write_u64(4096, word).unwrap();
    let descriptor = Descriptor {
        range: Some(4096..8192),
        user: b"some more bytes".to_vec(),
        ..Descriptor::default()
    };
    let watch = Watch::new().unwrap();
    let receivers: [&[&Path]; 4] = [&[&c], &[&cxx], &[Path::new("python3"), &python], &[&rust]];
    for receiver in receivers {
        for (event, name) in [(None, "no"), (Some(&watch), "an")] {
            let output = run(&scratch.0, receiver, |listener| {
                let (socket, _) = listener.accept().unwrap();
                send(&socket, &file, event, &descriptor).unwrap();
            });
            assert_eq!(
                String::from_utf8_lossy(&output.stdout).trim_end(),
                format!(
                    "not one of barbuf's: 1048576 bytes, word at 4096: 0123456789abcdef, {name} eventfd"
                ),
                "{receiver:?}: {output:?}"
            );
            assert!(output.status.success());
        }
        // Something else, and nothing at all.
        for bytes in [&[b'x'; 200][..], &[]] {
            let output = run(&scratch.0, receiver, |listener| {
                let (mut socket, _) = listener.accept().unwrap();
                socket.write_all(bytes).unwrap();
            });
            assert_eq!(output.status.code(), Some(1), "{receiver:?}: {output:?}");
            assert!(output.stdout.is_empty() && !output.stderr.is_empty());
        }
    }
}

/// What a stranger copies is what is compiled here, and run in the guest.
#[test]
fn the_readmes_print_the_first_example() {
    let read = |path: &str| fs::read_to_string(repository().join(path)).unwrap();
    let example = read("userspace/barbuf/examples/first.rs");
    let at = example.find("use ").unwrap();
    let program = &example[at..];
    for (path, fence) in [
        ("README.md", "```rust"),
        ("userspace/barbuf/README.md", "```no_run"),
    ] {
        let printed = format!("{fence}\n{program}```\n");
        assert!(
            read(path).contains(&printed),
            "{path} prints something else"
        );
    }
}
