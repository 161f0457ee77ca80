// SPDX-License-Identifier: GPL-2.0

//! BARBUF_EXPORT: from a request to a file descriptor.
//!
//! Every step can fail, and each is undone by dropping what it returned. The file descriptor comes
//! last: once it is installed, another thread of the caller can use it, and nothing may fail.
//!
//! User memory is read before and written after the provider's gates are entered, see `provider.rs`.

use crate::{
    buffer::{
        Buffer,
        Live,
        Memory,
        Obtained,
        Plan, //
    },
    copy::{
        errno,
        Argument,
        UserArray, //
    },
    ext::{
        access,
        dmabuf::DmaBuf,
        eventfd::EventFd,
        gate::{
            Inside,
            Shut, //
        },
        memtype::{
            self,
            WriteCombining, //
        },
        pool::PoolPages,
        trace, //
    },
    few::Few,
    node::{
        Session,
        Ticket, //
    },
    provider::{
        Place,
        Provider,
        Region,
        Terms,
        Use, //
    },
    pure::{
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
    prelude::*,
    sync::Arc, //
};

/// The ranges of a request, as user space wrote them.
pub(crate) struct Wanted {
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
        // CAST: At most 64.
        for index in 0..export.nr_ranges as usize {
            let range: uapi::UserRange = array.read(index)?;
            let range = Range::new(range.offset, range.length).map_err(errno)?;
            ranges.push(range)?;
        }
        let len = range::validate(&ranges, region.physical.len()).map_err(errno)?;
        Ok(Self { ranges, len })
    }

    /// One range that the kernel itself names, or a length alone.
    ///
    /// # Errors
    ///
    /// `EINVAL`
    pub(crate) fn one(export: &Export, region: &Region, offset: u64, len: u64) -> Result<Self> {
        if export.flags.contains(Flags::ANY) {
            return Ok(Self {
                ranges: Few::None,
                len: any_len(offset, len).map_err(errno)?,
            });
        }
        let ranges = Few::One(Range::new(offset, len).map_err(errno)?);
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
    order: &Order<'_>,
    region: &Region,
    limit: PageOrder,
    wanted: Wanted,
    used: Use,
) -> Result<Obtained> {
    let export = &order.export;
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
    let (reservation, ranges, map) = order.provider.claim(order.index, wanted.place(), terms)?;

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
                None => Memory::Frames(write_combining),
            },
            reservation,
            _used: used,
        },
        ranges,
    })
}

/// Takes memory from the pool of an adopted provider.
fn from_pool(order: &Order<'_>, region: &Region, used: Use) -> Result<Obtained> {
    let (provider, len) = (order.provider, order.wanted.len);
    let taken = provider.take_from_pool(region, len)?;
    let offset = taken
        .physical()?
        .start()
        .checked_sub(region.physical.start())
        .ok_or(ENOSPC)?;
    let ranges = Few::One(Range::new(offset, len).map_err(errno)?);
    let memory = match order.export.backing {
        Backing::Pfn => Memory::Pool(taken),
        Backing::Page => Memory::PoolPages(PoolPages::new(taken)?),
    };
    Ok(Obtained {
        live: Live {
            memory,
            reservation: provider.count(order.index),
            _used: used,
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
        Memory::Frames(_) | Memory::Pool(_) => ranges
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

/// Whether `region` can serve `export`, and with which page size at most.
///
/// # Errors
///
/// `EOPNOTSUPP`
fn judge(export: &Export, region: &Region) -> Result<PageOrder> {
    if export.backing == Backing::Page && export.cache == Cache::WriteCombining {
        // The kernel maps struct pages of device memory uncached, and x86 wants one mode.
        return Err(EOPNOTSUPP);
    }
    export.on(&region.facts).map_err(errno)
}

/// A request that has been read.
pub(crate) struct Order<'a> {
    /// Whose memory.
    pub(crate) provider: &'a Arc<Provider>,
    /// The region's index.
    pub(crate) index: u32,
    /// What is wanted.
    pub(crate) export: Export,
    /// Which bytes.
    pub(crate) wanted: Wanted,
    /// What tells of the revocation.
    pub(crate) eventfd: Option<EventFd>,
    /// The right to one buffer.
    pub(crate) ticket: Ticket,
    /// Wait for the end of a reset instead of failing.
    pub(crate) patient: bool,
}

impl<'a> Order<'a> {
    /// The right to access the memory.
    fn access(&self) -> Result<Inside<'a, ()>> {
        let gate = &self.provider.access;
        match gate.admit() {
            Err(Shut::Suspended) if !self.patient => Err(EAGAIN),
            Ok(inside) => Ok(inside),
            Err(_) => gate.admit_patiently(),
        }
    }

    /// Makes the buffer. Touches no user memory.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the provider has retired; `EOPNOTSUPP`, `EBUSY`, `ENOSPC`, `EINVAL`, `ENOMEM`,
    /// `ENFILE`; `ECONNREFUSED` when the function's own driver refuses; `EAGAIN` when a reset is in
    /// flight and the order not patient; `EINTR` when the calling task is killed while it waits or writes zeros.
    pub(crate) fn fulfil(mut self) -> Result<DmaBuf<Buffer>> {
        let provider = self.provider;
        let wanted = Wanted {
            ranges: core::mem::replace(&mut self.wanted.ranges, Few::None),
            len: self.wanted.len,
        };
        // As long as this is held, the provider does not retire.
        let _hardware = provider.gate.enter().ok_or(ENODEV)?;
        let region = provider.regions.get(self.index as usize).ok_or(EINVAL)?;
        let limit = judge(&self.export, region)?;
        // In a reset the function's own driver is not asked, as far as that can be seen now.
        drop(self.access()?);
        let used = provider.begin_use()?;
        // Whatever fails below, the driver is told that the last use is over outside of `access`: who
        // suspends waits for those inside, with locks of the driver.
        let _told_last = provider.begin_use()?;
        let obtained = if region.facts.pool {
            from_pool(&self, region, used)?
        } else {
            from_region(&self, region, limit, wanted, used)?
        };

        // No reset begins while this is held.
        let mut access = self.access()?;
        if self.export.flags.contains(Flags::ZERO) {
            while let Err(error) = self.zero(region, &obtained) {
                if error != EAGAIN {
                    return Err(error);
                }
                // A reset wants to begin, or the provider to go. What was written may not survive
                // that: from the start, afterwards.
                drop(access);
                access = self.access()?;
            }
            if self.export.flags.contains(Flags::SHARED) {
                obtained.live.reservation.share();
            }
        }

        let order = leaf_limit(&obtained.live, region, &obtained.ranges, limit);
        let plan = Plan {
            provider: provider.clone(),
            region: self.index,
            base: region.physical.start(),
            size: self.wanted.len,
            cookie: provider.next_cookie(self.wanted.len)?,
            terms: self.export,
            order,
            eventfd: self.eventfd,
            ticket: self.ticket,
        };
        let dmabuf = Buffer::new(plan, obtained)?;
        // From here on `Buffer::released` undoes it, when `dmabuf` is dropped.
        if let Err(error) = provider.insert(&dmabuf.data().into()) {
            // The last reference may go later than this provider, which does not know of the buffer.
            let _ = dmabuf.data().revoke();
            return Err(error);
        }
        drop(access);
        trace::export(
            dmabuf.id(),
            self.index,
            self.wanted.len,
            self.export.backing,
            self.export.cache,
        );
        Ok(dmabuf)
    }

    /// Fills the bytes with zero.
    fn zero(&self, region: &Region, obtained: &Obtained) -> Result {
        let write_combining = self.export.cache == Cache::WriteCombining;
        obtained.ranges.iter().try_for_each(|range| {
            memtype::zero(physical(region, *range)?, write_combining, || {
                !self.provider.access.is_open()
            })
        })
    }
}

/// Serves BARBUF_EXPORT.
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
    judge(&export, region)?;
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
    let dmabuf = Order {
        provider,
        index: user.region,
        export,
        wanted,
        eventfd,
        ticket,
        patient: true,
    }
    .fulfil()?;

    let buffer = dmabuf.data();
    // CAST: File descriptors are small.
    argument.value.out_fd = fd.reserved_fd() as i32;
    argument.value.out_page_shift = buffer.order.shift();
    argument.value.out_size = buffer.size;
    argument.value.out_cookie = buffer.cookie;
    argument.value.out_phys_class = order::align_class(buffer.first_physical());
    if export.flags.contains(Flags::ANY) {
        let first = buffer.ranges.first().copied().ok_or(EINVAL)?;
        let range = uapi::UserRange {
            offset: first.start(),
            length: first.len(),
        };
        array.write(0, range)?;
    }
    argument.write()?;
    dmabuf.install(fd);
    Ok(())
}
