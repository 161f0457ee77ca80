// SPDX-License-Identifier: MIT OR Apache-2.0

//! Process B of the demonstration: a program without any right, that was handed a buffer with a model
//! in it. It knows the crate `barbuf` and the file format, nothing else.
//!
//! It says what it finds in lines of JSON: the model, then the revocation.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use barbuf::{Access, Buffer, Mapping, Watch};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A header of more is none.
const MOST_HEADER: u64 = 100 << 20;

/// A tensor of a safetensors header.
#[derive(Debug, Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Tensors of one part of the model.
#[derive(Debug, Default)]
struct Part {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}", json!({ "error": format!("{error:#}") }));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let buffer = Buffer::import(inherited("BARBUF_FD")?)?;
    let watch = Watch::from(inherited("BARBUF_EVENT_FD")?);
    let mapping = buffer.map().access(Access::ReadOnly).build()?;
    let found = examine(&mapping)?;
    let query = buffer.query()?;
    let mut line = found;
    line["uid"] = nix::unistd::getuid().as_raw().into();
    line["mapped"] = mapping.len().into();
    line["faults"] = json!([query.faults.of_1g, query.faults.of_2m, query.faults.of_4k]);
    line["leaf"] = query.largest_page.to_string().into();
    println!("{line}");

    ensure!(watch.wait(None)?, "the eventfd was not signalled");
    let touch = match mapping.read_u64(0) {
        Ok(value) => format!("a value: {value:#x}"),
        Err(error) if error.is_revoked() => "refused".into(),
        Err(error) => format!("another error: {error}"),
    };
    let state = buffer.query()?.state.to_string();
    let again = match buffer.map().build() {
        Ok(_) => "mapped".into(),
        Err(error) if error.is_revoked() => "refused".to_owned(),
        Err(error) => format!("another error: {error}"),
    };
    println!(
        "{}",
        json!({ "event": true, "touch": touch, "state": state, "map": again })
    );
    Ok(())
}

/// The descriptor that `barbuf get` has left open under this name.
fn inherited(name: &str) -> Result<OwnedFd> {
    let number = std::env::var(name).with_context(|| format!("{name} is not set"))?;
    let number = number
        .parse()
        .with_context(|| format!("{name} is no number"))?;
    // SAFETY: `barbuf get` has opened it for this program alone, and it is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads the header where it lies, in device memory, and hashes all of the file.
fn examine(mapping: &Mapping) -> Result<Value> {
    let length = mapping.read_u64(0)?;
    ensure!(length <= MOST_HEADER, "a header of {length} bytes");
    let header = mapping.read_to_vec(8, length as usize)?;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&header).context("the header")?;
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    let mut types: BTreeMap<String, u64> = BTreeMap::new();
    let mut end = 0;
    let mut tensors = 0;
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let tensor: Tensor = serde_json::from_value(value).with_context(|| name.clone())?;
        let (from, to) = tensor.data_offsets;
        let bytes = to
            .checked_sub(from)
            .with_context(|| format!("{name} ends before it begins"))?;
        let part = parts.entry(part_of(&name)).or_default();
        part.tensors += 1;
        part.parameters += tensor.shape.iter().product::<u64>();
        part.bytes += bytes;
        *types.entry(tensor.dtype).or_default() += 1;
        end = end.max(to);
        tensors += 1;
    }
    let bytes = 8 + length + end;
    let parts: Vec<Value> = parts
        .iter()
        .map(|(name, part)| json!([name, part.tensors, part.parameters, part.bytes]))
        .collect();
    Ok(json!({
        "tensors": tensors,
        "types": types,
        "parts": parts,
        "bytes": bytes,
        "sha256": hash(mapping, bytes as usize)?,
    }))
}

/// `encoder.layer.3.attention.self.key.weight` is a part of `encoder.layer.3`.
fn part_of(name: &str) -> String {
    let words: Vec<&str> = name.split('.').collect();
    let count = match words[..] {
        ["encoder", "layer", ..] => 3,
        _ => 1,
    };
    words[..count.min(words.len())].join(".")
}

fn hash(mapping: &Mapping, bytes: usize) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let part = &mut buffer[..(bytes - at).min(1 << 20)];
        mapping.read_into(at, part)?;
        hash.update(&*part);
        at += part.len();
    }
    Ok(format!("{:x}", hash.finalize()))
}
