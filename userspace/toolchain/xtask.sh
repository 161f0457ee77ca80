#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Builds xtask inside the toolchain and runs it. The Makefile calls it through enter.sh.

set -eu

quiet=--quiet
if [ ! -x "$CARGO_TARGET_DIR/debug/xtask" ]; then
    echo "building xtask, which does the rest (about a minute, once) ..." >&2
    quiet=
fi
BARBUF_XTASK_BEGAN=$(date +%s)
export BARBUF_XTASK_BEGAN
# shellcheck disable=SC2086 # empty or one word
cargo build $quiet --locked --manifest-path userspace/Cargo.toml --package xtask
exec "$CARGO_TARGET_DIR/debug/xtask" "$@"
