// SPDX-License-Identifier: MIT OR Apache-2.0

//! File I/O past the page cache, between a drive and a mapping.
//!
//! Two times of each call: what the calling thread spends on a processor, which is the kernel's work (finding and
//! pinning pages, mapping them for DMA, submitting), and how long the call takes, which has the drive in it.
//!
//! A drive that answers before the caller has gone to sleep saves it that, and interrupts it instead. Calls that slept and
//! calls that did not are not told as one quantity: those that slept count, if there are any.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::libc;

use crate::clock::{Clock, RUNS, thread_time, voluntary_switches};
use crate::mapping::{Anchor, Target};
use crate::report::Metric;
use crate::{KIB, MIB};

/// Nanoseconds of each run.
#[derive(Clone, Debug, Default)]
pub struct Direct {
    pub processor: Vec<u64>,
    pub whole: Vec<u64>,
}

/// The lengths that are measured, and as what.
pub const LENGTHS: [(u64, Metric, Metric); 2] = [
    (4 * KIB, Metric::Direct4kProcessor, Metric::Direct4k),
    (MIB, Metric::Direct1mProcessor, Metric::Direct1m),
];

/// Reads of each of [`LENGTHS`] that fits, from the start of a file to that of a mapping that was touched. Nothing
/// where there are no struct pages.
pub fn into_mapping(
    clock: Clock,
    drive: &File,
    target: &Target<'_>,
) -> Result<Vec<(Metric, Vec<u64>)>> {
    let _anchor = Anchor::behind(target)?;
    let mapped = target.map()?;
    mapped.touch();
    let mut found = Vec::new();
    for (len, processor, whole) in LENGTHS {
        if len > target.len {
            continue;
        }
        // SAFETY: The mapping holds nothing of Rust's.
        match unsafe { read(clock, drive, mapped.at(0), len) } {
            Ok(direct) => found.extend([(processor, direct.processor), (whole, direct.whole)]),
            Err(error) if error.downcast_ref() == Some(&Errno::EFAULT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// pread(2) of the first `len` bytes of a file that was opened with O_DIRECT, to `memory`.
///
/// # Errors
///
/// What the kernel says: EFAULT for memory without struct pages.
///
/// # Safety
///
/// The kernel writes to the memory, in which nothing of Rust's may live.
pub unsafe fn read(clock: Clock, drive: &File, memory: *mut u8, len: u64) -> Result<Direct> {
    let mut direct = Direct::default();
    let mut slept = Vec::new();
    // Never fewer: how long one takes is the drive's affair.
    for _ in 0..RUNS {
        let switches = voluntary_switches();
        let (busy, start) = (thread_time(), clock.now());
        // SAFETY: Promised by the caller; the kernel checks the addresses itself.
        let done = unsafe { libc::pread(drive.as_raw_fd(), memory.cast(), len as usize, 0) };
        let (whole, processor) = (clock.now() - start, thread_time() - busy);
        let done = Errno::result(done).context("pread with O_DIRECT")?;
        ensure!(done as u64 == len, "{done} of {len} bytes were read");
        direct.whole.push(whole);
        direct.processor.push(processor);
        slept.push(voluntary_switches() > switches);
    }
    keep_those(&slept, &mut direct.whole);
    keep_those(&slept, &mut direct.processor);
    Ok(direct)
}

/// Leaves the samples of calls that slept; all of them, if none did.
fn keep_those(slept: &[bool], samples: &mut Vec<u64>) {
    if slept.contains(&true) {
        let mut which = slept.iter();
        samples.retain(|_| which.next() == Some(&true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_slept_count() {
        let mut samples = vec![5, 7, 8];
        keep_those(&[false, true, true], &mut samples);
        assert_eq!(samples, [7, 8]);
        keep_those(&[false, false], &mut samples);
        assert_eq!(samples, [7, 8]);
    }
}
