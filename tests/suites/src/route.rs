// SPDX-License-Identifier: MIT OR Apache-2.0

//! BARBUF_ROUTE: what it says on machines that are built so that the answer is known.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crate::export::main_region;
use crate::kit::importer::{BIDIRECTIONAL, Engine};
use crate::kit::klog::logged;
use crate::kit::pci::Function;
use crate::kit::prelude::*;

pub(crate) const SUITE: Suite = Suite {
    name: "route",
    tests: &[
        test!(the_route_is_that_of_the_machine).on(&[
            "npu-cmb",
            "two-root-ports",
            "no-route",
            "iommu",
            "iommu-root-ports",
        ]),
        test!(a_pool_has_routes_too).on(&["npu-cmb", "no-route"]),
        test!(a_port_that_redirects_is_no_route).on(&["one-port"]),
        test!(route_names_each_error),
    ],
};

/// Kind, reason, distance.
fn summary(route: &barbuf_route) -> (u32, u32, u32) {
    (route.out_kind, route.out_reason, route.out_distance)
}

/// What the machine was built for.
fn expected(ctx: &Ctx) -> Result<(u32, u32, u32)> {
    Ok(match ctx.topology().name.as_str() {
        // Up two ports and down two.
        "npu-cmb" | "iommu" => (BARBUF_ROUTE_SWITCH, BARBUF_REASON_NONE, 4),
        "two-root-ports" | "iommu-root-ports" => (BARBUF_ROUTE_HOST_BRIDGE, BARBUF_REASON_NONE, 4),
        "one-port" => (BARBUF_ROUTE_SWITCH, BARBUF_REASON_NONE, 2),
        "no-route" => (BARBUF_ROUTE_NONE, BARBUF_REASON_HOST_BRIDGE, 0),
        other => bail!("no expectation for {other}"),
    })
}

/// From the NPU to every other device, by region and by buffer; to itself; to nobody.
fn the_route_is_that_of_the_machine(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let region = main_region(&provider.node.info()?)?.index;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let wanted = expected(ctx)?;
    for device in [ctx.edu()?, ctx.nvme(0)?] {
        let function = Function::of(device)?;
        let of_buffer = provider.node.route(&buffer, 0, &function.bdf)?;
        let of_region = provider.node.route_raw(-1, region, &function.bdf)?;
        let bound = function.driver().is_some();
        for route in [of_buffer, of_region] {
            let known = route.out_flags & BARBUF_ROUTE_DMA_MASK_KNOWN != 0;
            ensure!(known == bound, "{}: {route:?}", device.id);
            let iommu = route.out_flags & BARBUF_ROUTE_IOMMU != 0;
            ensure!(iommu == ctx.topology().iommu, "{}: {route:?}", device.id);
            ensure!(summary(&route) == wanted, "{}: {route:?}", device.id);
        }
        if bound {
            ensure_eq!(of_buffer.out_dma_mask, u64::MAX);
        }
    }
    let itself = provider.node.route(&buffer, 0, provider.bdf())?;
    ensure_eq!(
        summary(&itself),
        (BARBUF_ROUTE_SWITCH, BARBUF_REASON_NONE, 0)
    );
    let nobody = provider.node.route(&buffer, 0, "ffff:ff:1f.7")?;
    ensure_eq!(
        summary(&nobody),
        (BARBUF_ROUTE_NONE, BARBUF_REASON_NO_DEVICE, 0)
    );
    Ok(())
}

/// The other way round: an adopted drive's memory.
fn a_pool_has_routes_too(ctx: &Ctx) -> Result<()> {
    let provider = Provider::adopt(ctx.nvme(0)?)?;
    let edu = Function::of(ctx.edu()?)?;
    let route = provider.node.route_raw(-1, 0, &edu.bdf)?;
    ensure_eq!(summary(&route), expected(ctx)?);
    Ok(())
}

/// A port whose ACS redirects requests for peers up to the root complex until this is
/// dropped.
struct Redirecting {
    config: PathBuf,
    control: u64,
    before: [u8; 2],
}

impl Redirecting {
    /// The port above a function.
    fn above(function: &Function) -> Result<Redirecting> {
        /// The extended capability's number, and where its control register is.
        const ACS: u32 = 0x000d;
        const CONTROL: u64 = 6;
        /// P2P Request Redirect and P2P Completion Redirect.
        const REDIRECT: u16 = (1 << 2) | (1 << 3);
        let config = fs::canonicalize(function.dir())?
            .parent()
            .context("no port")?
            .join("config");
        let bytes = fs::read(&config)?;
        let mut at = 0x100;
        let capability = loop {
            let word = bytes.get(at..at + 4).context("extended capabilities")?;
            let word = u32::from_le_bytes(word.try_into()?);
            if word & 0xffff == ACS {
                break at as u64;
            }
            at = (word >> 20) as usize;
            ensure!(at != 0, "{} has no ACS", config.display());
        };
        let mut redirecting = Redirecting {
            config,
            control: capability + CONTROL,
            before: [0; 2],
        };
        let at = redirecting.control as usize;
        redirecting.before.copy_from_slice(&bytes[at..at + 2]);
        let control = u16::from_le_bytes(redirecting.before) | REDIRECT;
        redirecting.write(control.to_le_bytes())?;
        Ok(redirecting)
    }

    fn write(&self, value: [u8; 2]) -> Result<()> {
        let file = OpenOptions::new().write(true).open(&self.config)?;
        Ok(file.write_all_at(&value, self.control)?)
    }
}

impl Drop for Redirecting {
    fn drop(&mut self) {
        if let Err(error) = self.write(self.before) {
            eprintln!("cannot undo ACS of {}: {error:#}", self.config.display());
        }
    }
}

/// A port is above both, and sends what one wants of the other to the host bridge, which is not to be
/// trusted with it: no way. ROUTE looks again each time, and what it finds holds for whoever attaches.
fn a_port_that_redirects_is_no_route(ctx: &Ctx) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let provider = Provider::bind(ctx.npu(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let edu = &engine.function.bdf;
    let ask = || -> Result<_> { Ok(summary(&provider.node.route(&buffer, 0, edu)?)) };
    let reachable = expected(ctx)?;
    ensure_eq!(ask()?, reachable);
    engine.attached(&buffer)?.map(BIDIRECTIONAL)?;
    let why = "ACS redirection on the way";
    let before = logged(edu, why)?;
    let redirecting = Redirecting::above(&provider.function)?;
    ensure_eq!(ask()?, (BARBUF_ROUTE_NONE, BARBUF_REASON_ACS_REDIRECT, 0));
    for _ in 0..2 {
        let answer = engine.importer()?.attach(&buffer, 0);
        ensure!(answer == Err(Errno::EREMOTEIO), "{answer:?}");
    }
    ensure_eq!(logged(edu, why)? - before, 1);
    drop(redirecting);
    ensure_eq!(ask()?, reachable);
    engine.attached(&buffer)?.map(BIDIRECTIONAL)?;
    Ok(())
}

fn route_names_each_error(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let drive = Provider::adopt(ctx.nvme(0)?)?;
    let buffer = provider.node.export(&Export::any(MIB))?;
    let foreign = drive.node.export(&Export::any(MIB))?;
    let edu = Function::of(ctx.edu()?)?.bdf;
    let null = std::fs::File::open("/dev/null")?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&null);
    for (what, fd, region, name, wanted) in [
        (
            "a region of another index",
            -1,
            1000,
            &edu[..],
            Errno::EINVAL,
        ),
        (
            "a buffer and a region",
            buffer.number(),
            1,
            &edu,
            Errno::EINVAL,
        ),
        ("a negative descriptor", -2, 0, &edu, Errno::EINVAL),
        ("a closed descriptor", 1 << 20, 0, &edu, Errno::EBADF),
        ("no dma-buf", number, 0, &edu, Errno::EINVAL),
        (
            "another provider's",
            foreign.number(),
            0,
            &edu,
            Errno::ENODEV,
        ),
        ("no name", -1, 0, "", Errno::EINVAL),
        ("half a name", -1, 0, "0000:03", Errno::EINVAL),
        ("no hexadecimal", -1, 0, "0000:xx:00.0", Errno::EINVAL),
        (
            "a long name",
            -1,
            0,
            "0000:03:00.0 and something more",
            Errno::EINVAL,
        ),
    ] {
        let answer = provider.node.route_raw(fd, region, name).map(drop);
        ensure!(answer == Err(wanted), "{what}: {answer:?}");
    }
    Ok(())
}
