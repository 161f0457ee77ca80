// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which kernel to take from Debian.
//!
//! A mirror keeps only recent versions, so none is named here: the newest one of a supported
//! series that trixie-backports offers is taken, and the binary, the headers and the source all
//! follow from it. The choice is kept in the cache, and later runs need no network.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::cmd::{self, Log, make_dir};
use crate::ctx::Ctx;

/// The series that the module is known to work with, the newest first.
pub(super) const SERIES: &[&str] = &["7.3"];
const SUITE: &str = "trixie-backports";
/// The Debian architecture, as it stands in the names of packages.
const ARCH: &str = "amd64";

/// A package of the archive's index.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) size: u64,
}

/// A kernel and the packages that it comes in, all of one version.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Choice {
    pub(super) series: String,
    /// Debian's version, such as `7.3.4-1~bpo13+1`.
    pub(super) version: String,
    /// What `uname -r` says, such as `7.3.4+deb13-amd64`.
    pub(super) release: String,
    pub(super) packages: Vec<Package>,
}

impl Choice {
    /// The release without the architecture: what Debian calls the ABI name.
    pub(super) fn abi(&self) -> &str {
        self.release
            .strip_suffix(ARCH)
            .map_or(&self.release, |abi| abi.trim_end_matches('-'))
    }

    /// Where everything about this kernel is kept.
    pub(super) fn dir(&self, ctx: &Ctx) -> PathBuf {
        ctx.cache.join("kernels").join(&self.version)
    }

    /// The unpacked packages.
    pub(super) fn packages_dir(&self, ctx: &Ctx) -> PathBuf {
        self.dir(ctx).join("packages")
    }

    /// The unpacked, unpatched source.
    pub(super) fn source_dir(&self, ctx: &Ctx) -> PathBuf {
        self.dir(ctx).join("source")
    }
}

/// The kernel of the cache, or else the mirror's newest.
pub(super) fn choose(ctx: &Ctx) -> Result<Choice> {
    let _lock = cache::lock(ctx, &ctx.cache.join("kernels/choice.lock"), "the kernel")?;
    match remembered(ctx) {
        Some(choice) => Ok(choice),
        None => resolve(ctx),
    }
}

/// Asks the mirror again. Tells the kernel before and the one after.
pub(super) fn update(ctx: &Ctx) -> Result<(Option<Choice>, Choice)> {
    let _lock = cache::lock(ctx, &ctx.cache.join("kernels/choice.lock"), "the kernel")?;
    Ok((remembered(ctx), resolve(ctx)?))
}

fn remembered(ctx: &Ctx) -> Option<Choice> {
    let text = fs::read_to_string(ctx.cache.join("kernels/choice.json")).ok()?;
    let choice: Choice = serde_json::from_str(&text).ok()?;
    SERIES.contains(&choice.series.as_str()).then_some(choice)
}

fn resolve(ctx: &Ctx) -> Result<Choice> {
    let step = ctx.ui.step(format!("asking the mirror for {SUITE}"));
    let mirror = std::env::var("BARBUF_MIRROR").unwrap_or_default();
    if mirror.is_empty() {
        bail!(
            "no Debian mirror is known\n\
             hint: set BARBUF_MIRROR: BARBUF_MIRROR=http://MIRROR/debian make ..."
        );
    }
    let apt = ctx.cache.join("apt");
    for dir in ["lists/partial", "archives/partial"] {
        make_dir(&apt.join(dir))?;
    }
    cache::write(
        &apt.join("sources.list"),
        format!("deb {mirror} {SUITE} main\n").as_bytes(),
    )?;
    cache::write(&apt.join("apt.conf"), apt_conf(&apt).as_bytes())?;
    let log = Log::create(ctx, apt.join("update.log"))?;
    let mut update = apt_get(ctx);
    log.run(
        update.args(["update", "--error-on=any"]),
        "the mirror's index could not be had",
    )
    .map_err(|error| unreachable_mirror(error, log.path(), &mirror))?;

    let lists = cmd::output(apt_get(ctx).args([
        "indextargets",
        "--format",
        "$(FILENAME)",
        "Created-By: Packages",
    ]))?;
    let mut packages = Vec::new();
    for list in lists.lines() {
        let text = cmd::output(Command::new("/usr/lib/apt/apt-helper").args(["cat-file", list]))?;
        packages.extend(parse_index(&text)?);
    }
    let choice = pick(&packages, SERIES, compare)?;
    cache::write(
        &ctx.cache.join("kernels/choice.json"),
        serde_json::to_string_pretty(&choice)?.as_bytes(),
    )?;
    step.done();
    ctx.ui.line(&format!(
        "the newest kernel of a supported series in {SUITE} is {} ({})",
        choice.version, choice.release
    ));
    Ok(choice)
}

fn unreachable_mirror(error: anyhow::Error, log: &Path, mirror: &str) -> anyhow::Error {
    let text = fs::read_to_string(log).unwrap_or_default();
    if text.contains("does not have a Release file") || text.contains("404") {
        anyhow!(
            "the mirror {mirror} has no {SUITE}\nhint: set BARBUF_MIRROR to a mirror that has it"
        )
    } else if text.contains("Could not") || text.contains("Failed to fetch") {
        anyhow!(
            "the mirror {mirror} cannot be reached\n\
             hint: check the network, or set BARBUF_MIRROR to another mirror; what is in the \
             cache works without either"
        )
    } else {
        error
    }
}

/// apt with files of its own: the toolchain is read-only and its lists age.
pub(super) fn apt_get(ctx: &Ctx) -> Command {
    let mut command = Command::new("apt-get");
    command.env("APT_CONFIG", ctx.cache.join("apt/apt.conf"));
    command
}

pub(crate) fn apt_conf(apt: &Path) -> String {
    let apt = apt.display();
    format!(
        "Dir::Etc::SourceList \"{apt}/sources.list\";\n\
         Dir::Etc::SourceParts \"-\";\n\
         Dir::Etc::Preferences \"-\";\n\
         Dir::Etc::PreferencesParts \"-\";\n\
         Dir::State \"{apt}\";\n\
         Dir::State::status \"/var/lib/dpkg/status\";\n\
         Dir::Cache \"{apt}\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         APT::Sandbox::User \"root\";\n\
         Debug::NoLocking \"true\";\n"
    )
}

/// The kernel's packages of an index. Every other package is passed over.
fn parse_index(text: &str) -> Result<Vec<Package>> {
    let mut packages = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let value = line.strip_prefix(name)?.strip_prefix(':')?;
                Some(value.trim())
            })
        };
        let Some(name) = field("Package").filter(|name| name.starts_with("linux-")) else {
            continue;
        };
        let (Some(version), Some(size)) = (field("Version"), field("Size")) else {
            bail!("the mirror's index is broken: {name} has no version or no size");
        };
        packages.push(Package {
            name: name.into(),
            version: version.into(),
            size: size.parse().with_context(|| format!("size of {name}"))?,
        });
    }
    Ok(packages)
}

/// The release of a plain kernel image's package name: no cloud, real-time, debug or meta one.
fn release_of(package: &str) -> Option<&str> {
    let release = package.strip_prefix("linux-image-")?;
    let abi = release.strip_suffix(ARCH)?.strip_suffix('-')?;
    let plain = abi.starts_with(|c: char| c.is_ascii_digit()) && !abi.contains('-');
    plain.then_some(release)
}

fn series_of(release: &str) -> Option<&str> {
    let mut dots = release.match_indices('.');
    dots.next()?;
    dots.next().map(|(at, _)| &release[..at])
}

/// The newest kernel of a supported series that the index has with all its packages.
fn pick(
    packages: &[Package],
    supported: &[&str],
    compare: impl Fn(&str, &str) -> Result<Ordering>,
) -> Result<Choice> {
    let images: Vec<(&str, &Package)> = packages
        .iter()
        .filter_map(|package| Some((release_of(&package.name)?, package)))
        .collect();
    let mut lacking = None;
    for series in supported {
        let mut candidates: Vec<_> = images
            .iter()
            .filter(|(release, _)| series_of(release) == Some(series))
            .collect();
        // Newest first; a comparison that fails is an error, not an order.
        let mut failed = None;
        candidates.sort_by(|(_, a), (_, b)| {
            compare(&b.version, &a.version).unwrap_or_else(|error| {
                failed = Some(error);
                Ordering::Equal
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        for (release, image) in candidates {
            match complete(packages, series, release, &image.version) {
                Ok(choice) => return Ok(choice),
                Err(error) => lacking = lacking.or(Some(error)),
            }
        }
    }
    if let Some(error) = lacking {
        return Err(error);
    }
    let mut offered: Vec<_> = images.iter().filter_map(|(r, _)| series_of(r)).collect();
    offered.sort_unstable();
    offered.dedup();
    bail!(
        "{SUITE} has no kernel of a supported series ({}); it has {}\n\
         hint: set BARBUF_MIRROR to an archive that still has one, or get a newer barbuf",
        supported.join(", "),
        if offered.is_empty() {
            "none at all".into()
        } else {
            offered.join(", ")
        }
    )
}

/// All packages of one kernel, at exactly its version.
fn complete(packages: &[Package], series: &str, release: &str, version: &str) -> Result<Choice> {
    let mut choice = Choice {
        series: series.into(),
        version: version.into(),
        release: release.into(),
        packages: Vec::new(),
    };
    let abi = choice.abi().to_owned();
    let source = format!("linux-source-{series}");
    let required = [
        format!("linux-image-{release}"),
        format!("linux-headers-{release}"),
        format!("linux-headers-{abi}-common"),
        format!("linux-kbuild-{abi}"),
        source,
    ];
    // How Debian splits the image has changed before; what is there is taken.
    let optional = [
        format!("linux-binary-{release}"),
        format!("linux-modules-{release}"),
        format!("linux-base-{release}"),
    ];
    let named = |name: &str| -> Vec<&Package> {
        packages
            .iter()
            .filter(|package| package.name == name)
            .collect()
    };
    for name in required {
        let found = named(&name);
        match found.iter().find(|package| package.version == version) {
            Some(package) => choice.packages.push((*package).clone()),
            None => {
                let instead = found.first().map_or("is missing".into(), |package| {
                    format!("has version {}", package.version)
                });
                bail!(
                    "the mirror is being updated: it has linux-image-{release} {version}, but \
                     {name} {instead}\n\
                     hint: try again in an hour, or set BARBUF_MIRROR to another mirror"
                );
            }
        }
    }
    for name in optional {
        let mut found = named(&name).into_iter();
        let package = found.find(|package| package.version == version);
        choice.packages.extend(package.cloned());
    }
    Ok(choice)
}

/// Debian's order of versions, asked of dpkg.
fn compare(a: &str, b: &str) -> Result<Ordering> {
    let holds = |relation| -> Result<bool> {
        let status = Command::new("dpkg")
            .args(["--compare-versions", a, relation, b])
            .status()
            .context("cannot run dpkg")?;
        Ok(status.success())
    };
    Ok(if holds("lt")? {
        Ordering::Less
    } else if holds("gt")? {
        Ordering::Greater
    } else {
        Ordering::Equal
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry per package: name and version.
    fn index(entries: &[(&str, &str)]) -> Vec<Package> {
        let stanzas: Vec<String> = entries
            .iter()
            .map(|(name, version)| {
                format!("Package: {name}\nVersion: {version}\nSize: 10\nDescription: x\n")
            })
            .collect();
        let text = stanzas.join("\n");
        parse_index(&text).unwrap()
    }

    fn kernel(release: &str, version: &str) -> Vec<Package> {
        let abi = release.strip_suffix("-amd64").unwrap();
        let source = format!("linux-source-{}", series_of(release).unwrap());
        index(&[
            (&format!("linux-image-{release}"), version),
            (&format!("linux-binary-{release}"), version),
            (&format!("linux-headers-{release}"), version),
            (&format!("linux-headers-{abi}-common"), version),
            (&format!("linux-kbuild-{abi}"), version),
            (&source, version),
        ])
    }

    #[test]
    fn the_newest_of_a_supported_series_is_picked() {
        let mut all = kernel("7.3.9+deb13-amd64", "7.3.9-1~bpo13+1");
        all.extend(kernel("7.3.10+deb13-amd64", "7.3.10-1~bpo13+1"));
        all.extend(kernel("7.4.1+deb13-amd64", "7.4.1-1~bpo13+1"));
        all.extend(index(&[
            ("linux-image-amd64", "7.4.1-1~bpo13+1"),
            ("linux-image-7.3.11+deb13-cloud-amd64", "7.3.11-1~bpo13+1"),
            ("linux-image-7.3.11+deb13-rt-amd64", "7.3.11-1~bpo13+1"),
            ("linux-image-7.3.11+deb13-amd64-dbg", "7.3.11-1~bpo13+1"),
            (
                "linux-image-7.3.11+deb13-amd64-unsigned",
                "7.3.11-1~bpo13+1",
            ),
        ]));
        let choice = pick(&all, &["7.3"], compare).unwrap();
        assert_eq!(choice.version, "7.3.10-1~bpo13+1");
        assert_eq!(choice.release, "7.3.10+deb13-amd64");
        assert_eq!(choice.abi(), "7.3.10+deb13");
        assert_eq!(choice.packages.len(), 6);
    }

    #[test]
    fn an_incomplete_kernel_is_passed_over_for_a_complete_older_one() {
        let mut all = kernel("7.3.4+deb13-amd64", "7.3.4-1~bpo13+1");
        all.extend(index(&[(
            "linux-image-7.3.5+deb13-amd64",
            "7.3.5-1~bpo13+1",
        )]));
        let choice = pick(&all, &["7.3"], compare).unwrap();
        assert_eq!(choice.version, "7.3.4-1~bpo13+1");
    }

    #[test]
    fn a_source_of_another_version_is_named() {
        let mut all = kernel("7.3.4+deb13-amd64", "7.3.4-1~bpo13+1");
        all.last_mut().unwrap().version = "7.3.5-1~bpo13+1".into();
        let error = pick(&all, &["7.3"], compare).unwrap_err().to_string();
        assert!(error.contains("linux-source-7.3 has version 7.3.5-1~bpo13+1"));
        assert!(error.contains("\nhint: "));
    }

    #[test]
    fn a_series_that_is_gone_is_named_with_what_is_there() {
        let all = kernel("7.4.1+deb13-amd64", "7.4.1-1~bpo13+1");
        let error = pick(&all, &["7.3"], compare).unwrap_err().to_string();
        assert!(error.contains("supported series (7.3); it has 7.4\n"));
        assert!(pick(&[], &["7.3"], compare).is_err());
    }

    #[test]
    fn other_packages_and_long_fields_are_passed_over() {
        let text = "Package: bash\nVersion: 5\nSize: 1\n\n\
                    Package: linux-perf\nVersion: 7.3.4-1\nDescription: a\n Version: 9\nSize: 12\n";
        let packages = parse_index(text).unwrap();
        assert_eq!(packages.len(), 1);
        assert_eq!(
            (packages[0].version.as_str(), packages[0].size),
            ("7.3.4-1", 12)
        );
        assert!(parse_index("Package: linux-perf\nSize: 1\n").is_err());
    }
}
