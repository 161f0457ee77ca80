// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an export costs: time, and memory for struct pages.

use barbuf_guest::figure::Unit;
use barbuf_measure::clock::RUNS;
use barbuf_measure::memory::struct_page_bytes;

use super::clock::{CLOCK, tell};
use super::touch::MEMORY_BAR;
use crate::export::main_region;
use crate::kit::prelude::*;
use crate::kit::vfio::{DmaBufRequest, Vfio};

/// BARBUF_EXPORT of 32 GiB. The descriptor is closed before the next run.
pub(crate) fn export(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let len = main_region(&provider.node.info()?)?.length;
    for (name, wanted) in [
        ("export_pfn", Export::at(0, len)),
        ("export_page", Export::at(0, len).page()),
    ] {
        // Only the first export with struct pages makes them.
        let mut request = Request::new(&provider, &wanted);
        drop(request.send()?);
        let mut samples = Vec::new();
        for _ in 0..RUNS {
            let (took, buffer) = CLOCK.time(|| request.send());
            drop(buffer?);
            samples.push(took);
        }
        tell(ctx, name, Unit::Ns, samples)?;
    }
    Ok(())
}

/// The call alone, with everything made ready before.
struct Request<'a> {
    provider: &'a Provider,
    raw: barbuf_export,
    _ranges: Vec<barbuf_range>,
}

impl<'a> Request<'a> {
    fn new(provider: &'a Provider, wanted: &Export) -> Self {
        let mut ranges = wanted.ranges.clone();
        let mut raw = wanted.raw;
        raw.ranges = ranges.as_mut_ptr() as u64;
        raw.nr_ranges = ranges.len() as u32;
        Request {
            provider,
            raw,
            _ranges: ranges,
        }
    }

    fn send(&mut self) -> Result<std::os::fd::OwnedFd, Errno> {
        use std::os::fd::{AsRawFd as _, FromRawFd as _};
        // SAFETY: The structure and the array live, with the sizes said; the kernel makes the descriptor for us.
        unsafe {
            Errno::result(ioctl::export(self.provider.node.as_raw_fd(), &mut self.raw))?;
            Ok(std::os::fd::OwnedFd::from_raw_fd(self.raw.out_fd))
        }
    }
}

/// VFIO_DEVICE_FEATURE_DMA_BUF of the same.
pub(crate) fn export_by_vfio(ctx: &Ctx) -> Result<()> {
    let vfio = Vfio::open(ctx, ctx.npu(0)?)?;
    let (_, len) = vfio.bar(MEMORY_BAR)?;
    let request = DmaBufRequest::new(MEMORY_BAR, 0, len);
    drop(vfio.dma_buf(&request)?);
    let mut samples = Vec::new();
    for _ in 0..RUNS {
        let (took, buffer) = CLOCK.time(|| vfio.dma_buf(&request));
        drop(buffer?);
        samples.push(took);
    }
    tell(ctx, "export_vfio", Unit::Ns, samples)
}

/// How many pages of memory the kernel fills with struct pages of 32 GiB, once per backing.
pub(crate) fn struct_pages(ctx: &Ctx) -> Result<()> {
    for (name, page, shift) in [
        ("struct_pages_pfn", false, 0),
        ("struct_pages_page_1g", true, BARBUF_PAGE_SHIFT_1G),
        ("struct_pages_page_2m", true, BARBUF_PAGE_SHIFT_2M),
    ] {
        // The pages live as long as the provider.
        let before = struct_page_bytes()?;
        let provider = Provider::bind(ctx.npu(0)?)?;
        let len = main_region(&provider.node.info()?)?.length;
        let wanted = Export::at(0, len).leaf(shift);
        let buffer = provider
            .node
            .export(&if page { wanted.page() } else { wanted })?;
        let with = struct_page_bytes()?;
        drop(buffer);
        drop(provider);
        let after = struct_page_bytes()?;
        ensure!(
            after == before,
            "{name}: {before} bytes of struct pages before, {after} after the provider has gone"
        );
        tell(ctx, name, Unit::Pages, vec![(with - before) / PAGE])?;
    }
    Ok(())
}
