// SPDX-License-Identifier: MIT OR Apache-2.0

//! `SIGBUS` that is not this crate's goes where it would go without it. Each case is a process of its
//! own, because a handler is installed once.

mod common;

use std::env;
use std::ffi::c_int;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use barbuf::Buffer;
use common::memfd;
use nix::libc;
use nix::unistd::ftruncate;

/// Runs `child` in a process of its own: this test program again, with this test only.
fn in_a_process(test: &str, child: fn()) -> ExitStatus {
    const CASE: &str = "BARBUF_CASE";
    if env::var(CASE).as_deref() == Ok(test) {
        child();
        unreachable!("the child had to end before this");
    }
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(CASE, test)
        .stdout(Stdio::null())
        .status()
        .unwrap()
}

/// A mapping whose memory has gone.
fn gone() -> barbuf::Mapping {
    let file = memfd(4096);
    let map = Buffer::from(file.try_clone().unwrap())
        .map()
        .build()
        .unwrap();
    ftruncate(&file, 0).unwrap();
    map
}

fn touch(map: &barbuf::Mapping) {
    // SAFETY: In the mapping; the signal is what the test is about.
    unsafe { map.as_ptr().read_volatile() };
}

static SEEN: AtomicI32 = AtomicI32::new(0);

fn handle(with_info: bool) {
    extern "C" fn plain(_: c_int) {
        SEEN.fetch_add(1, Ordering::SeqCst);
        // SAFETY: Ends the process: a handler that returned would be called for ever.
        unsafe { libc::_exit(40 + SEEN.load(Ordering::SeqCst)) };
    }
    extern "C" fn info(_: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: As above, and the kernel's pointer is valid.
        unsafe { libc::_exit(50 + (*info).si_code) };
    }
    // SAFETY: The handlers do what is allowed in one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if with_info {
            action.sa_sigaction = info as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
        } else {
            action.sa_sigaction = plain as *const () as usize;
        }
        assert_eq!(
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()),
            0
        );
    }
}

#[test]
fn a_raw_touch_ends_the_process_as_without_this_crate() {
    let status = in_a_process("a_raw_touch_ends_the_process_as_without_this_crate", || {
        let map = gone();
        assert!(!barbuf::GUARDED || map.read_u8(0).unwrap_err().is_revoked());
        touch(&map);
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn a_plain_handler_from_before_is_called() {
    let status = in_a_process("a_plain_handler_from_before_is_called", || {
        handle(false);
        let map = gone();
        assert!(!barbuf::GUARDED || map.read_u8(0).unwrap_err().is_revoked());
        touch(&map);
    });
    assert_eq!(status.code(), Some(41));
}

#[test]
fn a_handler_from_before_is_told_what_happened() {
    let status = in_a_process("a_handler_from_before_is_told_what_happened", || {
        handle(true);
        let map = gone();
        assert!(!barbuf::GUARDED || map.read_u8(0).unwrap_err().is_revoked());
        touch(&map);
    });
    assert_eq!(status.code(), Some(50 + libc::BUS_ADRERR));
}

/// A signal that somebody sends is no fault, even if it arrives in the middle of a copy.
#[test]
fn a_signal_that_was_sent_is_not_swallowed() {
    let status = in_a_process("a_signal_that_was_sent_is_not_swallowed", || {
        // Rust's own handler, which is there before, gives way at the first signal that it does not
        // know.
        // SAFETY: Nobody relies on that one here.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let map = common::buffer(1 << 20).map().build().unwrap();
        // SAFETY: Names this process itself.
        let pid = unsafe { libc::getpid() };
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            // SAFETY: Signals this process.
            unsafe { libc::kill(pid, libc::SIGBUS) };
        });
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_secs(60) {
            map.fill(0, 1 << 20, 1).unwrap();
        }
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}
