// SPDX-License-Identifier: MIT OR Apache-2.0

//! The raw functions without a module: the request reaches the kernel, and errors come back as they
//! are.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd as _;

use barbuf_sys::ioctl::{self, BARBUF_EXPORT, REQUESTS};
use barbuf_sys::{
    barbuf_adopt, barbuf_export, barbuf_info, barbuf_query, barbuf_revoke, barbuf_route,
    BARBUF_IOC_MAGIC,
};

#[test]
fn a_file_of_another_kind_answers_enotty() {
    let file = File::open("/dev/null").unwrap();
    let fd = file.as_raw_fd();
    let errno = |result| {
        assert_eq!(result, -1);
        Error::last_os_error().raw_os_error()
    };
    // SAFETY: All pointers are to live structures with the right size and no arrays.
    unsafe {
        assert_eq!(
            errno(ioctl::info(fd, &mut barbuf_info::new())),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            errno(ioctl::export(fd, &mut barbuf_export::new())),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            errno(ioctl::query(fd, &mut barbuf_query::new())),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            errno(ioctl::revoke(fd, &mut barbuf_revoke::new())),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            errno(ioctl::route(fd, &mut barbuf_route::new())),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            errno(ioctl::adopt(fd, &mut barbuf_adopt::new())),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            errno(ioctl::release(-1, &mut barbuf_adopt::new())),
            Some(libc::EBADF)
        );
    }
}

#[test]
fn numbers_carry_no_size_and_no_direction() {
    for (name, number) in REQUESTS {
        assert_eq!(number >> 16, 0, "{name}");
        assert_eq!((number >> 8) & 0xff, u32::from(BARBUF_IOC_MAGIC), "{name}");
    }
    assert_eq!(BARBUF_EXPORT, 0xbb01);
}
