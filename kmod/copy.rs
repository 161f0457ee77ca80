// SPDX-License-Identifier: GPL-2.0

//! Structs to and from user space, after the rules of `pure/size_first.rs`.

use crate::{
    pure::size_first,
    uapi::Struct, //
};
use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// Turns an errno of `pure` into the kernel's.
pub(crate) fn errno(errno: crate::pure::errno::Errno) -> Error {
    Error::from_errno(errno.number().wrapping_neg())
}

fn slice(at: usize, len: usize) -> UserSlice {
    UserSlice::new(UserPtr::from_addr(at), len)
}

/// A struct that came from user space, and the way back.
pub(crate) struct Argument<T> {
    /// As the caller filled it in; zero where the caller's is shorter.
    pub(crate) value: T,
    at: usize,
    user_len: usize,
}

impl<T: Struct> Argument<T> {
    /// Reads the struct at user address `at`.
    ///
    /// # Errors
    ///
    /// `EFAULT`; `EINVAL` and `E2BIG` as in the uapi header.
    pub(crate) fn read(at: usize) -> Result<Self> {
        // Nearly every caller's struct is as long as ours, and comes in one piece.
        let mut value = T::new_zeroed();
        let whole = slice(at, size_of::<T>())
            .reader()
            .read_slice(value.as_mut_bytes());
        let size = value.as_mut_bytes().first_chunk().copied();
        if whole.is_ok() && size.map(u32::from_ne_bytes) == u32::try_from(size_of::<T>()).ok() {
            return Ok(Self {
                value,
                at,
                user_len: size_of::<T>(),
            });
        }

        let mut size = [0u8; 4];
        slice(at, size.len()).reader().read_slice(&mut size)?;
        let user_len = u32::from_ne_bytes(size) as usize;

        let plan = size_first::read(user_len, size_of::<T>(), T::MIN, |from, len| {
            let start = at
                .checked_add(from)
                .ok_or(crate::pure::errno::Errno::EFAULT)?;
            is_zero(start, len).map_err(|_| crate::pure::errno::Errno::EFAULT)
        })
        .map_err(errno)?;

        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes().get_mut(..plan.copy).ok_or(EINVAL)?;
        slice(at, plan.copy).reader().read_slice(bytes)?;
        Ok(Self {
            value,
            at,
            user_len,
        })
    }

    /// Writes the struct back, as long as the caller's is.
    ///
    /// # Errors
    ///
    /// `EFAULT`
    pub(crate) fn write(mut self) -> Result {
        let plan = size_first::write(self.user_len, size_of::<T>());
        let bytes = self.value.as_mut_bytes().get(..plan.copy).ok_or(EINVAL)?;
        slice(self.at, plan.copy).writer().write_slice(bytes)?;
        let tail = self.at.checked_add(plan.copy).ok_or(EFAULT)?;
        fill_zero(tail, plan.zero)
    }
}

fn is_zero(at: usize, len: usize) -> Result<bool> {
    let mut reader = slice(at, len).reader();
    let mut chunk = [0u8; 64];
    while !reader.is_empty() {
        let step = reader.len().min(chunk.len());
        let part = chunk.get_mut(..step).ok_or(EINVAL)?;
        reader.read_slice(part)?;
        if part.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fill_zero(at: usize, len: usize) -> Result {
    let zero = [0u8; 64];
    let mut writer = slice(at, len).writer();
    while !writer.is_empty() {
        let step = writer.len().min(zero.len());
        writer.write_slice(zero.get(..step).ok_or(EINVAL)?)?;
    }
    Ok(())
}

/// An array of user space: `count` elements of `stride` bytes each.
pub(crate) struct UserArray {
    at: usize,
    stride: usize,
    count: usize,
}

impl UserArray {
    /// An array at `at`, whose elements are `stride` bytes apart.
    ///
    /// # Errors
    ///
    /// `EFAULT` when it does not fit into the address space.
    pub(crate) fn new(at: u64, stride: usize, count: u32) -> Result<Self> {
        let at = usize::try_from(at).map_err(|_| EFAULT)?;
        let count = count as usize;
        stride
            .checked_mul(count)
            .and_then(|len| at.checked_add(len))
            .ok_or(EFAULT)?;
        Ok(Self { at, stride, count })
    }

    fn element(&self, index: usize) -> Result<usize> {
        self.stride
            .checked_mul(index)
            .and_then(|offset| self.at.checked_add(offset))
            .ok_or(EFAULT)
    }

    /// Reads element `index`.
    ///
    /// # Errors
    ///
    /// `EFAULT`
    pub(crate) fn read<T: FromBytes + IntoBytes>(&self, index: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        slice(self.element(index)?, size_of::<T>())
            .reader()
            .read_slice(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes element `index`, if the array is that long: a caller with less room gets less.
    ///
    /// # Errors
    ///
    /// `EFAULT`
    pub(crate) fn write<T: FromBytes + IntoBytes>(&self, index: usize, mut value: T) -> Result {
        if index >= self.count {
            return Ok(());
        }
        let at = self.element(index)?;
        let plan = size_first::write(self.stride, size_of::<T>());
        let bytes = value.as_mut_bytes().get(..plan.copy).ok_or(EINVAL)?;
        slice(at, plan.copy).writer().write_slice(bytes)?;
        fill_zero(at.checked_add(plan.copy).ok_or(EFAULT)?, plan.zero)
    }
}
