// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf bind` and `barbuf unbind`: through driver_override, with the way back kept.
//!
//! What a function had before, its driver and its driver_override, is written to
//! `/run/barbuf/bound/DEVICE` before anything is changed, so that `unbind` puts back exactly that,
//! also when `bind` was killed half way.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::{BindArgs, UnbindArgs};
use crate::error::{Error, Exit, Result, plain};
use crate::list::DRIVER;
use crate::out::Out;
use crate::sysfs::{Function, Sysfs};

/// How long devtmpfs may take to show a node.
const NODE_WITHIN: Duration = Duration::from_secs(5);

/// Writing to the kernel's files.
pub trait Kernel {
    /// Writes a whole text to a file that exists.
    ///
    /// # Errors
    ///
    /// Those of open(2) and write(2).
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
}

/// The kernel that runs.
#[derive(Clone, Copy, Debug)]
pub struct Running;

impl Kernel for Running {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        // One write(2): sysfs takes each as a whole.
        file.write_all(text.as_bytes())
    }
}

/// What a function had before it was bound.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
struct Before {
    driver: Option<String>,
    driver_override: Option<String>,
}

/// # Errors
///
/// The function is used by another driver, or barbuf does not take it; it then has what it had.
pub fn bind(args: &BindArgs, sysfs: &Sysfs, out: &Out) -> Result<u8> {
    let function = sysfs.function(&args.device)?;
    let before = bind_function(&function, args.take, sysfs, &Running)?;
    let changed = before.is_some();
    let previous = before.and_then(|before| before.driver);
    let node = function.node.display().to_string();
    out.done(
        json!({
            "device": function.bdf,
            "driver": DRIVER,
            "previous_driver": previous,
            "changed": changed,
            "node": node,
        }),
        || match (changed, &previous) {
            (false, _) => format!("{} is bound already: {node}", function.bdf),
            (true, None) => format!("{} is bound: {node}", function.bdf),
            (true, Some(driver)) => {
                format!("{} is bound, taken from {driver}: {node}", function.bdf)
            }
        },
    );
    Ok(Exit::Ok as u8)
}

/// # Errors
///
/// The function is not bound to barbuf, or its former driver does not take it back.
pub fn unbind(args: &UnbindArgs, sysfs: &Sysfs, out: &Out) -> Result<u8> {
    let function = sysfs.function(&args.device)?;
    let driver = unbind_function(&function, sysfs, &Running)?;
    out.done(
        json!({ "device": function.bdf, "driver": driver }),
        || match &driver {
            Some(driver) => format!("{} is given back to {driver}", function.bdf),
            None => format!("{} is unbound; it had no driver before", function.bdf),
        },
    );
    Ok(Exit::Ok as u8)
}

/// Binds, and tells what was before; nothing if it was bound already.
fn bind_function(
    function: &Function,
    take: bool,
    sysfs: &Sysfs,
    kernel: &impl Kernel,
) -> Result<Option<Before>> {
    let bdf = &function.bdf;
    let driver = function.driver();
    if driver.as_deref() == Some(DRIVER) {
        return Ok(None);
    }
    if !sysfs.path("sys/bus/pci/drivers/barbuf").is_dir() {
        return Err(Error::not_found("the module barbuf is not loaded")
            .hint("modprobe barbuf, or insmod barbuf.ko"));
    }
    if function.is_bridge() {
        return Err(Error::failed(format!(
            "{bdf} is a bridge: its windows are other devices' memory"
        ))
        .hint("`barbuf list --exportable` shows what can be bound"));
    }
    if function.node.exists() {
        let with = driver.as_deref().unwrap_or("its driver");
        return Err(Error::new(
            Exit::Busy,
            format!("{bdf} is a provider already, together with {with}"),
        )
        .hint(format!("barbuf release {bdf}")));
    }
    if let (Some(driver), false) = (&driver, take) {
        return Err(Error::new(
            Exit::Busy,
            format!("{bdf} is in use by its driver {driver}"),
        )
        .hint(format!(
            "--take takes it from {driver}; whoever uses it through {driver} loses it"
        )));
    }
    let before = Before {
        driver,
        driver_override: overridden(function),
    };
    let record = record_path(sysfs, function);
    keep(&record, &before)?;
    match try_bind(function, &before, sysfs, kernel) {
        Ok(()) => Ok(Some(before)),
        Err(error) => {
            let restored = restore(function, &before, sysfs, kernel);
            let _ = fs::remove_file(&record);
            Err(match restored {
                Ok(_) => error,
                Err(second) => Error::new(
                    error.exit,
                    format!(
                        "{}; nor could the former state be restored: {second}",
                        error.message
                    ),
                )
                .hint("dmesg tells more"),
            })
        }
    }
}

fn try_bind(
    function: &Function,
    before: &Before,
    sysfs: &Sysfs,
    kernel: &impl Kernel,
) -> Result<()> {
    write(kernel, &function.dir.join("driver_override"), DRIVER)?;
    if before.driver.is_some() {
        write(
            kernel,
            &function.dir.join("driver/unbind"),
            function.bdf.as_str(),
        )?;
    }
    let probe = sysfs.path("sys/bus/pci/drivers_probe");
    // The kernel says EINVAL if the driver's probe failed; which driver it has says more.
    let result = write(kernel, &probe, function.bdf.as_str());
    if function.driver().as_deref() != Some(DRIVER) {
        let refused = || {
            Error::failed(format!("barbuf does not take {}", function.bdf))
                .hint("dmesg says why; another driver may hold its BARs")
        };
        return Err(match result {
            Err(error) if error.exit == Exit::Permission => error,
            _ => refused(),
        });
    }
    wait_for_node(function)
}

/// # Errors
///
/// It does not come in time.
pub(crate) fn wait_for_node(function: &Function) -> Result<()> {
    let deadline = Instant::now() + NODE_WITHIN;
    while !function.node.exists() {
        if Instant::now() >= deadline {
            return Err(
                Error::failed(format!("{} did not appear", function.node.display()))
                    .hint("is devtmpfs mounted on /dev?"),
            );
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn unbind_function(
    function: &Function,
    sysfs: &Sysfs,
    kernel: &impl Kernel,
) -> Result<Option<String>> {
    let record = record_path(sysfs, function);
    if function.driver().as_deref() != Some(DRIVER) {
        let error = Error::not_found(format!("{} is not bound to barbuf", function.bdf));
        return Err(if function.node.exists() {
            error.hint(format!("it is adopted: barbuf release {}", function.bdf))
        } else {
            error.hint("`barbuf list` shows what is")
        });
    }
    // Bound by other means: what would take it by itself is the best guess.
    let before = kept(&record);
    let driver = match &before {
        Some(before) => restore(function, before, sysfs, kernel)?,
        None => {
            write(
                kernel,
                &function.dir.join("driver/unbind"),
                function.bdf.as_str(),
            )?;
            write(kernel, &function.dir.join("driver_override"), "\n")?;
            let _ = write(
                kernel,
                &sysfs.path("sys/bus/pci/drivers_probe"),
                function.bdf.as_str(),
            );
            function.driver()
        }
    };
    let _ = fs::remove_file(&record);
    Ok(driver)
}

/// Puts back what was before, whatever is now. Tells the driver.
fn restore(
    function: &Function,
    before: &Before,
    sysfs: &Sysfs,
    kernel: &impl Kernel,
) -> Result<Option<String>> {
    let bdf = function.bdf.as_str();
    if function.driver().as_deref() == Some(DRIVER) {
        write(kernel, &function.dir.join("driver/unbind"), bdf)?;
    }
    let wanted = before.driver_override.as_deref().unwrap_or("\n");
    write(kernel, &function.dir.join("driver_override"), wanted)?;
    let Some(driver) = &before.driver else {
        return Ok(function.driver());
    };
    if function.driver().is_none() {
        let _ = write(kernel, &sysfs.path("sys/bus/pci/drivers_probe"), bdf);
    }
    if function.driver().is_none() {
        // It was bound by hand, against what the kernel would choose.
        let bind = sysfs.path("sys/bus/pci/drivers").join(driver).join("bind");
        let _ = write(kernel, &bind, bdf);
    }
    match function.driver() {
        Some(found) if found == *driver => Ok(Some(found)),
        found => Err(Error::failed(format!(
            "{bdf} was {driver}'s and does not go back to it; it has {} now",
            found.as_deref().unwrap_or("no driver")
        ))
        .hint(format!("modprobe {driver}; dmesg says more"))),
    }
}

fn overridden(function: &Function) -> Option<String> {
    let text = function.attribute("driver_override")?;
    (!text.is_empty() && text != "(null)" && text != DRIVER).then_some(text)
}

fn record_path(sysfs: &Sysfs, function: &Function) -> PathBuf {
    sysfs.path("run/barbuf/bound").join(function.bdf.as_str())
}

fn keep(record: &Path, before: &Before) -> Result<()> {
    let failed = |error: io::Error| Error::io("write", record, &error);
    let text = serde_json::to_string(before).map_err(|error| failed(error.into()))?;
    if let Some(dir) = record.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    let new = record.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, record))
        .map_err(failed)
}

fn kept(record: &Path) -> Option<Before> {
    serde_json::from_str(&fs::read_to_string(record).ok()?).ok()
}

fn write(kernel: &impl Kernel, path: &Path, text: &str) -> Result<()> {
    kernel.write(path, text).map_err(|error| {
        let failed = Error::io("write to", path, &error);
        match failed.exit {
            Exit::Permission => failed,
            _ => Error::failed(format!(
                "the kernel refuses {:?} in {}: {}",
                text.trim(),
                path.display(),
                plain(&error)
            )),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tree::Tree;

    const BDF: &str = "0000:05:00.0";

    fn tree(driver: Option<&str>) -> (Tree, Function) {
        let tree = Tree::new();
        tree.function(BDF, "0x050000", driver);
        if let Some(driver) = driver {
            tree.write(&format!("sys/bus/pci/devices/{BDF}/native"), driver);
        }
        let function = tree.sysfs().function(&BDF.parse().unwrap()).unwrap();
        (tree, function)
    }

    fn override_of(tree: &Tree) -> String {
        tree.read(&format!("sys/bus/pci/devices/{BDF}/driver_override"))
    }

    #[test]
    fn a_free_function_is_bound_and_is_free_again() {
        let (tree, function) = tree(None);
        let sysfs = tree.sysfs();
        assert!(
            bind_function(&function, false, &sysfs, &tree)
                .unwrap()
                .is_some()
        );
        assert_eq!(tree.has_driver(BDF).as_deref(), Some("barbuf"));
        assert_eq!(
            bind_function(&function, false, &sysfs, &tree).unwrap(),
            None
        );
        assert_eq!(unbind_function(&function, &sysfs, &tree).unwrap(), None);
        assert_eq!(
            (tree.has_driver(BDF), override_of(&tree)),
            (None, "(null)".into())
        );
        let error = unbind_function(&function, &sysfs, &tree).unwrap_err();
        assert_eq!(error.exit, Exit::NotFound);
    }

    #[test]
    fn the_former_driver_gets_it_back() {
        let (tree, function) = tree(Some("nvme"));
        let sysfs = tree.sysfs();
        let error = bind_function(&function, false, &sysfs, &tree).unwrap_err();
        assert_eq!(
            (error.exit, tree.has_driver(BDF).as_deref()),
            (Exit::Busy, Some("nvme"))
        );
        let before = bind_function(&function, true, &sysfs, &tree)
            .unwrap()
            .unwrap();
        assert_eq!(before.driver.as_deref(), Some("nvme"));
        let driver = unbind_function(&function, &sysfs, &tree).unwrap();
        assert_eq!(driver.as_deref(), Some("nvme"));
        assert_eq!(override_of(&tree), "(null)");
    }

    #[test]
    fn an_override_by_hand_is_put_back() {
        let (tree, function) = tree(None);
        tree.add_driver("vfio-pci");
        tree.driver(BDF, Some("vfio-pci"));
        let attribute = format!("sys/bus/pci/devices/{BDF}/driver_override");
        tree.write(&attribute, "vfio-pci");
        let sysfs = tree.sysfs();
        bind_function(&function, true, &sysfs, &tree).unwrap();
        assert_eq!(override_of(&tree), "barbuf");
        let driver = unbind_function(&function, &sysfs, &tree).unwrap();
        assert_eq!(driver.as_deref(), Some("vfio-pci"));
        assert_eq!(override_of(&tree), "vfio-pci");
    }

    #[test]
    fn a_refused_bind_changes_nothing() {
        let (mut tree, function) = tree(Some("nvme"));
        tree.failing.push("barbuf");
        let sysfs = tree.sysfs();
        let error = bind_function(&function, true, &sysfs, &tree).unwrap_err();
        assert!(error.message.contains("does not take"), "{}", error.message);
        assert_eq!(tree.has_driver(BDF).as_deref(), Some("nvme"));
        assert_eq!(override_of(&tree), "(null)");
        assert!(!record_path(&sysfs, &function).exists());
    }

    #[test]
    fn a_driver_that_does_not_come_back_is_told() {
        let (mut tree, function) = tree(Some("nvme"));
        let sysfs = tree.sysfs();
        bind_function(&function, true, &sysfs, &tree).unwrap();
        tree.failing.push("nvme");
        let error = unbind_function(&function, &sysfs, &tree).unwrap_err();
        assert!(
            error.message.contains("does not go back"),
            "{}",
            error.message
        );
    }

    #[test]
    fn without_the_module_or_on_a_bridge_nothing_is_tried() {
        let (tree, function) = tree(None);
        std::fs::remove_dir_all(tree.path("sys/bus/pci/drivers/barbuf")).unwrap();
        let error = bind_function(&function, false, &tree.sysfs(), &tree).unwrap_err();
        assert_eq!(error.exit, Exit::NotFound);
        tree.add_driver("barbuf");
        tree.write(&format!("sys/bus/pci/devices/{BDF}/class"), "0x060400");
        assert!(bind_function(&function, false, &tree.sysfs(), &tree).is_err());
        assert_eq!(override_of(&tree), "(null)");
    }
}
