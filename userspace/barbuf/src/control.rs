// SPDX-License-Identifier: MIT OR Apache-2.0

//! The module's own node, which answers everybody who holds a buffer.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use barbuf_sys::*;
use nix::errno::Errno;

use crate::calls::{Calls, Kernel};
use crate::device::{DIRECTORY, failed, open_node};
use crate::error::{Error, ErrorKind, Result};
use crate::query::Query;

/// The module's own node, `/dev/barbuf/control`.
///
/// Anybody may open it and ask what a buffer is. Adopting and releasing functions needs
/// `CAP_SYS_ADMIN`.
#[derive(Debug)]
pub struct Control {
    pub(crate) node: OwnedFd,
    pub(crate) calls: Arc<dyn Calls>,
}

impl Control {
    /// Opens `/dev/barbuf/control`.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the module is not loaded.
    pub fn open() -> Result<Self> {
        let path = Path::new(DIRECTORY).join("control");
        let node = open_node(&path).map_err(|error| match error.errno() {
            Some(errno) if errno == Errno::ENOENT as i32 => {
                error.hinted("is the module loaded? `modprobe barbuf`, or insmod its file")
            }
            _ => error,
        })?;
        Ok(Self::from(node))
    }

    /// What a dma-buf is, whoever exported it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotOurs`] if it is another driver's, [`ErrorKind::NotDmaBuf`] if it is no
    /// dma-buf.
    pub fn query(&self, buffer: impl AsFd) -> Result<Query> {
        query_through(&*self.calls, self.node.as_fd(), buffer.as_fd())
    }

    /// Makes a function a provider whose own driver has published p2pmem (nvme and its controller
    /// memory buffer). Its driver keeps it.
    ///
    /// # Errors
    ///
    /// `EEXIST` if it is a provider already, `ENODEV` if there is no such function or it has no
    /// driver, `EOPNOTSUPP` if its driver has published no p2pmem, `EPERM` without
    /// `CAP_SYS_ADMIN`.
    pub fn adopt(&self, address: impl AsRef<str>) -> Result<()> {
        let address = address.as_ref();
        let mut raw = adoption("BARBUF_ADOPT", address)?;
        self.calls
            .adopt(self.node.as_fd(), &mut raw)
            .map_err(|errno| {
                let error = Error::os("BARBUF_ADOPT", errno).of(address);
                match errno {
                    Errno::EEXIST => error.hinted("it is a provider already"),
                    Errno::ENODEV => {
                        error.hinted("there is no such function, or no driver is bound to it")
                    }
                    Errno::EOPNOTSUPP => error.hinted(
                        "its driver has published no p2pmem (for nvme: the drive has no CMB)",
                    ),
                    Errno::EPERM => error.hinted("adopting needs CAP_SYS_ADMIN"),
                    _ => error,
                }
            })
    }

    /// Ends that. All its buffers are revoked, and all memory goes back to the pool.
    ///
    /// # Errors
    ///
    /// `ENODEV` if it was not adopted, `EPERM` without `CAP_SYS_ADMIN`.
    pub fn release(&self, address: impl AsRef<str>) -> Result<()> {
        let address = address.as_ref();
        let mut raw = adoption("BARBUF_RELEASE", address)?;
        self.calls
            .release(self.node.as_fd(), &mut raw)
            .map_err(|errno| {
                let error = Error::os("BARBUF_RELEASE", errno).of(address);
                match errno {
                    Errno::ENODEV => error.hinted("it is not adopted"),
                    Errno::EPERM => error.hinted("releasing needs CAP_SYS_ADMIN"),
                    _ => error,
                }
            })
    }
}

impl From<OwnedFd> for Control {
    /// Takes over the open node.
    fn from(node: OwnedFd) -> Self {
        Control {
            node,
            calls: Arc::new(Kernel),
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.as_fd()
    }
}

fn adoption(operation: &'static str, address: &str) -> Result<barbuf_adopt> {
    let mut raw = barbuf_adopt::new();
    // The last byte stays NUL, and a NUL in the middle would name another function.
    if address.is_empty() || address.len() >= raw.name.len() || address.contains('\0') {
        return Err(Error::new(operation, ErrorKind::Invalid)
            .of(format!("{address:?}"))
            .hinted("a PCI address looks like 0000:03:00.0"));
    }
    raw.name[..address.len()].copy_from_slice(address.as_bytes());
    Ok(raw)
}

pub(crate) fn query_through(
    calls: &dyn Calls,
    node: BorrowedFd<'_>,
    buffer: BorrowedFd<'_>,
) -> Result<Query> {
    let mut ranges = vec![barbuf_range::default(); BARBUF_MAX_RANGES as usize];
    let mut room = 8;
    loop {
        let mut attachments = vec![barbuf_attachment_info::default(); room];
        let mut raw = barbuf_query {
            fd: buffer.as_raw_fd(),
            nr_ranges: BARBUF_MAX_RANGES,
            ranges: ranges.as_mut_ptr() as u64,
            nr_attachments: room as u32,
            attachment_stride: size_of::<barbuf_attachment_info>() as u32,
            attachments: attachments.as_mut_ptr() as u64,
            ..barbuf_query::new()
        };
        // SAFETY: The arrays have room for that many elements, of that size.
        unsafe { calls.query(node, &mut raw) }.map_err(|errno| match errno {
            Errno::ENODEV => Error::new("BARBUF_QUERY", ErrorKind::NotOurs)
                .hinted("Buffer::origin() tells what is known of it"),
            Errno::EINVAL => Error::new("BARBUF_QUERY", ErrorKind::NotDmaBuf),
            errno => failed("BARBUF_QUERY", errno),
        })?;
        let found = raw.nr_attachments as usize;
        // Attaching is rare, so that the second time is enough; if not, the list is cut.
        if found <= room || room > 8 {
            ranges.truncate(raw.nr_ranges as usize);
            attachments.truncate(found);
            return Ok(Query::new(&raw, &ranges, &attachments));
        }
        room = found;
    }
}
