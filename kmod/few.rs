// SPDX-License-Identifier: GPL-2.0

//! A list that allocates nothing as long as it has no more than one element.
//!
//! Nearly every buffer has one range, and an allocation of its own for each list of one element is
//! a good part of what an export costs.

use core::{
    ops::Deref,
    slice, //
};
use kernel::prelude::*;

/// A list that is read as a slice.
pub(crate) enum Few<T> {
    /// No element.
    None,
    /// One.
    One(T),
    /// Two or more.
    Many(KVec<T>),
}

impl<T> Few<T> {
    /// Adds an element at the end. The memory is charged to the caller's control group.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; the list is as before then.
    pub(crate) fn push(&mut self, element: T) -> Result {
        match self {
            Few::None => *self = Few::One(element),
            Few::One(_) => {
                let mut many = KVec::with_capacity(2, GFP_KERNEL_ACCOUNT)?;
                if let Few::One(first) = core::mem::replace(self, Few::None) {
                    many.push(first, GFP_KERNEL_ACCOUNT)?;
                }
                many.push(element, GFP_KERNEL_ACCOUNT)?;
                *self = Few::Many(many);
            }
            Few::Many(many) => many.push(element, GFP_KERNEL_ACCOUNT)?,
        }
        Ok(())
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Few::None => &[],
            Few::One(element) => slice::from_ref(element),
            Few::Many(many) => many,
        }
    }
}
