// SPDX-License-Identifier: MIT OR Apache-2.0

//! A kernel that is locked down, as Debian's is after Secure Boot. Nothing unlocks it, so the test has a
//! boot of its own.

use nix::mount::{MsFlags, mount};

use crate::kit::klog::logged;
use crate::kit::prelude::*;

use barbuf_guest::sysfs;

pub(crate) const SUITE: Suite = Suite {
    name: "lockdown",
    tests: &[test!(registers_are_shut_and_memory_is_not)
        .timeout(60)
        .console(&["Kernel is locked down from securityfs"])],
};

/// Where init does not mount it.
const SECURITY: &str = "/sys/kernel/security";

fn lock_down() -> Result<()> {
    mount(
        Some("securityfs"),
        SECURITY,
        Some("securityfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("securityfs")?;
    let file = format!("{SECURITY}/lockdown");
    ensure_eq!(
        sysfs::read(&file)?,
        "[none] integrity confidentiality".to_owned()
    );
    Ok(sysfs::write(&file, "integrity")?)
}

/// EPERM, for root with every capability, where a region can hold registers; memory alone is exported as
/// before; and what was exported before stays.
fn registers_are_shut_and_memory_is_not(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let drive = Provider::adopt(ctx.nvme(0)?)?;
    let earlier = provider.node.export(&Export::any(MIB))?;
    let map = Mapping::whole(&earlier)?;
    ensure!(map.store(0, 1) == Ok(()));
    lock_down()?;

    let free = provider.node.info()?.regions;
    for backing in [BARBUF_BACKING_PFN, BARBUF_BACKING_PAGE] {
        for wanted in [Export::any(GIB), Export::any(GIB).read_only()] {
            let answer = provider.node.export(&wanted.backing(backing)).map(drop);
            ensure!(answer == Err(Errno::EPERM), "backing {backing}: {answer:?}");
        }
        let buffer = drive
            .node
            .export(&Export::any(MIB).backing(backing).flag(BARBUF_EXPORT_ZERO))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.load(0) == Ok(0) && map.store(0, 2) == Ok(()));
    }
    ensure_eq!(provider.node.info()?.regions, free);
    ensure!(
        logged("Lockdown:", "direct PCI access is restricted")? > 0,
        "the kernel does not say who was refused"
    );

    // A call that is wrong in itself is told so first.
    let wrong = Export::any(GIB).flag(BARBUF_EXPORT_ZERO);
    ensure_eq!(
        provider.node.export(&wrong).map(drop),
        Err(Errno::EOPNOTSUPP)
    );
    ensure_eq!(map.load(0), Ok(1));
    ensure!(map.store(MIB - 8, 3) == Ok(()) && map.load(MIB - 8) == Ok(3));
    provider.node.revoke(&earlier)?;
    ensure_eq!(map.load(0), Err(Fault::bus(map.at(0))));
    Ok(())
}
