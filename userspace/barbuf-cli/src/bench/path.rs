// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ways to map the memory that a function offers now. Nothing is taken from anybody.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use anyhow::Context as _;
use barbuf::{Backing, Buffer, Device, PageSize};
use barbuf_measure::mapping::Target;
use barbuf_measure::vfio::Vfio;
use barbuf_measure::{GIB, MIB};

use crate::cli::PageArg;
use crate::error::{Error, Exit, Result};
use crate::list::DRIVER;
use crate::size;
use crate::sysfs::Function;

pub(super) const PAGE: u64 = 4096;
const VFIO: &str = "vfio-pci";
/// Sizes of page table entries, as the report calls them.
const LEAVES: [(u64, &str, PageSize); 3] = [
    (PAGE, "4K", PageSize::Size4K),
    (2 * MIB, "2M", PageSize::Size2M),
    (GIB, "1G", PageSize::Size1G),
];

/// A way to map some of a function's memory.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// As `make compare` calls it.
    pub(super) name: String,
    /// The memory, as the report calls it.
    pub(super) region: String,
    /// Bytes to map, whole leaves.
    pub(super) size: u64,
    /// Bytes of the page table entries that this should have.
    pub(super) leaf: u64,
    pub(super) function: Function,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    Barbuf {
        region: u32,
        backing: Backing,
        page: PageSize,
    },
    Vfio {
        bar: u32,
        phys_class: u64,
    },
    /// `p2pmem/allocate`
    Sysfs(PathBuf),
}

/// A region or a BAR that could be measured.
#[derive(Clone, Debug)]
struct Stretch {
    index: u32,
    bar: u32,
    /// As many as can be had.
    bytes: u64,
    /// Reading it does nothing.
    harmless: bool,
    phys_class: u64,
    pool: bool,
    backings: Vec<(Backing, PageSize)>,
}

/// Every way that there is for a function, of one of its BARs.
///
/// # Errors
///
/// There is none, or reading the memory could do harm.
pub(super) fn offered(
    function: &Function,
    bar: Option<u32>,
    most: Option<u64>,
) -> Result<Vec<Path>> {
    let mut paths = Vec::new();
    // Of the same pool as much is mapped by all ways.
    let mut most = most.unwrap_or(u64::MAX);
    if function.node.exists() {
        let info = Device::open(function.bdf.as_str())?.info()?;
        let regions = info.regions.iter().map(|region| {
            let largest = |backing: &Backing| match backing {
                Backing::Page => region.largest_struct_page,
                _ => Some(region.largest_page),
            };
            let backings = region.backings.iter();
            Stretch {
                index: region.index,
                bar: region.bar,
                bytes: region.free,
                harmless: region.memory_only || region.prefetchable,
                phys_class: region.phys_class,
                pool: region.pool,
                backings: backings
                    .filter_map(|backing| Some((*backing, largest(backing)?)))
                    .collect(),
            }
        });
        let region = choose(function, regions, bar)?;
        let size = whole(region.bytes.min(most), function)?;
        paths.extend(by_barbuf(function, &region, size));
        most = size;
    }
    if function.driver().as_deref() == Some(VFIO) {
        let bars = function.bars().into_iter().filter(|bar| bar.is_memory());
        let bars = bars.map(|bar| Stretch {
            index: bar.index,
            bar: bar.index,
            bytes: bar.length,
            harmless: bar.is_prefetchable(),
            phys_class: bar.start % GIB,
            pool: false,
            backings: Vec::new(),
        });
        let bar = choose(function, bars, bar)?;
        paths.push(by_vfio(
            function,
            &bar,
            whole(bar.bytes.min(most), function)?,
        ));
    }
    if let Some(pool) = function.pool().filter(|pool| pool.published) {
        paths.push(Path {
            name: "base sysfs 4K".into(),
            region: label(function, "p2pmem"),
            size: whole(pool.available.min(most), function)?,
            leaf: PAGE,
            function: function.clone(),
            how: How::Sysfs(function.dir.join("p2pmem/allocate")),
        });
    }
    if paths.is_empty() {
        return Err(
            Error::not_found(format!("{} offers no memory to map", function.bdf))
                .hint("`barbuf bind` or `barbuf adopt` it, or bind it to vfio-pci"),
        );
    }
    Ok(paths)
}

/// Which BAR it is by the function's address and number, because reports come from many machines.
fn label(function: &Function, part: &str) -> String {
    format!("{} {} {part}", function.bdf, function.id())
}

/// The stretch that was asked for, or the largest of those that are memory for certain.
fn choose(
    function: &Function,
    stretches: impl Iterator<Item = Stretch>,
    bar: Option<u32>,
) -> Result<Stretch> {
    let suits = |stretch: &Stretch| match bar {
        Some(bar) => stretch.bar == bar,
        None => stretch.harmless,
    };
    let found = stretches.filter(suits).max_by_key(|stretch| stretch.bytes);
    found.ok_or_else(|| match bar {
        Some(bar) => Error::not_found(format!("BAR {bar} of {} offers no memory", function.bdf)),
        None => Error::failed(format!(
            "every BAR of {} may hold registers, and reading those may do something",
            function.bdf
        ))
        .hint("--bar N if you know better"),
    })
}

/// As many bytes as make whole leaves of every size that fits.
fn whole(bytes: u64, function: &Function) -> Result<u64> {
    let leaf = LEAVES.iter().rev().find(|(leaf, ..)| *leaf <= bytes);
    match leaf {
        Some((leaf, ..)) => Ok(bytes / leaf * leaf),
        None => Err(Error::new(
            Exit::Busy,
            format!("{} of {} are free", size::show(bytes), function.bdf),
        )),
    }
}

fn by_barbuf(function: &Function, region: &Stretch, size: u64) -> Vec<Path> {
    let label = match region.pool {
        true => label(function, "p2pmem"),
        false => label(function, &format!("BAR {}", region.bar)),
    };
    let mut paths = Vec::new();
    for &(backing, largest) in &region.backings {
        for (leaf, word, page) in LEAVES {
            if leaf <= size && page <= largest {
                paths.push(Path {
                    name: format!("barbuf {backing} {word}"),
                    region: label.clone(),
                    size,
                    leaf,
                    function: function.clone(),
                    how: How::Barbuf {
                        region: region.index,
                        backing,
                        page,
                    },
                });
            }
        }
    }
    paths
}

/// Whatever page fits is taken.
fn by_vfio(function: &Function, bar: &Stretch, size: u64) -> Path {
    let fits = |leaf: u64| leaf <= size && bar.phys_class % leaf == 0;
    let leaf = LEAVES.iter().rev().map(|(leaf, ..)| *leaf);
    Path {
        name: "vfio-pci".into(),
        region: label(function, &format!("BAR {}", bar.bar)),
        size,
        leaf: leaf.clone().find(|leaf| fits(*leaf)).unwrap_or(PAGE),
        function: function.clone(),
        how: How::Vfio {
            bar: bar.bar,
            phys_class: bar.phys_class,
        },
    }
}

/// Memory that is there to be mapped.
#[derive(Debug)]
pub(super) struct Memory {
    source: Source,
    size: u64,
    leaf: u64,
    offset: u64,
    phys_class: u64,
}

#[derive(Debug)]
enum Source {
    Barbuf { device: Device, buffer: Buffer },
    Vfio(Vfio),
    Sysfs(File),
}

impl Path {
    pub(super) fn is_barbuf(&self) -> bool {
        matches!(self.how, How::Barbuf { .. })
    }

    /// Its leaf, as the command line calls it.
    pub(super) fn page(&self) -> PageArg {
        match self.leaf {
            GIB => PageArg::Size1G,
            PAGE => PageArg::Size4K,
            _ => PageArg::Size2M,
        }
    }

    /// barbuf is the function's driver, so that it can be bound again.
    pub(super) fn is_bound(&self) -> bool {
        self.is_barbuf() && self.function.driver().as_deref() == Some(DRIVER)
    }

    /// The function still offers it.
    pub(super) fn is_there(&self) -> bool {
        match &self.how {
            How::Barbuf { .. } => self.function.node.exists(),
            How::Vfio { .. } => self.function.driver().as_deref() == Some(VFIO),
            How::Sysfs(path) => path.exists(),
        }
    }

    /// # Errors
    ///
    /// Somebody else has it by now, or there is no room for pages of this size.
    pub(super) fn open(&self) -> anyhow::Result<Memory> {
        let (source, offset, phys_class) = match &self.how {
            How::Barbuf {
                region,
                backing,
                page,
            } => {
                let device = Device::open(self.function.bdf.as_str())?;
                let export = device.export().region(*region).any(self.size);
                let buffer = export.backing(*backing).largest_page(*page).build()?;
                if buffer.largest_page() != Some(*page) {
                    let error = Error::not_found(format!("no free range has pages of {page}"));
                    return Err(error.into());
                }
                let phys_class = buffer.query()?.phys_class;
                (Source::Barbuf { device, buffer }, 0, phys_class)
            }
            How::Vfio { bar, phys_class } => {
                let group = self.function.iommu_group().context("no IOMMU group")?;
                let vfio = Vfio::open(self.function.bdf.as_str(), &group)?;
                let (offset, _) = vfio.bar(*bar as usize)?;
                (Source::Vfio(vfio), offset, *phys_class)
            }
            How::Sysfs(path) => {
                let file = OpenOptions::new().read(true).write(true).open(path);
                let file = file.map_err(|error| Error::io("open", path, &error))?;
                (Source::Sysfs(file), 0, 0)
            }
        };
        Ok(Memory {
            source,
            size: self.size,
            leaf: self.leaf,
            offset,
            phys_class,
        })
    }
}

impl Memory {
    /// What to map.
    pub(super) fn target(&self) -> Target<'_> {
        Target {
            file: self.file(),
            offset: self.offset,
            len: self.size,
            leaf: self.leaf,
            phys_class: self.phys_class,
        }
    }

    fn file(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Barbuf { buffer, .. } => buffer.as_fd(),
            Source::Vfio(vfio) => vfio.as_fd(),
            Source::Sysfs(file) => file.as_fd(),
        }
    }

    /// A descriptor of it shows the same memory in every process.
    pub(super) fn can_be_passed_on(&self) -> bool {
        // Each mapping of `p2pmem/allocate` is of memory that was free.
        !matches!(self.source, Source::Sysfs(_))
    }

    /// Holds the kernel's count against what the mappings should have been made of. Only barbuf can be asked.
    ///
    /// # Errors
    ///
    /// They were made of something else, and the times are not what they seem.
    pub(super) fn had_only(&self, leaf: u64, count: u64) -> anyhow::Result<()> {
        let Source::Barbuf { buffer, .. } = &self.source else {
            return Ok(());
        };
        let faults = buffer.query()?.faults;
        let found = [faults.of_4k, faults.of_2m, faults.of_1g];
        let wanted = LEAVES.map(|(size, ..)| if size == leaf { count } else { 0 });
        anyhow::ensure!(
            found == wanted,
            "mapped with {found:?} pages of 4K, 2M and 1G, where {wanted:?} were meant"
        );
        Ok(())
    }

    /// Takes the buffer back, where there is one.
    pub(super) fn revoke(&self) -> anyhow::Result<()> {
        if let Source::Barbuf { device, buffer } = &self.source {
            device.revoke(buffer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tree::Tree;

    const BDF: &str = "0000:05:00.0";
    const PREFETCHABLE: u64 = 0x2208;

    fn machine(driver: Option<&str>) -> (Tree, Function) {
        let tree = Tree::new();
        tree.function(BDF, "0x120000", driver);
        tree.bars(
            BDF,
            &[
                (0, 0xfe40_0000, 1 << 24, 0x200),
                (2, 0x80_0000_0000, 3 * GIB, PREFETCHABLE),
                (4, 0xe000_0000, 1 << 22, PREFETCHABLE),
            ],
        );
        let function = tree.sysfs().function(&BDF.parse().unwrap()).unwrap();
        (tree, function)
    }

    #[test]
    fn vfio_maps_the_largest_bar_without_registers_or_the_one_that_is_named() {
        let (tree, function) = machine(Some("vfio-pci"));
        let of = |bar, most| offered(&function, bar, most).map(|mut paths| paths.remove(0));
        let path = of(None, None).unwrap();
        assert_eq!((path.name.as_str(), path.size), ("vfio-pci", 3 * GIB));
        assert_eq!(path.region, "0000:05:00.0 1af4:1110 BAR 2");
        assert_eq!((path.leaf, path.page()), (GIB, PageArg::Size1G));
        // Less than a GiB is not made of such leaves.
        assert_eq!(of(None, Some(5 * MIB + 1)).unwrap().size, 4 * MIB);
        assert_eq!(of(Some(0), None).unwrap().size, 1 << 24);
        assert_eq!(of(Some(1), None).unwrap_err().exit, Exit::NotFound);
        assert_eq!(of(None, Some(5)).unwrap_err().exit, Exit::Busy);
        tree.bars(BDF, &[(0, 0xfe40_0000, 1 << 24, 0x200)]);
        let error = of(None, None).unwrap_err();
        assert!(error.hint.unwrap().contains("--bar"), "{}", error.message);
    }

    #[test]
    fn a_provider_is_measured_with_every_backing_and_page_that_fits() {
        let (_tree, function) = machine(None);
        let mut region = Stretch {
            index: 0,
            bar: 2,
            bytes: GIB,
            harmless: true,
            phys_class: 0,
            pool: false,
            backings: vec![
                (Backing::Pfn, PageSize::Size1G),
                (Backing::Page, PageSize::Size2M),
            ],
        };
        let names = |region: &Stretch, size| -> Vec<String> {
            let paths = by_barbuf(&function, region, size).into_iter();
            paths.map(|path| path.name).collect()
        };
        assert_eq!(
            names(&region, GIB),
            [
                "barbuf pfn 4K",
                "barbuf pfn 2M",
                "barbuf pfn 1G",
                "barbuf page 4K",
                "barbuf page 2M"
            ]
        );
        assert_eq!(names(&region, MIB), ["barbuf pfn 4K", "barbuf page 4K"]);
        region.pool = true;
        let path = &by_barbuf(&function, &region, GIB)[0];
        assert!(path.region.ends_with("p2pmem") && path.is_barbuf());
        assert!(!path.is_bound());
    }

    #[test]
    fn published_p2pmem_is_measured_and_other_functions_offer_nothing() {
        let (tree, function) = machine(Some("nvme"));
        let error = offered(&function, None, None).unwrap_err();
        assert_eq!(error.exit, Exit::NotFound);
        tree.pool(BDF, 64 * MIB, 63 * MIB, false);
        assert!(offered(&function, None, None).is_err());
        tree.pool(BDF, 64 * MIB, 63 * MIB, true);
        let paths = offered(&function, None, None).unwrap();
        assert_eq!((paths[0].size, paths[0].leaf), (62 * MIB, PAGE));
        assert!(!paths[0].is_barbuf());
    }
}
