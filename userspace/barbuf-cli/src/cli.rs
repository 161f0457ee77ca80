// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line, as types: the one source of help, manual pages and completions.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::size;
use crate::sysfs::Bdf;

/// PCI BAR memory as dma-bufs: list, export, fill, hand on, take back.
#[derive(Debug, Parser)]
#[command(
    name = "barbuf",
    version,
    about,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Print one JSON document, with a schema number
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results and errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say what is done, on standard error
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Take this directory for /, to find sys, dev, proc, run and etc in
    #[arg(long, global = true, hide = true, default_value = "/")]
    pub root: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List every BAR and CMB of this machine, and whether it can be exported, or why not
    List(ListArgs),
    /// Make a PCI function a provider by binding it to barbuf
    Bind(BindArgs),
    /// Give a bound function back to the driver that it had
    Unbind(UnbindArgs),
    /// Make a PCI function a provider whose own driver has published p2pmem and stays
    Adopt(DeviceArgs),
    /// End that: its buffers are revoked, and its memory goes back
    Release(DeviceArgs),
    /// Tell what a provider offers, or what a buffer is
    Info(InfoArgs),
    /// Make a buffer, and run a command that has it as file descriptor 3, or hold it
    Export(ExportArgs),
    /// Read a file into a buffer, past the page cache where that is possible
    Load(LoadArgs),
    /// Write a buffer's bytes to a file or to standard output
    Dump(DumpArgs),
    /// Take a buffer back for good, from everybody
    Revoke(BufferArgs),
    /// Tell whether a PCI function can reach a provider's memory by DMA, and if not, why. Exits with
    /// 1 if it cannot
    Route(RouteArgs),
    /// Hand out buffers over a Unix socket, to whom the rules let have them
    Serve(ServeArgs),
    /// Get a buffer from `serve`, and run a command that has it as file descriptor 3
    Get(GetArgs),
    /// Measure what mapping the memory of devices costs, by every way that they offer now
    Bench(BenchArgs),
    /// Judge this machine: PASS, WARN or FAIL, with one line on what to do for each
    Doctor(DoctorArgs),
    /// Write manual pages or completions
    #[command(hide = true)]
    Manual(ManualArgs),
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only these functions, as 0000:03:00.0 or 03:00.0
    #[arg(value_name = "DEVICE")]
    pub devices: Vec<Bdf>,
    /// Only memory that can be exported now, or after bind or adopt
    #[arg(long)]
    pub exportable: bool,
}

#[derive(Args, Debug)]
pub struct BindArgs {
    /// The function, as 0000:03:00.0 or 03:00.0
    #[arg(value_name = "DEVICE")]
    pub device: Bdf,
    /// Take it from the driver that it has; whoever uses it through that driver loses it
    #[arg(long)]
    pub take: bool,
}

#[derive(Args, Debug)]
pub struct UnbindArgs {
    /// The function, as 0000:03:00.0 or 03:00.0
    #[arg(value_name = "DEVICE")]
    pub device: Bdf,
}

#[derive(Args, Debug)]
pub struct DeviceArgs {
    /// The function, as 0000:03:00.0 or 03:00.0
    #[arg(value_name = "DEVICE")]
    pub device: Bdf,
}

/// Which buffer is meant.
#[derive(Args, Clone, Debug)]
pub struct BufferArgs {
    /// A file descriptor that this command has inherited
    #[arg(long, value_name = "FD", env = "BARBUF_FD", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: Option<i32>,
    /// A file descriptor of another process, for debugging; needs the right to trace it
    #[arg(long, value_name = "PID:FD")]
    pub from: Option<PidFd>,
}

#[derive(Args, Debug)]
pub struct InfoArgs {
    /// A provider
    #[arg(value_name = "DEVICE", conflicts_with = "from")]
    pub device: Option<Bdf>,
    #[command(flatten)]
    pub buffer: BufferArgs,
}

#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The provider
    #[arg(value_name = "DEVICE")]
    pub device: Bdf,
    /// The region's index; the one with most room unless told
    #[arg(long, value_name = "INDEX")]
    pub region: Option<u32>,
    /// The region that lies in this BAR
    #[arg(long, value_name = "BAR", conflicts_with = "region", value_parser = clap::value_parser!(u32).range(0..6))]
    pub bar: Option<u32>,
    /// Bytes, wherever they are free; all that is free unless told
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub length: Option<u64>,
    /// These bytes of the region; may be given several times, in the buffer's order
    #[arg(long, value_name = "OFFSET+LENGTH", value_parser = size::parse_range, conflicts_with = "length")]
    pub range: Vec<(u64, u64)>,
    #[command(flatten)]
    pub how: HowArgs,
    /// Print PID:FD and keep the buffer until SIGINT or SIGTERM, or until it is revoked
    #[arg(long, conflicts_with = "command")]
    pub hold: bool,
    /// Revoke the buffer when the command ends, whoever else has it by then
    #[arg(long)]
    pub revoke_on_exit: bool,
    /// The command and its arguments. It has the buffer as file descriptor 3 (BARBUF_FD), and as 4
    /// (BARBUF_EVENT_FD) an eventfd that is readable once the buffer is revoked
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "hold")]
    pub command: Vec<OsString>,
}

/// How a buffer is made.
#[derive(Args, Clone, Debug)]
pub struct HowArgs {
    /// What stands behind the bytes: nothing, or struct pages, which O_DIRECT needs
    #[arg(long, value_enum, default_value = "pfn")]
    pub backing: BackingArg,
    /// How the CPU accesses them: uncached, or write combining
    #[arg(long, value_enum, default_value = "uc")]
    pub cache: CacheArg,
    /// Read-only for CPUs and devices
    #[arg(long)]
    pub read_only: bool,
    /// Let other shared buffers cover the same bytes
    #[arg(long)]
    pub shared: bool,
    /// Fill it with zeros first
    #[arg(long)]
    pub zero: bool,
    /// The largest page to use
    #[arg(long, value_enum)]
    pub page_size: Option<PageArg>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BackingArg {
    Pfn,
    Page,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CacheArg {
    Uc,
    Wc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageArg {
    #[value(name = "4K")]
    Size4K,
    #[value(name = "2M")]
    Size2M,
    #[value(name = "1G")]
    Size1G,
}

#[derive(Args, Debug)]
pub struct LoadArgs {
    /// The file or block device
    pub file: PathBuf,
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Where in the buffer to begin
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    pub offset: u64,
    /// Where in the file to begin
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    pub skip: u64,
    /// How much to read; all of the file unless told
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub length: Option<u64>,
    /// direct: O_DIRECT, from the drive into the buffer; copy: through host memory
    #[arg(long, value_enum, default_value = "auto")]
    pub method: Method,
    /// Do not read the buffer back to compute its SHA-256
    #[arg(long, conflicts_with = "sha256")]
    pub no_hash: bool,
    /// Fail unless the buffer's bytes have this SHA-256
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// direct where it is possible, else copy
    Auto,
    Direct,
    Copy,
}

#[derive(Args, Debug)]
pub struct DumpArgs {
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Where in the buffer to begin
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    pub offset: u64,
    /// How much to write; all of the rest unless told
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub length: Option<u64>,
    /// A file that does not exist yet; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
}

#[derive(Args, Debug)]
pub struct RouteArgs {
    /// The function that would import, as 0000:04:00.0 or 04:00.0
    #[arg(value_name = "IMPORTER")]
    pub importer: Bdf,
    /// The provider whose memory is meant; else that of the buffer
    #[arg(long, value_name = "DEVICE", conflicts_with = "from")]
    pub device: Option<Bdf>,
    /// The region's index
    #[arg(long, value_name = "INDEX", default_value = "0", requires = "device")]
    pub region: u32,
    #[command(flatten)]
    pub buffer: BufferArgs,
}

/// What `rules.rs` reads.
const RULES: &str = "\
RULES:
  The file is TOML. A client names a buffer and says nothing else, so that a rule is the most that it can get.

  [limits]
  clients = 64            # connections at the same time, 1 to 1024
  clients_per_user = 8    # 1 to 1024
  timeout_s = 10          # for a request, 1 to 3600

  [[buffer]]
  name = \"scratch\"        # what clients ask for
  device = \"0000:05:00.0\"
  region = 0              # index of the region, 0 unless told
  offset = \"4G\"           # absent: wherever there is room
  length = \"1G\"
  backing = \"page\"        # pfn unless told
  cache = \"uc\"            # or wc
  access = \"read-write\"   # read-only unless told
  per_client = true       # each connection has one of its own; else all have the same
  revoke_on_disconnect = true   # needs per_client
  zero = false            # fill it with zeros first
  shared = false          # other shared buffers may cover the same bytes
  allow = [{ uid = 1000 }, { gid = 44 }, { user = \"alice\" }, { group = \"render\" }]";

#[derive(Args, Debug)]
#[command(after_long_help = RULES)]
pub struct ServeArgs {
    /// The socket to make, unless one is inherited (LISTEN_FDS)
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The file of rules
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    pub rules: Option<PathBuf>,
    /// Hand out this one buffer, which this command has inherited, instead of what rules say
    #[arg(long, value_name = "FD", env = "BARBUF_FD", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: Option<i32>,
    /// The eventfd that goes with it
    #[arg(long, value_name = "FD", env = "BARBUF_EVENT_FD", value_parser = clap::value_parser!(i32).range(0..))]
    pub event_fd: Option<i32>,
    /// The name by which clients ask for it
    #[arg(long)]
    pub name: Option<String>,
    /// Users who may have it
    #[arg(long, value_name = "UID")]
    pub allow_uid: Vec<u32>,
    /// Groups that may have it
    #[arg(long, value_name = "GID")]
    pub allow_gid: Vec<u32>,
    /// End after having handed out so many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub gets: Option<u64>,
}

#[derive(Args, Debug)]
pub struct GetArgs {
    /// The socket of `serve`
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    pub timeout: u64,
    /// Take it only from a server of this user
    #[arg(long, value_name = "UID")]
    pub from_uid: Option<u32>,
    /// Say which buffers this user can have
    #[arg(long, conflicts_with = "name")]
    pub list: bool,
    /// The name of the buffer
    #[arg(required_unless_present = "list")]
    pub name: Option<String>,
    /// The command and its arguments. It has the buffer as file descriptor 3 (BARBUF_FD), as 4
    /// (BARBUF_EVENT_FD) the eventfd for its revocation, and as 5 the connection, which keeps a
    /// buffer that is revoked on disconnect
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// A file descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PidFd {
    pub pid: u32,
    pub fd: i32,
}

impl FromStr for PidFd {
    type Err = String;

    fn from_str(text: &str) -> Result<PidFd, String> {
        let parts = text.split_once(':').and_then(|(pid, fd)| {
            let fd = fd.parse().ok().filter(|fd| *fd >= 0)?;
            Some(PidFd {
                pid: pid.parse().ok()?,
                fd,
            })
        });
        parts.ok_or_else(|| format!("{text:?} is no file descriptor of a process: write PID:FD"))
    }
}

/// What the rows are.
const BENCH: &str = "\
ROWS:
  A provider is measured through barbuf with both backings and every page size that fits, a function of vfio-pci through
  that, p2pmem that a driver has published through sysfs. Nothing is bound for it, so that one function is measured in
  turns: barbuf bind, barbuf bench, barbuf unbind, and again with vfio-pci. A byte of every page is read, nothing is
  written but what --file brings; buffers are new ones, of bytes that are free.

  --json prints the report of `make compare`: {\"schema\":1, \"kernel\", \"accel\", \"clock\",
  \"rows\":[{\"path\", \"region\", \"size\", \"metric\", \"unit\", \"min\", \"median\", \"max\", \"runs\"}], \"answers\"}; answers
  tell what could not be measured. On an emulated machine the path of every row ends with (emulated).";

#[derive(Args, Debug)]
#[command(after_long_help = BENCH)]
pub struct BenchArgs {
    /// The functions, as 0000:03:00.0 or 03:00.0
    #[arg(value_name = "DEVICE", required = true)]
    pub devices: Vec<Bdf>,
    /// The BAR to read from; the largest that holds no registers for certain unless told
    #[arg(long, value_name = "BAR", value_parser = clap::value_parser!(u32).range(0..6))]
    pub bar: Option<u32>,
    /// How much to map at most; all that is free unless told
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub size: Option<u64>,
    /// Only pages of this size; may be given several times
    #[arg(long, value_enum, value_name = "SIZE")]
    pub page_size: Vec<PageArg>,
    /// Also read the first MiB of this file or block device into the memory, with O_DIRECT
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Also measure registering and removal: unbind the function and bind it again, many times
    #[arg(long)]
    pub rebind: bool,
    /// Measure although the machine or a device is emulated, and mark every row
    #[arg(long)]
    pub emulated: bool,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Exit with 5 for a WARN too
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args, Debug)]
pub struct ManualArgs {
    /// Where to write barbuf.1, barbuf-list.1 and so on, and completions for bash, zsh and fish
    pub directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
