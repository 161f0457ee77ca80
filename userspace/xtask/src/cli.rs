// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line, as types. The Makefile's targets map onto these one to one.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::host;
use crate::kernel::Flavour;

/// Builds the kernels and the module of barbuf and runs its tests in virtual machines.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "make")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot the stock kernel, load the module, show what it exports
    Demo(DemoArgs),
    /// Run every test: on the host, then on each kernel
    Test(TestArgs),
    /// Measure what the module costs, next to vfio-pci
    Figures(FiguresArgs),
    /// Measure every way to map the memory of a device, next to each other
    Compare(CompareArgs),
    /// An interactive guest with the module at hand
    Shell(ShellArgs),
    /// Build the module
    Modules(ModulesArgs),
    /// Build the command `barbuf`, with its manual pages and completions
    #[command(name = "command")]
    Product,
    /// Make a kernel ready and print where it lies
    Kernel(KernelArgs),
    /// Look for a newer kernel on the mirror
    Update,
    /// Check style and lints
    Lint,
    /// Format the Rust sources
    Fmt,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The topology to boot
    #[arg(long)]
    pub(crate) topology: Option<String>,
    /// Keep the guest's files
    #[arg(long)]
    pub(crate) keep: bool,
    /// Make guest time count guest instructions
    #[arg(long)]
    pub(crate) icount: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// The kernels to test on
    #[arg(long, value_enum, default_value_t = KernelChoice::Stock)]
    pub(crate) kernel: KernelChoice,
    /// Run only tests whose full name (`suite::test`) contains this; given several times, one of these
    #[arg(long, value_name = "TEXT")]
    pub(crate) filter: Vec<String>,
    /// Run only tests of this topology
    #[arg(long)]
    pub(crate) topology: Option<String>,
    /// Keep the guests' files
    #[arg(long)]
    pub(crate) keep: bool,
    /// Write the results as JSON into a file, or to standard output for `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Make guest time count guest instructions
    #[arg(long)]
    pub(crate) icount: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FiguresArgs {
    /// How often to boot; the minima of further boots are compared with those of the first
    #[arg(long, default_value = "1")]
    pub(crate) boots: NonZeroU32,
    /// Write rows and samples as JSON into a file, or to standard output for `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Only measurements whose name (`figures::...`) contains this, and the rows that need no other;
    /// given several times, one of these
    #[arg(long, value_name = "TEXT")]
    pub(crate) filter: Vec<String>,
    /// Keep the guests' files
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The kernel to compare on; `base` has the patches of compound-sysfs/
    #[arg(long, value_enum, default_value_t = Flavour::Base)]
    pub(crate) kernel: Flavour,
    /// How often to measure; the minima of further rounds are compared with those of the first
    #[arg(long, default_value = "1")]
    pub(crate) boots: NonZeroU32,
    /// Only paths whose test (`compare::...`, `verdicts::...`) contains this
    #[arg(long)]
    pub(crate) filter: Option<String>,
    /// Take the report over into docs/
    #[arg(long)]
    pub(crate) record: bool,
    /// Keep the guests' files
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// The kernel to boot
    #[arg(long, value_enum, default_value_t = Flavour::Stock)]
    pub(crate) kernel: Flavour,
    /// The topology to boot
    #[arg(long)]
    pub(crate) topology: Option<String>,
    /// A file below this directory that the guest is to have in /bin: a static program
    #[arg(long, value_name = "FILE")]
    pub(crate) add: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ModulesArgs {
    /// The kernel to build for
    #[arg(long, value_enum, default_value_t = Flavour::Stock)]
    pub(crate) kernel: Flavour,
}

#[derive(Debug, Args)]
pub(crate) struct KernelArgs {
    /// The kernel to make ready
    #[arg(long, value_enum, default_value_t = Flavour::Stock)]
    pub(crate) flavour: Flavour,
}

/// Which kernels `test` runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KernelChoice {
    Stock,
    Debug,
    Base,
    /// The two that the module is for: stock and debug
    All,
}

impl TestArgs {
    /// Whether nothing is selected among the tests.
    pub(crate) fn is_unselective(&self) -> bool {
        self.filter.is_empty() && self.topology.is_none()
    }

    /// Whether the tests on the host belong to it: not when one topology, or the debug kernel
    /// alone, is asked for.
    pub(crate) fn selects_host(&self) -> bool {
        self.topology.is_none() && self.kernel != KernelChoice::Debug
    }

    /// Where tests must have passed in the end. Only a run of everything promises that: a filter
    /// may leave any place without a test.
    pub(crate) fn promised(&self) -> Vec<String> {
        if !self.is_unselective() {
            return Vec::new();
        }
        let host = self.selects_host().then(|| host::PLACE.to_owned());
        let kernels = self.kernel.flavours().iter().map(ToString::to_string);
        host.into_iter().chain(kernels).collect()
    }
}

impl KernelChoice {
    /// The kernels in the order in which they are tested.
    pub(crate) fn flavours(self) -> &'static [Flavour] {
        match self {
            KernelChoice::Stock => &[Flavour::Stock],
            KernelChoice::Debug => &[Flavour::Debug],
            KernelChoice::Base => &[Flavour::Base],
            KernelChoice::All => &[Flavour::Stock, Flavour::Debug],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promised(line: &[&str]) -> Vec<String> {
        let cli = Cli::try_parse_from([&["make", "test"], line].concat()).unwrap();
        match cli.command {
            Command::Test(args) => args.promised(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_run_of_everything_promises_every_place() {
        assert_eq!(promised(&[]), ["host", "stock"]);
        assert_eq!(promised(&["--kernel", "debug"]), ["debug"]);
        assert_eq!(promised(&["--kernel", "all"]), ["host", "stock", "debug"]);
    }

    #[test]
    fn a_selection_promises_nothing() {
        assert!(promised(&["--filter", "fork"]).is_empty());
        assert!(promised(&["--topology", "iommu"]).is_empty());
    }
}
