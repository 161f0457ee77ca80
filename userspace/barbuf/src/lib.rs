// SPDX-License-Identifier: MIT OR Apache-2.0

#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg(target_os = "linux")]

mod buffer;
mod calls;
mod control;
mod cpu;
mod device;
mod dmabuf;
mod error;
mod export;
#[cfg(test)]
mod fake;
mod format;
mod map;
pub mod pass;
mod query;
mod values;
mod watch;

pub use buffer::{Buffer, BufferId, Interest, Origin};
pub use control::Control;
pub use cpu::{CpuAccess, Direction};
pub use device::{Capabilities, Device, Info, Region, Route};
pub use dmabuf::FdInfo;
pub use drm_fourcc;
pub use error::{Error, ErrorKind, Result};
pub use export::Export;
pub use format::{Format, ParseFormatError, PixelFormat};
pub use map::{Alignment, GUARDED, MapOptions, Mapping};
pub use query::{Attachment, Faults, Query};
pub use values::{Access, Backing, Cache, Kind, PageSize, Reason, RouteKind, State};
pub use watch::Watch;
