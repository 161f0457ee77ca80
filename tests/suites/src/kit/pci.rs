// SPDX-License-Identifier: MIT OR Apache-2.0

//! PCI functions, and making providers of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use barbuf_guest::protocol::{Device, DeviceKind};
use barbuf_guest::{modules, sysfs};
use barbuf_sys::barbuf_region_info;

use super::node::Node;
use super::process::scaled;
use super::vendor;
use crate::support::{Bar, bars_of};

/// How long a node or a driver may take to appear or go, on an emulated machine.
const SOON: Duration = Duration::from_secs(20);

/// A PCI function that is there now.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) bdf: String,
}

impl Function {
    pub(crate) fn of(device: &Device) -> Result<Function> {
        let dir = device
            .place
            .find()
            .with_context(|| format!("{} is not plugged in", device.id))?;
        let bdf = dir
            .file_name()
            .and_then(|name| name.to_str())
            .context("a PCI function's name")?;
        Ok(Function {
            bdf: bdf.to_owned(),
        })
    }

    pub(crate) fn dir(&self) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(&self.bdf)
    }

    pub(crate) fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.dir().join("driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    pub(crate) fn bar(&self, index: usize) -> Result<Bar> {
        let bars = bars_of(&self.dir())?;
        bars.into_iter()
            .find(|bar| bar.index == index)
            .with_context(|| format!("no BAR {index}"))
    }

    /// Binds a driver that would not do so by itself.
    ///
    /// A function that was just plugged in is in sysfs for some milliseconds before the PCI core
    /// lets drivers match it; asking for a probe then does nothing, and says so to nobody.
    pub(crate) fn bind(&self, driver: &str) -> Result<()> {
        sysfs::write(self.dir().join("driver_override"), driver)?;
        let deadline = Instant::now() + scaled(Duration::from_secs(1));
        loop {
            sysfs::write("/sys/bus/pci/drivers_probe", &self.bdf)?;
            if self.driver().is_some() || Instant::now() >= deadline {
                break;
            }
            sleep(Duration::from_millis(20));
        }
        ensure!(
            self.driver().as_deref() == Some(driver),
            "{} did not bind to {driver}",
            self.bdf
        );
        Ok(())
    }

    /// Unbinds whatever driver there is.
    pub(crate) fn unbind(&self) -> Result<()> {
        if self.driver().is_some() {
            sysfs::write(self.dir().join("driver/unbind"), &self.bdf)?;
        }
        Ok(())
    }

    /// Gives the function back to the driver that takes it without being told.
    pub(crate) fn restore(&self) -> Result<()> {
        if !self.dir().exists() {
            return Ok(());
        }
        if matches!(self.driver().as_deref(), Some("barbuf" | vendor::DRIVER)) {
            self.unbind()?;
        }
        sysfs::write(self.dir().join("driver_override"), "\n")?;
        if self.driver().is_none() {
            sysfs::write("/sys/bus/pci/drivers_probe", &self.bdf)?;
        }
        Ok(())
    }

    /// Takes the function away as if it were unplugged.
    pub(crate) fn remove(&self) -> Result<()> {
        Ok(sysfs::write(self.dir().join("remove"), "1")?)
    }

    pub(crate) fn node_path(&self) -> String {
        format!("/dev/barbuf/{}", self.bdf)
    }
}

/// Looks for functions that were removed.
pub(crate) fn rescan() -> Result<()> {
    Ok(sysfs::write("/sys/bus/pci/rescan", "1")?)
}

/// Waits until something is so, and says what was waited for if it never is.
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) -> Result<()> {
    let limit = scaled(SOON);
    let deadline = Instant::now() + limit;
    while !so() {
        ensure!(
            Instant::now() < deadline,
            "{what} did not happen within {limit:?}"
        );
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A function that is a provider until this is dropped, and its node.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) function: Function,
    pub(crate) node: Node,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Bound,
    Adopted,
    /// Nothing is to be put back.
    Left,
}

impl Provider {
    /// Waits until all bytes that were free `before` are free again: nobody holds a page any more.
    pub(crate) fn wait_until_free(&self, before: &[barbuf_region_info]) -> Result<()> {
        let free = || self.node.info().is_ok_and(|info| info.regions == before);
        wait_until("all bytes free again", free)
    }

    /// Binds barbuf to a device; or the sample driver, within [`vendor::instead`].
    pub(crate) fn bind(device: &Device) -> Result<Provider> {
        let is_npu = matches!(device.kind, DeviceKind::Npu { .. });
        let driver = if vendor::steps_in() && is_npu {
            vendor::DRIVER
        } else {
            "barbuf"
        };
        Provider::bind_to(device, driver)
    }

    /// Binds the sample driver, which must be loaded and registers the device's memory.
    pub(crate) fn register(device: &Device) -> Result<Provider> {
        Provider::bind_to(device, vendor::DRIVER)
    }

    fn bind_to(device: &Device, driver: &str) -> Result<Provider> {
        let function = Function::of(device)?;
        if function.driver().as_deref() != Some(driver) {
            function.unbind()?;
            function.bind(driver)?;
        }
        Provider::open(function, How::Bound)
    }

    /// Adopts a device that has published p2pmem.
    pub(crate) fn adopt(device: &Device) -> Result<Provider> {
        let function = Function::of(device)?;
        Node::control()?
            .adopt(&function.bdf)
            .with_context(|| format!("adopting {}", function.bdf))?;
        Provider::open(function, How::Adopted)
    }

    fn open(function: Function, how: How) -> Result<Provider> {
        let path = function.node_path();
        wait_until(&path, || Path::new(&path).exists())?;
        let node = Node::open(&path)?;
        Ok(Provider {
            function,
            node,
            how,
        })
    }

    /// Another open file of the same node.
    pub(crate) fn reopen(&self) -> Result<Node> {
        Node::open(&self.function.node_path())
    }

    /// Closes the node, and leaves the function as it is.
    pub(crate) fn leave(mut self) {
        self.how = How::Left;
    }

    pub(crate) fn bdf(&self) -> &str {
        &self.function.bdf
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let result = match self.how {
            How::Left => Ok(()),
            How::Bound => self.function.restore(),
            // The test may have released it already.
            How::Adopted => Node::control().map(|control| {
                let _ = control.release(&self.function.bdf);
            }),
        };
        if let Err(error) = result {
            eprintln!("cannot give {} back: {error:#}", self.function.bdf);
        }
    }
}

/// A function with a driver that is there for tests alone. Dropping it takes the driver away and unloads it.
#[derive(Debug)]
pub(crate) struct Lent {
    function: Function,
    driver: &'static str,
}

impl Lent {
    /// Gives a function to the driver, which must be loaded.
    pub(crate) fn to(function: Function, driver: &'static str) -> Result<Lent> {
        let lent = Lent { function, driver };
        lent.function.unbind()?;
        lent.function.bind(driver)?;
        Ok(lent)
    }

    pub(crate) fn function(&self) -> &Function {
        &self.function
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let unload = || match modules::is_loaded(self.driver) {
            true => modules::unload(self.driver),
            false => Ok(()),
        };
        let results = [
            self.function.unbind(),
            self.function.restore(),
            unload().map_err(Into::into),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            eprintln!("cannot undo {}: {error:#}", self.driver);
        }
    }
}
