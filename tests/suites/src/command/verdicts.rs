// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the command says of a machine, and of a wrong command line.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use barbuf_guest::modules;
use serde_json::{Value, json};

use crate::kit::command::{answer, barbuf, refusal};
use crate::kit::pci::{Function, Provider};
use crate::support::{Ctx, ensure_eq};

/// With exit code 1, and the reason, where there is none.
pub(super) fn routes_are_told(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let npu = provider.bdf();
    let drive = Function::of(ctx.nvme(0)?)?.bdf;
    let possible = ctx.topology().name != "no-route";
    let code = i32::from(!possible);
    let of_device = barbuf(&["--json", "route", &drive, "--device", npu]).exits(code)?;
    let route: Value = serde_json::from_str(&of_device)?;
    ensure_eq!(route["schema"], 1);
    ensure_eq!(
        (&route["provider"], &route["importer"]),
        (&json!(npu), &json!(drive))
    );
    ensure_eq!(route["possible"], possible);
    ensure_eq!(route["reason"].is_string(), !possible);
    let script = format!("barbuf --json route {drive}");
    let of_buffer = barbuf(&["export", npu, "--length", "1G", "--", "sh", "-c", &script]);
    ensure_eq!(of_buffer.exits(code)?, of_device);
    refusal(&["route", "0000:ff:1f.7", "--device", npu], 3)?;
    refusal(&["route", npu, "--device", &drive], 3)?;
    refusal(&["route", &drive], 2)?;
    Ok(())
}

/// Without a FAIL it exits with 0, with `--strict` and a WARN with 5; without the module it fails.
pub(super) fn the_doctor_judges(ctx: &Ctx) -> Result<()> {
    let doctor = |strict: bool| -> Result<_> {
        let options: &[&str] = if strict { &["--strict"] } else { &[] };
        let output = barbuf(&["--json", "doctor"]).args(options).output()?;
        let value: Value = serde_json::from_slice(&output.stdout)?;
        ensure_eq!(value["schema"], 1);
        let checks = value["checks"].as_array().context("no checks")?.clone();
        for check in &checks {
            let has_fix = check["fix"].is_string();
            ensure!(has_fix == (check["verdict"] != "PASS"), "{check}");
        }
        let verdict = value["verdict"].as_str().context("no verdict")?.to_owned();
        let module = checks.iter().find(|check| check["check"] == "module");
        let module = module.context("nothing about the module")?["verdict"].clone();
        Ok((output.status.code(), verdict, module))
    };
    // Nothing is bound or adopted, which is worth a word.
    let warned = |code| (Some(code), "WARN".to_owned(), json!("PASS"));
    ensure_eq!(doctor(false)?, warned(0));
    ensure_eq!(doctor(true)?, warned(5));
    let said = barbuf(&["doctor"]).exits(0)?;
    ensure!(
        said.contains("-> barbuf adopt ") && said.trim_end().ends_with(" 0 FAIL"),
        "{said}"
    );
    // An ordinary user has fewer rights, which is no FAIL either.
    barbuf(&["doctor"]).nobody().exits(0)?;

    let npu = Function::of(ctx.npu(0)?)?.bdf;
    modules::unload(ctx.product())?;
    let result = (|| {
        ensure_eq!(doctor(false)?, (Some(5), "FAIL".to_owned(), json!("FAIL")));
        refusal(&["bind", &npu], 3)?;
        refusal(&["info", &npu], 3)?;
        refusal(&["adopt", &npu], 3)?;
        answer(&["list"])
    })();
    ctx.modules().load(ctx.product(), "")?;
    result.map(drop)
}

pub(super) fn bad_input_is_one_clear_error(ctx: &Ctx) -> Result<()> {
    let provider = Provider::bind(ctx.npu(0)?)?;
    let npu = provider.bdf();
    let rules = "/tmp/rules.toml";
    fs::write(rules, "[[buffer]]\nname = \"a b\"\nlength = 0\n")?;
    let wrong: &[(&[&str], i32)] = &[
        (&[], 2),
        (&["bidn", npu], 2),
        (&["bind"], 2),
        (&["bind", "nonsense"], 2),
        (&["bind", "0000:ff:1f.7"], 3),
        (&["bind", "0000:00:00.0"], 1),
        (&["unbind", "0000:ff:1f.7"], 3),
        (&["adopt", "0000:ff:1f.7"], 3),
        (&["list", "0000:ff:1f.7"], 3),
        (&["info", "0000:ff:1f.7"], 3),
        (&["info"], 2),
        (&["info", "--fd", "77"], 2),
        (&["info", "--fd", "-1"], 2),
        (&["info", "--fd", "0"], 1),
        (&["info", "--from", "1"], 2),
        (&["info", "--from", "999999:3"], 3),
        (&["export", npu], 2),
        (&["export", npu, "--length", "0", "--hold"], 1),
        (&["export", npu, "--length", "1", "--hold"], 1),
        (&["export", npu, "--length", "lots", "--hold"], 2),
        (
            &["export", npu, "--length", "99999999999999999999", "--hold"],
            2,
        ),
        (&["export", npu, "--length", "33G", "--hold"], 7),
        (&["export", npu, "--range", "32G+4K", "--hold"], 1),
        (&["export", npu, "--range", "1G", "--hold"], 2),
        (&["export", npu, "--bar", "5", "--hold"], 3),
        (&["export", npu, "--region", "9", "--hold"], 3),
        (&["export", npu, "--page-size", "3M", "--hold"], 2),
        (&["export", npu, "--hold", "--", "true"], 2),
        (&["load", "/suites"], 2),
        (&["dump", "--fd", "77"], 2),
        (&["revoke"], 2),
        (&["serve"], 2),
        (&["serve", "--rules", "/nowhere"], 3),
        (&["serve", "--rules", rules, "--socket", "/run/s"], 2),
        (&["get", "--socket", "/nowhere", "weights"], 3),
        (&["get", "--socket", "/suites", "weights"], 3),
        (&["get", "weights"], 2),
        (
            &["get", "--socket", "/run/s", "weights", "--timeout", "soon"],
            2,
        ),
    ];
    for (arguments, code) in wrong {
        refusal(arguments, *code)?;
    }
    fs::remove_file(rules)?;
    // What only root may, others are told.
    for arguments in [
        &["info", npu][..],
        &["export", npu, "--hold"],
        &["unbind", npu],
    ] {
        barbuf(arguments).nobody().exits(4)?;
    }
    ensure_eq!(provider.function.driver().as_deref(), Some("barbuf"));
    Ok(())
}
