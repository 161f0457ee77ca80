// SPDX-License-Identifier: MIT OR Apache-2.0

//! What every guest of a kernel is made of: the kernel, modules, init, the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use barbuf_guest::protocol::{BootSpec, Job, ListedTest};

use super::kmods::{self, Module};
use super::topology::Topology;
use crate::cmd::{Log, make_dir, output};
use crate::ctx::Ctx;
use crate::kernel::{Flavour, Kernel};
use crate::module;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Modules of the kernel that tests may load, where they are not built in.
const WANTED: &[&str] = &["nvme", "ext4", "vfio_pci", "vfio_iommu_type1"];
/// The same on Debian's kernel alone.
const WANTED_ON_STOCK: &[&str] = &["vgem", "vivid"];
/// And on the kernel of the comparison.
const WANTED_ON_BASE: &[&str] = &["device_dax"];
/// The module under test.
const PRODUCT: &str = "barbuf";

/// A program of the guest in C or C++.
struct Foreign {
    /// Where it lies in the guest.
    path: &'static str,
    compiler: &'static str,
    /// The dialect that its users have, where that matters.
    dialect: Option<&'static str>,
    source: &'static str,
}

const fn foreign(
    path: &'static str,
    compiler: &'static str,
    dialect: Option<&'static str>,
    source: &'static str,
) -> Foreign {
    Foreign {
        path,
        compiler,
        dialect,
        source,
    }
}

const fn reproducer(path: &'static str, source: &'static str) -> Foreign {
    foreign(path, "gcc", None, source)
}

const FOREIGN: &[Foreign] = &[
    foreign("/probe64", "gcc", Some("-m64"), "tests/vm/probe/probe.c"),
    foreign("/probe32", "gcc", Some("-m32"), "tests/vm/probe/probe.c"),
    foreign(
        "/examples/receive-c",
        "gcc",
        Some("-std=gnu11"),
        "examples/receive.c",
    ),
    foreign(
        "/examples/receive-cxx",
        "g++",
        Some("-std=c++17"),
        "examples/receive.cpp",
    ),
    reproducer("/reproducers/split-1g", "tests/reproducers/split-1g.c"),
    reproducer("/reproducers/mremap-1g", "tests/reproducers/mremap-1g.c"),
    reproducer("/reproducers/protect-1g", "tests/reproducers/protect-1g.c"),
    reproducer("/reproducers/lost-folio", "tests/reproducers/lost-folio.c"),
    reproducer("/reproducers/sg-leak", "tests/reproducers/sg-leak.c"),
    reproducer("/reproducers/populate", "tests/reproducers/populate.c"),
];

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) kernel: Kernel,
    pub(crate) modules: Vec<Module>,
    pub(crate) programs: Programs,
}

/// The crate's examples that the guest has, in `/examples`.
const EXAMPLES: [&str; 3] = ["send", "receive", "first"];

/// The programs of the guest, which also tell on the host what tests there are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) init: PathBuf,
    pub(crate) suites: PathBuf,
    /// The command `barbuf`.
    pub(crate) command: PathBuf,
    /// Those in C and C++, and the crate's examples: where they lie in the guest, and here.
    pub(crate) others: Vec<(String, PathBuf)>,
    /// The example in Python.
    pub(crate) script: PathBuf,
}

impl Programs {
    /// Builds them as static programs: the guest has no libraries.
    pub(crate) fn build(ctx: &Ctx) -> Result<Self> {
        let step = ctx.ui.step("building the guest's programs");
        // Flags for the guest must not make cargo build the host's programs anew each time.
        let target_dir = ctx.target.join("guest");
        let mut cargo = Command::new("cargo");
        cargo
            .args(["build", "--release", "--locked", "--target", TARGET])
            .args([
                "-p",
                "barbuf-guest",
                "-p",
                "barbuf-suites",
                "-p",
                "barbuf-cli",
                "-p",
                "barbuf",
            ])
            .arg("--bins")
            .args(EXAMPLES.iter().flat_map(|name| ["--example", name]))
            .arg("--manifest-path")
            .arg(ctx.repo.join("userspace/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target_dir)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
        Log::create(ctx, ctx.target.join("guest-programs.log"))?
            .run(&mut cargo, "the guest's programs could not be built")?;
        let mut others = FOREIGN
            .iter()
            .map(|program| Ok((program.path.into(), program.build(ctx, &target_dir)?)))
            .collect::<Result<Vec<_>>>()?;
        step.done();
        let dir = target_dir.join(TARGET).join("release");
        others.extend(
            EXAMPLES.map(|name| (format!("/examples/{name}"), dir.join("examples").join(name))),
        );
        Ok(Programs {
            init: dir.join("barbuf-guest"),
            suites: dir.join("barbuf-suites"),
            command: dir.join("barbuf"),
            others,
            script: ctx.repo.join("examples/receive.py"),
        })
    }

    /// Puts the command into a directory, with what it writes about itself.
    pub(crate) fn install_command(&self, dir: &Path) -> Result<()> {
        make_dir(dir)?;
        let to = dir.join("barbuf");
        fs::copy(&self.command, &to).with_context(|| format!("cannot write {}", to.display()))?;
        output(Command::new(&to).args(["--quiet", "manual"]).arg(dir)).map(drop)
    }

    /// What tests there are.
    pub(crate) fn list(&self, option: &str) -> Result<Vec<ListedTest>> {
        let text = output(Command::new(&self.suites).arg(option))?;
        serde_json::from_str(&text).context("the list of tests is no list of tests")
    }
}

impl Foreign {
    /// Compiles it as its users would but for the libraries: the guest has none.
    fn build(&self, ctx: &Ctx, dir: &Path) -> Result<PathBuf> {
        let name = self.path.rsplit('/').next().unwrap_or(self.path);
        let program = dir.join(name);
        let mut command = Command::new(self.compiler);
        command
            .args(["-static", "-O2", "-Wall", "-Wextra", "-Werror"])
            .args(self.dialect)
            .arg("-I")
            .arg(ctx.repo.join("uapi"))
            .arg(ctx.repo.join(self.source))
            .arg("-o")
            .arg(&program);
        Log::create(ctx, ctx.target.join(format!("{name}.log")))?
            .run(&mut command, &format!("{} could not be built", self.source))?;
        Ok(program)
    }
}

impl Parts {
    /// Gathers what guests of this kernel need.
    pub(crate) fn gather(kernel: Kernel, programs: &Programs, ctx: &Ctx) -> Result<Self> {
        let built = module::build(&kernel, ctx)?;
        let mut wanted = WANTED.to_vec();
        match kernel.flavour {
            Flavour::Stock => wanted.extend(WANTED_ON_STOCK),
            Flavour::Base => wanted.extend(WANTED_ON_BASE),
            Flavour::Debug => {}
        }
        let mut modules = kmods::collect(&kernel.modules, &wanted)
            .with_context(|| format!("the modules of the {} kernel", kernel.flavour))?;
        for path in &built.modules {
            modules.push(kmods::own(path)?);
        }
        if !modules.iter().any(|module| module.file.name == PRODUCT) {
            bail!("the build made no {PRODUCT}.ko");
        }
        Ok(Parts {
            kernel,
            modules,
            programs: programs.clone(),
        })
    }

    /// By how much a guest is slower than the stock kernel without KVM, for which time limits
    /// are written.
    pub(crate) fn time_scale(&self, topology: &Topology) -> u32 {
        let checkers = match self.kernel.flavour {
            Flavour::Stock | Flavour::Base => 1,
            Flavour::Debug => 6,
        };
        checkers * if topology.icount { 3 } else { 1 } * patience()
    }

    /// The checkers of the debug kernel keep books about every byte.
    pub(crate) fn memory_mib(&self, topology: &Topology) -> u32 {
        match self.kernel.flavour {
            Flavour::Stock | Flavour::Base => topology.memory_mib,
            Flavour::Debug => topology.memory_mib + 1024,
        }
    }

    pub(crate) fn kernel_parameters(&self) -> &'static str {
        match self.kernel.flavour {
            Flavour::Stock | Flavour::Base => "",
            // An emulated processor under KASAN stalls for longer than 21 s without any fault.
            Flavour::Debug => "rcupdate.rcu_cpu_stall_timeout=100 kmemleak=on",
        }
    }

    pub(crate) fn spec(&self, topology: &Topology, time_scale: u32, job: Job) -> BootSpec {
        let mut load = Vec::new();
        let available = |name: &str| self.modules.iter().any(|module| module.file.name == name);
        if !topology.nvme.is_empty() && available("nvme") {
            load.push("nvme".to_owned());
        }
        load.push(PRODUCT.to_owned());
        BootSpec {
            topology: topology.for_guest(),
            kernel: self.kernel.flavour.to_string(),
            modules: self
                .modules
                .iter()
                .map(|module| module.file.clone())
                .collect(),
            load,
            product: PRODUCT.into(),
            time_scale,
            job,
        }
    }
}

/// By how much the user says that this machine is busy: `BARBUF_PATIENCE`, a factor from 1 to 100.
pub(super) fn patience() -> u32 {
    std::env::var("BARBUF_PATIENCE")
        .ok()
        .and_then(|value| value.parse().ok())
        .map_or(1, |factor: u32| factor.clamp(1, 100))
}
