// SPDX-License-Identifier: GPL-2.0

//! Structs that begin with their own size, so that old and new programs and kernels understand each
//! other.
//!
//! The rules are those of `copy_struct_from_user()` and `copy_struct_to_user()`: a caller that
//! knows less gets zeros for the rest, and a caller that knows more is served as long as all that
//! this kernel does not know is zero.

use super::{
    errno::{
        Errno,
        Result, //
    },
    range::PAGE_SIZE,
};

/// How to read a struct from user space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Copy so many from the start.
    pub copy: usize,
    /// Set so many behind them to zero: together they are the struct as this kernel knows it.
    pub zero: usize,
}

/// How to write a struct back to user space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Copy so many from the start.
    pub copy: usize,
    /// Set so many behind them to zero, in user memory: together they are the struct as the caller
    /// knows it.
    pub zero: usize,
}

/// Decides how to read a struct of which the caller says that it is `user` bytes long.
///
/// `kernel` is its size as this module knows it, and `min` its size when it was first published.
/// `tail_is_zero(from, len)` looks at the part that this module does not know; it is asked at most
/// once, with `from == kernel` and `kernel + len == user`.
///
/// # Errors
///
/// - `EINVAL` when the struct is shorter than it was ever published,
/// - `E2BIG` when it is longer than a page or its unknown part is not zero,
/// - whatever `tail_is_zero` fails with: `EFAULT`.
pub fn read(
    user: usize,
    kernel: usize,
    min: usize,
    tail_is_zero: impl FnOnce(usize, usize) -> Result<bool>,
) -> Result<Read> {
    if user < min {
        return Err(Errno::EINVAL);
    }
    // CAST: The kernel has 64-bit `usize` wherever this module builds; on any other the value fits
    // as well.
    if user > PAGE_SIZE as usize {
        return Err(Errno::E2BIG);
    }
    match user.checked_sub(kernel) {
        None | Some(0) => Ok(Read {
            copy: user,
            zero: kernel.saturating_sub(user),
        }),
        Some(tail) => {
            if !tail_is_zero(kernel, tail)? {
                return Err(Errno::E2BIG);
            }
            Ok(Read {
                copy: kernel,
                zero: 0,
            })
        }
    }
}

/// How to write the same struct back to a caller that says that it is `user` bytes long.
///
/// `user` has passed [`read`]. Nothing beyond it is written.
pub const fn write(user: usize, kernel: usize) -> Write {
    let copy = if user < kernel { user } else { kernel };
    Write {
        copy,
        zero: user.saturating_sub(kernel),
    }
}
