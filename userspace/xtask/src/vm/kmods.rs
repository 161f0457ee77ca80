// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's own modules that a guest needs: which, in what order, out of what wrapping.

use std::collections::{BTreeMap, btree_map::Entry};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use barbuf_guest::protocol::ModuleFile;

/// A module with its contents, ready for the initramfs.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) file: ModuleFile,
    pub(crate) contents: Vec<u8>,
}

/// Where modules lie in the guest.
pub(crate) fn guest_path(name: &str) -> String {
    format!("/lib/modules/{name}.ko")
}

/// The file name of a module without its endings, with underscores as the kernel writes it.
pub(crate) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Reads the wanted modules and all that they need from `lib/modules/<release>`.
/// Those that are built into the kernel are left out.
pub(crate) fn collect(dir: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let needs = parse_dep(&read("modules.dep")?);
    let builtin = read("modules.builtin")?;
    let builtin: Vec<String> = builtin.lines().map(name_of).collect();
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    for name in wanted {
        if builtin.iter().any(|builtin| builtin == name) {
            continue;
        }
        let Some((path, dependencies)) = needs.get(*name) else {
            bail!("the kernel has no module {name}, neither loadable nor built in");
        };
        for (path, needs) in closure(path, dependencies, &needs) {
            if let Entry::Vacant(vacant) = modules.entry(name_of(&path)) {
                let contents = unwrap(&dir.join(&path))?;
                let file = ModuleFile {
                    path: guest_path(vacant.key()),
                    name: vacant.key().clone(),
                    needs,
                };
                vacant.insert(Module { file, contents });
            }
        }
    }
    Ok(modules.into_values().collect())
}

type Needs = BTreeMap<String, (String, Vec<String>)>;

/// `path: needs...` per line. Keyed by the module's name.
fn parse_dep(text: &str) -> Needs {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(path, needs)| {
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            (name_of(path), (path.to_owned(), needs))
        })
        .collect()
}

/// A module and its dependencies, each with the names that must be loaded before it, in order.
/// depmod lists all dependencies of a module, those to load first at the end.
fn closure(path: &str, dependencies: &[String], all: &Needs) -> Vec<(String, Vec<String>)> {
    let names = |paths: &[String]| paths.iter().rev().map(|path| name_of(path)).collect();
    let mut found = vec![(path.to_owned(), names(dependencies))];
    for dependency in dependencies {
        let needs = all.get(&name_of(dependency)).map(|(_, needs)| names(needs));
        found.push((dependency.clone(), needs.unwrap_or_default()));
    }
    found
}

/// A module's contents, decompressed by its ending.
fn unwrap(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(tool).arg("-dc").arg(path).output();
    let output = output.with_context(|| format!("cannot run {tool}"))?;
    if !output.status.success() {
        bail!(
            "{tool} -dc {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// A module of ours, without the debug information that would fill the guest's memory.
pub(crate) fn own(path: &Path) -> Result<Module> {
    let name = name_of(&path.to_string_lossy());
    let stripped = path.with_extension("ko.stripped");
    let status = Command::new("objcopy")
        .arg("--strip-debug")
        .arg(path)
        .arg(&stripped)
        .status();
    if !status.context("cannot run objcopy")?.success() {
        bail!("objcopy cannot strip {}", path.display());
    }
    let contents = fs::read(&stripped)?;
    fs::remove_file(&stripped)?;
    let file = ModuleFile {
        path: guest_path(&name),
        name,
        needs: Vec::new(),
    };
    Ok(Module { file, contents })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/pci/vfio-pci-core.ko.xz kernel/drivers/vfio/vfio.ko.xz kernel/virt/lib/irqbypass.ko.xz\n\
                       kernel/drivers/vfio/pci/vfio-pci-core.ko.xz: kernel/drivers/vfio/vfio.ko.xz kernel/virt/lib/irqbypass.ko.xz\n\
                       kernel/drivers/vfio/vfio.ko.xz:\n\
                       kernel/virt/lib/irqbypass.ko.xz:\n";

    #[test]
    fn what_is_needed_comes_first() {
        let all = parse_dep(DEP);
        let (path, needs) = &all["vfio_pci"];
        let found = closure(path, needs, &all);
        assert_eq!(found.len(), 4);
        assert_eq!(found[0].1, ["irqbypass", "vfio", "vfio_pci_core"]);
        let core = found
            .iter()
            .find(|(path, _)| name_of(path) == "vfio_pci_core")
            .unwrap();
        assert_eq!(core.1, ["irqbypass", "vfio"]);
    }

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(
            name_of("kernel/drivers/vfio/pci/vfio-pci.ko.xz"),
            "vfio_pci"
        );
        assert_eq!(name_of("barbuf.ko"), "barbuf");
    }
}
