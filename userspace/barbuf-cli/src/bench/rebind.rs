// SPDX-License-Identifier: MIT OR Apache-2.0

//! What comes before a mapping and after it: the function is unbound and bound again, many times.

use barbuf::Device;
use barbuf_measure::guard::guarded;
use barbuf_measure::mapping::Anchor;
use barbuf_measure::memory::struct_page_bytes;
use barbuf_measure::report::Metric;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use super::path::{PAGE, Path};
use super::{CLOCK, MUCH_4K};
use crate::bind::{Kernel as _, Running, wait_for_node};
use crate::error::{Error, Exit, Result};
use crate::list::DRIVER;
use crate::sysfs::{Function, Sysfs};

/// Times of registering and of removal with everything mapped, and struct pages.
///
/// # Errors
///
/// Somebody has a buffer of the function.
pub(super) fn measure(
    path: &Path,
    sysfs: &Sysfs,
    tell: &mut impl FnMut(Metric, Vec<u64>),
) -> anyhow::Result<()> {
    let regions = Device::open(path.function.bdf.as_str())?.info()?.regions;
    let buffers: u32 = regions.iter().map(|region| region.buffers).sum();
    if buffers > 0 {
        let text = format!("{buffers} buffers of {} are in use", path.function.bdf);
        return Err(Error::new(Exit::Busy, text).into());
    }
    let is_mapped = path.leaf > PAGE || path.size <= MUCH_4K;
    let (mut register, mut pages, mut remove) = (Vec::new(), Vec::new(), Vec::new());
    let driver = Driver::of(&path.function, sysfs)?;
    CLOCK.repeat(|| {
        driver.write("unbind")?;
        let before = struct_page_bytes()?;
        let (took, memory) = CLOCK.time(|| {
            driver.bind()?;
            path.open()
        });
        let memory = memory?;
        register.push(took);
        pages.push(struct_page_bytes()?.saturating_sub(before));
        if is_mapped {
            let target = memory.target();
            remove.push(guarded(&target, || {
                let _anchor = Anchor::behind(&target)?;
                let mapped = target.map()?;
                mapped.touch();
                let (took, result) = CLOCK.time(|| driver.write("unbind"));
                drop(mapped);
                Ok(result.map(|()| took)?)
            })?);
            driver.bind()?;
        }
        Ok(())
    })?;
    drop(driver);
    tell(Metric::Register, register);
    tell(Metric::StructPages, pages);
    tell(Metric::Remove, remove);
    Ok(())
}

/// barbuf as the driver of a function, which has it again when this is dropped. Until then no signal of a user ends
/// the process in between.
struct Driver<'a> {
    function: &'a Function,
    sysfs: &'a Sysfs,
    signals: SigSet,
}

impl<'a> Driver<'a> {
    fn of(function: &'a Function, sysfs: &'a Sysfs) -> Result<Driver<'a>> {
        let user = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        let signals = user
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(|errno| Error::errno("cannot block signals", errno))?;
        Ok(Driver {
            function,
            sysfs,
            signals,
        })
    }

    fn write(&self, attribute: &str) -> Result<()> {
        let dir = self.sysfs.path("sys/bus/pci/drivers").join(DRIVER);
        let path = dir.join(attribute);
        Running
            .write(&path, self.function.bdf.as_str())
            .map_err(|error| Error::io("write to", &path, &error))
    }

    fn bind(&self) -> Result<()> {
        self.write("bind")?;
        wait_for_node(self.function)
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        let is_there = self.function.dir.exists();
        if is_there && self.function.driver().is_none() {
            if let Err(error) = self.bind() {
                eprintln!("{} is left without a driver: {error}", self.function.bdf);
            }
        }
        let _ = self.signals.thread_set_mask();
    }
}
