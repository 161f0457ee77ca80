// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accesses to device memory that return when the memory is gone.
//!
//! A touch of a revoked buffer raises `SIGBUS`. Jumping out of a signal handler past Rust frames is
//! not allowed, so that the way back is the one that the kernel has for its own copies from user
//! space: each access is one instruction in a leaf function below, a table lists the addresses of
//! those instructions, and the handler (in `sigbus`) lets a thread that faulted at one of them go on
//! at the end of the function, which then returns the signal's code instead of 0.
//!
//! That is done on x86-64. On other architectures the accesses are volatile ones in Rust, and
//! `SIGBUS` ends the process, as it does for whoever uses the raw pointer.

/// The `si_code` of the signal that an access got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) i32);

/// An integer that is read and written in one access of its own width.
pub(crate) trait Word: Copy + Default {
    /// # Safety
    ///
    /// `at` is aligned, and lies in a mapping that nothing but accesses like this use.
    unsafe fn load(at: *const Self) -> Result<Self, Fault>;
    /// # Safety
    ///
    /// As for `load`, and the mapping can be written to.
    unsafe fn store(at: *mut Self, value: Self) -> Result<(), Fault>;
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod imp {
    use std::arch::global_asm;
    use std::ffi::c_int;

    use super::{Fault, Word};

    // The names carry the version, so that two versions of this crate fit into one program. No
    // function uses the stack, so that the end of one is the end of all.
    global_asm!(
        r#"
        .pushsection .text.barbuf_0_1_guarded, "ax", @progbits
        .balign 16

        # Loads: rdi is the device's address, rsi where the value goes.
        .globl barbuf_0_1_load8
        .hidden barbuf_0_1_load8
        .type barbuf_0_1_load8, @function
        barbuf_0_1_load8:
        20: mov al, byte ptr [rdi]
            mov byte ptr [rsi], al
            xor eax, eax
            ret
        .globl barbuf_0_1_load16
        .hidden barbuf_0_1_load16
        .type barbuf_0_1_load16, @function
        barbuf_0_1_load16:
        21: mov ax, word ptr [rdi]
            mov word ptr [rsi], ax
            xor eax, eax
            ret
        .globl barbuf_0_1_load32
        .hidden barbuf_0_1_load32
        .type barbuf_0_1_load32, @function
        barbuf_0_1_load32:
        22: mov eax, dword ptr [rdi]
            mov dword ptr [rsi], eax
            xor eax, eax
            ret
        .globl barbuf_0_1_load64
        .hidden barbuf_0_1_load64
        .type barbuf_0_1_load64, @function
        barbuf_0_1_load64:
        23: mov rax, qword ptr [rdi]
            mov qword ptr [rsi], rax
            xor eax, eax
            ret

        # Stores: rdi is the device's address, rsi the value.
        .globl barbuf_0_1_store8
        .hidden barbuf_0_1_store8
        .type barbuf_0_1_store8, @function
        barbuf_0_1_store8:
        24: mov byte ptr [rdi], sil
            xor eax, eax
            ret
        .globl barbuf_0_1_store16
        .hidden barbuf_0_1_store16
        .type barbuf_0_1_store16, @function
        barbuf_0_1_store16:
        25: mov word ptr [rdi], si
            xor eax, eax
            ret
        .globl barbuf_0_1_store32
        .hidden barbuf_0_1_store32
        .type barbuf_0_1_store32, @function
        barbuf_0_1_store32:
        26: mov dword ptr [rdi], esi
            xor eax, eax
            ret
        .globl barbuf_0_1_store64
        .hidden barbuf_0_1_store64
        .type barbuf_0_1_store64, @function
        barbuf_0_1_store64:
        27: mov qword ptr [rdi], rsi
            xor eax, eax
            ret

        # Bulk: rdi is the device's address, rsi the host's or the value, rdx counts words of 64
        # bits, at least one. A fault on the host's side is not for this crate to hide.
        .globl barbuf_0_1_copy_from
        .hidden barbuf_0_1_copy_from
        .type barbuf_0_1_copy_from, @function
        barbuf_0_1_copy_from:
        28: mov rax, qword ptr [rdi]
            mov qword ptr [rsi], rax
            add rdi, 8
            add rsi, 8
            dec rdx
            jnz 28b
            xor eax, eax
            ret
        .globl barbuf_0_1_copy_to
        .hidden barbuf_0_1_copy_to
        .type barbuf_0_1_copy_to, @function
        barbuf_0_1_copy_to:
        2:  mov rax, qword ptr [rsi]
        29: mov qword ptr [rdi], rax
            add rdi, 8
            add rsi, 8
            dec rdx
            jnz 2b
            xor eax, eax
            ret
        .globl barbuf_0_1_fill
        .hidden barbuf_0_1_fill
        .type barbuf_0_1_fill, @function
        barbuf_0_1_fill:
        30: mov qword ptr [rdi], rsi
            add rdi, 8
            dec rdx
            jnz 30b
            xor eax, eax
            ret

        # Where the handler sends a thread, with the signal's code in eax.
        .globl barbuf_0_1_faulted
        .hidden barbuf_0_1_faulted
        barbuf_0_1_faulted:
            ret
        .popsection

        # The guarded instructions, each relative to its own entry.
        .pushsection .rodata.barbuf_0_1_guarded, "a", @progbits
        .balign 4
        .globl barbuf_0_1_table
        .hidden barbuf_0_1_table
        barbuf_0_1_table:
        .long 20b - ., 21b - ., 22b - ., 23b - .
        .long 24b - ., 25b - ., 26b - ., 27b - .
        .long 28b - ., 29b - ., 30b - .
        .popsection
        "#
    );

    const GUARDED_INSTRUCTIONS: usize = 11;

    unsafe extern "sysv64" {
        fn barbuf_0_1_load8(device: *const u8, value: *mut u8) -> c_int;
        fn barbuf_0_1_load16(device: *const u16, value: *mut u16) -> c_int;
        fn barbuf_0_1_load32(device: *const u32, value: *mut u32) -> c_int;
        fn barbuf_0_1_load64(device: *const u64, value: *mut u64) -> c_int;
        fn barbuf_0_1_store8(device: *mut u8, value: u8) -> c_int;
        fn barbuf_0_1_store16(device: *mut u16, value: u16) -> c_int;
        fn barbuf_0_1_store32(device: *mut u32, value: u32) -> c_int;
        fn barbuf_0_1_store64(device: *mut u64, value: u64) -> c_int;
        fn barbuf_0_1_copy_from(device: *const u64, host: *mut u8, words: usize) -> c_int;
        fn barbuf_0_1_copy_to(device: *mut u64, host: *const u8, words: usize) -> c_int;
        fn barbuf_0_1_fill(device: *mut u64, value: u64, words: usize) -> c_int;
        static barbuf_0_1_faulted: u8;
        static barbuf_0_1_table: [i32; GUARDED_INSTRUCTIONS];
    }

    fn check(code: c_int) -> Result<(), Fault> {
        match code {
            0 => Ok(()),
            code => Err(Fault(code)),
        }
    }

    macro_rules! word {
        ($($word:ty: $load:ident $store:ident;)*) => {$(
            impl Word for $word {
                #[inline(never)]
                unsafe fn load(at: *const Self) -> Result<Self, Fault> {
                    let mut value = 0;
                    // SAFETY: Promised by the caller; the value is ours.
                    check(unsafe { $load(at, &mut value) }).map(|()| value)
                }

                #[inline(never)]
                unsafe fn store(at: *mut Self, value: Self) -> Result<(), Fault> {
                    // SAFETY: Promised by the caller.
                    check(unsafe { $store(at, value) })
                }
            }
        )*};
    }
    word! {
        u8: barbuf_0_1_load8 barbuf_0_1_store8;
        u16: barbuf_0_1_load16 barbuf_0_1_store16;
        u32: barbuf_0_1_load32 barbuf_0_1_store32;
        u64: barbuf_0_1_load64 barbuf_0_1_store64;
    }

    #[inline(never)]
    pub(crate) unsafe fn copy_from(
        device: *const u64,
        host: *mut u8,
        words: usize,
    ) -> Result<(), Fault> {
        match words {
            0 => Ok(()),
            // SAFETY: Promised by the caller.
            words => check(unsafe { barbuf_0_1_copy_from(device, host, words) }),
        }
    }

    #[inline(never)]
    pub(crate) unsafe fn copy_to(
        device: *mut u64,
        host: *const u8,
        words: usize,
    ) -> Result<(), Fault> {
        match words {
            0 => Ok(()),
            // SAFETY: Promised by the caller.
            words => check(unsafe { barbuf_0_1_copy_to(device, host, words) }),
        }
    }

    #[inline(never)]
    pub(crate) unsafe fn fill(device: *mut u64, value: u64, words: usize) -> Result<(), Fault> {
        match words {
            0 => Ok(()),
            // SAFETY: Promised by the caller.
            words => check(unsafe { barbuf_0_1_fill(device, value, words) }),
        }
    }

    /// Where a thread goes on that has faulted at `instruction`, if that is one of the guarded.
    pub(crate) fn recovery(instruction: usize) -> Option<usize> {
        // SAFETY: The assembly above defines the table, with as many entries as its type says.
        let table = unsafe { &barbuf_0_1_table };
        let guarded = table.iter().any(|entry| {
            (&raw const *entry as usize).wrapping_add_signed(*entry as isize) == instruction
        });
        // Only its address is taken.
        guarded.then_some(&raw const barbuf_0_1_faulted as usize)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_names_carry_the_version() {
            let version = concat!(
                env!("CARGO_PKG_VERSION_MAJOR"),
                "_",
                env!("CARGO_PKG_VERSION_MINOR")
            );
            assert_eq!(version, "0_1", "rename the symbols of this file");
        }

        #[test]
        fn the_table_knows_the_instructions_and_no_others() {
            // The first instruction of each of these is the guarded one.
            let firsts = [
                barbuf_0_1_load8 as *const () as usize,
                barbuf_0_1_load64 as *const () as usize,
                barbuf_0_1_store16 as *const () as usize,
                barbuf_0_1_copy_from as *const () as usize,
                barbuf_0_1_fill as *const () as usize,
            ];
            for first in firsts {
                assert!(recovery(first).is_some());
                assert_eq!(recovery(first + 1), None);
            }
            // That of copy_to is the load from the host's side.
            assert_eq!(recovery(barbuf_0_1_copy_to as *const () as usize), None);
            assert!(recovery(barbuf_0_1_copy_to as *const () as usize + 3).is_some());
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
mod imp {
    use super::{Fault, Word};

    macro_rules! word {
        ($($word:ty)*) => {$(
            impl Word for $word {
                unsafe fn load(at: *const Self) -> Result<Self, Fault> {
                    // SAFETY: Promised by the caller.
                    Ok(unsafe { at.read_volatile() })
                }

                unsafe fn store(at: *mut Self, value: Self) -> Result<(), Fault> {
                    // SAFETY: Promised by the caller.
                    unsafe { at.write_volatile(value) };
                    Ok(())
                }
            }
        )*};
    }
    word!(u8 u16 u32 u64);

    pub(crate) unsafe fn copy_from(
        device: *const u64,
        host: *mut u8,
        words: usize,
    ) -> Result<(), Fault> {
        for word in 0..words {
            // SAFETY: Promised by the caller.
            unsafe {
                let value = device.add(word).read_volatile();
                host.cast::<u64>().add(word).write_unaligned(value);
            }
        }
        Ok(())
    }

    pub(crate) unsafe fn copy_to(
        device: *mut u64,
        host: *const u8,
        words: usize,
    ) -> Result<(), Fault> {
        for word in 0..words {
            // SAFETY: Promised by the caller.
            unsafe {
                let value = host.cast::<u64>().add(word).read_unaligned();
                device.add(word).write_volatile(value);
            }
        }
        Ok(())
    }

    pub(crate) unsafe fn fill(device: *mut u64, value: u64, words: usize) -> Result<(), Fault> {
        for word in 0..words {
            // SAFETY: Promised by the caller.
            unsafe { device.add(word).write_volatile(value) };
        }
        Ok(())
    }
}

/// Copies whole words out of device memory, each by one access.
///
/// # Safety
///
/// `device` is aligned, and valid as for [`Word::load`] for `words` words; `host` is valid for
/// writes of as many bytes.
pub(crate) unsafe fn copy_from(
    device: *const u64,
    host: *mut u8,
    words: usize,
) -> Result<(), Fault> {
    // SAFETY: Promised by the caller.
    unsafe { imp::copy_from(device, host, words) }
}

/// Copies whole words into device memory, each by one access.
///
/// # Safety
///
/// `device` is aligned, and valid as for [`Word::store`] for `words` words; `host` is valid for
/// reads of as many bytes.
pub(crate) unsafe fn copy_to(device: *mut u64, host: *const u8, words: usize) -> Result<(), Fault> {
    // SAFETY: Promised by the caller.
    unsafe { imp::copy_to(device, host, words) }
}

/// Stores a word again and again.
///
/// # Safety
///
/// `device` is aligned, and valid as for [`Word::store`] for `words` words.
pub(crate) unsafe fn fill(device: *mut u64, value: u64, words: usize) -> Result<(), Fault> {
    // SAFETY: Promised by the caller.
    unsafe { imp::fill(device, value, words) }
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
pub(crate) use imp::recovery;
