// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command `barbuf` as users run it: providers, and buffers for commands. The rest is in
//! [`files`], [`verdicts`], and [`broker`]; [`killed`] is about what is left of processes that die.

mod broker;
mod files;
mod killed;
mod verdicts;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use barbuf::pass::take_from_process;
use barbuf::{Buffer, State};
use barbuf_guest::protocol::Device;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::kit::command::{Actor, answer, barbuf, parse, refusal};
use crate::kit::drive::block_device;
use crate::kit::pci::{Function, Provider};
use crate::kit::{GIB, MIB};
use crate::support::{Ctx, Suite, ensure_eq, test};
use broker::{
    a_supervisor_hands_the_socket_over, disconnecting_revokes, rules_decide_who_gets_what,
};
use files::{buffers_of_others_are_filled_and_read, files_go_in_and_come_out};
use killed::killed_at_random_moments;
use verdicts::{bad_input_is_one_clear_error, routes_are_told, the_doctor_judges};

pub(crate) const SUITE: Suite = Suite {
    name: "command",
    tests: &[
        test!(providers_come_and_go).timeout(60),
        test!(a_driver_is_taken_away_and_comes_back).timeout(60),
        test!(a_command_has_the_buffer).timeout(60),
        test!(buffers_are_held_and_taken_back).timeout(60),
        test!(files_go_in_and_come_out).timeout(90),
        test!(buffers_of_others_are_filled_and_read).timeout(60),
        test!(routes_are_told)
            .on(&["npu-cmb", "no-route"])
            .timeout(60),
        test!(the_doctor_judges).timeout(60),
        test!(bad_input_is_one_clear_error).timeout(90),
        test!(rules_decide_who_gets_what).timeout(60),
        test!(a_supervisor_hands_the_socket_over).timeout(60),
        test!(disconnecting_revokes).timeout(60),
        test!(killed_at_random_moments).timeout(300),
    ],
};

/// The function of a device, put back when this is dropped.
struct Restored(Function);

impl Restored {
    fn of(device: &Device) -> Result<Restored> {
        Ok(Restored(Function::of(device)?))
    }

    fn bdf(&self) -> &str {
        &self.0.bdf
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let adopted = Path::new(&self.0.node_path()).exists();
        if adopted && self.0.driver().as_deref() != Some("barbuf") {
            let _ = barbuf(&["release", &self.0.bdf]).output();
        }
        if let Err(error) = self.0.restore() {
            eprintln!("cannot give {} back: {error:#}", self.0.bdf);
        }
    }
}

/// What `list` says of a BAR.
fn listed(bdf: &str, bar: u32) -> Result<Value> {
    let list = answer(&["list", bdf])?;
    let bars = list["bars"].as_array().context("no bars")?;
    let found = bars.iter().find(|row| row["bar"] == bar);
    Ok(found
        .with_context(|| format!("{bdf} has no BAR {bar}: {list}"))?
        .clone())
}

fn providers_come_and_go(ctx: &Ctx) -> Result<()> {
    let (npu, cmb) = (Restored::of(ctx.npu(0)?)?, Restored::of(ctx.nvme(0)?)?);
    let (npu, cmb) = (npu.bdf(), cmb.bdf());
    let drive = Function::of(ctx.nvme(1)?)?.bdf;
    let bytes = Function::of(ctx.npu(0)?)?.bar(2)?.len;
    ensure_eq!(listed(npu, 2)?["export"], "bind");
    ensure_eq!(listed(npu, 2)?["size"], bytes);
    ensure_eq!(listed(cmb, 0)?["export"], "no");
    ensure_eq!(listed(cmb, 2)?["export"], "adopt");
    let row = listed(&drive, 0)?;
    ensure!(row["export"] == "no" && row["why"] != "", "{row}");
    refusal(&["info", npu], 3)?;
    refusal(&["unbind", npu], 3)?;

    let bound = answer(&["bind", npu])?;
    ensure_eq!(
        (&bound["changed"], &bound["previous_driver"]),
        (&json!(true), &Value::Null)
    );
    ensure_eq!(bound["node"], format!("/dev/barbuf/{npu}"));
    ensure_eq!(answer(&["bind", npu])?["changed"], false);
    ensure_eq!(listed(npu, 2)?["export"], "yes");
    let info = answer(&["info", npu])?;
    ensure_eq!(
        (&info["kind"], &info["provider"]),
        (&json!("bound"), &json!(npu))
    );
    let regions = info["regions"].as_array().context("no regions")?;
    let region = regions.iter().find(|region| region["bar"] == 2);
    ensure_eq!(region.context("no region of BAR 2")?["free"], bytes);
    refusal(&["adopt", npu], 7)?;
    ensure_eq!(answer(&["unbind", npu])?["driver"], Value::Null);
    ensure_eq!(listed(npu, 2)?["export"], "bind");

    let adopted = answer(&["adopt", cmb])?;
    ensure_eq!(
        (&adopted["changed"], &adopted["driver"]),
        (&json!(true), &json!("nvme"))
    );
    ensure_eq!(answer(&["adopt", cmb])?["changed"], false);
    ensure_eq!(listed(cmb, 2)?["export"], "yes");
    ensure_eq!(answer(&["info", cmb])?["kind"], "adopted");
    refusal(&["bind", "--take", cmb], 7)?;
    ensure_eq!(answer(&["release", cmb])?["driver"], "nvme");
    refusal(&["release", cmb], 6)?;
    ensure_eq!(listed(cmb, 2)?["export"], "adopt");
    // A drive without memory to publish.
    refusal(&["adopt", &drive], 1)?;
    Ok(())
}

/// `bind` leaves a driver alone unless told; `unbind`, or a refusal, gives the function back to it.
fn a_driver_is_taken_away_and_comes_back(ctx: &Ctx) -> Result<()> {
    let device = ctx.nvme(0)?;
    let cmb = Restored::of(device)?;
    let has = |driver: &str| cmb.0.driver().as_deref() == Some(driver);
    let error = refusal(&["bind", cmb.bdf()], 7)?;
    ensure!(
        error["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("--take")),
        "{error}"
    );
    ensure!(has("nvme"));
    let bound = answer(&["bind", "--take", cmb.bdf()])?;
    ensure_eq!(bound["previous_driver"], "nvme");
    ensure!(has("barbuf"));
    ensure_eq!(listed(cmb.bdf(), 2)?["export"], "yes");
    ensure_eq!(answer(&["unbind", cmb.bdf()])?["driver"], "nvme");
    ensure!(has("nvme"));
    block_device(device)?;

    // All its memory is registers with the MSI-X table: the module takes none of it.
    let device = ctx.nvme(1)?;
    let drive = Restored::of(device)?;
    refusal(&["bind", "--take", drive.bdf()], 1)?;
    ensure_eq!(drive.0.driver().as_deref(), Some("nvme"));
    block_device(device)?;
    Ok(())
}

/// Descriptors, environment and exit code of what `export` runs.
fn a_command_has_the_buffer(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let (npu, before) = (provider.bdf(), provider.node.info()?.regions);
    let export = |options: &[&str], script: &str| {
        let export = barbuf(&["export", npu]).args(options);
        export.args(&["--", "sh", "-c", script])
    };
    let script = "echo $BARBUF_FD $BARBUF_SIZE $BARBUF_EVENT_FD $BARBUF_PROVIDER; exit 41";
    let said = export(&["--length", "2G"], script).exits(41)?;
    ensure_eq!(said.trim(), format!("3 {} 4 {npu}", 2 * GIB));
    let info = |options: &[&str]| -> Result<Value> {
        Ok(parse(&export(options, "barbuf --json info").output()?)?["buffer"].clone())
    };
    let buffer = info(&[
        "--range",
        "4G+1G",
        "--range",
        "2G+4K",
        "--read-only",
        "--cache",
        "wc",
    ])?;
    ensure_eq!(
        buffer["ranges"],
        json!([{ "offset": 4 * GIB, "length": GIB }, { "offset": 2 * GIB, "length": 4096 }])
    );
    ensure_eq!(buffer["access"], "read-only");
    ensure_eq!(
        (&buffer["provider"], &buffer["state"]),
        (&json!(npu), &json!("live"))
    );
    let buffer = info(&[
        "--bar",
        "2",
        "--length",
        "1G",
        "--backing",
        "page",
        "--page-size",
        "2M",
    ])?;
    ensure_eq!(
        (&buffer["backing"], &buffer["largest_page"]),
        (&json!("page"), &json!(2 * MIB))
    );
    barbuf(&["export", npu, "--", "/nowhere/x"]).exits(127)?;
    barbuf(&["export", npu, "--", "/run"]).exits(126)?;
    export(&["--revoke-on-exit"], "exit 9").exits(9)?;
    ensure_eq!(export(&[], "kill -9 $$").output()?.status.signal(), Some(9));
    export(&["--revoke-on-exit"], "kill -9 $$").exits(137)?;
    provider.wait_until_free(&before)
}

/// `--hold`, and everything that finds a buffer by PID:FD.
fn buffers_are_held_and_taken_back(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let (npu, before) = (provider.bdf(), provider.node.info()?.regions);
    let hold = |options: &[&str]| -> Result<(Actor, String)> {
        let export = barbuf(&["--json", "export", npu, "--hold", "--length", "1G"]);
        let mut actor = Actor::start(export.args(options))?;
        let held = actor.document()?;
        ensure_eq!((&held["schema"], &held["size"]), (&json!(1), &json!(GIB)));
        Ok((actor, format!("{}:{}", held["pid"], held["fd"])))
    };
    let state =
        |at: &str| answer(&["info", "--from", at]).map(|info| info["buffer"]["state"].clone());
    for (options, revokes) in [(&[][..], false), (&["--revoke-on-exit"][..], true)] {
        let (mut actor, at) = hold(options)?;
        ensure_eq!(state(&at)?, "live");
        let buffer = take(&at)?;
        actor.signal(Signal::SIGTERM)?;
        ensure_eq!(actor.wait()?.code(), Some(0));
        ensure_eq!(buffer.query()?.state == State::Revoked, revokes);
    }
    let (mut actor, at) = hold(&[])?;
    ensure_eq!(answer(&["revoke", "--from", &at])?["revoked"], true);
    // It says so and ends.
    ensure_eq!(actor.document()?["error"]["exit"], 6);
    ensure_eq!(actor.wait()?.code(), Some(6));

    let script = "barbuf revoke && barbuf --json info; barbuf -q revoke; echo $?; \
                  barbuf -q load /suites; echo $?";
    let export = barbuf(&["export", npu, "--length", "1G", "--", "sh", "-c", script]);
    let said = export.exits(0)?;
    ensure!(said.contains("\"state\": \"revoked\""), "{said}");
    ensure!(said.ends_with("}\n6\n6\n"), "{said}");
    provider.wait_until_free(&before)
}

/// A buffer that another process has open.
fn take(at: &str) -> Result<Buffer> {
    let (pid, fd) = at.split_once(':').context("PID:FD")?;
    let fd = take_from_process(pid.parse()?, fd.parse()?)?;
    Ok(Buffer::import(fd)?)
}
