// SPDX-License-Identifier: MIT OR Apache-2.0

//! `load` and `dump`: bytes between buffers and files, the short way and the long one.

use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use barbuf::{Buffer, Direction, Origin};
use nix::libc;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::kit::MIB;
use crate::kit::command::{Barbuf, barbuf, parse};
use crate::kit::drive::{Aligned, block_device, open_direct, read_into};
use crate::kit::pattern::bytes;
use crate::kit::pci::Provider;
use crate::revoke::udmabuf;
use crate::support::{Ctx, ensure_eq};

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// A file that goes when this is dropped.
struct Scratch(&'static str);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

/// From a drive by O_DIRECT, from a file through host memory, and back; the hash is that of the
/// bytes that the host has.
pub(super) fn files_go_in_and_come_out(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 3 * MIB;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let (npu, before) = (provider.bdf(), provider.node.info()?.regions);
    let disk = block_device(ctx.nvme(1)?)?.display().to_string();
    let mut on_disk = Aligned::new(LEN)?;
    let read = read_into(
        &open_direct(Path::new(&disk))?,
        on_disk.bytes_mut().as_mut_ptr(),
        LEN,
        0,
    );
    ensure_eq!(read, Ok(LEN));
    let (file, out) = (Scratch("/tmp/in"), Scratch("/tmp/out"));
    let content = bytes(7, 0, MIB as usize);
    fs::write(file.0, &content[..MIB as usize - 3])?;

    let with = |options: &[&str], script: &str| {
        let export = barbuf(&["export", npu, "--length", "4M"]).args(options);
        export.args(&["--", "sh", "-c", script])
    };
    let page = &["--backing", "page"][..];

    let wanted = sha256(on_disk.bytes());
    let script = format!(
        "barbuf --json load --method direct --length {LEN} --offset 4K --sha256 {wanted} {disk} && \
         barbuf -q dump --offset 4K --length {LEN} --output {}",
        out.0
    );
    let loaded: Value = parse(&with(page, &script).output()?)?;
    ensure_eq!(loaded["schema"], 1);
    ensure_eq!(
        (&loaded["method"], &loaded["bytes"]),
        (&json!("direct"), &json!(LEN))
    );
    ensure_eq!(
        (&loaded["through_host_memory"], &loaded["page_cache"]),
        (&json!(0), &json!(0))
    );
    ensure_eq!(loaded["sha256"], wanted);
    ensure!(
        fs::read(out.0)? == on_disk.bytes(),
        "the dump has other bytes"
    );

    // No struct pages: `direct` is refused, and `auto` says that it copies.
    let script = format!("barbuf -q load --method direct --length 64K {disk}");
    with(&[], &script).exits(1)?;
    let script = format!("barbuf --json load --offset 1 {}", file.0);
    let output = with(&[], &script).output()?;
    let loaded = parse(&output)?;
    ensure_eq!(
        (&loaded["method"], &loaded["bytes"]),
        (&json!("copy"), &json!(MIB - 3))
    );
    ensure_eq!(loaded["sha256"], sha256(&content[..MIB as usize - 3]));
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(note.contains("no struct pages"), "{note}");

    for (options, script, code) in [
        (
            page,
            format!("barbuf -q load --sha256 {} {}", sha256(b""), file.0),
            8,
        ),
        (page, format!("barbuf -q load --offset 4M {}", file.0), 2),
        (page, format!("barbuf -q load --skip 2M {}", file.0), 2),
        (page, "barbuf -q load /nowhere".into(), 3),
        (&["--read-only"], format!("barbuf -q load {}", file.0), 4),
        (page, format!("barbuf -q dump --output {}", out.0), 7),
        (page, "barbuf --json dump".into(), 2),
        (page, "barbuf dump --offset 4M --length 1".into(), 2),
    ] {
        with(options, &script).exits(code).context(script)?;
    }
    provider.wait_until_free(&before)
}

/// A dma-buf of the kernel's own memory.
fn system_heap(length: u64) -> Result<OwnedFd> {
    /// `struct dma_heap_allocation_data` of linux/dma-heap.h.
    #[repr(C)]
    #[derive(Default)]
    struct Allocation {
        len: u64,
        fd: u32,
        fd_flags: u32,
        heap_flags: u64,
    }
    nix::ioctl_readwrite!(dma_heap_alloc, b'H', 0, Allocation);
    let heap = fs::File::open("/dev/dma_heap/system").context("/dev/dma_heap/system")?;
    let mut data = Allocation {
        len: length,
        fd_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
        ..Allocation::default()
    };
    // SAFETY: The structure lives, and has the ioctl's layout.
    unsafe { dma_heap_alloc(heap.as_raw_fd(), &mut data) }?;
    // SAFETY: A new descriptor, which nobody else closes.
    Ok(unsafe { OwnedFd::from_raw_fd(data.fd.try_into()?) })
}

/// Dma-bufs of other drivers: they are told apart, and filled and read all the same.
pub(super) fn buffers_of_others_are_filled_and_read(_: &Ctx) -> Result<()> {
    let file = Scratch("/tmp/in");
    let content = bytes(9, 0, 4096);
    fs::write(file.0, &content)?;
    for (exporter, fd) in [("udmabuf", udmabuf()?), ("system", system_heap(4096)?)] {
        let buffer = Buffer::import(fd.try_clone()?)?;
        let Origin::Foreign(info) = buffer.origin()? else {
            anyhow::bail!("a buffer of {exporter} is ours")
        };
        ensure_eq!((info.exporter.as_str(), info.size), (exporter, 4096));
        let script = format!(
            "barbuf --json info --fd 0 >/tmp/info && barbuf --json load --fd 0 {}",
            file.0
        );
        let _info = Scratch("/tmp/info");
        let run = |script: &str| -> Result<_> {
            let command = Barbuf::shell(script).stdin(fd.try_clone()?);
            command.output()
        };
        let loaded = parse(&run(&script)?).with_context(|| exporter.to_owned())?;
        ensure_eq!(loaded["sha256"], sha256(&content));
        let told: Value = serde_json::from_slice(&fs::read("/tmp/info")?)?;
        ensure_eq!(
            told["foreign"],
            json!({ "exporter": exporter, "size": 4096, "name": null })
        );
        let map = buffer.map().build()?;
        let access = buffer.cpu_access(Direction::Read)?;
        ensure!(
            map.read_to_vec(0, 4096)? == content,
            "{exporter}: other bytes"
        );
        access.finish()?;
        let dumped = run("barbuf dump --fd 0 --offset 8")?;
        ensure!(
            dumped.status.success() && dumped.stdout == content[8..],
            "{exporter}"
        );
        // What only barbuf's have.
        let refused = run("barbuf -q revoke --fd 0")?;
        ensure!(refused.status.code() == Some(1), "{exporter}: {refused:?}");
    }
    Ok(())
}
