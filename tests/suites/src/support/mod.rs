// SPDX-License-Identifier: MIT OR Apache-2.0

//! What makes a function a test: the table that lists it, and the context that it is given.
//!
//! A test is `fn(&Ctx) -> anyhow::Result<()>`. An error fails it, [`Ctx::skip`] skips it. Whatever
//! it changes about the machine it changes through a guard that puts it back, or the oracles that
//! run after it blame it. The tools to write it with are in `kit`.

mod bars;
mod ctx;
mod table;

pub(crate) use bars::{Bar, bars_of};
pub(crate) use ctx::{Ctx, Skipped, hash};
pub(crate) use table::{Suite, Test, list, run, test};

/// Fails the test unless both are equal, and shows both.
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => anyhow::ensure!(
                *left == *right,
                "{} at {}:{}\n  is        {left:?}\n  should be {right:?}",
                stringify!($left),
                file!(),
                line!(),
            ),
        }
    };
}
pub(crate) use ensure_eq;
