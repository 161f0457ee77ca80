// SPDX-License-Identifier: MIT OR Apache-2.0

//! Importers that the kernel ships: vgem, which attaches and never maps, and vivid, which fills a buffer with the CPU.

use crate::kit::node::name;
use crate::kit::pattern;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;

use barbuf_guest::modules;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::Path;

pub(crate) const SUITE: Suite = Suite {
    name: "inbox",
    tests: &[
        test!(vgem_is_let_in_by_consent).kernels(STOCK),
        test!(vivid_fills_a_buffer).kernels(STOCK).timeout(60),
    ],
};

/// Where those drivers are.
const STOCK: &[&str] = &["stock"];

/// A module and its device node, until this is dropped.
struct Loaded {
    module: &'static str,
    file: File,
}

impl Loaded {
    fn new(ctx: &Ctx, module: &'static str, parameters: &str, node: &str) -> Result<Loaded> {
        ctx.modules().load(module, parameters)?;
        let there = wait_until(node, || Path::new(node).exists());
        let file = there.and_then(|()| {
            let file = OpenOptions::new().read(true).write(true).open(node);
            file.with_context(|| format!("cannot open {node}"))
        });
        match file {
            Ok(file) => Ok(Loaded { module, file }),
            Err(error) => {
                modules::unload(module)?;
                Err(error)
            }
        }
    }

    /// # Safety
    ///
    /// The argument is what the request takes.
    unsafe fn call<T>(&self, request: u64, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: Promised by the caller.
        let answer = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                request as _,
                std::ptr::from_mut(argument),
            )
        };
        Errno::result(answer).map(drop)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Ok(null) = File::open("/dev/null") {
            self.file = null;
        }
        let module = self.module;
        let gone = wait_until("unloading a driver", || modules::unload(module).is_ok());
        if let Err(error) = gone {
            eprintln!("{module}: {error:#}");
        }
    }
}

/// `_IOC` of `asm-generic/ioctl.h`, both ways or to the kernel only.
const fn number(both: bool, kind: u8, number: u64, size: usize) -> u64 {
    let direction = if both { 3 } else { 1 };
    (direction << 30) | ((size as u64) << 16) | ((kind as u64) << 8) | number
}

/// `struct drm_prime_handle`, and `struct drm_gem_close` in its first two members.
#[repr(C)]
struct Prime {
    handle: u32,
    flags: u32,
    fd: i32,
}

const PRIME_FD_TO_HANDLE: u64 = number(true, b'd', 0x2e, size_of::<Prime>());
const GEM_CLOSE: u64 = number(false, b'd', 0x09, 8);

/// R35: vgem attaches in the way of drivers that know no revocation. Without consent the import is refused, and nothing
/// is left of it; with consent it works, and QUERY tells of it.
fn vgem_is_let_in_by_consent(ctx: &Ctx) -> Result<()> {
    let vgem = Loaded::new(ctx, "vgem", "", "/dev/dri/renderD128")?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let import = |buffer: &Buffer| -> Result<u32, Errno> {
        let mut prime = Prime {
            handle: 0,
            flags: 0,
            fd: buffer.number(),
        };
        // SAFETY: The argument is the request's.
        unsafe { vgem.call(PRIME_FD_TO_HANDLE, &mut prime) }?;
        Ok(prime.handle)
    };
    let strict = provider.node.export(&Export::any(MIB))?;
    ensure_eq!(import(&strict), Err(Errno::EOPNOTSUPP));
    ensure_eq!(provider.node.attachments(&strict)?, (0, vec![]));

    let consents = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let lenient = provider.node.export(&consents)?;
    let handle = import(&lenient)?;
    let (count, list) = provider.node.attachments(&lenient)?;
    ensure!(
        count == 1
            && name(&list[0].name) == "vgem"
            && list[0].flags == 0
            && list[0].route == BARBUF_ROUTE_NONE,
        "{count}: {list:?}"
    );
    let flags = provider.node.query(&lenient)?.raw.out_flags;
    ensure_eq!(flags, BARBUF_QUERY_HELD);
    let mut close = [handle, 0];
    // SAFETY: The argument is the request's.
    unsafe { vgem.call(GEM_CLOSE, &mut close) }?;
    ensure_eq!(provider.node.attachments(&lenient)?, (0, vec![]));
    provider.node.revoke(&lenient)?;
    Ok(())
}

/// The parts of `linux/videodev2.h` that one captured frame needs, with 64-bit layouts.
mod v4l2 {
    pub(super) const CAPTURE: u32 = 1;
    pub(super) const MMAP: u32 = 1;
    pub(super) const DMABUF: u32 = 4;
    pub(super) const RGB3: u32 = u32::from_le_bytes(*b"RGB3");

    #[repr(C, align(8))]
    #[derive(Clone, Copy)]
    pub(super) struct Format {
        pub(super) kind: u32,
        pub(super) pad: u32,
        pub(super) width: u32,
        pub(super) height: u32,
        pub(super) pixelformat: u32,
        pub(super) field: u32,
        pub(super) bytesperline: u32,
        pub(super) sizeimage: u32,
        pub(super) rest: [u32; 44],
    }

    #[repr(C)]
    pub(super) struct Request {
        pub(super) count: u32,
        pub(super) kind: u32,
        pub(super) memory: u32,
        pub(super) rest: [u32; 2],
    }

    #[repr(C, align(8))]
    #[derive(Clone, Copy, Default)]
    pub(super) struct Buffer {
        pub(super) index: u32,
        pub(super) kind: u32,
        pub(super) bytesused: u32,
        pub(super) flags: u32,
        pub(super) field: u32,
        pub(super) pad: u32,
        pub(super) times: [u64; 4],
        pub(super) sequence: u32,
        pub(super) memory: u32,
        /// The descriptor or the offset.
        pub(super) place: u64,
        pub(super) length: u32,
        pub(super) rest: [u32; 3],
    }

    use super::number;
    pub(super) const S_FMT: u64 = number(true, b'V', 5, size_of::<Format>());
    pub(super) const REQBUFS: u64 = number(true, b'V', 8, size_of::<Request>());
    pub(super) const QUERYBUF: u64 = number(true, b'V', 9, size_of::<Buffer>());
    pub(super) const QBUF: u64 = number(true, b'V', 15, size_of::<Buffer>());
    pub(super) const DQBUF: u64 = number(true, b'V', 17, size_of::<Buffer>());
    pub(super) const STREAMON: u64 = number(false, b'V', 18, 4);
    pub(super) const STREAMOFF: u64 = number(false, b'V', 19, 4);
}

/// Captures a frame into the first of two buffers: vivid does not start with fewer.
fn capture(camera: &Loaded, buffers: [v4l2::Buffer; 2]) -> Result<u32> {
    let mut kind = v4l2::CAPTURE;
    let mut done = buffers[0];
    // SAFETY: The arguments are the requests'.
    unsafe {
        for (index, mut buffer) in buffers.into_iter().enumerate() {
            buffer.index = index as u32;
            camera
                .call(v4l2::QBUF, &mut buffer)
                .context("VIDIOC_QBUF")?;
        }
        camera
            .call(v4l2::STREAMON, &mut kind)
            .context("VIDIOC_STREAMON")?;
        camera
            .call(v4l2::DQBUF, &mut done)
            .context("VIDIOC_DQBUF")?;
        camera
            .call(v4l2::STREAMOFF, &mut kind)
            .context("VIDIOC_STREAMOFF")?;
    }
    ensure_eq!(done.index, 0);
    Ok(done.bytesused)
}

fn request_buffers(camera: &Loaded, count: u32, memory: u32) -> Result<()> {
    let mut request = v4l2::Request {
        count,
        kind: v4l2::CAPTURE,
        memory,
        rest: [0; 2],
    };
    // SAFETY: The argument is the request's.
    unsafe { camera.call(v4l2::REQBUFS, &mut request) }.context("VIDIOC_REQBUFS")?;
    ensure_eq!(request.count, count);
    Ok(())
}

/// vivid with videobuf2's vmalloc flavour uses the buffer through `vmap()` and writes its test picture with plain stores.
/// It is the same picture as in vivid's own memory, apart from the clock that it paints into the upper part; it ends
/// where it should; and without consent the buffer is refused.
fn vivid_fills_a_buffer(ctx: &Ctx) -> Result<()> {
    let parameters =
        "n_devs=1 node_types=0x1 allocators=0 num_inputs=1 input_types=0 no_error_inj=1";
    let camera = Loaded::new(ctx, "vivid", parameters, "/dev/video0")?;
    let mut format = v4l2::Format {
        kind: v4l2::CAPTURE,
        pad: 0,
        width: 320,
        height: 180,
        pixelformat: v4l2::RGB3,
        field: 1,
        bytesperline: 0,
        sizeimage: 0,
        rest: [0; 44],
    };
    // SAFETY: The argument is the request's.
    unsafe { camera.call(v4l2::S_FMT, &mut format) }.context("VIDIOC_S_FMT")?;
    let size = u64::from(format.sizeimage);
    let line = format.bytesperline as usize;
    ensure!(
        format.pixelformat == v4l2::RGB3 && size >= 3 * 320 * 180,
        "vivid offers {} bytes",
        size
    );

    // What it paints into memory of its own.
    request_buffers(&camera, 2, v4l2::MMAP)?;
    let mut own = v4l2::Buffer {
        kind: v4l2::CAPTURE,
        memory: v4l2::MMAP,
        ..v4l2::Buffer::default()
    };
    // SAFETY: The argument is the request's.
    unsafe { camera.call(v4l2::QUERYBUF, &mut own) }.context("VIDIOC_QUERYBUF")?;
    // SAFETY: A new mapping at an address that the kernel chooses.
    let picture = unsafe {
        crate::kit::map::mmap(
            0,
            u64::from(own.length),
            READ,
            libc::MAP_SHARED,
            &camera.file,
            own.place,
        )
    }?;
    capture(&camera, [own, own])?;
    // SAFETY: vivid has stopped, and the mapping has that many bytes.
    let wanted = unsafe { std::slice::from_raw_parts(picture, size as usize) }.to_vec();
    // SAFETY: Mapped above, and nothing points into it.
    unsafe { libc::munmap(picture.cast(), own.length as usize) };
    request_buffers(&camera, 0, v4l2::MMAP)?;

    let provider = Provider::bind(ctx.npu(0)?)?;
    let room = size.next_multiple_of(PAGE) + PAGE;
    request_buffers(&camera, 2, v4l2::DMABUF)?;
    let queue = |buffer: &Buffer| v4l2::Buffer {
        kind: v4l2::CAPTURE,
        memory: v4l2::DMABUF,
        place: buffer.number() as u64,
        length: room as u32,
        ..v4l2::Buffer::default()
    };
    let strict = provider.node.export(&Export::any(room))?;
    let mut refused = queue(&strict);
    // SAFETY: The argument is the request's.
    let answer = unsafe { camera.call(v4l2::QBUF, &mut refused) };
    // vivid's framework keeps our EOPNOTSUPP to itself.
    ensure_eq!(answer, Err(Errno::EFAULT));

    let consents = Export::any(room).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let lenient = provider.node.export(&consents)?;
    let spare = provider.node.export(&consents)?;
    let map = Mapping::whole(&lenient)?;
    fill(&map, 0, room, 35)?;
    let used = capture(&camera, [queue(&lenient), queue(&spare)])?;
    ensure_eq!(u64::from(used), size);
    let flags = provider.node.query(&lenient)?.raw.out_flags;
    ensure_eq!(flags, BARBUF_QUERY_HELD | BARBUF_QUERY_VMAPPED);
    let mut found = Vec::new();
    for at in (0..room).step_by(8) {
        let word = map.load(at).map_err(|fault| anyhow::anyhow!("{fault:?}"))?;
        found.extend(word.to_le_bytes());
    }
    // The lower half has no text in it.
    let from = 90 * line;
    ensure!(
        found[from..size as usize] == wanted[from..],
        "the picture is not vivid's"
    );
    ensure!(
        wanted[from..].iter().any(|byte| *byte != wanted[from]),
        "the picture is empty"
    );
    let behind = size.next_multiple_of(8) as usize;
    ensure!(
        found[behind..] == pattern::bytes(35, 0, room as usize)[behind..],
        "vivid wrote beyond the picture"
    );
    request_buffers(&camera, 0, v4l2::DMABUF)?;
    ensure_eq!(provider.node.query(&lenient)?.raw.out_flags, 0);
    provider.node.revoke(&lenient)?;
    Ok(())
}
