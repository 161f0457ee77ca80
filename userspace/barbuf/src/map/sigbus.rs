// SPDX-License-Identifier: MIT OR Apache-2.0

//! The process's handler for `SIGBUS`.
//!
//! It is installed with the first mapping, once, and stays. A signal that a guarded access has got
//! is dealt with; every other one goes to whoever was there before, exactly as if this handler were
//! not there. Who installs one of their own later must do the same for this one, or the accesses
//! end as if they were not guarded.

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod imp {
    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;

    use nix::errno::Errno;
    use nix::libc::{self, siginfo_t, ucontext_t};

    use super::super::guarded::recovery;

    /// What was there before.
    struct Previous(libc::sigaction);

    // SAFETY: It consists of integers and the addresses of functions, and is never changed.
    unsafe impl Sync for Previous {}
    // SAFETY: As above.
    unsafe impl Send for Previous {}

    static PREVIOUS: OnceLock<Previous> = OnceLock::new();

    /// Installs the handler unless that was done before.
    pub(crate) fn watch() -> Result<(), Errno> {
        if PREVIOUS.get().is_some() {
            return Ok(());
        }
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _lock = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if PREVIOUS.get().is_some() {
            return Ok(());
        }
        let mut previous = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: Only asks; the structure is filled when the call succeeds.
        let previous = unsafe {
            Errno::result(libc::sigaction(
                libc::SIGBUS,
                ptr::null(),
                previous.as_mut_ptr(),
            ))?;
            previous.assume_init()
        };
        // Before the handler is there, because it looks at it.
        let _ = PREVIOUS.set(Previous(previous));
        // SAFETY: All members are integers, an address, or a set of signals, for which zero is a
        // valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        // On the alternate stack where there is one, as Rust's own handlers are; and a fault in a
        // handler that this one calls is not to end the process unseen.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        action.sa_mask = previous.sa_mask;
        // SAFETY: The handler does what is allowed in one: it changes the interrupted context and
        // calls sigaction(2), raise(2) and what was there before.
        unsafe { Errno::result(libc::sigaction(libc::SIGBUS, &action, ptr::null_mut())).map(drop) }
    }

    extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: The kernel passes valid pointers to a handler with SA_SIGINFO, and goes on with
        // what the context says. A thread that has faulted at a guarded instruction is in a leaf
        // function without a stack frame, whose end `recovery` tells.
        unsafe {
            let code = (*info).si_code;
            let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
            let at = registers[libc::REG_RIP as usize] as usize;
            // Codes above 0 are faults; others were sent by somebody.
            if let (1.., Some(end)) = (code, recovery(at)) {
                registers[libc::REG_RAX as usize] = i64::from(code);
                registers[libc::REG_RIP as usize] = end as i64;
                return;
            }
            pass_on(signal, info, context);
        }
    }

    /// # Safety
    ///
    /// The arguments are those of a handler.
    unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        let Some(Previous(previous)) = PREVIOUS.get() else {
            return;
        };
        // SAFETY: The caller's promise; the previous handler has the type that its flags say.
        unsafe {
            match previous.sa_sigaction {
                libc::SIG_IGN if (*info).si_code <= 0 => {}
                // A fault cannot be ignored, and neither can be the default action: let it happen
                // again without a handler.
                libc::SIG_DFL | libc::SIG_IGN => {
                    let mut default: libc::sigaction = std::mem::zeroed();
                    default.sa_sigaction = libc::SIG_DFL;
                    libc::sigaction(signal, &default, ptr::null_mut());
                    if (*info).si_code <= 0 {
                        libc::raise(signal);
                    }
                }
                handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                        std::mem::transmute(handler);
                    handler(signal, info, context);
                }
                handler => {
                    let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
                    handler(signal);
                }
            }
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
mod imp {
    /// Nothing to install: see `guarded`.
    pub(crate) fn watch() -> Result<(), nix::errno::Errno> {
        Ok(())
    }
}

pub(crate) use imp::watch;
