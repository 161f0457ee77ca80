// SPDX-License-Identifier: MIT OR Apache-2.0

//! What time is, and how often something is measured.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_mm_lfence, _rdtsc};

use anyhow::Result;
use nix::libc;

/// How often each quantity is measured.
pub const RUNS: usize = 20;
/// How often if one run takes longer than [`LONG_NS`].
pub const FEW_RUNS: usize = 3;
/// One second.
pub const LONG_NS: u64 = 1_000_000_000;

/// A source of nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The time stamp counter of a guest under QEMU's icount, which advances by one per instruction, whatever the
    /// host does meanwhile.
    #[cfg(target_arch = "x86_64")]
    Instructions,
    /// CLOCK_MONOTONIC_RAW.
    Wall,
}

impl Clock {
    /// Nanoseconds since some moment, the same moment in all processes.
    #[inline]
    pub fn now(self) -> u64 {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: Every x86-64 processor has both.
            Clock::Instructions => unsafe {
                _mm_lfence();
                _rdtsc()
            },
            Clock::Wall => read(libc::CLOCK_MONOTONIC_RAW),
        }
    }

    /// How long something takes, and what it returns.
    pub fn time<T>(self, run: impl FnOnce() -> T) -> (u64, T) {
        let start = self.now();
        let value = run();
        (self.now() - start, value)
    }

    /// Calls something [`RUNS`] times, or [`FEW_RUNS`] times if the first call takes longer than [`LONG_NS`].
    pub fn repeat(self, mut run: impl FnMut() -> Result<()>) -> Result<()> {
        let (first, result) = self.time(&mut run);
        result?;
        let runs = if first > LONG_NS { FEW_RUNS } else { RUNS };
        (1..runs).try_for_each(|_| run())
    }
}

/// Nanoseconds that the calling thread has spent on a processor, in user space and in the kernel.
pub fn thread_time() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// How often the calling thread has gone to sleep.
pub fn voluntary_switches() -> i64 {
    // SAFETY: Zeros are a valid value of it, and it lives. The call cannot fail with these arguments.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage.ru_nvcsw
    }
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: The structure lives. Both clocks exist since Linux 2.6.28, so that the call cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_do_not_go_backwards() {
        for clock in [
            #[cfg(target_arch = "x86_64")]
            Clock::Instructions,
            Clock::Wall,
        ] {
            let (took, ()) = clock.time(|| std::hint::black_box(()));
            assert!(took < 1_000_000_000, "{clock:?}: {took}");
        }
        let before = thread_time();
        std::hint::black_box((0..100_000u64).sum::<u64>());
        assert!(thread_time() >= before);
        let before = voluntary_switches();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(voluntary_switches() > before);
    }

    #[test]
    fn short_things_are_measured_often() {
        let mut count = 0;
        Clock::Wall
            .repeat(|| {
                count += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(count, RUNS);
    }

    #[test]
    fn an_error_ends_it() {
        let mut count = 0;
        let result = Clock::Wall.repeat(|| {
            count += 1;
            anyhow::bail!("no")
        });
        assert!(result.is_err());
        assert_eq!(count, 1);
    }
}
