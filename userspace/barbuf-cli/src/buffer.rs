// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which buffer a command is about, and what it is: `info`, `revoke`, `adopt`, `release`.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use barbuf::{Buffer, Control, Device, Origin, Query, Reason, pass};
use nix::errno::Errno;
use serde_json::{Value, json};

use crate::cli::{BufferArgs, DeviceArgs, InfoArgs, RouteArgs};
use crate::error::{Error, Exit, Result};
use crate::out::{Out, table};
use crate::size;
use crate::sysfs::Sysfs;

/// The buffer that is meant.
///
/// # Errors
///
/// None is, or the descriptor is not open, or is none of a dma-buf.
pub fn meant(args: &BufferArgs) -> Result<Buffer> {
    let fd = match (args.fd, args.from) {
        (_, Some(from)) => pass::take_from_process(from.pid, from.fd)?,
        (Some(number), None) => inherited(number)?,
        (None, None) => {
            return Err(Error::usage("no buffer is named").hint(
                "--fd N for one that this command has inherited, as `barbuf export` and `barbuf get` \
                 hand it on, or --from PID:FD",
            ));
        }
    };
    Ok(Buffer::import(fd)?)
}

/// A descriptor of this process that its parent has left open, as one of our own that is closed over
/// execve().
///
/// # Errors
///
/// It is not open.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    let failed = |errno| {
        Error::new(
            match errno {
                Errno::EBADF => Exit::Usage,
                other => Exit::of_errno(other),
            },
            format!("file descriptor {number} is not open"),
        )
        .hint("`barbuf export` and `barbuf get` open it for the command that they run")
    };
    if number < 0 {
        return Err(failed(Errno::EBADF));
    }
    // SAFETY: The kernel looks whether the number is open. What it stands for is borrowed for this
    // call alone, in which nothing of this process closes it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed
        .try_clone_to_owned()
        .map_err(|error| failed(Errno::from_raw(error.raw_os_error().unwrap_or_default())))
}

/// # Errors
///
/// There is no such provider or buffer.
pub fn info(args: &InfoArgs, out: &Out) -> Result<u8> {
    match &args.device {
        Some(bdf) => provider(bdf.as_str(), out),
        None => {
            let buffer = meant(&args.buffer)?;
            describe(&buffer, out)
        }
    }
}

fn provider(address: &str, out: &Out) -> Result<u8> {
    let info = Device::open(address)?.info()?;
    let regions: Vec<Value> = info
        .regions
        .iter()
        .map(|region| {
            json!({
                "index": region.index,
                "bar": region.bar,
                "offset": region.offset,
                "length": region.length,
                "free": region.free,
                "phys_class": region.phys_class,
                "largest_page": region.largest_page.bytes(),
                "largest_struct_page": region.largest_struct_page.map(|page| page.bytes()),
                "backings": names(&region.backings),
                "caches": names(&region.caches),
                "memory_only": region.memory_only,
                "prefetchable": region.prefetchable,
                "pool": region.pool,
                "buffers": region.buffers,
            })
        })
        .collect();
    let value = json!({
        "provider": info.name,
        "abi": info.abi,
        "kind": info.kind.to_string(),
        "page_backing": info.capabilities.page_backing(),
        "largest_page": info.capabilities.largest_page().bytes(),
        "regions": regions,
    });
    out.result(value, || {
        let titles = [
            ">REGION",
            ">BAR",
            ">OFFSET",
            ">LENGTH",
            ">FREE",
            "LARGEST PAGE",
            "BACKING",
            "CACHE",
            "MEMORY ONLY",
            ">BUFFERS",
        ];
        let rows = info.regions.iter().map(|region| {
            vec![
                region.index.to_string(),
                region.bar.to_string(),
                format!("{:#x}", region.offset),
                size::show(region.length),
                size::show(region.free),
                region.largest_page.to_string(),
                names(&region.backings).join(" "),
                names(&region.caches).join(" "),
                if region.memory_only { "yes" } else { "no" }.into(),
                region.buffers.to_string(),
            ]
        });
        format!(
            "{} is {}, ABI {}, pages up to {}, page backing: {}\n\n{}",
            info.name,
            info.kind,
            info.abi,
            info.capabilities.largest_page(),
            if info.capabilities.page_backing() {
                "yes"
            } else {
                "no"
            },
            table(&titles, rows)
        )
    });
    Ok(Exit::Ok as u8)
}

fn names<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn describe(buffer: &Buffer, out: &Out) -> Result<u8> {
    match buffer.origin()? {
        Origin::Barbuf(query) => {
            let id = buffer.id()?;
            out.result(
                json!({ "id": format!("{}:{}", id.device, id.inode), "buffer": as_json(&query) }),
                || {
                    let rows = [
                        ("provider", format!("{} ({})", query.provider, query.kind)),
                        ("id", format!("{}:{}", id.device, id.inode)),
                        ("state", format!("{}, generation {}", query.state, query.generation)),
                        ("size", size::show(query.size)),
                        ("access", query.access.to_string()),
                        ("backing", query.backing.to_string()),
                        ("cache", query.cache.to_string()),
                        ("largest page", query.largest_page.to_string()),
                        ("mapped", format!("{} times, {}", query.mappings, size::show(query.mapped_bytes))),
                        ("faults", faults(&query)),
                        ("attached", attached(&query)),
                    ];
                    let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
                    table(&["", ""], rows).trim_start().to_owned()
                },
            );
        }
        Origin::Foreign(info) => out.result(
            json!({ "foreign": { "exporter": info.exporter, "size": info.size, "name": info.name } }),
            || format!("a dma-buf of {}, {}", info.exporter, size::show(info.size)),
        ),
        _ => return Err(Error::failed("the crate knows of an origin that this command does not")),
    }
    Ok(Exit::Ok as u8)
}

fn attached(query: &Query) -> String {
    let devices: Vec<String> = query
        .attachments
        .iter()
        .map(|attachment| {
            let stop = if attachment.revocable {
                ""
            } else {
                ", cannot be told to stop"
            };
            format!("{} ({}{stop})", attachment.device, attachment.route)
        })
        .collect();
    if devices.is_empty() {
        "-".into()
    } else {
        devices.join(", ")
    }
}

/// # Errors
///
/// There is no such provider or buffer.
pub fn route(args: &RouteArgs, out: &Out) -> Result<u8> {
    let importer = args.importer.as_str();
    let (provider, route) = match &args.device {
        Some(provider) => {
            let device = Device::open(provider.as_str())?;
            (provider.to_string(), device.route(args.region, importer)?)
        }
        None => {
            let buffer = meant(&args.buffer)?;
            let provider = buffer.query()?.provider;
            let route = Device::open(&provider)?.route_to(&buffer, importer)?;
            (provider, route)
        }
    };
    if route.reason == Reason::NoDevice {
        return Err(Error::not_found(format!("there is no function {importer}"))
            .hint("`barbuf list` shows those with memory, `lspci` all"));
    }
    out.result(
        json!({
            "provider": provider,
            "importer": importer,
            "possible": route.is_good(),
            "route": route.kind.to_string(),
            "reason": (!route.is_good()).then(|| route.reason.to_string()),
            "distance": route.distance,
            "iommu": route.iommu,
            "dma_mask": route.dma_mask,
        }),
        || match route.is_good() {
            true => format!(
                "{importer} reaches {provider} through the {}, distance {}",
                route.kind, route.distance
            ),
            false => format!("{importer} does not reach {provider}: {}", route.reason),
        },
    );
    Ok(if route.is_good() {
        Exit::Ok
    } else {
        Exit::Failed
    } as u8)
}

fn faults(query: &Query) -> String {
    let faults = &query.faults;
    format!(
        "{} served; leaves put in: {} of 1 GiB, {} of 2 MiB, {} of 4 KiB",
        faults.served, faults.of_1g, faults.of_2m, faults.of_4k
    )
}

/// What the kernel says of a buffer, for programs.
pub fn as_json(query: &Query) -> Value {
    let ranges: Vec<Value> = query
        .ranges
        .iter()
        .map(|range| json!({ "offset": range.start, "length": range.end - range.start }))
        .collect();
    let attachments: Vec<Value> = query
        .attachments
        .iter()
        .map(|attachment| {
            json!({
                "device": attachment.device,
                "route": attachment.route.to_string(),
                "revocable": attachment.revocable,
                "pins": attachment.pins,
                "maps": attachment.maps,
                "mapped_bytes": attachment.mapped_bytes,
            })
        })
        .collect();
    json!({
        "provider": query.provider,
        "kind": query.kind.to_string(),
        "state": query.state.to_string(),
        "generation": query.generation,
        "size": query.size,
        "region": query.region,
        "ranges": ranges,
        "access": query.access.to_string(),
        "backing": query.backing.to_string(),
        "cache": query.cache.to_string(),
        "largest_page": query.largest_page.bytes(),
        "phys_class": query.phys_class,
        "shared": query.shared,
        "revoke_on_close": query.revoke_on_close,
        "attachments": attachments,
        "mappings": query.mappings,
        "mapped_bytes": query.mapped_bytes,
        "faults": {
            "served": query.faults.served,
            "1g": query.faults.of_1g,
            "2m": query.faults.of_2m,
            "4k": query.faults.of_4k,
        },
    })
}

/// # Errors
///
/// The buffer has been revoked already, or its provider's node may not be opened.
pub fn revoke(args: &BufferArgs, out: &Out) -> Result<u8> {
    let buffer = meant(args)?;
    let query = buffer.query()?;
    Device::open(&query.provider)?.revoke(&buffer)?;
    out.done(
        json!({ "provider": query.provider, "revoked": true }),
        || format!("revoked: {} of {}", size::show(query.size), query.provider),
    );
    Ok(Exit::Ok as u8)
}

/// # Errors
///
/// There is no such function, it has no p2pmem, or the caller may not.
pub fn adopt(args: &DeviceArgs, sysfs: &Sysfs, out: &Out) -> Result<u8> {
    let function = sysfs.function(&args.device)?;
    // A provider that is adopted already is what was asked for.
    let driver = function.driver();
    let changed = match Control::open()?.adopt(function.bdf.as_str()) {
        Ok(()) => true,
        Err(error)
            if error.errno() == Some(Errno::EEXIST as i32)
                && driver.as_deref() != Some(crate::list::DRIVER) =>
        {
            false
        }
        Err(error) => return Err(error.into()),
    };
    let pool = function.pool();
    let node = function.node.display().to_string();
    out.done(
        json!({
            "device": function.bdf,
            "driver": driver,
            "changed": changed,
            "node": node,
            "pool": pool,
        }),
        || {
            let free = pool.map_or(String::new(), |pool| {
                format!(", {} of p2pmem are free", size::show(pool.available))
            });
            let word = if changed {
                "adopted"
            } else {
                "adopted already"
            };
            format!("{} is {word}: {node}{free}", function.bdf)
        },
    );
    Ok(Exit::Ok as u8)
}

/// # Errors
///
/// It was not adopted, or the caller may not.
pub fn release(args: &DeviceArgs, sysfs: &Sysfs, out: &Out) -> Result<u8> {
    let function = sysfs.function(&args.device)?;
    Control::open()?.release(function.bdf.as_str())?;
    out.done(
        json!({ "device": function.bdf, "driver": function.driver() }),
        || format!("{} is released", function.bdf),
    );
    Ok(Exit::Ok as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn a_number_that_is_not_open_is_a_usage_error() {
        for number in [-1, 1_000_000] {
            assert_eq!(inherited(number).unwrap_err().exit, Exit::Usage);
        }
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_ne!(
            inherited(file.as_raw_fd()).unwrap().as_raw_fd(),
            file.as_raw_fd()
        );
        let args = BufferArgs {
            fd: Some(file.as_raw_fd()),
            from: None,
        };
        assert!(meant(&args).is_err());
        assert_eq!(
            meant(&BufferArgs {
                fd: None,
                from: None
            })
            .unwrap_err()
            .exit,
            Exit::Usage
        );
    }
}
