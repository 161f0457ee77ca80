// SPDX-License-Identifier: GPL-2.0

//! BARBUF_EXPORT: from a request to a file descriptor.
//!
//! Every step can fail, and each is undone by dropping what it returned. The file descriptor comes
//! last: once it is installed, another thread of the caller can use it, and nothing may fail.

use crate::{
    buffer::{
        Buffer,
        Live,
        Memory,
        Plan, //
    },
    copy::{
        errno,
        Argument,
        UserArray, //
    },
    ext::{
        access,
        eventfd::EventFd,
        memtype::{
            self,
            WriteCombining, //
        },
        pool::{
            PoolPages,
            PoolRange, //
        },
        trace, //
    },
    few::Few,
    node::{
        Session,
        Ticket, //
    },
    provider::{
        Place,
        Region,
        Terms, //
    },
    pure::{
        alloc,
        export::{
            any_len,
            Export,
            Flags,
            Request, //
        },
        mode::{
            Backing,
            Cache, //
        },
        order::{
            self,
            PageOrder, //
        },
        range::{
            self,
            Range, //
        }, //
    },
    uapi, //
};
use kernel::{
    fs::file::FileDescriptorReservation,
    prelude::*, //
};

/// The ranges of a request, as user space wrote them.
struct Wanted {
    ranges: Few<Range>,
    /// With `Flags::ANY`.
    len: u64,
}

impl Wanted {
    fn read(array: &UserArray, export: &Export, region: &Region) -> Result<Self> {
        let mut ranges = Few::None;
        if export.flags.contains(Flags::ANY) {
            let range: uapi::UserRange = array.read(0)?;
            return Ok(Self {
                ranges,
                len: any_len(range.offset, range.length).map_err(errno)?,
            });
        }
        for index in 0..export.nr_ranges {
            let range: uapi::UserRange = array.read(index)?;
            let range = Range::new(range.offset, range.length).map_err(errno)?;
            ranges.push(range)?;
        }
        let len = range::validate(&ranges, region.physical.len()).map_err(errno)?;
        Ok(Self { ranges, len })
    }

    fn place(self) -> Place {
        if self.ranges.is_empty() {
            Place::Any(self.len)
        } else {
            Place::Fixed(self.ranges)
        }
    }
}

/// Memory for a buffer, and where it lies.
struct Obtained {
    live: Live,
    ranges: Few<Range>,
}

/// The size of struct pages to use: what was asked for, or the largest that the ranges allow.
fn page_size(export: &Export, limit: PageOrder, region: &Region, wanted: &Wanted) -> PageOrder {
    if export.page.is_some() {
        return limit;
    }
    let fits = |order: &PageOrder| {
        order.is_aligned(wanted.len)
            && wanted.ranges.iter().all(|range| {
                let start = region.physical.start().wrapping_add(range.start());
                order.is_aligned(start | range.len())
            })
    };
    PageOrder::LARGEST_FIRST
        .into_iter()
        .filter(|order| *order <= limit)
        .find(fits)
        .unwrap_or(PageOrder::Page4K)
}

/// Takes memory of a region that barbuf holds itself.
fn from_region(
    session: &Session,
    index: u32,
    export: &Export,
    limit: PageOrder,
    wanted: Wanted,
) -> Result<Obtained> {
    let region = session.provider.regions.get(index as usize).ok_or(EINVAL)?;
    let pages = match export.backing {
        Backing::Page => Some(page_size(export, limit, region, &wanted)),
        Backing::Pfn => None,
    };
    let terms = Terms {
        shared: export.flags.contains(Flags::SHARED),
        fresh: export.flags.contains(Flags::ZERO),
        cache: export.cache,
        pages,
    };
    let (reservation, ranges, map) = session.provider.claim(index, wanted.place(), terms)?;

    let mut write_combining = Few::None;
    let mut holds = Few::None;
    for range in ranges.iter() {
        let physical = physical(region, *range)?;
        if let Some(map) = &map {
            holds.push(map.hold(physical)?)?;
        } else if export.cache == Cache::WriteCombining {
            write_combining.push(WriteCombining::reserve(physical)?)?;
        }
    }
    Ok(Obtained {
        live: Live {
            memory: match map {
                Some(_) => Memory::Folios(holds),
                None => Memory::Frames,
            },
            _write_combining: write_combining,
            _reservation: reservation,
        },
        ranges,
    })
}

/// Takes memory from the pool of an adopted provider.
fn from_pool(session: &Session, index: u32, export: &Export, len: u64) -> Result<Obtained> {
    let region = session.provider.regions.get(index as usize).ok_or(EINVAL)?;
    // An alignment that the pool has no room for is not worth failing for.
    let mut taken = Err(ENOSPC);
    for order in alloc::preferences(len) {
        taken = PoolRange::alloc(&session.provider.function, len, *order);
        if taken.is_ok() {
            break;
        }
    }
    let taken = taken?;
    let offset = taken
        .physical()?
        .start()
        .checked_sub(region.physical.start())
        .ok_or(ENODEV)?;
    let ranges = Few::One(Range::new(offset, len).map_err(errno)?);
    let memory = match export.backing {
        Backing::Pfn => Memory::Pool(taken),
        Backing::Page => Memory::PoolPages(PoolPages::new(taken)?),
    };
    Ok(Obtained {
        live: Live {
            memory,
            _write_combining: Few::None,
            _reservation: session.provider.count(index),
        },
        ranges,
    })
}

fn physical(region: &Region, range: Range) -> Result<Range> {
    let start = region
        .physical
        .start()
        .checked_add(range.start())
        .ok_or(EINVAL)?;
    Range::new(start, range.len()).map_err(errno)
}

/// The largest leaf that a mapping at a good address can have.
fn leaf_limit(live: &Live, region: &Region, ranges: &[Range], limit: PageOrder) -> PageOrder {
    match &live.memory {
        Memory::Folios(holds) => holds.first().map_or(PageOrder::Page4K, |hold| hold.order()),
        Memory::PoolPages(_) => PageOrder::Page4K,
        Memory::Frames | Memory::Pool(_) => ranges
            .iter()
            .filter_map(|range| {
                let start = region.physical.start().checked_add(range.start())?;
                order::region_max_order(start, range.len())
            })
            .max()
            .unwrap_or(PageOrder::Page4K)
            .min(limit),
    }
}

/// Serves BARBUF_EXPORT. The caller holds the provider's gate open.
///
/// # Errors
///
/// As in the uapi header.
pub(crate) fn export(session: &Session, arg: usize) -> Result {
    let mut argument = Argument::<uapi::Export>::read(arg)?;
    let user = argument.value;
    let export = Request {
        flags: user.flags,
        backing: user.backing,
        cache: user.cache,
        open_flags: user.open_flags,
        eventfd: user.eventfd,
        page_shift: user.page_shift,
        nr_ranges: user.nr_ranges,
        reserved: user.reserved,
    }
    .parse()
    .map_err(errno)?;
    let provider = &session.provider;
    let region = provider.regions.get(user.region as usize).ok_or(EINVAL)?;
    let limit = export.on(&region.facts).map_err(errno)?;
    if export.backing == Backing::Page && export.cache == Cache::WriteCombining {
        // The kernel maps struct pages of device memory uncached, and x86 wants one mode.
        return Err(EOPNOTSUPP);
    }
    if region.facts.needs_rawio() {
        access::raw_io()?;
    }
    let array = UserArray::new(user.ranges, size_of::<uapi::UserRange>(), user.nr_ranges)?;
    let wanted = Wanted::read(&array, &export, region)?;
    let eventfd = match export.eventfd {
        Some(fd) => Some(EventFd::from_fd(fd)?),
        None => None,
    };
    let ticket = Ticket::new(&session.own, &session.all)?;
    let fd = FileDescriptorReservation::get_unused_fd_flags(export.open.fd_flags())?;

    let size = wanted.len;
    let obtained = if region.facts.pool {
        from_pool(session, user.region, &export, size)?
    } else {
        from_region(session, user.region, &export, limit, wanted)?
    };
    if export.flags.contains(Flags::ZERO) {
        let write_combining = export.cache == Cache::WriteCombining;
        for range in obtained.ranges.iter() {
            // The provider may want to go meanwhile, and waits for us.
            memtype::zero(physical(region, *range)?, write_combining, || {
                provider.gate.is_closed()
            })?;
        }
    }

    let order = leaf_limit(&obtained.live, region, &obtained.ranges, limit);
    let cookie = provider.next_cookie(size)?;
    let first = obtained.ranges.first().copied().ok_or(EINVAL)?;
    let dmabuf = Buffer::new(Plan {
        provider: provider.clone(),
        region: user.region,
        base: region.physical.start(),
        ranges: obtained.ranges,
        size,
        terms: export,
        order,
        cookie,
        live: obtained.live,
        eventfd,
        ticket,
    })?;
    let buffer = dmabuf.data();
    // From here on `Buffer::released` undoes it, when `dmabuf` is dropped.
    provider.insert(&buffer.into())?;

    // CAST: File descriptors are small.
    argument.value.out_fd = fd.reserved_fd() as i32;
    argument.value.out_page_shift = order.shift();
    argument.value.out_size = size;
    argument.value.out_cookie = cookie;
    argument.value.out_phys_class = order::align_class(dmabuf.data().first_physical());
    if export.flags.contains(Flags::ANY) {
        let range = uapi::UserRange {
            offset: first.start(),
            length: first.len(),
        };
        array.write(0, range)?;
    }
    argument.write()?;
    trace::export(dmabuf.id(), user.region, size, export.backing, export.cache);
    dmabuf.install(fd);
    Ok(())
}
