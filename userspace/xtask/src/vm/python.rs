// SPDX-License-Identifier: MIT OR Apache-2.0

//! Python in a guest: the interpreter, with as much of its library as one program needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::initramfs::Initramfs;
use crate::cmd::output;

/// Imports what the program imports, and tells what this process has then read.
const ASK: &str = r#"
import json, os, runpy, sys
runpy.run_path(sys.argv[1], run_name="imported")
files = {getattr(m, "__file__", None) for m in list(sys.modules.values())}
files |= {line.split(None, 5)[-1].strip() for line in open("/proc/self/maps")}
files = {os.path.realpath(f) for f in files if f and f.startswith("/") and os.path.isfile(f)}
links = {"/usr/bin/python3": os.path.realpath(sys.executable)}
for f in files:
    if ".so" not in os.path.basename(f):
        continue
    for name in os.listdir(os.path.dirname(f)):
        link = os.path.join(os.path.dirname(f), name)
        if os.path.islink(link) and os.path.realpath(link) == f:
            links[link] = f
    if os.path.basename(f).startswith("ld-linux"):
        links["/lib64/" + os.path.basename(f)] = f
print(json.dumps({"files": sorted(files), "links": links}))
"#;

#[derive(Debug, Deserialize)]
struct Closure {
    files: Vec<PathBuf>,
    links: BTreeMap<String, String>,
}

/// Adds the interpreter as `/usr/bin/python3`, for a program of the host's that has its first line.
pub(crate) fn add(archive: &mut Initramfs, program: &Path) -> Result<()> {
    let closure = closure(program)?;
    for file in &closure.files {
        archive.file_from(&file.to_string_lossy(), 0o755, file)?;
    }
    for (link, target) in &closure.links {
        archive.symlink(link, target);
    }
    archive.symlink("/usr/bin/env", "/bin/busybox");
    Ok(())
}

fn closure(program: &Path) -> Result<Closure> {
    let text = output(Command::new("python3").args(["-I", "-c", ASK]).arg(program))?;
    serde_json::from_str(&text).context("Python does not tell what it has read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_needs_the_interpreter_and_what_it_imports() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/receive.py");
        let found = closure(&example).unwrap();
        for name in ["/socket.py", "/ctypes/__init__.py", "/os.py"] {
            assert!(
                found.files.iter().any(|file| file.ends_with(&name[1..])),
                "{name}: {:?}",
                found.files
            );
        }
        let interpreter = &found.links["/usr/bin/python3"];
        assert!(
            found
                .files
                .iter()
                .any(|file| file == Path::new(interpreter))
        );
        assert!(found.links.keys().any(|link| link.starts_with("/lib64/")));
        // Not the whole library.
        assert!(found.files.len() < 300, "{}", found.files.len());
    }
}
