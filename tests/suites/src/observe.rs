// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an administrator sees: the files in debugfs, and the tracepoints, each along a buffer's life.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use crate::export::main_region;
use crate::kit::importer::{Engine, STATIC};
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::process::{PROMPT, within};
use crate::kit::vendor::{Loaded, Sample};

use barbuf_guest::sysfs;

pub(crate) const SUITE: Suite = Suite {
    name: "observe",
    tests: &[
        test!(the_files_follow_a_buffer).timeout(60),
        test!(a_suspended_buffer_is_called_so),
        test!(a_provider_that_goes_is_asked_nothing).timeout(60),
        test!(the_tracepoints_follow_a_buffer),
    ],
};

/// A line of a file, by the names in its heading.
type Row = BTreeMap<String, String>;

/// The lines of a file in debugfs, and what its first line says.
fn read(file: &str) -> Result<(String, Vec<Row>)> {
    let text = sysfs::read(format!("/sys/kernel/debug/barbuf/{file}"))?;
    let (headings, lines): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with('#'));
    let heading = headings.last().context("no heading")?;
    let names: Vec<&str> = heading.split_whitespace().skip(1).collect();
    let rows = lines.into_iter().map(|line| {
        let values: Vec<&str> = line.split_whitespace().collect();
        ensure!(values.len() == names.len(), "{names:?}, and {values:?}");
        let pairs = names.iter().zip(values);
        Ok(pairs
            .map(|(n, v)| ((*n).to_owned(), v.to_owned()))
            .collect())
    });
    Ok((headings[0].to_owned(), rows.collect::<Result<_>>()?))
}

/// The lines about a function.
fn rows_of(file: &str, bdf: &str) -> Result<Vec<Row>> {
    let mut rows = read(file)?.1;
    rows.retain(|row| row["provider"] == bdf);
    Ok(rows)
}

/// `st_ino` of a dma-buf, by which everything here calls a buffer.
fn id(fd: impl AsFd) -> Result<u64> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

/// The line about a buffer, if there is one.
fn row_of(id: u64) -> Result<Option<Row>> {
    let mut rows = read("buffers")?.1;
    rows.retain(|row| row["id"] == id.to_string());
    ensure!(rows.len() < 2, "two buffers {id}: {rows:?}");
    Ok(rows.pop())
}

/// A line has these values.
fn expect(row: &Row, wanted: &[(&str, &str)]) -> Result<()> {
    for (name, value) in wanted {
        ensure!(row[*name] == *value, "{name} is not {value}: {row:?}");
    }
    Ok(())
}

/// The lines about the provider say what INFO says.
fn agrees_with_info(provider: &Provider, kind: &str) -> Result<()> {
    let regions = provider.node.info()?.regions;
    let rows = rows_of("providers", provider.bdf())?;
    ensure!(rows.len() == regions.len(), "{rows:?}, {regions:?}");
    for (row, region) in rows.iter().zip(&regions) {
        expect(
            row,
            &[
                ("kind", kind),
                ("region", &region.index.to_string()),
                ("bar", &region.bar.to_string()),
                ("offset", &format!("{:#x}", region.offset)),
                ("length", &format!("{:#x}", region.length)),
                ("free", &format!("{:#x}", region.free)),
                ("leaf", &region.max_page_shift.to_string()),
                ("pages", &region.page_shift.to_string()),
                ("buffers", &region.nr_buffers.to_string()),
            ],
        )?;
    }
    Ok(())
}

/// The line about a buffer says what QUERY says.
fn agrees_with_query(buffer: &Buffer, state: &str) -> Result<Row> {
    let row = row_of(id(buffer)?)?.context("the buffer is not listed")?;
    let query = Node::control()?.query(buffer)?;
    let leaves = query.leaves();
    expect(
        &row,
        &[
            ("region", &query.raw.out_region.to_string()),
            ("size", &format!("{:#x}", query.raw.out_size)),
            ("state", state),
            ("generation", &query.raw.out_generation.to_string()),
            ("leaf", &query.raw.out_page_shift.to_string()),
            ("faults", &query.raw.out_faults.to_string()),
            ("4k", &leaves.of_4k.to_string()),
            ("2m", &leaves.of_2m.to_string()),
            ("1g", &leaves.of_1g.to_string()),
            ("mappings", &query.raw.out_mappings.to_string()),
            ("bytes", &format!("{:#x}", query.raw.out_mapped_bytes)),
        ],
    )?;
    Ok(row)
}

fn buffers_in_all() -> Result<String> {
    Ok(read("providers")?.0)
}

/// Made, mapped with pages of every size, revoked, closed.
fn the_files_follow_a_buffer(ctx: &Ctx) -> Result<()> {
    ensure_eq!(buffers_in_all()?, "# buffers 0 of 16384".to_owned());
    let provider = Provider::bind(ctx.npu(0)?)?;
    agrees_with_info(&provider, "bound")?;
    for (backing, cache, names) in [
        (BARBUF_BACKING_PFN, BARBUF_CACHE_UC, ("pfn", "uc")),
        (BARBUF_BACKING_PFN, BARBUF_CACHE_WC, ("pfn", "wc")),
        (BARBUF_BACKING_PAGE, BARBUF_CACHE_UC, ("page", "uc")),
    ] {
        let wanted = Export::at(0, 2 * GIB).backing(backing).cache(cache);
        let buffer = provider.node.export(&wanted)?;
        let number = id(&buffer)?;
        let row = agrees_with_query(&buffer, "live")?;
        let (fresh, whole) = (("faults", "0"), ("size", "0x80000000"));
        expect(
            &row,
            &[("backing", names.0), ("cache", names.1), fresh, whole],
        )?;
        expect(&row, &[("provider", provider.bdf()), ("generation", "1")])?;
        agrees_with_info(&provider, "bound")?;
        ensure_eq!(buffers_in_all()?, "# buffers 1 of 16384".to_owned());

        let map = Mapping::whole(&buffer)?;
        ensure!(map.load(0).is_ok());
        let row = agrees_with_query(&buffer, "live")?;
        expect(&row, &[("faults", "1"), ("1g", "2"), ("mappings", "1")])?;
        expect(&row, &[("bytes", "0x80000000"), ("2m", "0"), ("4k", "0")])?;
        // Folios have one size.
        if backing == BARBUF_BACKING_PFN {
            let place = Place::Off(2 * MIB);
            let medium = Mapping::new(&buffer, Window::new(0, 4 * MIB), READ, place)?;
            let place = Place::Off(PAGE);
            let small = Mapping::new(&buffer, Window::new(PAGE, 3 * PAGE), READ, place)?;
            ensure!(medium.load(0).is_ok() && small.load(0).is_ok());
            let row = agrees_with_query(&buffer, "live")?;
            expect(&row, &[("faults", "3"), ("4k", "3"), ("2m", "2")])?;
            expect(&row, &[("mappings", "3"), ("1g", "2")])?;
        }

        provider.node.revoke(&buffer)?;
        let row = agrees_with_query(&buffer, "revoked")?;
        expect(&row, &[("generation", "2"), ("mappings", "1")])?;
        agrees_with_info(&provider, "bound").context("after the revocation")?;
        drop(buffer);
        ensure!(row_of(number)?.is_some(), "a mapping is left");
        drop(map);
        ensure!(row_of(number)?.is_none(), "a buffer that is gone");
    }
    ensure_eq!(buffers_in_all()?, "# buffers 0 of 16384".to_owned());
    let bdf = provider.bdf().to_owned();
    drop(provider);
    ensure!(rows_of("providers", &bdf)?.is_empty(), "{bdf} is listed");
    Ok(())
}

/// The sample driver with its device, registered. Dropped in this order.
struct Registered {
    provider: Provider,
    sample: Sample,
    _loaded: Loaded,
}

impl Registered {
    fn new(ctx: &Ctx) -> Result<Registered> {
        let loaded = Loaded::new(ctx)?;
        let provider = Provider::register(ctx.npu(0)?)?;
        wait_until("/dev/npu_sample", || Path::new("/dev/npu_sample").exists())?;
        Ok(Registered {
            provider,
            sample: Sample::open()?,
            _loaded: loaded,
        })
    }
}

fn a_suspended_buffer_is_called_so(ctx: &Ctx) -> Result<()> {
    let npu = Registered::new(ctx)?;
    let buffer = npu.provider.node.export(&Export::any(GIB))?;
    agrees_with_info(&npu.provider, "registered")?;
    npu.sample.suspend()?;
    let row = agrees_with_query(&buffer, "suspended")?;
    expect(&row, &[("generation", "1")])?;
    agrees_with_info(&npu.provider, "registered").context("suspended")?;
    npu.sample.resume()?;
    let row = agrees_with_query(&buffer, "live")?;
    expect(&row, &[("generation", "2")])
}

/// The pool of a function goes with its adoption, and is asked only before that.
fn a_provider_that_goes_is_asked_nothing(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let drive = Provider::adopt(ctx.nvme(0)?)?;
    agrees_with_info(&drive, "adopted")?;
    let consents = Export::any(MIB).flag(BARBUF_EXPORT_STATIC_IMPORT);
    let buffer = drive.node.export(&consents)?;
    agrees_with_info(&drive, "adopted")?;
    // Whoever cannot be told to stop is waited for, and so the end takes as long as we like.
    let importer = engine.importer()?;
    importer.attach(&buffer, STATIC)?;
    let number = id(&buffer)?;
    let state = || Ok::<_, anyhow::Error>(row_of(number)?.context("not listed")?["state"].clone());
    thread::scope(|scope| {
        let going = scope.spawn(|| Node::control()?.release(drive.bdf()).context("RELEASE"));
        let seen = wait_until("the revocation", || {
            state().is_ok_and(|state| state == "revoked")
        });
        let listed = within(PROMPT, "reading", || rows_of("providers", drive.bdf()));
        let waited = !going.is_finished();
        importer.detach()?;
        going.join().expect("the thread that releases")?;
        seen?;
        let listed = listed??;
        ensure!(waited, "the end did not take as long as was needed");
        ensure!(listed.is_empty(), "{listed:?}");
        Ok(())
    })
}

/// The module's events, recorded until this is dropped.
struct Events;

const TRACING: &str = "/sys/kernel/tracing";

impl Events {
    fn record() -> Result<Events> {
        // Opening it for writing, and truncating it, is what empties it.
        std::fs::write(Path::new(TRACING).join("trace"), "")?;
        Events::enable(true)?;
        Ok(Events)
    }

    fn enable(on: bool) -> Result<()> {
        let file = Path::new(TRACING).join("events/barbuf/enable");
        Ok(sysfs::write(file, if on { "1" } else { "0" })?)
    }

    /// Those about a buffer: `barbuf_export: buffer=5 ...`, without the buffer.
    fn about(&self, id: u64) -> Result<Vec<String>> {
        let text = sysfs::read(Path::new(TRACING).join("trace"))?;
        let about = |line: &str| {
            let (_, event) = line.split_once(": barbuf_")?;
            let (name, rest) = event.split_once(": ")?;
            let (buffer, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let ours = buffer == format!("buffer={id}");
            ours.then(|| format!("{name} {rest}").trim().to_owned())
        };
        Ok(text.lines().filter_map(about).collect())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let undo = Events::enable(false);
        if let Err(error) = undo {
            eprintln!("cannot stop tracing: {error:#}");
        }
    }
}

/// Every event of a life, once and in order, with what it happened to.
fn the_tracepoints_follow_a_buffer(ctx: &Ctx) -> Result<()> {
    let npu = Registered::new(ctx)?;
    let events = Events::record()?;
    let wanted = Export::at(4 * GIB, 2 * GIB).page();
    let buffer = npu.provider.node.export(&wanted)?;
    let number = id(&buffer)?;
    let map = Mapping::whole(&buffer)?;
    ensure!(map.load(GIB + 5 * PAGE).is_ok());
    npu.sample.suspend()?;
    npu.sample.resume()?;
    let window = Window::new(GIB, GIB);
    let second = Mapping::new(&buffer, window, READ, Place::Congruent)?;
    ensure!(second.load(7 * PAGE).is_ok());
    npu.provider.node.revoke(&buffer)?;
    ensure!(map.load(0) == Err(Fault::bus(map.at(0))));
    drop((map, second, buffer));

    let small = Export::any(MIB).cache(BARBUF_CACHE_WC);
    let other = npu.provider.node.export(&small)?;
    let next = id(&other)?;
    drop(other);
    let region = main_region(&npu.provider.node.info()?)?.index;
    // VM_FAULT_NOPAGE
    let done = "result=0x100";
    ensure_eq!(
        events.about(number)?,
        [
            format!(
                "export region={region} size={} backing=page cache=uc",
                2 * GIB
            ),
            format!(
                "fault offset={:#x} shift=30 leaves=2 {done}",
                GIB + 5 * PAGE
            ),
            "state state=suspended generation=1".to_owned(),
            "state state=live generation=2".to_owned(),
            format!(
                "fault offset={:#x} shift=30 leaves=1 {done}",
                GIB + 7 * PAGE
            ),
            "state state=revoked generation=3".to_owned(),
            "release".to_owned(),
        ]
    );
    ensure_eq!(
        events.about(next)?,
        [
            format!("export region={region} size={MIB} backing=pfn cache=wc"),
            "release".to_owned(),
        ]
    );
    Ok(())
}
