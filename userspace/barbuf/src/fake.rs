// SPDX-License-Identifier: MIT OR Apache-2.0

//! A device made of memory, which answers as the module does, and the tests of what is built on
//! that: a buffer is a memfd, and revoking it takes its bytes away, so that touches get the same
//! signal as on a real device.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex};

use barbuf_sys::*;
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::{ftruncate, write};

use crate::calls::Calls;
use crate::{Control, Device};

pub(crate) const NAME: &str = "0000:05:00.0";
/// Bytes of each region.
pub(crate) const LENGTH: u64 = 1 << 30;
pub(crate) const PHYS_CLASS: u64 = 0x20_0000;

/// What the kernel would know.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) regions: u32,
    /// Devices attached to each buffer.
    pub(crate) attached: u32,
    /// What every call answers, if anything.
    pub(crate) fails: Mutex<Option<Errno>>,
    buffers: Mutex<HashMap<u64, Made>>,
    pub(crate) adopted: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Made {
    file: OwnedFd,
    raw: barbuf_export,
    range: barbuf_range,
    event: Option<OwnedFd>,
    revoked: bool,
}

impl Fake {
    pub(crate) fn new(regions: u32) -> Arc<Self> {
        Arc::new(Fake {
            regions,
            ..Fake::default()
        })
    }

    pub(crate) fn device(self: &Arc<Self>) -> Device {
        Device {
            node: File::open("/dev/null").unwrap().into(),
            calls: self.clone(),
        }
    }

    pub(crate) fn control(self: &Arc<Self>) -> Control {
        Control {
            node: File::open("/dev/null").unwrap().into(),
            calls: self.clone(),
        }
    }

    fn answer(&self) -> Result<(), Errno> {
        match *self.fails.lock().unwrap() {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }
}

fn inode(fd: i32) -> Result<u64, Errno> {
    // SAFETY: It lives as long as the call, or is no descriptor at all.
    Ok(fstat(unsafe { BorrowedFd::borrow_raw(fd) })?.st_ino)
}

// SAFETY: Arrays are written as far as they reach, and each `out_fd` is new.
unsafe impl Calls for Fake {
    unsafe fn info(&self, _: BorrowedFd<'_>, data: &mut barbuf_info) -> Result<(), Errno> {
        self.answer()?;
        assert_eq!(data.size as usize, size_of::<barbuf_info>());
        assert_eq!(data.region_stride as usize, size_of::<barbuf_region_info>());
        for index in 0..self.regions.min(data.nr_regions) {
            let region = barbuf_region_info {
                index,
                bar: 2,
                length: LENGTH,
                free: LENGTH - u64::from(index),
                phys_class: PHYS_CLASS,
                max_page_shift: 30,
                page_shift: if index == 0 { 30 } else { 0 },
                backings: if index == 0 { 0b11 } else { 0b1 },
                caches: 0b11,
                flags: BARBUF_REGION_MEMORY_ONLY | BARBUF_REGION_PREFETCHABLE,
                ..Default::default()
            };
            // SAFETY: Below `nr_regions`.
            unsafe {
                (data.regions as *mut barbuf_region_info)
                    .add(index as usize)
                    .write(region);
            }
        }
        data.nr_regions = self.regions;
        data.out_abi = BARBUF_ABI_VERSION;
        data.out_capabilities = BARBUF_CAP_LEAF_1G | BARBUF_CAP_LEAF_2M | (1 << 40);
        data.out_name[..NAME.len()].copy_from_slice(NAME.as_bytes());
        Ok(())
    }

    unsafe fn export(&self, _: BorrowedFd<'_>, data: &mut barbuf_export) -> Result<(), Errno> {
        self.answer()?;
        assert_eq!(data.size as usize, size_of::<barbuf_export>());
        assert_ne!(data.open_flags as i32 & libc::O_CLOEXEC, 0);
        // SAFETY: There is at least one element.
        let first = unsafe { &mut *(data.ranges as *mut barbuf_range) };
        if data.region >= self.regions || first.length == 0 || first.length % 4096 != 0 {
            return Err(Errno::EINVAL);
        }
        if data.flags & BARBUF_EXPORT_ANY != 0 {
            if first.offset != 0 {
                return Err(Errno::EINVAL);
            }
            first.offset = 0x10_0000;
        }
        if first.length > LENGTH {
            return Err(Errno::ENOSPC);
        }
        let file = memfd_create(c"fake", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&file, first.length as i64)?;
        data.out_size = first.length;
        data.out_cookie = 1 << 40;
        data.out_phys_class = (PHYS_CLASS + first.offset) % (1 << 30);
        data.out_page_shift = 30;
        let event = match data.eventfd {
            -1 => None,
            fd => {
                // SAFETY: The caller keeps its descriptor open for as long as this call.
                let event = unsafe { BorrowedFd::borrow_raw(fd) };
                Some(event.try_clone_to_owned().map_err(|_| Errno::EBADF)?)
            }
        };
        let made = Made {
            file: file.try_clone().map_err(|_| Errno::EMFILE)?,
            raw: *data,
            range: *first,
            event,
            revoked: false,
        };
        let number = inode(file.as_raw_fd())?;
        self.buffers.lock().unwrap().insert(number, made);
        data.out_fd = file.into_raw_fd();
        Ok(())
    }

    unsafe fn query(&self, _: BorrowedFd<'_>, data: &mut barbuf_query) -> Result<(), Errno> {
        self.answer()?;
        let buffers = self.buffers.lock().unwrap();
        let made = buffers.get(&inode(data.fd)?).ok_or(Errno::ENODEV)?;
        data.out_state = if made.revoked {
            BARBUF_STATE_REVOKED
        } else {
            BARBUF_STATE_LIVE
        };
        data.out_generation = 1 + u64::from(made.revoked);
        data.out_size = made.raw.out_size;
        data.out_cookie = made.raw.out_cookie;
        data.out_phys_class = made.raw.out_phys_class;
        data.out_page_shift = made.raw.out_page_shift;
        data.out_backing = made.raw.backing;
        data.out_cache = made.raw.cache;
        data.out_export_flags = made.raw.flags;
        data.out_access = made.raw.open_flags & libc::O_ACCMODE as u32;
        data.out_name[..NAME.len()].copy_from_slice(NAME.as_bytes());
        if data.nr_ranges > 0 {
            // SAFETY: There is room for one.
            unsafe { (data.ranges as *mut barbuf_range).write(made.range) };
        }
        data.nr_ranges = 1;
        for index in 0..self.attached.min(data.nr_attachments) {
            let mut attachment = barbuf_attachment_info {
                flags: BARBUF_ATTACHMENT_REVOCABLE,
                route: BARBUF_ROUTE_SWITCH,
                nr_maps: index,
                ..Default::default()
            };
            attachment.name[..4].copy_from_slice(b"edu0");
            // SAFETY: Below `nr_attachments`.
            unsafe {
                (data.attachments as *mut barbuf_attachment_info)
                    .add(index as usize)
                    .write(attachment);
            }
        }
        data.nr_attachments = self.attached;
        data.out_flags = BARBUF_QUERY_HELD;
        Ok(())
    }

    fn revoke(&self, _: BorrowedFd<'_>, data: &mut barbuf_revoke) -> Result<(), Errno> {
        self.answer()?;
        let mut buffers = self.buffers.lock().unwrap();
        let made = buffers.get_mut(&inode(data.fd)?).ok_or(Errno::ENODEV)?;
        if std::mem::replace(&mut made.revoked, true) {
            return Err(Errno::EBADFD);
        }
        ftruncate(&made.file, 0)?;
        if let Some(event) = &made.event {
            write(event.as_fd(), &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    fn route(&self, _: BorrowedFd<'_>, data: &mut barbuf_route) -> Result<(), Errno> {
        self.answer()?;
        if data.fd >= 0 && !self.buffers.lock().unwrap().contains_key(&inode(data.fd)?) {
            return Err(Errno::ENODEV);
        }
        match crate::values::name_of(&data.name).as_str() {
            "0000:04:00.0" => {
                data.out_kind = BARBUF_ROUTE_SWITCH;
                data.out_distance = 4;
                data.out_flags = BARBUF_ROUTE_IOMMU;
            }
            _ => data.out_reason = BARBUF_REASON_NO_DEVICE,
        }
        Ok(())
    }

    fn adopt(&self, _: BorrowedFd<'_>, data: &mut barbuf_adopt) -> Result<(), Errno> {
        self.answer()?;
        let name = crate::values::name_of(&data.name);
        let mut adopted = self.adopted.lock().unwrap();
        if adopted.contains(&name) {
            return Err(Errno::EEXIST);
        }
        adopted.push(name);
        Ok(())
    }

    fn release(&self, _: BorrowedFd<'_>, data: &mut barbuf_adopt) -> Result<(), Errno> {
        self.answer()?;
        let name = crate::values::name_of(&data.name);
        let mut adopted = self.adopted.lock().unwrap();
        let at = adopted.iter().position(|known| *known == name);
        at.map(|at| drop(adopted.remove(at))).ok_or(Errno::ENODEV)
    }
}

mod tests {
    use super::*;
    use crate::*;
    use std::time::Duration;

    #[test]
    fn info_grows_until_all_regions_fit() {
        let info = Fake::new(21).device().info().unwrap();
        assert_eq!(info.name, NAME);
        assert_eq!(info.regions.len(), 21);
        assert_eq!(info.roomiest().unwrap().index, 0);
        assert_eq!(info.regions[0].backings, [Backing::Pfn, Backing::Page]);
        assert_eq!(info.regions[0].largest_struct_page, Some(PageSize::Size1G));
        assert_eq!(info.regions[1].largest_struct_page, None);
        assert_eq!(info.capabilities.largest_page(), PageSize::Size1G);
        assert!(!info.capabilities.page_backing());
        // What a newer module can do is not lost.
        assert_ne!(info.capabilities.bits() & (1 << 40), 0);
    }

    #[test]
    fn an_export_says_what_it_was_asked_and_where_it_lies() {
        let fake = Fake::new(1);
        let device = fake.device();
        let buffer = device
            .export()
            .any(8192)
            .cache(Cache::WriteCombining)
            .access(Access::ReadOnly)
            .shared(true)
            .build()
            .unwrap();
        assert_eq!(buffer.size().unwrap(), 8192);
        assert_eq!(buffer.place(), Some(0x10_0000));
        assert_eq!(buffer.largest_page(), Some(PageSize::Size1G));
        let query = device.query(&buffer).unwrap();
        assert_eq!(query, fake.control().query(&buffer).unwrap());
        assert_eq!(query.state, State::Live);
        assert_eq!(query.ranges.first(), Some(&(0x10_0000..0x10_2000)));
        assert_eq!(query.ranges.len(), 1);
        assert_eq!(query.cache, Cache::WriteCombining);
        assert_eq!(query.access, Access::ReadOnly);
        assert!(query.shared && !query.revoke_on_close);
        assert_eq!(query.provider, NAME);
    }

    #[test]
    fn ranges_replace_any_and_any_replaces_ranges() {
        let fake = Fake::new(1);
        let device = fake.device();
        let at = device.export().any(4096).range(0x4000..0x6000).build();
        assert_eq!(at.unwrap().place(), Some(0x4000));
        let any = device.export().range(0x4000..0x6000).any(4096).build();
        assert_eq!(any.unwrap().place(), Some(0x10_0000));
        let none = device.export().build().unwrap_err();
        assert_eq!(none.kind(), ErrorKind::Invalid);
        let many = (0..65).fold(device.export(), |export, n| {
            export.range(n * 4096..(n + 1) * 4096)
        });
        assert_eq!(many.build().unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_mapping_lies_where_large_pages_fit() {
        let fake = Fake::new(1);
        let buffer = fake.device().export().any(64 << 20).build().unwrap();
        let class = PHYS_CLASS + 0x10_0000;
        // 64 MiB have no room for a page of 1 GiB.
        let map = buffer.map().build().unwrap();
        assert_eq!(map.as_ptr() as u64 % (2 << 20), class % (2 << 20));
        let part = buffer.map().range(0x1000..0x40_0000).build().unwrap();
        assert_eq!(
            part.as_ptr() as u64 % (2 << 20),
            (class + 0x1000) % (2 << 20)
        );
        let huge = buffer
            .map()
            .alignment(Alignment::To(PageSize::Size1G))
            .build()
            .unwrap();
        assert_eq!(huge.as_ptr() as u64 % (1 << 30), class);
    }

    #[test]
    fn an_imported_buffer_is_mapped_as_by_its_exporter() {
        let fake = Fake::new(1);
        let buffer = fake.device().export().any(4 << 20).build().unwrap();
        let fd = OwnedFd::from(buffer.try_clone().unwrap());
        let imported = fake.control().import(fd).unwrap();
        assert_eq!(imported.place(), Some(0x10_0000));
        assert_eq!(imported.cookie(), buffer.cookie());
        let map = imported.map().build().unwrap();
        assert_eq!(map.as_ptr() as u64 % (2 << 20), 0x10_0000);
        buffer.map().build().unwrap().write_u64(8, 42).unwrap();
        assert_eq!(map.read_u64(8).unwrap(), 42);

        // Any other file is no error for import, and has no facts.
        let other = memfd_create(c"other", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&other, 4096).unwrap();
        let other = fake.control().import(other).unwrap();
        assert_eq!((other.cookie(), other.largest_page()), (None, None));
        assert_eq!(other.map().build().unwrap().len(), 4096);
    }

    #[test]
    fn a_read_only_buffer_is_not_mapped_for_writing() {
        let fake = Fake::new(1);
        let export = fake.device();
        let export = export.export().any(4096).access(Access::ReadOnly);
        let buffer = export.build().unwrap();
        let map = buffer.map().build().unwrap();
        assert_eq!(map.access(), Access::ReadOnly);
        assert_eq!(map.write_u8(0, 1).unwrap_err().kind(), ErrorKind::ReadOnly);
        let error = buffer.map().access(Access::ReadWrite).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
    }

    #[test]
    fn revocation_is_an_event_and_an_error() {
        let fake = Fake::new(1);
        let device = fake.device();
        let watch = Watch::new().unwrap();
        let buffer = device.export().any(16384).watch(&watch).build().unwrap();
        let map = buffer.map().build().unwrap();
        map.fill(0, 16384, 7).unwrap();
        assert!(!watch.is_revoked().unwrap());
        device.revoke(&buffer).unwrap();
        assert!(watch.wait(Some(Duration::ZERO)).unwrap());
        let mut bytes = [0; 100];
        for error in [
            map.read_u8(1).unwrap_err(),
            map.write_u64(8, 1).unwrap_err(),
            map.read_into(5, &mut bytes).unwrap_err(),
            map.write_from(5, &bytes).unwrap_err(),
            map.fill(0, 16384, 0).unwrap_err(),
        ] {
            assert!(error.is_revoked(), "{error}");
            assert_eq!(error.errno(), Some(Errno::ENODEV as i32));
        }
        let again = device.revoke(&buffer).unwrap_err();
        assert!(again.is_revoked());
        assert_eq!(again.errno(), Some(Errno::EBADFD as i32));
        let query = device.query(&buffer).unwrap();
        assert_eq!((query.state, query.generation), (State::Revoked, 2));
    }

    #[test]
    fn all_attachments_are_told() {
        for attached in [0, 1, 8, 20] {
            let fake = Arc::new(Fake {
                regions: 1,
                attached,
                ..Fake::default()
            });
            let device = fake.device();
            let buffer = device
                .export()
                .any(4096)
                .static_import(true)
                .build()
                .unwrap();
            let query = device.query(&buffer).unwrap();
            assert!(query.static_import && query.held && !query.vmapped);
            assert_eq!(query.attachments.len(), attached as usize);
            for (n, attachment) in query.attachments.iter().enumerate() {
                assert_eq!(
                    (attachment.device.as_str(), attachment.maps),
                    ("edu0", n as u32)
                );
                assert!(attachment.revocable && !attachment.peer2peer);
                assert_eq!(attachment.route, RouteKind::Switch);
            }
        }
    }

    #[test]
    fn routes_say_why_not() {
        let fake = Fake::new(1);
        let device = fake.device();
        let good = device.route(0, "04:00.0").unwrap();
        assert!(good.is_good() && good.iommu && good.distance == 4);
        assert_eq!(good.dma_mask, None);
        let buffer = device.export().any(4096).build().unwrap();
        let bad = device.route_to(&buffer, "0000:09:00.0").unwrap();
        assert!(!bad.is_good());
        assert_eq!(bad.reason.to_string(), "there is no such function");
        let other = memfd_create(c"other", MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(device.route_to(&other, "04:00.0").is_err());
        let error = device.route(0, "the other one").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn adoption_comes_and_goes() {
        let fake = Fake::new(0);
        let control = fake.control();
        control.adopt(NAME).unwrap();
        assert_eq!(*fake.adopted.lock().unwrap(), [NAME]);
        let again = control.adopt(NAME).unwrap_err();
        assert_eq!(again.errno(), Some(Errno::EEXIST as i32));
        control.release(NAME).unwrap();
        let again = control.release(NAME).unwrap_err();
        assert_eq!(again.errno(), Some(Errno::ENODEV as i32));
        for name in ["", "0000:00:00.0\0x", "a name that is longer than 31 b."] {
            assert_eq!(control.adopt(name).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let fake = Fake::new(1);
        let device = fake.device();
        for errno in [
            Errno::EPERM,
            Errno::EOPNOTSUPP,
            Errno::EBUSY,
            Errno::ENOSPC,
            Errno::EINVAL,
            Errno::ENODEV,
            Errno::E2BIG,
        ] {
            *fake.fails.lock().unwrap() = Some(errno);
            let error = device.export().any(4096).build().unwrap_err();
            assert_eq!(error.operation(), "BARBUF_EXPORT");
            assert_eq!(error.errno(), Some(errno as i32));
            assert!(error.hint().is_some(), "{error}");
            assert_eq!(error.is_revoked(), errno == Errno::ENODEV);
        }
    }

    #[test]
    fn a_failed_call_opens_nothing() {
        let fake = Fake::new(1);
        let device = fake.device();
        *fake.fails.lock().unwrap() = Some(Errno::EBUSY);
        // Other tests of this process open files meanwhile, but not hundreds of them.
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        for _ in 0..500 {
            assert!(device.export().any(4096).build().is_err());
        }
        assert!(open() < before + 400);
    }
}
