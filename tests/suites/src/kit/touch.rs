// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loads and stores that may fault, and say how.
//!
//! Jumping out of a signal handler past Rust frames is not allowed. Instead each access is one
//! instruction at a known address: the handler recognises it, writes down what happened and goes on
//! behind it.

use std::arch::global_asm;
use std::sync::Once;

use nix::libc::{self, c_int, c_void, siginfo_t, ucontext_t};

/// From the kernel's asm-generic/siginfo.h; libc has the codes of SIGBUS only.
const SEGV_MAPERR: c_int = 1;
const SEGV_ACCERR: c_int = 2;

/// How an access ended that did not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Fault {
    pub(crate) signal: c_int,
    pub(crate) code: c_int,
    pub(crate) address: usize,
}

impl Fault {
    /// What a touch of a revoked buffer ends in: SIGBUS with BUS_ADRERR at the address touched.
    pub(crate) fn bus(address: *const u8) -> Self {
        Fault {
            signal: libc::SIGBUS,
            code: libc::BUS_ADRERR,
            address: address as usize,
        }
    }

    /// A touch of an address at which nothing is mapped.
    pub(crate) fn unmapped(address: *const u8) -> Self {
        Fault {
            signal: libc::SIGSEGV,
            code: SEGV_MAPERR,
            address: address as usize,
        }
    }

    /// A touch that the protection of the mapping forbids.
    pub(crate) fn protected(address: *const u8) -> Self {
        Fault {
            signal: libc::SIGSEGV,
            code: SEGV_ACCERR,
            address: address as usize,
        }
    }

    const NONE: Fault = Fault {
        signal: 0,
        code: 0,
        address: 0,
    };
}

/// As the assembly below returns it, in rax and rdx.
#[repr(C)]
struct Outcome {
    value: u64,
    failed: u64,
}

// rdi is the address, rsi the record that the handler fills, rdx the value to store.
global_asm!(
    ".globl barbuf_guarded_load, barbuf_guarded_store",
    ".globl barbuf_load_at, barbuf_store_at, barbuf_access_failed",
    "barbuf_guarded_load:",
    "barbuf_load_at:",
    "mov rax, [rdi]",
    "xor edx, edx",
    "ret",
    "barbuf_guarded_store:",
    "barbuf_store_at:",
    "mov [rdi], rdx",
    "xor edx, edx",
    "ret",
    "barbuf_access_failed:",
    "mov edx, 1",
    "ret",
);

unsafe extern "C" {
    fn barbuf_guarded_load(address: *const u64, fault: *mut Fault) -> Outcome;
    fn barbuf_guarded_store(address: *mut u64, fault: *mut Fault, value: u64) -> Outcome;
    static barbuf_load_at: u8;
    static barbuf_store_at: u8;
    static barbuf_access_failed: u8;
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: The kernel passes valid pointers to a handler with SA_SIGINFO. An access at one of
    // the two addresses is made by the functions above only, whose rsi points to a live record.
    unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize] as usize;
        if at == &raw const barbuf_load_at as usize || at == &raw const barbuf_store_at as usize {
            *(registers[libc::REG_RSI as usize] as *mut Fault) = Fault {
                signal,
                code: (*info).si_code,
                address: (*info).si_addr() as usize,
            };
            registers[libc::REG_RIP as usize] = &raw const barbuf_access_failed as i64;
        } else {
            // Not ours: let it happen again, and end the process as if nobody had been watching.
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

fn watch() {
    static ONCE: Once = Once::new();
    // SAFETY: The handler touches only its own arguments, and calls only what is safe in a handler.
    ONCE.call_once(|| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        for signal in [libc::SIGBUS, libc::SIGSEGV] {
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    });
}

/// Reads eight bytes. Any address will do; it should be a multiple of eight.
pub(crate) fn load(address: *const u8) -> Result<u64, Fault> {
    watch();
    let mut fault = Fault::NONE;
    // SAFETY: The access itself is guarded, whatever the address. The record lives until the call
    // returns.
    let outcome = unsafe { barbuf_guarded_load(address.cast(), &mut fault) };
    match outcome.failed {
        0 => Ok(outcome.value),
        _ => Err(fault),
    }
}

/// Writes eight bytes to a mapping of this process.
///
/// # Safety
///
/// Nothing that Rust relies on may live at the address.
pub(crate) unsafe fn store(address: *mut u8, value: u64) -> Result<(), Fault> {
    watch();
    let mut fault = Fault::NONE;
    // SAFETY: As in `load`; the caller vouches for what is written over.
    let outcome = unsafe { barbuf_guarded_store(address.cast(), &mut fault, value) };
    match outcome.failed {
        0 => Ok(()),
        _ => Err(fault),
    }
}
