// SPDX-License-Identifier: MIT OR Apache-2.0

//! Bytes from a file into a mapping, the short way and the long one, and what each has cost.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use barbuf::Mapping;
use indicatif::ProgressBar;
use nix::errno::Errno;
use nix::libc;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Exit, Result};

/// What O_DIRECT aligns to on every drive that there is: offset, length and memory.
pub const ALIGNMENT: u64 = 4096;
/// One read(2) of the direct way. The kernel cuts it into what the drive takes.
const DIRECT_STEP: u64 = 8 << 20;
/// Host memory that the long way uses.
const COPY_STEP: usize = 1 << 20;

/// A part of a file, and where it goes to.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub path: &'a Path,
    /// Where in the file to begin.
    pub skip: u64,
    pub length: u64,
    /// Where in the mapping to begin.
    pub at: u64,
}

/// Why the short way is closed.
#[derive(Debug)]
pub enum Refused {
    /// It would not begin.
    Why(String),
    /// It had begun, or the reason closes the long way too.
    Failed(Error),
}

/// Reads with O_DIRECT into the mapping: the drive writes to the device, and no byte passes through
/// host memory.
///
/// # Errors
///
/// See [`Refused`].
pub fn direct(job: &Job<'_>, mapping: &Mapping, bar: &ProgressBar) -> Result<(), Refused> {
    if job.skip % ALIGNMENT != 0 || job.at % ALIGNMENT != 0 {
        return Err(Refused::Why(format!(
            "O_DIRECT needs offsets that are multiples of {ALIGNMENT}"
        )));
    }
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(job.path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Refused::Why("the file system has no O_DIRECT".into()),
            _ => Refused::Failed(Error::io("open", job.path, &error)),
        })?;
    let mut done = 0;
    while done < job.length {
        let left = job.length - done;
        // The last part is rounded up; what lies behind the file's end are zeros of its last block.
        let step = left.min(DIRECT_STEP).next_multiple_of(ALIGNMENT);
        let at = job.at + done;
        if at
            .checked_add(step)
            .is_none_or(|end| end > mapping.len() as u64)
        {
            // No room for the rounding: the end goes the long way.
            let rest = Job {
                skip: job.skip + done,
                length: left,
                at,
                ..*job
            };
            return through_host(&rest, mapping, bar).map_err(Refused::Failed);
        }
        match pread(&file, mapping, at, step, job.skip + done) {
            Ok(0) => {
                return Err(Refused::Failed(shorter(job.path, job.skip + done)));
            }
            Ok(read) => {
                let read = read.min(left);
                if read % ALIGNMENT != 0 && done + read < job.length {
                    return Err(Refused::Failed(shorter(job.path, job.skip + done + read)));
                }
                done += read;
                bar.inc(read);
            }
            Err(Errno::EINTR) => {}
            Err(errno) if done == 0 => return Err(refusal(errno, job.path)),
            Err(errno) => {
                let what = format!("reading {} at byte {done}", job.path.display());
                return Err(Refused::Failed(Error::errno(what, errno)));
            }
        }
    }
    Ok(())
}

fn refusal(errno: Errno, path: &Path) -> Refused {
    match errno {
        Errno::EFAULT => {
            Refused::Why("the buffer has no struct pages, or was revoked (EFAULT)".into())
        }
        Errno::EREMOTEIO => Refused::Why(
            "the drive's driver takes no memory of other devices, or has no way to it (EREMOTEIO)"
                .into(),
        ),
        Errno::EINVAL | Errno::EOPNOTSUPP => Refused::Why(format!(
            "the file system or the drive refuses it ({errno:?})"
        )),
        errno => Refused::Failed(Error::errno(format!("reading {}", path.display()), errno)),
    }
}

fn shorter(path: &Path, at: u64) -> Error {
    Error::new(
        Exit::Data,
        format!("{} ends at byte {at}, earlier than it said", path.display()),
    )
    .hint("somebody writes to it; try again when it is at rest")
}

/// pread(2) into device memory.
fn pread(file: &File, mapping: &Mapping, at: u64, length: u64, from: u64) -> Result<u64, Errno> {
    let (Ok(start), Ok(count)) = (usize::try_from(at), usize::try_from(length)) else {
        return Err(Errno::EINVAL);
    };
    if start
        .checked_add(count)
        .is_none_or(|end| end > mapping.len())
    {
        return Err(Errno::EINVAL);
    }
    let offset = i64::try_from(from).map_err(|_| Errno::EINVAL)?;
    // SAFETY: The bytes lie inside of the mapping, as has just been checked, and that lives longer
    // than the call. They are device memory, of which Rust knows no reference. If the buffer is
    // revoked meanwhile, the kernel answers EFAULT.
    let read = unsafe {
        libc::pread(
            file.as_raw_fd(),
            mapping.as_mut_ptr().add(start).cast(),
            count,
            offset,
        )
    };
    Errno::result(read).map(|read| read as u64)
}

/// Reads into host memory and stores from there.
///
/// # Errors
///
/// The file cannot be read, or the buffer was revoked.
pub fn through_host(job: &Job<'_>, mapping: &Mapping, bar: &ProgressBar) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("read", job.path, &error);
    let file = File::open(job.path).map_err(failed)?;
    let mut memory = vec![0; COPY_STEP];
    let mut done = 0;
    while done < job.length {
        let step = (job.length - done).min(COPY_STEP as u64) as usize;
        let Some(part) = memory.get_mut(..step) else {
            break;
        };
        let read = file.read_at(part, job.skip + done).map_err(failed)?;
        let Some(part) = part.get(..read).filter(|part| !part.is_empty()) else {
            return Err(shorter(job.path, job.skip + done));
        };
        mapping.write_from(place(job.at + done)?, part)?;
        done += read as u64;
        bar.inc(read as u64);
    }
    Ok(())
}

/// Reads the mapping back, and hands each part on.
///
/// # Errors
///
/// The buffer was revoked, or `part` fails.
pub fn read_back(
    mapping: &Mapping,
    at: u64,
    length: u64,
    bar: &ProgressBar,
    mut part: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut memory = vec![0; COPY_STEP];
    let mut done = 0;
    while done < length {
        let step = (length - done).min(COPY_STEP as u64) as usize;
        let Some(bytes) = memory.get_mut(..step) else {
            break;
        };
        mapping.read_into(place(at + done)?, bytes)?;
        part(bytes)?;
        done += step as u64;
        bar.inc(step as u64);
    }
    Ok(())
}

/// SHA-256 of what lies in a mapping now.
///
/// # Errors
///
/// The buffer was revoked.
pub fn sha256(mapping: &Mapping, at: u64, length: u64, bar: &ProgressBar) -> Result<String> {
    let mut hash = Sha256::new();
    read_back(mapping, at, length, bar, |part| {
        hash.update(part);
        Ok(())
    })?;
    Ok(format!("{:x}", hash.finalize()))
}

fn place(offset: u64) -> Result<usize> {
    usize::try_from(offset).map_err(|_| Error::usage("beyond what this machine can address"))
}

/// What the kernel has counted for this process and for one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Bytes that read(2) and its like have returned (`rchar` of /proc/self/io).
    pub read_calls: u64,
    /// Bytes that drives have been asked for (`read_bytes`).
    pub from_drives: u64,
    /// Bytes of the file that are in the page cache.
    pub in_page_cache: u64,
}

impl Counted {
    pub fn now(path: &Path) -> Counted {
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let value = |name: &str| {
            let found = io
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            found.and_then(|text| text.parse().ok()).unwrap_or_default()
        };
        Counted {
            read_calls: value("rchar"),
            from_drives: value("read_bytes"),
            in_page_cache: File::open(path)
                .ok()
                .and_then(|file| cached(&file))
                .unwrap_or_default(),
        }
    }

    /// What has come since, except that the page cache can have shrunk.
    #[must_use]
    pub fn since(self, before: Counted) -> Counted {
        Counted {
            read_calls: self.read_calls.saturating_sub(before.read_calls),
            from_drives: self.from_drives.saturating_sub(before.from_drives),
            in_page_cache: self.in_page_cache.saturating_sub(before.in_page_cache),
        }
    }
}

/// cachestat(2), from Linux 6.5 on: bytes of a file in the page cache.
fn cached(file: &File) -> Option<u64> {
    /// linux/mman.h; the same number on all architectures (asm-generic/unistd.h).
    const SYS_CACHESTAT: libc::c_long = 451;
    // struct cachestat_range: all of the file.
    let range = [0u64; 2];
    // struct cachestat: nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted.
    let mut stat = [0u64; 5];
    // SAFETY: Both arrays have the size and the layout of the kernel's structures, and live.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            stat.as_mut_ptr(),
            0,
        )
    };
    // SAFETY: Only a number is asked for.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    (result == 0).then(|| stat[0].saturating_mul(page))
}

/// The length of a file or a block device.
///
/// # Errors
///
/// It cannot be opened, or has no length.
pub fn length_of(path: &Path) -> Result<u64> {
    use std::io::{Seek as _, SeekFrom};
    let failed = |error: std::io::Error| Error::io("open", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_dir() {
        return Err(Error::usage(format!("{} is a directory", path.display())));
    }
    match file.seek(SeekFrom::End(0)) {
        Ok(length) => Ok(length),
        Err(_) => {
            // Nothing else tells how long a pipe is.
            let _ = file.read(&mut []);
            Err(Error::usage(format!(
                "{} is neither a file nor a block device",
                path.display()
            )))
        }
    }
}
