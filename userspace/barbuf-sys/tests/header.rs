// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Rust types against the C header.
//!
//! Two questions, asked apart: does this crate have everything that the header has (the header is
//! parsed for that), and is everything where the C and the C++ compiler put it (a program that
//! prints it is generated, compiled and run; for 32 bits, where the C library is rarely installed,
//! a file of static assertions is compiled).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use barbuf_sys::ioctl::REQUESTS;
use barbuf_sys::layout::{CONSTANTS, STRUCTS};

fn uapi() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../uapi")
}

/// The header without its comments.
fn header() -> String {
    let path = uapi().join("linux/barbuf.h");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut code = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find("/*") {
        code.push_str(&rest[..start]);
        let end = rest[start..].find("*/").expect("a comment without end");
        rest = &rest[start + end + 2..];
    }
    code + rest
}

/// The names of the members of each structure in `code`, in order.
fn parse_structs(code: &str) -> Vec<(String, Vec<String>)> {
    let mut structs = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line
            .strip_prefix("struct ")
            .and_then(|l| l.strip_suffix(" {"))
        else {
            continue;
        };
        let members = lines
            .by_ref()
            .take_while(|line| *line != "};")
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                let declaration = line.trim().strip_suffix(';').expect("one member per line");
                let declarator = declaration.split_whitespace().last().expect("a declarator");
                declarator.split('[').next().expect("a name").to_owned()
            })
            .collect();
        structs.push((name.to_owned(), members));
    }
    structs
}

/// The names of all macros with a value and of all enumerators in `code`.
fn parse_constants(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in code.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("#define") => {
                let name = words.next().expect("a name");
                if words.next().is_some() {
                    names.insert(name.to_owned());
                }
            }
            Some(word) if word.starts_with("BARBUF_") && words.next() == Some("=") => {
                names.insert(word.to_owned());
            }
            _ => {}
        }
    }
    names
}

/// Everything there is to compare, by the C expression that yields it.
fn expectations() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for s in STRUCTS {
        let name = s.name;
        all.insert(format!("sizeof(struct {name})"), s.size as u64);
        all.insert(format!("__alignof__(struct {name})"), s.align as u64);
        for m in s.members {
            let member = m.name;
            all.insert(
                format!("__builtin_offsetof(struct {name}, {member})"),
                m.offset as u64,
            );
            all.insert(
                format!("sizeof(((struct {name} *)0)->{member})"),
                m.size as u64,
            );
            // An array has no sign, and only names are arrays.
            if m.size <= 8 {
                let is_signed = format!("(__typeof__(((struct {name} *)0)->{member}))-1 < 0");
                all.insert(is_signed, u64::from(m.signed));
            }
        }
    }
    for (name, value) in CONSTANTS {
        all.insert((*name).to_owned(), *value);
    }
    for (name, value) in REQUESTS {
        all.insert((*name).to_owned(), u64::from(*value));
    }
    all
}

/// A directory of this test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The compiler from the environment or the usual one, with the flags that make the header prove
/// itself clean.
fn compiler(language: &str, bits: u32) -> Command {
    let (variable, usual, standard) = match language {
        "c" => ("CC", "cc", "-std=gnu11"),
        _ => ("CXX", "c++", "-std=gnu++11"),
    };
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| usual.into()));
    command
        .args(["-x", language, standard, "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-m{bits}"))
        .arg("-I")
        .arg(uapi());
    command
}

/// Compiles a program that prints every expression's value, and compares.
fn compare_by_running(language: &str) {
    let scratch = Scratch::new(&format!("run-{language}"));
    let mut source =
        String::from("#include <linux/barbuf.h>\n#include <stdio.h>\nint main(void)\n{\n");
    for expression in expectations().keys() {
        writeln!(
            source,
            "\tprintf(\"{expression} = %llu\\n\", (unsigned long long)({expression}));"
        )
        .unwrap();
    }
    source.push_str("\treturn 0;\n}\n");
    let file = scratch.0.join("print.src");
    let program = scratch.0.join("print");
    fs::write(&file, source).unwrap();
    let built = compiler(language, 64)
        .arg(&file)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("a compiler");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let run = Command::new(&program).output().expect("the program");
    assert!(run.status.success());

    let printed: BTreeMap<String, u64> = String::from_utf8(run.stdout)
        .expect("text")
        .lines()
        .map(|line| {
            let (expression, value) = line.rsplit_once(" = ").expect("expression = value");
            (expression.to_owned(), value.parse().expect("a number"))
        })
        .collect();
    assert_eq!(printed, expectations());
}

/// Compiles a file that only compiles if all values are right. `Err` holds what the compiler said.
fn compile_assertions(
    language: &str,
    bits: u32,
    values: &BTreeMap<String, u64>,
) -> Result<(), String> {
    let scratch = Scratch::new(&format!("assert-{language}-{bits}-{}", values.len()));
    let mut source = String::from("#include <linux/barbuf.h>\n");
    for (i, (expression, value)) in values.iter().enumerate() {
        writeln!(
            source,
            "extern char check_{i}[({expression}) == {value}ull ? 1 : -1];"
        )
        .unwrap();
    }
    let file = scratch.0.join("assert.src");
    fs::write(&file, source).unwrap();
    let built = compiler(language, bits)
        .arg("-c")
        .arg(&file)
        .arg("-o")
        .arg(scratch.0.join("assert.o"))
        .output()
        .expect("a compiler");
    match built.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&built.stderr).into_owned()),
    }
}

/// Whether the compiler has the kernel's headers for that width; says so when it has not.
#[allow(
    clippy::explicit_write,
    reason = "libtest hides what eprintln!() writes in a test that passes"
)]
fn supports(language: &str, bits: u32) -> bool {
    match compile_assertions(
        language,
        bits,
        &BTreeMap::from([("sizeof(__u64)".to_owned(), 8)]),
    ) {
        Ok(()) => true,
        Err(why) => {
            let reason = why
                .lines()
                .find(|line| line.contains("error"))
                .unwrap_or("unknown reason");
            writeln!(
                std::io::stderr(),
                "SKIPPED: {language} with -m{bits} does not work here: {reason}"
            )
            .unwrap();
            false
        }
    }
}

#[test]
fn every_structure_and_member_of_the_header_is_here() {
    let ours: Vec<(String, Vec<String>)> = STRUCTS
        .iter()
        .map(|s| {
            (
                s.name.to_owned(),
                s.members.iter().map(|m| m.name.to_owned()).collect(),
            )
        })
        .collect();
    assert_eq!(parse_structs(&header()), ours);
}

#[test]
fn every_constant_of_the_header_is_here() {
    let ours = CONSTANTS
        .iter()
        .map(|(name, _)| *name)
        .chain(REQUESTS.iter().map(|(name, _)| *name));
    assert_eq!(
        parse_constants(&header()),
        ours.map(str::to_owned).collect()
    );
}

#[test]
fn no_structure_has_padding() {
    for s in STRUCTS {
        let mut end = 0;
        for m in s.members {
            assert_eq!(m.offset, end, "padding before {}.{}", s.name, m.name);
            end += m.size;
        }
        assert_eq!(s.size, end, "padding at the end of {}", s.name);
    }
}

#[test]
fn c_agrees() {
    compare_by_running("c");
}

#[test]
fn cxx_agrees() {
    compare_by_running("c++");
}

#[test]
fn c_and_cxx_agree_with_32_bits() {
    for language in ["c", "c++"] {
        if supports(language, 32) {
            compile_assertions(language, 32, &expectations()).unwrap();
        }
    }
}

/// The three comparisons above must be able to fail.
#[test]
fn a_difference_is_noticed() {
    let code = "struct barbuf_range {\n\t__u64 offset;\n\n\t__u8 pad[4];\n};\n#define BARBUF_NEW 1\nenum x {\n\tBARBUF_E = 2,\n};\n";
    assert_eq!(
        parse_structs(code),
        [(
            "barbuf_range".to_owned(),
            vec!["offset".to_owned(), "pad".to_owned()]
        )]
    );
    assert_eq!(
        parse_constants(code),
        BTreeSet::from(["BARBUF_NEW".to_owned(), "BARBUF_E".to_owned()])
    );
    for language in ["c", "c++"] {
        let (name, value) = expectations().pop_first().unwrap();
        assert!(compile_assertions(language, 64, &BTreeMap::from([(name, value + 1)])).is_err());
    }
}
