// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf doctor`: what of this machine is fit for the job, what is not, and what to do about it.
//!
//! Each check is a function of the machine alone, so that a directory can stand for one.

use std::os::unix::fs::PermissionsExt as _;

use serde::Serialize;
use serde_json::json;

use crate::cli::DoctorArgs;
use crate::error::{Exit, Result};
use crate::list::{DRIVER, Export, Kind, Row, rows_of};
use crate::out::{Out, Tint, table};
use crate::size;
use crate::sysfs::{Function, Sysfs};

/// The kernel series that the module is known to work with.
const SERIES: &str = "7.3";
/// linux/capability.h
const CAP_SYS_RAWIO: u32 = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    Pass,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// What to do; with everything but PASS.
    pub fix: Option<String>,
}

fn pass(check: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        check,
        verdict: Verdict::Pass,
        found: found.into(),
        fix: None,
    }
}

fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        check,
        verdict: Verdict::Warn,
        found: found.into(),
        fix: Some(fix.into()),
    }
}

fn fail(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Fail,
        ..warn(check, found, fix)
    }
}

/// # Errors
///
/// There is no sysfs.
pub fn run(args: &DoctorArgs, sysfs: &Sysfs, out: &Out) -> Result<u8> {
    let findings = examine(sysfs)?;
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let (warned, failed) = (count(Verdict::Warn), count(Verdict::Fail));
    let worst = match (failed, warned) {
        (0, 0) => Verdict::Pass,
        (0, _) => Verdict::Warn,
        _ => Verdict::Fail,
    };
    out.result(json!({ "verdict": worst, "checks": findings }), || {
        let lines = findings.iter().flat_map(|finding| {
            let (tint, word) = match finding.verdict {
                Verdict::Pass => (Tint::Good, "PASS"),
                Verdict::Warn => (Tint::Fair, "WARN"),
                Verdict::Fail => (Tint::Bad, "FAIL"),
            };
            let first = vec![
                out.tinted(tint, word),
                finding.check.to_owned(),
                finding.found.clone(),
            ];
            let fix = finding.fix.as_ref();
            let second = fix.map(|fix| vec![String::new(), String::new(), format!("-> {fix}")]);
            std::iter::once(first).chain(second)
        });
        let total = findings.len();
        format!(
            "{}\n{} checks: {} PASS, {warned} WARN, {failed} FAIL",
            table(&["", "CHECK", "FOUND"], lines),
            total,
            total - warned - failed
        )
    });
    let bad = failed > 0 || (args.strict && warned > 0);
    Ok(if bad { Exit::Doctor } else { Exit::Ok } as u8)
}

/// Everything, in the order in which it matters.
fn examine(sysfs: &Sysfs) -> Result<Vec<Finding>> {
    let functions = sysfs.functions()?;
    let rows: Vec<Row> = functions.iter().flat_map(rows_of).collect();
    let mut findings = vec![kernel(sysfs), module(sysfs), control(sysfs)];
    findings.extend(p2pdma(sysfs));
    findings.push(large_pages(sysfs));
    findings.extend(lockdown(sysfs));
    findings.push(capability(sysfs));
    findings.push(memory(&rows));
    findings.extend(functions.iter().filter_map(cmb));
    findings.extend(nodes(&functions));
    findings.extend(paths(&functions, &rows));
    Ok(findings)
}

fn kernel(sysfs: &Sysfs) -> Finding {
    let release = sysfs.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let series: Vec<&str> = release.split(['.', '-', '+']).take(2).collect();
    if series.join(".") == SERIES {
        pass("kernel", release)
    } else {
        warn(
            "kernel",
            format!("{release}: the module is tried with {SERIES} only"),
            format!("boot a {SERIES} kernel (Debian: trixie-backports)"),
        )
    }
}

fn module(sysfs: &Sysfs) -> Finding {
    if sysfs.path("sys/module/barbuf").is_dir() {
        pass("module", "barbuf is loaded")
    } else {
        fail(
            "module",
            "barbuf is not loaded",
            "modprobe barbuf, or insmod barbuf.ko",
        )
    }
}

fn control(sysfs: &Sysfs) -> Finding {
    let path = sysfs.path("dev/barbuf/control");
    match std::fs::File::open(&path) {
        Ok(_) => pass("control node", "buffers can be asked what they are"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fail(
            "control node",
            format!("{} is missing", path.display()),
            "load the module; mount devtmpfs on /dev",
        ),
        Err(error) => fail(
            "control node",
            format!(
                "{} cannot be opened: {}",
                path.display(),
                crate::error::plain(&error)
            ),
            format!("chmod 0666 {}", path.display()),
        ),
    }
}

/// Only where the kernel's configuration can be read.
fn p2pdma(sysfs: &Sysfs) -> Option<Finding> {
    let release = sysfs.read("proc/sys/kernel/osrelease")?;
    let config = sysfs.read(&format!("boot/config-{release}"))?;
    let has = |name: &str| {
        config
            .lines()
            .any(|line| line == format!("CONFIG_{name}=y"))
    };
    let missing: Vec<&str> = ["PCI_P2PDMA", "ZONE_DEVICE", "DMA_SHARED_BUFFER"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    Some(if missing.is_empty() {
        pass("kernel options", "P2PDMA, ZONE_DEVICE, dma-buf")
    } else {
        fail(
            "kernel options",
            format!("CONFIG_{} is off", missing.join(", CONFIG_")),
            "boot a kernel that has it (Debian's has)",
        )
    })
}

fn large_pages(sysfs: &Sysfs) -> Finding {
    let cpuinfo = sysfs.read("proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let has = |flag| flags.is_some_and(|flags| flags.split_whitespace().any(|word| word == flag));
    if has("pdpe1gb") {
        pass("1 GiB pages", "the processor has them")
    } else {
        warn(
            "1 GiB pages",
            "the processor has none: mappings use 2 MiB pages",
            "a virtual machine shows them with -cpu host or -cpu max",
        )
    }
}

fn lockdown(sysfs: &Sysfs) -> Option<Finding> {
    let text = sysfs.read("sys/kernel/security/lockdown")?;
    let mode = text.split_once('[')?.1.split_once(']')?.0.to_owned();
    Some(if mode == "none" {
        pass("lockdown", "none")
    } else {
        warn(
            "lockdown",
            format!("{mode}: bound functions cannot be exported, adopted memory can"),
            "disable Secure Boot, or adopt or register memory instead of binding",
        )
    })
}

fn capability(sysfs: &Sysfs) -> Finding {
    let status = sysfs.read("proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .unwrap_or_default();
    if (effective >> CAP_SYS_RAWIO) & 1 == 1 {
        pass(
            "CAP_SYS_RAWIO",
            "present: BARs of bound functions can be exported",
        )
    } else {
        warn(
            "CAP_SYS_RAWIO",
            "missing: only memory without registers can be exported",
            "run it as root",
        )
    }
}

fn memory(rows: &[Row]) -> Finding {
    let of = |export| rows.iter().filter(move |row| row.export == export);
    // A BAR of control registers is no reason to come here.
    let large = |row: &&Row| row.size >= 2 << 20;
    let now = of(Export::Yes).count();
    let later: Vec<&Row> = of(Export::Adopt)
        .chain(of(Export::Bind).filter(large))
        .collect();
    match (now, later.first()) {
        (1.., _) => {
            let bytes = of(Export::Yes).map(|row| row.size).sum();
            pass(
                "memory",
                format!("{now} BARs can be exported, {}", size::show(bytes)),
            )
        }
        (0, Some(row)) => warn(
            "memory",
            format!("no provider yet; {} BARs could be exported", later.len()),
            match row.export {
                Export::Adopt => format!("barbuf adopt {}", row.address),
                _ if row.driver.is_some() => format!("barbuf bind --take {}", row.address),
                _ => format!("barbuf bind {}", row.address),
            },
        ),
        (0, None) => warn(
            "memory",
            "no BAR that could be exported",
            "`barbuf list` tells why for each",
        ),
    }
}

/// A drive that has a CMB should have published it.
fn cmb(function: &Function) -> Option<Finding> {
    let (bar, length) = function.cmb()?;
    let what = format!("{} has {} in BAR {bar}", function.bdf, size::show(length));
    Some(match function.pool() {
        Some(pool) if pool.published => pass("CMB", what),
        _ => warn(
            "CMB",
            format!("{what}, which its driver has not published"),
            "boot a kernel with CONFIG_PCI_P2PDMA, and a drive whose CMB supports reads and writes",
        ),
    })
}

/// Nodes that everybody may open hand out the device.
fn nodes(functions: &[Function]) -> Vec<Finding> {
    let providers = functions.iter().filter_map(|function| {
        let mode = function.node.metadata().ok()?.permissions().mode();
        let path = function.node.display();
        Some(if mode & 0o006 == 0 {
            pass("node", format!("{path} is {:04o}", mode & 0o777))
        } else {
            warn(
                "node",
                format!("{path} is {:04o}: everybody may export", mode & 0o777),
                format!("chmod o= {path}; kmod/udev/60-barbuf.rules gives it to a group"),
            )
        })
    });
    providers.collect()
}

/// Whether drives reach the providers' memory below one switch.
fn paths(functions: &[Function], rows: &[Row]) -> Vec<Finding> {
    let memory = |function: &&Function| {
        rows.iter().any(|row| {
            row.address == function.bdf
                && (row.driver.as_deref() == Some(DRIVER) || row.kind == Kind::Cmb)
                && row.export == Export::Yes
        })
    };
    let drives: Vec<&Function> = functions.iter().filter(|f| f.is_nvme()).collect();
    let mut findings = Vec::new();
    for provider in functions.iter().filter(memory) {
        for drive in drives.iter().filter(|drive| drive.bdf != provider.bdf) {
            let pair = format!("{} and {}", provider.bdf, drive.bdf);
            findings.push(if below_one_switch(provider, drive) {
                pass("P2P path", format!("{pair} are below one switch"))
            } else {
                warn(
                    "P2P path",
                    format!("{pair} share no switch: only trusted root complexes forward"),
                    "put them below one PCIe switch; `barbuf route` asks the kernel",
                )
            });
        }
    }
    findings
}

/// The two have a bridge in common, below the root ports.
fn below_one_switch(a: &Function, b: &Function) -> bool {
    let way = |function: &Function| -> Option<Vec<String>> {
        let path = function.dir.canonicalize().ok()?;
        let names = path
            .iter()
            .filter_map(|name| name.to_str())
            .map(str::to_owned);
        Some(
            names
                .filter(|name| name.contains(':') && name.contains('.'))
                .collect(),
        )
    };
    match (way(a), way(b)) {
        // The first bridge of a way is the root port: another function behind it is behind a
        // switch, since a link has one end.
        (Some(a), Some(b)) => a.len() > 1 && b.len() > 1 && a[0] == b[0],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tree::Tree;
    use std::os::unix::fs::symlink;

    fn healthy() -> Tree {
        let tree = Tree::new();
        tree.write("proc/sys/kernel/osrelease", "7.3.4+deb13-amd64\n");
        tree.write("proc/cpuinfo", "flags\t\t: fpu pdpe1gb\n");
        tree.write("proc/self/status", "CapEff:\t000001ffffffffff\n");
        tree.write(
            "sys/kernel/security/lockdown",
            "[none] integrity confidentiality\n",
        );
        tree.write("sys/module/barbuf/refcnt", "0");
        tree.write("dev/barbuf/control", "");
        tree.function("0000:05:00.0", "0x050000", Some("barbuf"));
        tree.bars("0000:05:00.0", &[(2, 0x80_0000_0000, 32 << 30, 0x2208)]);
        let node = tree.path("dev/barbuf/0000:05:00.0");
        std::fs::set_permissions(node, std::fs::Permissions::from_mode(0o600)).unwrap();
        tree
    }

    fn bad(tree: &Tree) -> Vec<(&'static str, Verdict)> {
        let findings = examine(&tree.sysfs()).unwrap();
        for finding in &findings {
            assert_eq!(
                finding.fix.is_none(),
                finding.verdict == Verdict::Pass,
                "{finding:?}"
            );
        }
        let bad = findings.iter().filter(|f| f.verdict != Verdict::Pass);
        bad.map(|f| (f.check, f.verdict)).collect()
    }

    #[test]
    fn a_healthy_machine_passes() {
        assert_eq!(bad(&healthy()), []);
    }

    #[test]
    fn each_fault_is_found_alone() {
        use Verdict::{Fail, Warn};
        type Break = fn(&Tree);
        let cases: [(Break, &str, Verdict); 10] = [
            (
                |t| t.write("proc/sys/kernel/osrelease", "6.12.1"),
                "kernel",
                Warn,
            ),
            (
                |t| std::fs::remove_dir_all(t.path("sys/module/barbuf")).unwrap(),
                "module",
                Fail,
            ),
            (
                |t| std::fs::remove_file(t.path("dev/barbuf/control")).unwrap(),
                "control node",
                Fail,
            ),
            (
                |t| t.write("boot/config-7.3.4+deb13-amd64", "CONFIG_ZONE_DEVICE=y\n"),
                "kernel options",
                Fail,
            ),
            (
                |t| t.write("proc/cpuinfo", "flags : fpu\n"),
                "1 GiB pages",
                Warn,
            ),
            (
                |t| t.write("sys/kernel/security/lockdown", "none [integrity] x"),
                "lockdown",
                Warn,
            ),
            (
                |t| t.write("proc/self/status", "CapEff:\t0000000000000000"),
                "CAP_SYS_RAWIO",
                Warn,
            ),
            (|t| t.driver("0000:05:00.0", None), "memory", Warn),
            (
                |t| {
                    t.function("0000:03:00.0", "0x010802", None);
                    t.cmb("0000:03:00.0", 2, 0x0004_021f);
                    std::fs::remove_dir_all(t.path("sys/bus/pci/devices/0000:05:00.0")).unwrap();
                    t.function("0000:09:00.0", "0x050000", Some("barbuf"));
                    t.bars("0000:09:00.0", &[(2, 0x80_0000_0000, 32 << 30, 0x2208)]);
                    // Its node is made by the tree.
                    let node = t.path("dev/barbuf/0000:09:00.0");
                    std::fs::set_permissions(node, std::fs::Permissions::from_mode(0o600)).unwrap();
                },
                "CMB",
                Warn,
            ),
            (
                |t| {
                    let node = t.path("dev/barbuf/0000:05:00.0");
                    std::fs::set_permissions(node, std::fs::Permissions::from_mode(0o666)).unwrap();
                },
                "node",
                Warn,
            ),
        ];
        for (spoil, check, verdict) in cases {
            let tree = healthy();
            spoil(&tree);
            let found = bad(&tree);
            assert!(found.contains(&(check, verdict)), "{check}: {found:?}");
        }
    }

    #[test]
    fn a_common_root_port_means_a_switch() {
        let tree = Tree::new();
        let put = |bdf: &str, way: &str| {
            std::fs::create_dir_all(tree.path(&format!("sys/devices/pci0000:00/{way}/{bdf}")))
                .unwrap();
            symlink(
                tree.path(&format!("sys/devices/pci0000:00/{way}/{bdf}")),
                tree.path(&format!("sys/bus/pci/devices/{bdf}")),
            )
            .unwrap();
            tree.sysfs().function(&bdf.parse().unwrap()).unwrap()
        };
        let a = put("0000:04:00.0", "0000:00:03.0/0000:01:00.0/0000:02:00.0");
        let b = put("0000:05:00.0", "0000:00:03.0/0000:01:00.0/0000:02:01.0");
        let c = put("0000:08:00.0", "0000:00:04.0");
        assert!(below_one_switch(&a, &b));
        assert!(!below_one_switch(&a, &c));
    }
}
