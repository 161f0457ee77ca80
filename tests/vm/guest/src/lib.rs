// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the three programs around a guest share: the runner on the host, `/init`, and the tests.

pub mod figure;
pub mod modules;
pub mod place;
pub mod protocol;
pub mod sysfs;
