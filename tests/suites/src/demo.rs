// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `make demo` shows: the BARs of this machine, and which of them can be exported.

use std::fs;

use anyhow::{Context as _, Result};
use barbuf_guest::modules;
use barbuf_guest::protocol::DeviceKind;
use barbuf_guest::sysfs;

use crate::kit::pci::Provider;
use crate::support::{Bar, Ctx, Suite, bars_of, test};

pub(crate) const SUITE: Suite = Suite {
    name: "demo",
    tests: &[test!(lists_exportable_bars)],
};

fn lists_exportable_bars(ctx: &Ctx) -> Result<()> {
    ctx.say(format!("{} is loaded; this machine has:\n", ctx.product()));
    ctx.say(format!(
        "{:<13} {:<7} {:<7} {:>3} {:>9}  {:<12} {}",
        "address", "device", "driver", "BAR", "size", "prefetchable", "can be exported"
    ));
    for device in &ctx.topology().devices {
        let path = device
            .place
            .find()
            .with_context(|| format!("{} is absent", device.id))?;
        let bdf = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let driver = fs::read_link(path.join("driver")).ok();
        let driver = driver.as_deref().and_then(|link| link.file_name());
        let driver = driver.map_or("-".into(), |name| name.to_string_lossy());
        let pool = sysfs::read(path.join("p2pmem/available")).ok();
        for bar in bars_of(&path)? {
            ctx.say(format!(
                "{bdf:<13} {:<7} {driver:<7} {:>3} {:>9}  {:<12} {}",
                device.id,
                bar.index,
                size(bar.len),
                if bar.is_prefetchable() { "yes" } else { "no" },
                verdict(&bar, &device.kind, &driver, pool.as_deref())
            ));
        }
    }
    says_the_module(ctx)?;
    modules::unload(ctx.product())?;
    ctx.modules().load(ctx.product(), "")?;
    ctx.say(format!("\n{} was unloaded and loaded again", ctx.product()));
    Ok(())
}

/// Makes each device a provider, asks for its regions, and gives it back.
fn says_the_module(ctx: &Ctx) -> Result<()> {
    ctx.say(format!(
        "\nregions of the providers' nodes:\n\n{:<26} {:>3} {:>9} {:>9}  {:<13} {:<9} {}",
        "node", "BAR", "length", "free", "largest page", "backing", "caches"
    ));
    for device in &ctx.topology().devices {
        let provider = match device.kind {
            DeviceKind::Npu { .. } => Provider::bind(device)?,
            DeviceKind::Nvme { cmb_mib: 1.., .. } => Provider::adopt(device)?,
            DeviceKind::Nvme { .. } | DeviceKind::Edu { .. } => continue,
        };
        for region in provider.node.info()?.regions {
            ctx.say(format!(
                "{:<26} {:>3} {:>9} {:>9}  {:<13} {:<9} {}",
                provider.function.node_path(),
                region.bar,
                size(region.length),
                size(region.free),
                size(1 << region.max_page_shift),
                names(region.backings, &["pfn", "page"]),
                names(region.caches, &["UC", "WC"]),
            ));
        }
    }
    Ok(())
}

/// The names of the bits that are set.
fn names(bits: u32, names: &[&str]) -> String {
    let set = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| (bits >> bit) & 1 == 1);
    let set: Vec<&str> = set.map(|(_, name)| *name).collect();
    set.join(" ")
}

/// The rules of docs/design.md, "What may never be exported", as far as sysfs tells.
fn verdict(bar: &Bar, kind: &DeviceKind, driver: &str, pool: Option<&str>) -> String {
    if bar.is_io() {
        "no: I/O ports".into()
    } else if bar.len < 4096 {
        "no: smaller than a page".into()
    } else if kind.memory_bar() == Some(bar.index) {
        match pool.and_then(|text| text.parse().ok()) {
            Some(free) => format!(
                "yes, adopted from {driver}: {} of p2pmem are free",
                size(free)
            ),
            None => "yes, bound through driver_override".into(),
        }
    } else if driver != "-" {
        format!("no: registers of {driver}")
    } else {
        "with CAP_SYS_RAWIO: may hold registers".into()
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}
