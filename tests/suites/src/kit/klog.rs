// SPDX-License-Identifier: MIT OR Apache-2.0

//! The log of the kernel, as `dmesg` has it.

use anyhow::Result;
use nix::errno::Errno;
use nix::libc;

/// The lines that the kernel has logged so far and that contain both texts.
pub(crate) fn logged(one: &str, two: &str) -> Result<usize> {
    let text = kernel_log()?;
    Ok(text
        .lines()
        .filter(|line| line.contains(one) && line.contains(two))
        .count())
}

fn kernel_log() -> Result<String> {
    const SYSLOG_ACTION_READ_ALL: i32 = 3;
    let mut bytes = vec![0u8; 1 << 20];
    // SAFETY: The kernel writes at most that many bytes.
    let count = Errno::result(unsafe {
        libc::klogctl(
            SYSLOG_ACTION_READ_ALL,
            bytes.as_mut_ptr().cast(),
            bytes.len() as i32,
        )
    })?;
    bytes.truncate(count as usize);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
