// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that goes away while it is measured.
//!
//! A touch of it raises `SIGBUS`, and that would end the process in the middle of its work. What touches is measured, so
//! that nothing may be added to it. The handler puts zeros where the memory was instead, and the touch goes on; that the
//! times are worth nothing is told at the end.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use anyhow::Result;
use nix::errno::Errno;
use nix::libc;

use crate::mapping::Target;
use crate::process::Shared;

/// The memory has gone while it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory has gone while it was measured")
    }
}

impl std::error::Error for Gone {}

/// Where the target is mapped that is guarded now; no bytes if none is.
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static LEN: AtomicU64 = AtomicU64::new(0);
/// Set by the handler, which may run in a child.
static LOST: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// Runs something that touches a target, here or in a child. One thread at a time may do so.
///
/// # Errors
///
/// Those of what is run; [`Gone`] if the target could no longer be touched, whatever it returns.
pub fn guarded<T>(target: &Target<'_>, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let lost = Shared::new()?;
    let handler = Handler::install()?;
    LOST.store(lost.as_ptr(), Ordering::Release);
    ADDRESS.store(target.address(), Ordering::Release);
    LEN.store(target.len, Ordering::Release);
    let result = run();
    drop(handler);
    LEN.store(0, Ordering::Release);
    LOST.store(ptr::null_mut(), Ordering::Release);
    match lost.number().load(Ordering::Acquire) {
        0 => result,
        _ => Err(Gone.into()),
    }
}

/// The handler, until this is dropped.
struct Handler {
    previous: libc::sigaction,
}

impl Handler {
    fn install() -> Result<Handler> {
        // SAFETY: All members are integers, an address, or a set of signals, for which zero is a valid value.
        let (mut action, mut previous): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: The handler makes system calls only, and both structures live.
        Errno::result(unsafe { libc::sigaction(libc::SIGBUS, &action, &mut previous) })?;
        Ok(Handler { previous })
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // SAFETY: What was there before.
        unsafe { libc::sigaction(libc::SIGBUS, &self.previous, ptr::null_mut()) };
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    let (address, len) = (ADDRESS.load(Ordering::Acquire), LEN.load(Ordering::Acquire));
    let lost = LOST.load(Ordering::Acquire);
    // SAFETY: The kernel passes a valid structure to a handler with SA_SIGINFO, and has filled the address in: faults
    // have codes above 0.
    let (code, at) = unsafe { ((*info).si_code, (*info).si_addr() as u64) };
    let ours = code > 0 && at.wrapping_sub(address) < len && !lost.is_null();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: Made only for the target's own mapping, which holds nothing of Rust's and is unmapped by its address,
    // whatever is there.
    let put = || unsafe { libc::mmap(address as *mut _, len as usize, protection, flags, -1, 0) };
    if ours && put() != libc::MAP_FAILED {
        // SAFETY: As long as the handler is installed, `guarded` holds it.
        unsafe { (*lost).store(1, Ordering::Release) };
    } else {
        // SAFETY: Ends the process when the touch is made again, or now if somebody has sent the signal.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if code <= 0 {
                libc::raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, RUNS};
    use crate::mapping::life;
    use crate::mapping::tests::{alone, file};
    use crate::process::{fork_touch, send_map_touch};
    use std::os::fd::AsFd as _;

    #[test]
    fn memory_that_goes_away_is_an_error() {
        let _alone = alone();
        // The file is shorter than its mapping.
        let (short, whole) = (file(4096), file(8192));
        let mut target = Target {
            file: short.as_fd(),
            offset: 0,
            len: 8192,
            leaf: 4096,
            phys_class: 4096,
        };
        let is_gone = |error: anyhow::Error| error.downcast_ref() == Some(&Gone);
        let error = guarded(&target, || life(Clock::Wall, &target)).unwrap_err();
        assert!(is_gone(error));
        for in_children in [fork_touch, send_map_touch] {
            let error = guarded(&target, || in_children(Clock::Wall, &target)).unwrap_err();
            assert!(is_gone(error));
        }
        // Whatever else goes wrong comes of that.
        let fails = || -> Result<()> {
            target.map()?.touch();
            anyhow::bail!("no")
        };
        assert!(is_gone(guarded(&target, fails).unwrap_err()));

        target.file = whole.as_fd();
        let life = guarded(&target, || life(Clock::Wall, &target)).unwrap();
        assert_eq!(life.touch.len(), RUNS);
        let error = guarded(&target, || -> Result<()> { anyhow::bail!("no") }).unwrap_err();
        assert_eq!(error.to_string(), "no");
    }

    #[test]
    fn other_memory_is_not_guarded() {
        let _alone = alone();
        let short = file(4096);
        let target = Target {
            file: short.as_fd(),
            offset: 0,
            len: 8192,
            leaf: 4096,
            phys_class: 0,
        };
        let elsewhere = Target {
            phys_class: 1 << 20,
            ..target
        };
        let run = || send_map_touch(Clock::Wall, &elsewhere);
        let error = guarded(&target, run).unwrap_err();
        assert!(error.to_string().contains("SIGBUS"), "{error}");
    }
}
