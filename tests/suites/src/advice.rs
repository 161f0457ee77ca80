// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a process can tell or ask the kernel about its mappings: advice, locks, userfaultfd, /proc.

use crate::kit::prelude::*;
use crate::vmops::each_shape;

pub(crate) const SUITE: Suite = Suite {
    name: "advice",
    tests: &[
        test!(dontneed_is_harmless).timeout(60),
        test!(advice_is_refused_or_harmless).timeout(60),
        test!(mlock_is_harmless).timeout(60),
        test!(userfaultfd_is_refused).timeout(60),
        test!(smaps_and_pagemap_are_harmless).timeout(60),
        test!(without_huge_pages_there_are_no_large_folios),
    ],
};

/// R17: MADV_DONTNEED. Pages come back at the next touch; without struct pages it is refused.
fn dontneed_is_harmless(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let (leaf, len) = (case.leaf, case.map.len());
        let parts = [
            (0, len),
            (leaf, leaf),
            case.cut().unwrap_or((0, PAGE)),
            (len - PAGE, PAGE),
        ];
        for (at, part) in parts {
            let answer = case.map.room.advise(at, part, libc::MADV_DONTNEED);
            match case.backing {
                BARBUF_BACKING_PFN => ensure!(
                    answer == Err(Errno::EINVAL),
                    "{at:#x} + {part:#x}: {answer:?}"
                ),
                _ => ensure!(answer == Ok(()), "{at:#x} + {part:#x}: {answer:?}"),
            }
            case.check_all()?;
        }
        Ok(())
    })
}

/// R17, kernel defect 6: the advice that the kernel's own pfnmap test tries, and MADV_COLLAPSE.
fn advice_is_refused_or_harmless(ctx: &Ctx) -> Result<()> {
    const COLLAPSE: i32 = 25;
    let advice = [
        libc::MADV_DONTNEED,
        libc::MADV_DONTNEED_LOCKED,
        libc::MADV_FREE,
        libc::MADV_WIPEONFORK,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        libc::MADV_POPULATE_READ,
        libc::MADV_POPULATE_WRITE,
        COLLAPSE,
    ];
    each_shape(ctx, |case| {
        let (at, len) = case.cut().unwrap_or((0, PAGE));
        for advice in advice {
            let answer = case.map.room.advise(at, len, advice);
            if case.backing == BARBUF_BACKING_PFN {
                ensure!(answer == Err(Errno::EINVAL), "advice {advice}: {answer:?}");
            }
            case.check_all()
                .with_context(|| format!("after advice {advice}: {answer:?}"))?;
        }
        Ok(())
    })
}

/// R17, kernel defect 6: mlock has nothing to lock here. It succeeds or says ENOMEM; where there are
/// struct pages, 7.3.4 lets an inner errno out, EREMOTEIO.
fn mlock_is_harmless(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let (at, len) = (case.map.at(0), case.leaf as usize);
        // SAFETY: Locking changes no contents.
        let answer = Errno::result(unsafe { libc::mlock(at.cast(), len) });
        ensure!(
            matches!(
                answer,
                Ok(_) | Err(Errno::ENOMEM | Errno::EAGAIN | Errno::EREMOTEIO)
            ),
            "mlock: {answer:?}"
        );
        case.check_all()?;
        // SAFETY: As above.
        let answer = Errno::result(unsafe { libc::munlock(at.cast(), len) });
        ensure!(
            matches!(answer, Ok(_) | Err(Errno::ENOMEM)),
            "munlock: {answer:?}"
        );
        case.check_all()
    })
}

/// R17: userfaultfd cannot take these faults over.
fn userfaultfd_is_refused(ctx: &Ctx) -> Result<()> {
    #[repr(C)]
    struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    #[repr(C)]
    struct Register {
        start: u64,
        len: u64,
        mode: u64,
        ioctls: u64,
    }
    nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);
    const API: u64 = 0xaa;
    const MODES: [u64; 3] = [1, 2, 4];
    // SAFETY: A new descriptor, which nobody else closes.
    let uffd = unsafe {
        use std::os::fd::FromRawFd as _;
        let fd = Errno::result(libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC))?;
        std::os::fd::OwnedFd::from_raw_fd(fd as i32)
    };
    let number = std::os::fd::AsRawFd::as_raw_fd(&uffd);
    let mut api = Api {
        api: API,
        features: 0,
        ioctls: 0,
    };
    // SAFETY: The structure lives.
    unsafe { uffdio_api(number, &mut api) }?;
    each_shape(ctx, |case| {
        for mode in MODES {
            let mut wanted = Register {
                start: case.map.at(0) as u64,
                len: case.leaf,
                mode,
                ioctls: 0,
            };
            // SAFETY: The structure lives, and registering changes no contents.
            let answer = unsafe { uffdio_register(number, &mut wanted) };
            ensure!(answer == Err(Errno::EINVAL), "mode {mode}: {answer:?}");
        }
        case.check_all()
    })
}

/// Kernel defect 5: reading what /proc tells of a mapping leaves it as it was, also while leaves
/// are split for it.
fn smaps_and_pagemap_are_harmless(ctx: &Ctx) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    each_shape(ctx, |case| {
        for file in ["smaps", "smaps_rollup", "maps"] {
            let text = std::fs::read_to_string(format!("/proc/self/{file}"))?;
            ensure!(!text.is_empty());
            case.check_all().with_context(|| format!("after {file}"))?;
        }
        if let Ok(text) = std::fs::read_to_string("/proc/self/numa_maps") {
            ensure!(!text.is_empty());
            case.check_all().context("after numa_maps")?;
        }
        let pagemap = std::fs::File::open("/proc/self/pagemap")?;
        for at in case.spots() {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, case.map.at(at) as u64 / PAGE * 8)?;
        }
        case.check_all().context("after pagemap")
    })
}

/// A process that has huge pages switched off hears so when it maps, and not by SIGBUS at the first touch. What needs
/// none works: folios of 4 KiB, and frames, which fall back.
fn without_huge_pages_there_are_no_large_folios(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let page = |shift| Export::at(0, GIB).page().leaf(shift);
    // SAFETY: Of this process alone, which ends with the test.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) })?;
    let cases = [
        (page(0), Err(Errno::EINVAL)),
        (page(BARBUF_PAGE_SHIFT_2M), Err(Errno::EINVAL)),
        (page(BARBUF_PAGE_SHIFT_4K), Ok(())),
        (Export::at(0, GIB), Ok(())),
    ];
    for (export, wanted) in cases {
        let buffer = provider.node.export(&export)?;
        let map = Mapping::new(&buffer, Window::new(0, GIB), READ_WRITE, Place::Congruent);
        if let Ok(map) = &map {
            ensure_eq!(map.store(0, 42), Ok(()));
            ensure_eq!(map.load(0), Ok(42));
        }
        let answer = map.map(drop);
        ensure!(answer == wanted, "{export:?}: {answer:?}");
    }
    Ok(())
}
