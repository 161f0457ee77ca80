// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `make demo` shows: a model file goes from a drive into an NPU's memory, from one process to
//! another and from one device to another, and no byte of it through host memory.
//!
//! The actors are what is shipped: the command `barbuf`, and a program on the crate ([`reader`]).
//! In `make test` the drive is empty, and a small model is made up; all else is the same.

mod evidence;
pub(crate) mod reader;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use barbuf_guest::protocol::{Device, HostOp};
use barbuf_measure::memory::struct_page_bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::kit::PAGE;
use crate::kit::command::{Actor, NOBODY, barbuf, fetch, parse, wait_for_socket};
use crate::kit::drive::{Mounted, block_device};
use crate::kit::importer::{ENGINE, Engine, FROM_DEVICE, TO_DEVICE};
use crate::kit::pci::{Function, wait_until};
use crate::support::{Ctx, Suite, ensure_eq, test};
use evidence::HostDma;

pub(crate) const SUITE: Suite = Suite {
    name: "demo",
    tests: &[test!(a_model_goes_where_it_should).timeout(150).hotplug()],
};

const MODEL: &str = "model.safetensors";
const NPU_SOCKET: &str = "/run/npu.sock";
const CMB_SOCKET: &str = "/run/cmb.sock";
/// What is copied to show what copying looks like.
const CONTROL: u64 = 16 << 20;
/// What is moved on from the NPU to the CMB.
const MOVED: u64 = 256 << 10;
/// What counts as nothing: a drive also reads its file system.
const NOISE: u64 = 1 << 20;

/// A row of the table.
struct Row {
    step: &'static str,
    path: String,
    bytes: u64,
    cache: String,
    dma: String,
    leaf: String,
    faults: String,
    pages: String,
    check: String,
}

impl Default for Row {
    fn default() -> Row {
        let none = || "-".to_owned();
        Row {
            step: "",
            path: none(),
            bytes: 0,
            cache: none(),
            dma: none(),
            leaf: none(),
            faults: none(),
            pages: none(),
            check: none(),
        }
    }
}

fn a_model_goes_where_it_should(ctx: &Ctx) -> Result<()> {
    let (npu, cmb, drive) = (ctx.npu(0)?, ctx.nvme(0)?, ctx.nvme(1)?);
    let npu_bdf = Function::of(npu)?.bdf;
    let cmb_bdf = Function::of(cmb)?.bdf;
    let drive_bdf = Function::of(drive)?.bdf;
    let _guard = PutBack { ctx, npu };
    let mut rows = Vec::new();

    // 1: the file.
    let mounted = Mounted::ext4(ctx, &block_device(drive)?, "/mnt/drive")?;
    let (file, bytes, sha256) = model(&mounted.0)?;
    rows.push(Row {
        step: "1 file on the drive",
        path: format!("{drive_bdf}, ext4"),
        bytes,
        ..Row::default()
    });

    // 2: process A.
    run(ctx, &["bind", &npu_bdf])?;
    let dma = HostDma::start()?;
    let struct_pages = struct_page_bytes()?;
    rows.push(control(ctx, &file, &npu_bdf, &drive_bdf, &dma)?);
    drop_cached(&file)?;
    let before = dma.of(&drive_bdf)?;
    let script = format!(
        "barbuf --json load --no-hash {} && exec barbuf -q serve --name weights --socket {NPU_SOCKET} \
         --allow-uid {NOBODY} --allow-uid 0 --gets 2",
        file.display()
    );
    ctx.say(format!(
        "$ barbuf export {npu_bdf} --length 1G --backing page -- sh -c '\n    {}'",
        script.replace(" && ", " &&\n    ")
    ));
    let mut a = Actor::start(
        barbuf(&[
            "export",
            &npu_bdf,
            "--length",
            "1G",
            "--backing",
            "page",
            "--",
            "sh",
            "-c",
        ])
        .arg(&script),
    )?;
    let loaded = a.document().context("process A")?;
    let host_dma = dma.of(&drive_bdf)? - before;
    ensure_eq!(loaded["method"], "direct");
    ensure_eq!(loaded["bytes"], bytes);
    let cached = loaded["page_cache"].as_u64().unwrap_or(u64::MAX);
    ensure!(cached == 0, "{cached} bytes went through the page cache");
    ensure!(
        host_dma < NOISE,
        "{host_dma} bytes of host memory were given to the drive"
    );
    let npu_pages = (struct_page_bytes()? - struct_pages) / PAGE;
    rows.push(Row {
        step: "2 A loads, O_DIRECT",
        path: "drive -> NPU, peer to peer".into(),
        bytes,
        cache: "0".into(),
        dma: host_dma.to_string(),
        pages: npu_pages.to_string(),
        check: "no host memory".into(),
        ..Row::default()
    });

    // 3: process B.
    wait_for_socket(Path::new(NPU_SOCKET))?;
    ctx.say(format!(
        "$ barbuf get --socket {NPU_SOCKET} weights -- reader   # as uid {NOBODY}"
    ));
    let mut b = Actor::start(
        barbuf(&[
            "get",
            "--socket",
            NPU_SOCKET,
            "weights",
            "--",
            "/suites",
            "demo-reader",
        ])
        .nobody(),
    )?;
    let (weights, _) = fetch(Path::new(NPU_SOCKET), "weights")?;
    a.ends_well().context("process A")?;
    let found = b.document().context("process B")?;
    ensure!(found["error"].is_null(), "process B: {}", found["error"]);
    ensure_eq!(found["uid"], NOBODY);
    ensure_eq!(found["bytes"], bytes);
    ensure_eq!(found["sha256"].as_str(), Some(sha256.as_str()));
    ensure_eq!(found["leaf"], "1 GiB");
    let faults = found["faults"].clone();
    // A's own mapping put one in as well.
    ensure!(
        faults[0].as_u64() >= Some(1) && faults[1] == 0 && faults[2] == 0,
        "other leaves than those of 1 GiB: {faults}"
    );
    tensors(ctx, &found);
    rows.push(Row {
        step: "3 B maps and reads",
        path: format!("NPU -> uid {NOBODY}"),
        bytes,
        leaf: "1 GiB".into(),
        faults: leaves(&faults),
        pages: npu_pages.to_string(),
        check: "SHA-256 equal".into(),
        ..Row::default()
    });

    // 4: the CMB, with nvme still bound.
    rows.push(to_cmb(ctx, &cmb_bdf, &weights, &file)?);

    // 5: the NPU goes.
    drop(weights);
    ctx.say(format!(
        "unplugging {npu_bdf} while process B has it mapped"
    ));
    ctx.host(HostOp::DeviceDel { id: npu.id.clone() })?;
    let gone = b.document().context("process B after the unplug")?;
    ensure_eq!(
        gone,
        json!({ "event": true, "touch": "refused", "state": "revoked", "map": "refused" })
    );
    b.ends_well().context("process B")?;
    rows.push(Row {
        step: "5 NPU is unplugged",
        path: "B: eventfd, then touch, map".into(),
        check: "event, ENODEV".into(),
        ..Row::default()
    });
    drop(dma);
    drop(mounted);
    ctx.say(table(&rows));
    ctx.say(format!(
        "figures: model_bytes={bytes} model_sha256={sha256} page_cache_bytes=0 \
         host_dma_bytes={host_dma} tensors={} leaf=1GiB faults_1g={} faults_2m={} faults_4k={} \
         memmap_pages={npu_pages} cmb_bytes={MOVED}",
        found["tensors"], faults[0], faults[1], faults[2],
    ));
    Ok(())
}

/// The model on the drive, or one that is made up.
fn model(drive: &Path) -> Result<(PathBuf, u64, String)> {
    let file = drive.join(MODEL);
    if !file.exists() {
        fs::write(&file, made_up())?;
        fs::File::open(&file)?.sync_all()?;
    }
    let bytes = fs::read(&file)?;
    let sha256 = format!("{:x}", Sha256::digest(&bytes));
    Ok((file, bytes.len() as u64, sha256))
}

/// Two tensors, and a length that is no multiple of anything.
fn made_up() -> Vec<u8> {
    const FIRST: u64 = 17 << 20;
    const SECOND: u64 = 4004;
    let header = json!({
        "__metadata__": { "format": "pt" },
        "encoder.layer.0.weight": { "dtype": "F32", "shape": [FIRST / 4], "data_offsets": [0, FIRST] },
        "pooler.bias": { "dtype": "F32", "shape": [SECOND / 4], "data_offsets": [FIRST, FIRST + SECOND] },
    });
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend((0..FIRST + SECOND).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8));
    bytes
}

/// What was read to know the hash must not be there when the load is measured.
fn drop_cached(file: &Path) -> Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let file = fs::File::open(file)?;
    Ok(posix_fadvise(
        &file,
        0,
        0,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?)
}

/// Copies a part of the same file through host memory: the same counters show that.
fn control(ctx: &Ctx, file: &Path, npu: &str, drive: &str, dma: &HostDma) -> Result<Row> {
    drop_cached(file)?;
    let before = dma.of(drive)?;
    let output = barbuf(&[
        "export", npu, "--length", "1G", "--", "barbuf", "--json", "load", "--method", "copy",
    ])
    .arg("--length")
    .arg(CONTROL.to_string())
    .arg("--no-hash")
    .arg(file)
    .output()?;
    let copied: Value = parse(&output)?;
    let host_dma = dma.of(drive)? - before;
    let cached = copied["page_cache"].as_u64().unwrap_or(0);
    ensure!(
        cached >= CONTROL,
        "only {cached} bytes of a copy were seen in the page cache"
    );
    ensure!(
        host_dma >= CONTROL,
        "only {host_dma} bytes of a copy were seen as DMA to host memory"
    );
    ctx.note("the control was seen");
    Ok(Row {
        step: "  control: a copy",
        path: "drive -> host -> NPU".into(),
        bytes: CONTROL,
        cache: cached.to_string(),
        dma: host_dma.to_string(),
        check: "is seen".into(),
        ..Row::default()
    })
}

/// A second buffer, in the drive's CMB: handed on in the same way, and filled from the NPU by the
/// engine of a third device.
fn to_cmb(ctx: &Ctx, bdf: &str, weights: &barbuf::Buffer, file: &Path) -> Result<Row> {
    run(ctx, &["adopt", bdf])?;
    let script = format!(
        "exec barbuf -q serve --name cmb --socket {CMB_SOCKET} --allow-uid {NOBODY} --allow-uid 0 --gets 2"
    );
    let mut a =
        Actor::start(barbuf(&["export", bdf, "--length", "16M", "--", "sh", "-c"]).arg(&script))?;
    wait_for_socket(Path::new(CMB_SOCKET))?;
    let (cmb, _) = fetch(Path::new(CMB_SOCKET), "cmb")?;
    copy_by_edu(ctx, weights, &cmb, MOVED)?;
    let dump = format!("barbuf dump --length {MOVED} | sha256sum");
    let output = barbuf(&["get", "--socket", CMB_SOCKET, "cmb", "--", "sh", "-c"])
        .arg(&dump)
        .nobody()
        .output()?;
    a.ends_well().context("who serves the CMB")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.split_whitespace().next().unwrap_or_default();
    let bytes = fs::read(file)?;
    let wanted = format!("{:x}", Sha256::digest(&bytes[..MOVED as usize]));
    ensure!(
        found == wanted,
        "the CMB holds other bytes: {found} instead of {wanted}; {output:?}"
    );
    let query = cmb.query()?;
    let driver = Function { bdf: bdf.into() }.driver();
    ensure_eq!(driver.as_deref(), Some("nvme"));
    drop(cmb);
    run(ctx, &["release", bdf])?;
    Ok(Row {
        step: "4 NPU to CMB, nvme bound",
        path: "NPU -> edu -> CMB, by DMA".into(),
        bytes: MOVED,
        leaf: query.largest_page.to_string(),
        faults: leaves(&json!([
            query.faults.of_1g,
            query.faults.of_2m,
            query.faults.of_4k
        ])),
        check: "SHA-256 equal".into(),
        ..Row::default()
    })
}

/// Moves bytes from one buffer to the other by DMA, through the engine of edu.
fn copy_by_edu(ctx: &Ctx, from: &barbuf::Buffer, to: &barbuf::Buffer, bytes: u64) -> Result<()> {
    let engine = Engine::load(ctx)?;
    let (source, target) = (engine.attached(from)?, engine.attached(to)?);
    source.map(TO_DEVICE).context("mapping the NPU's buffer")?;
    target
        .map(FROM_DEVICE)
        .context("mapping the CMB's buffer")?;
    for at in (0..bytes).step_by(ENGINE) {
        source.load(at, ENGINE)?;
        target.store(at, ENGINE)?;
    }
    Ok(())
}

/// Runs the command and shows it.
fn run(ctx: &Ctx, arguments: &[&str]) -> Result<()> {
    ctx.say(format!("$ barbuf {}", arguments.join(" ")));
    let output = barbuf(arguments).output()?;
    ensure!(
        output.status.success(),
        "barbuf {} ended with {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ctx.say(String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn tensors(ctx: &Ctx, found: &Value) {
    ctx.say(format!(
        "process B, uid {}, reads in device memory: {} tensors, {}\n  {:<24} {:>7} {:>12} {:>12}",
        found["uid"], found["tensors"], found["types"], "part", "tensors", "parameters", "bytes"
    ));
    for part in found["parts"].as_array().into_iter().flatten() {
        ctx.say(format!(
            "  {:<24} {:>7} {:>12} {:>12}",
            part[0].as_str().unwrap_or_default(),
            part[1].to_string(),
            part[2].to_string(),
            part[3].to_string()
        ));
    }
}

fn leaves(counts: &Value) -> String {
    format!("{}/{}/{}", counts[0], counts[1], counts[2])
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "\n{:<25} {:<28} {:>10} {:>10} {:>10} {:<6} {:>9} {:>7}  {}",
        "step", "path", "bytes", "page cache", "host DMA", "leaf", "1G/2M/4K", "memmap", "check"
    );
    for row in rows {
        let bytes = if row.bytes == 0 {
            "-".into()
        } else {
            row.bytes.to_string()
        };
        text += &format!(
            "\n{:<25} {:<28} {:>10} {:>10} {:>10} {:<6} {:>9} {:>7}  {}",
            row.step,
            row.path,
            bytes,
            row.cache,
            row.dma,
            row.leaf,
            row.faults,
            row.pages,
            row.check
        );
    }
    text += "\npage cache, host DMA: bytes of host memory that the step has used; 1G/2M/4K: leaves put in \
             by page faults;\nmemmap: pages of host memory for struct pages";
    text
}

/// Gives everything back, whatever has happened.
struct PutBack<'a> {
    ctx: &'a Ctx,
    npu: &'a Device,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        let result = (|| -> Result<()> {
            if Function::of(self.npu).is_err() {
                let id = self.npu.id.clone();
                self.ctx.host(HostOp::DeviceAdd { id })?;
                wait_until("the NPU's return", || Function::of(self.npu).is_ok())?;
                std::thread::sleep(Duration::from_millis(100));
            }
            let npu = Function::of(self.npu)?;
            if npu.driver().as_deref() == Some("barbuf") {
                barbuf(&["unbind", &npu.bdf]).output()?;
            }
            for path in [NPU_SOCKET, CMB_SOCKET] {
                let _ = fs::remove_file(path);
            }
            Ok(())
        })();
        if let Err(error) = result {
            eprintln!("demo: {error:#}");
        }
    }
}
