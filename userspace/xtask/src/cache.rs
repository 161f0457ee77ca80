// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files that outlive a run: locks, finished steps, damage.
