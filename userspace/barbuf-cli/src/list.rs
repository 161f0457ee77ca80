// SPDX-License-Identifier: MIT OR Apache-2.0

//! `barbuf list`: every BAR and CMB, and whether it can be exported, or why not.

use serde::Serialize;

use crate::cli::ListArgs;
use crate::error::{Exit, Result};
use crate::out::{Out, table};
use crate::size;
use crate::sysfs::{Bar, Bdf, Function, Pool, Sysfs};

/// The driver that makes functions providers.
pub const DRIVER: &str = "barbuf";
const PAGE: u64 = 4096;

/// What it takes to export from a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Export {
    /// Its function is a provider.
    Yes,
    /// After `barbuf adopt`.
    Adopt,
    /// After `barbuf bind`.
    Bind,
    No,
}

impl Export {
    fn word(self) -> &'static str {
        match self {
            Export::Yes => "yes",
            Export::Adopt => "adopt",
            Export::Bind => "bind",
            Export::No => "no",
        }
    }
}

/// What is known of what lies behind a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Io,
    Memory,
    /// A controller memory buffer, or other memory that the function's driver has published.
    Cmb,
    /// Registers, as far as the class tells.
    Registers,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Io => "io",
            Kind::Memory => "memory",
            Kind::Cmb => "CMB",
            Kind::Registers => "registers",
        }
    }
}

/// A BAR and the judgement about it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub address: Bdf,
    pub id: String,
    pub class: String,
    pub driver: Option<String>,
    pub bar: u32,
    pub kind: Kind,
    pub size: u64,
    pub prefetchable: bool,
    pub export: Export,
    pub why: String,
    pub pool: Option<Pool>,
    pub numa_node: Option<u32>,
    pub iommu_group: Option<String>,
}

/// # Errors
///
/// There is no sysfs, or no such function.
pub fn run(args: &ListArgs, sysfs: &Sysfs, out: &Out) -> Result<u8> {
    let functions = if args.devices.is_empty() {
        sysfs.functions()?
    } else {
        let found = args.devices.iter().map(|bdf| sysfs.function(bdf));
        found.collect::<Result<_>>()?
    };
    let mut rows: Vec<Row> = functions.iter().flat_map(rows_of).collect();
    if args.exportable {
        rows.retain(|row| row.export != Export::No);
    }
    out.result(serde_json::json!({ "bars": rows }), || as_table(&rows));
    Ok(Exit::Ok as u8)
}

fn as_table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no BAR".into();
    }
    let titles = [
        "ADDRESS", "ID", "CLASS", "DRIVER", ">BAR", ">SIZE", "KIND", "PREFETCH", "EXPORT", "WHY",
    ];
    let lines = rows.iter().map(|row| {
        vec![
            row.address.to_string(),
            row.id.clone(),
            row.class.clone(),
            row.driver.clone().unwrap_or_else(|| "-".into()),
            row.bar.to_string(),
            size::show(row.size),
            row.kind.word().into(),
            if row.prefetchable { "yes" } else { "no" }.into(),
            row.export.word().into(),
            row.why.clone(),
        ]
    });
    table(&titles, lines)
}

/// The BARs of a function, judged.
pub fn rows_of(function: &Function) -> Vec<Row> {
    let driver = function.driver();
    let pool = function.pool();
    let bars = function.bars();
    let published = published_bar(function, &bars, pool);
    let row = |bar: &Bar| {
        let pool = pool.filter(|_| published == Some(bar.index));
        let (kind, export, why) = judge(function, driver.as_deref(), bar, pool);
        Row {
            address: function.bdf.clone(),
            id: function.id(),
            class: class_name(function.class()),
            driver: driver.clone(),
            bar: bar.index,
            kind,
            size: bar.length,
            prefetchable: bar.is_prefetchable(),
            export,
            why,
            pool,
            numa_node: function.numa_node(),
            iommu_group: function.iommu_group(),
        }
    };
    bars.iter().map(row).collect()
}

/// The BAR that the function's p2pmem lies in: the CMB's, or else the largest, which is a guess
/// that no decision rests on.
fn published_bar(function: &Function, bars: &[Bar], pool: Option<Pool>) -> Option<u32> {
    if let Some((bar, _)) = function.cmb() {
        return Some(bar);
    }
    let pool = pool?;
    let fits = bars
        .iter()
        .filter(|bar| bar.is_memory() && bar.length >= pool.size);
    fits.max_by_key(|bar| bar.length).map(|bar| bar.index)
}

/// The rules of docs/security.md, as far as sysfs tells. The module has the last word.
fn judge(
    function: &Function,
    driver: Option<&str>,
    bar: &Bar,
    pool: Option<Pool>,
) -> (Kind, Export, String) {
    let no = |kind: Kind, why: &str| (kind, Export::No, why.to_owned());
    if bar.is_io() {
        return no(Kind::Io, "I/O ports: there is nothing to map");
    }
    if function.is_bridge() {
        return no(
            Kind::Registers,
            "a bridge: its windows are other devices' memory",
        );
    }
    if bar.is_unassigned() {
        return no(Kind::Memory, "it has no address");
    }
    if bar.length < PAGE {
        return no(
            Kind::Memory,
            "smaller than a page: the page would show a neighbour's registers",
        );
    }
    if let Some(pool) = pool {
        let free = size::show(pool.available);
        let by = driver.unwrap_or("its driver");
        return match (function.node.exists(), pool.published) {
            (true, _) => (
                Kind::Cmb,
                Export::Yes,
                format!("adopted from {by}, {free} of p2pmem are free"),
            ),
            (false, true) => (
                Kind::Cmb,
                Export::Adopt,
                format!("{by} has published p2pmem and stays, {free} are free"),
            ),
            (false, false) => no(Kind::Cmb, "its driver keeps its p2pmem to itself"),
        };
    }
    if function.is_nvme() && bar.index == 0 {
        return no(Kind::Registers, "registers and doorbells of an NVMe drive");
    }
    let kind = match function.cmb() {
        Some((index, _)) if index == bar.index => Kind::Cmb,
        _ => Kind::Memory,
    };
    match driver {
        Some(DRIVER) => (kind, Export::Yes, "bound".into()),
        Some(_) if function.node.exists() => (
            kind,
            Export::No,
            "its driver registered other memory".into(),
        ),
        Some(driver) => (
            kind,
            Export::Bind,
            format!("{driver} uses it: bind needs --take"),
        ),
        None => (kind, Export::Bind, "no driver uses it".into()),
    }
}

/// Words for the classes that are met where device memory matters (pci_ids.h), else the number.
fn class_name(class: u64) -> String {
    let name = match class >> 8 {
        0x0108 => "nvme",
        0x0100..=0x0107 | 0x0180 => "storage",
        0x0200..=0x02ff => "network",
        0x0300..=0x03ff => "display",
        0x0500 | 0x0502 | 0x0580 => "memory",
        0x0600..=0x06ff => "bridge",
        0x0c03 => "usb",
        0x1200 => "accelerator",
        other => return format!("{other:04x}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tree::Tree;

    fn judged(tree: &Tree, bdf: &str) -> Vec<(u32, Kind, Export, String)> {
        let function = tree.sysfs().function(&bdf.parse().unwrap()).unwrap();
        let rows = rows_of(&function).into_iter();
        rows.map(|row| (row.bar, row.kind, row.export, row.why))
            .collect()
    }

    #[test]
    fn every_reason_is_told() {
        let tree = Tree::new();
        tree.function("0000:01:00.0", "0x060400", Some("pcieport"));
        tree.bars("0000:01:00.0", &[(0, 0x1000_0000, 0x1000, 0x200)]);
        tree.function("0000:03:00.0", "0x010802", Some("nvme"));
        tree.bars(
            "0000:03:00.0",
            &[
                (0, 0xfe00_0000, 0x4000, 0x200),
                (2, 0xe0_0000_0000, 64 << 20, 0x2208),
            ],
        );
        tree.pool("0000:03:00.0", 64 << 20, 63 << 20, true);
        tree.cmb("0000:03:00.0", 2, 0x0004_021f);
        tree.function("0000:05:00.0", "0x050000", None);
        tree.bars(
            "0000:05:00.0",
            &[
                (0, 0xfe40_0000, 0x100, 0x200),
                (1, 0xc000, 32, 0x101),
                (2, 0x80_0000_0000, 32 << 30, 0x2208),
                (4, 0, 0x1000, 0x200),
            ],
        );
        tree.function("0000:06:00.0", "0x00ff00", Some("edu"));
        tree.bars("0000:06:00.0", &[(0, 0xfe50_0000, 1 << 20, 0x200)]);

        let why = |bdf| -> Vec<(u32, Export)> {
            judged(&tree, bdf)
                .into_iter()
                .map(|(bar, _, export, _)| (bar, export))
                .collect()
        };
        assert_eq!(why("0000:01:00.0"), [(0, Export::No)]);
        assert_eq!(why("0000:03:00.0"), [(0, Export::No), (2, Export::Adopt)]);
        assert_eq!(
            why("0000:05:00.0"),
            [
                (0, Export::No),
                (1, Export::No),
                (2, Export::Bind),
                (4, Export::No)
            ]
        );
        assert_eq!(why("0000:06:00.0"), [(0, Export::Bind)]);
        assert!(judged(&tree, "0000:06:00.0")[0].3.contains("edu uses it"));

        tree.driver("0000:05:00.0", Some("barbuf"));
        assert_eq!(why("0000:05:00.0")[2], (2, Export::Yes));
        tree.node("0000:03:00.0");
        let cmb = &judged(&tree, "0000:03:00.0")[1];
        assert_eq!((cmb.1, cmb.2), (Kind::Cmb, Export::Yes));
        assert!(cmb.3.contains("63 MiB"), "{}", cmb.3);
        tree.pool("0000:03:00.0", 64 << 20, 63 << 20, false);
        std::fs::remove_file(tree.path("dev/barbuf/0000:03:00.0")).unwrap();
        assert_eq!(why("0000:03:00.0")[1], (2, Export::No));
    }
}
