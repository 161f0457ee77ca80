// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf load` and `barbuf dump`: a buffer's bytes from and to files.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use barbuf::{Access, Backing, Buffer, Direction, Mapping, Origin};
use serde_json::json;

use crate::buffer;
use crate::cli::{DumpArgs, LoadArgs, Method};
use crate::copy::{self, Counted, Job, Refused};
use crate::error::{Error, Exit, Result};
use crate::out::Out;
use crate::size;

/// # Errors
///
/// The file cannot be read, does not fit, or is not what `--sha256` says; the buffer is read-only,
/// or was revoked.
pub fn run(args: &LoadArgs, out: &Out) -> Result<u8> {
    let target = buffer::meant(&args.buffer)?;
    load(args, &target, out)
}

fn load(args: &LoadArgs, target: &Buffer, out: &Out) -> Result<u8> {
    let whole = copy::length_of(&args.file)?;
    let length = args.length.unwrap_or(whole.saturating_sub(args.skip));
    if args.skip.checked_add(length).is_none_or(|end| end > whole) {
        return Err(Error::usage(format!(
            "{} has {whole} bytes, fewer than --skip and --length ask for",
            args.file.display()
        )));
    }
    let room = target.size()?;
    if args.offset.checked_add(length).is_none_or(|end| end > room) {
        return Err(Error::usage(format!(
            "{length} bytes do not fit at byte {} of a buffer of {room}",
            args.offset
        ))
        .hint("export a larger buffer, or load less with --length"));
    }
    if let Some(sha256) = &args.sha256 {
        if sha256.len() != 64 || !sha256.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(Error::usage(format!(
                "{sha256:?} is no SHA-256: 64 hexadecimal digits"
            )));
        }
    }
    let job = Job {
        path: &args.file,
        skip: args.skip,
        length,
        at: args.offset,
    };
    let mapping = target.map().access(Access::ReadWrite).build()?;
    let before = Counted::now(&args.file);
    let began = Instant::now();
    let bar = out.progress("load", length);
    let method = fill(args.method, &job, target, &mapping, &bar, out)?;
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    let counted = Counted::now(&args.file).since(before);
    let sha256 = if args.no_hash {
        None
    } else {
        let bar = out.progress("read back", length);
        let hash = copy::sha256(&mapping, args.offset, length, &bar)?;
        bar.finish_and_clear();
        Some(hash)
    };
    if let (Some(wanted), Some(found)) = (&args.sha256, &sha256) {
        if !wanted.eq_ignore_ascii_case(found) {
            return Err(Error::new(
                Exit::Data,
                format!("the buffer's SHA-256 is {found}, not {wanted}"),
            )
            .hint("is it the right file? load it again"));
        }
    }
    let word = match method {
        Method::Copy => "through host memory",
        _ => "from the drive into the buffer",
    };
    out.done(
        json!({
            "file": args.file,
            "bytes": length,
            "offset": args.offset,
            "method": method,
            "through_host_memory": if method == Method::Copy { length } else { 0 },
            "page_cache": counted.in_page_cache,
            "read_from_drives": counted.from_drives,
            "seconds": seconds,
            "sha256": sha256,
        }),
        || {
            format!(
                "{} loaded {word} in {seconds:.2} s, {} of it in the page cache{}",
                size::show(length),
                size::show(counted.in_page_cache),
                sha256.map_or(String::new(), |hash| format!("\nsha256 {hash}"))
            )
        },
    );
    Ok(Exit::Ok as u8)
}

/// Fills the buffer by the method asked for, and tells which it was.
fn fill(
    method: Method,
    job: &Job<'_>,
    target: &Buffer,
    mapping: &Mapping,
    bar: &indicatif::ProgressBar,
    out: &Out,
) -> Result<Method> {
    if method != Method::Copy {
        let refused = match has_pages(target)? {
            true => match copy::direct(job, mapping, bar) {
                Ok(()) => return Ok(Method::Direct),
                Err(Refused::Failed(error)) => return Err(error),
                Err(Refused::Why(why)) => why,
            },
            false => "the buffer has no struct pages".into(),
        };
        if method == Method::Direct {
            return Err(Error::failed(format!("no direct way: {refused}"))
                .hint("export it with --backing page; --method auto copies through host memory"));
        }
        out.note(format!(
            "note: {refused}; copying through host memory (export with --backing page to avoid that)"
        ));
    }
    let access = target.cpu_access(Direction::Write);
    copy::through_host(job, mapping, bar)?;
    match access {
        // The end of the access drains what is still on its way.
        Ok(access) => access.finish()?,
        Err(error) if is_no_dma_buf(&error) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Method::Copy)
}

/// Memory that is no dma-buf, in tests, has nothing to drain.
fn is_no_dma_buf(error: &barbuf::Error) -> bool {
    error.errno() == Some(nix::libc::ENOTTY)
}

fn has_pages(target: &Buffer) -> Result<bool> {
    Ok(match target.origin()? {
        Origin::Barbuf(query) => query.backing == Backing::Page,
        // Others, such as udmabuf, have them or not; trying tells.
        _ => true,
    })
}

/// # Errors
///
/// The file exists already or cannot be written, or the buffer was revoked.
pub fn dump(args: &DumpArgs, out: &Out) -> Result<u8> {
    let source = buffer::meant(&args.buffer)?;
    let to_stdout = args.output == Path::new("-");
    if to_stdout && out.is_json() {
        return Err(
            Error::usage("--json and the bytes cannot both go to standard output")
                .hint("name a file with --output"),
        );
    }
    let room = source.size()?;
    let length = args.length.unwrap_or(room.saturating_sub(args.offset));
    if args.offset.checked_add(length).is_none_or(|end| end > room) {
        return Err(Error::usage(format!(
            "{length} bytes from byte {} are beyond the end of a buffer of {room}",
            args.offset
        )));
    }
    let mapping = source.map().access(Access::ReadOnly).build()?;
    let access = source.cpu_access(Direction::Read);
    let bar = out.progress("dump", length);
    let failed = |error: io::Error| Error::io("write", &args.output, &error);
    let mut to: Box<dyn Write> = if to_stdout {
        Box::new(io::stdout().lock())
    } else {
        Box::new(File::create_new(&args.output).map_err(failed)?)
    };
    copy::read_back(&mapping, args.offset, length, &bar, |part| {
        to.write_all(part).map_err(failed)
    })?;
    to.flush().map_err(failed)?;
    bar.finish_and_clear();
    match access {
        Ok(access) => access.finish()?,
        Err(error) if is_no_dma_buf(&error) => {}
        Err(error) => return Err(error.into()),
    }
    if !to_stdout {
        out.done(
            json!({ "file": args.output, "bytes": length, "offset": args.offset }),
            || {
                format!(
                    "{} written to {}",
                    size::show(length),
                    args.output.display()
                )
            },
        );
    }
    Ok(Exit::Ok as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{BufferArgs, Global};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn memory(bytes: i64) -> Buffer {
        let file = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, bytes).unwrap();
        Buffer::from(file)
    }

    fn args(file: &Path) -> LoadArgs {
        LoadArgs {
            file: file.to_owned(),
            buffer: BufferArgs {
                fd: None,
                from: None,
            },
            offset: 0,
            skip: 0,
            length: None,
            method: Method::Copy,
            no_hash: false,
            sha256: None,
        }
    }

    fn out() -> Out {
        Out::new(&Global {
            json: false,
            quiet: true,
            verbose: 0,
            root: "/".into(),
        })
    }

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_part_of_a_file_goes_where_it_should() {
        let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n * 7 % 251) as u8).collect();
        let file = file_of(&bytes);
        let target = memory(4 << 20);
        let args = LoadArgs {
            offset: 11,
            skip: 5,
            length: Some(2_500_000),
            ..args(file.path())
        };
        assert_eq!(load(&args, &target, &out()).unwrap(), 0);
        let mapping = target.map().build().unwrap();
        assert_eq!(
            mapping.read_to_vec(11, 2_500_000).unwrap(),
            bytes[5..2_500_005]
        );
        assert_eq!(mapping.read_u8(10).unwrap(), 0);
        assert_eq!(mapping.read_u8(2_500_011).unwrap(), 0);
    }

    #[test]
    fn what_does_not_fit_or_is_something_else_is_refused() {
        let file = file_of(&[1; 5000]);
        let target = memory(4096);
        let code = |args: LoadArgs, target: &Buffer| load(&args, target, &out()).unwrap_err().exit;
        assert_eq!(code(args(file.path()), &target), Exit::Usage);
        let longer = LoadArgs {
            length: Some(5001),
            ..args(file.path())
        };
        assert_eq!(code(longer, &memory(8192)), Exit::Usage);
        let wrong = LoadArgs {
            sha256: Some("0".repeat(64)),
            ..args(file.path())
        };
        assert_eq!(code(wrong, &memory(8192)), Exit::Data);
        let garbage = LoadArgs {
            sha256: Some("xyz".into()),
            ..args(file.path())
        };
        assert_eq!(code(garbage, &memory(8192)), Exit::Usage);
        assert_eq!(code(args(Path::new("/nowhere")), &target), Exit::NotFound);
        assert_eq!(code(args(Path::new("/")), &target), Exit::Usage);
    }

    #[test]
    fn the_right_hash_is_accepted_in_either_case() {
        let file = file_of(b"abc");
        let sha = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        let args = LoadArgs {
            sha256: Some(sha.into()),
            ..args(file.path())
        };
        assert_eq!(load(&args, &memory(4096), &out()).unwrap(), 0);
    }

    #[test]
    fn the_direct_way_reads_the_same_bytes() {
        let bytes: Vec<u8> = (0..20_000_123u32).map(|n| (n % 253) as u8).collect();
        // Not on tmpfs, which has no O_DIRECT on older kernels.
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&bytes).unwrap();
        file.as_file().sync_all().unwrap();
        for room in [20_000_123i64.next_multiple_of_4k(), 32 << 20] {
            let target = memory(room);
            let mapping = target.map().build().unwrap();
            let job = Job {
                path: file.path(),
                skip: 0,
                length: bytes.len() as u64,
                at: 0,
            };
            match copy::direct(&job, &mapping, &indicatif::ProgressBar::hidden()) {
                Ok(()) => assert!(mapping.read_to_vec(0, bytes.len()).unwrap() == bytes),
                Err(Refused::Why(why)) => println!("not tried: {why}"),
                Err(Refused::Failed(error)) => panic!("{error}"),
            }
        }
    }

    trait Round {
        fn next_multiple_of_4k(self) -> i64;
    }

    impl Round for i64 {
        fn next_multiple_of_4k(self) -> i64 {
            (self + 4095) & !4095
        }
    }
}
