#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Runs a command inside the toolchain: a Debian trixie root file system that holds every
# compiler and tool that this project uses. Makes it first where it is missing or damaged.
#
# usage: enter.sh COMMAND [ARGUMENT...]
#
# Needs only sh and what every Debian has, and root, sudo or user namespaces.
#   BARBUF_CACHE   where the root file system, kernels and compiler cache are kept
#                  (default: ${XDG_CACHE_HOME:-$HOME/.cache}/barbuf)
#   BARBUF_MIRROR  the Debian mirror (default: the one that this machine's apt uses)

set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=userspace/toolchain/common.sh
. "$here/common.sh"

[ $# -gt 0 ] || die "no command given" "usage: enter.sh COMMAND [ARGUMENT...]"

repo=$(CDPATH='' cd -- "$here/../.." && pwd -P)
cache=$(cache_dir)
mkdir -p "$cache/rootfs" "$cache/home" "$cache/cargo" "$cache/ccache" 2>/dev/null ||
    die "cannot create the cache $cache" "set BARBUF_CACHE to a directory that can be written"
mkdir -p "$repo/target" 2>/dev/null ||
    die "cannot create $repo/target" "the repository must be yours to write to"

machine=$(uname -m)
[ "$machine" = x86_64 ] ||
    die "this machine is $machine: only amd64 (x86_64) can build and boot these kernels" \
        "run it on an amd64 machine"

privilege=$(find_privilege)
began=$(date +%s)

# shellcheck source=userspace/toolchain/rootfs.sh
. "$here/rootfs.sh"

# The name of the root file system follows from its recipe.
key=$(cat "$here/packages" "$here/rootfs.sh" | sha256sum | cut -c1-16)
rootfs=$cache/rootfs/$key

# A listing of every file with its size and time stamp. It costs a second and finds anything that
# was lost or changed: inside, the root file system is mounted read-only.
listing() {
    (cd "$1" && find . -xdev \( -type f -printf '%P %s %T@\n' -o -type l -printf '%P -> %l\n' \)) |
        LC_ALL=C sort
}

intact() {
    [ -d "$rootfs" ] && [ -f "$rootfs.listing" ] &&
        listing "$rootfs" 2>/dev/null | cmp -s - "$rootfs.listing"
}

# Every run holds this lock as long as it lives: shared while it uses the root file system,
# exclusive while it makes it.
exec 9>"$rootfs.lock"
lock() {
    flock -n "$1" 9 || {
        say "another run makes or uses this toolchain: waiting for it"
        flock "$1" 9
    }
}
lock -s
if ! intact; then
    flock -u 9
    lock -x
    if ! intact; then
        if [ -f "$rootfs.listing" ] && [ -d "$rootfs" ]; then
            damaged=$(listing "$rootfs" | LC_ALL=C comm -3 - "$rootfs.listing" |
                sed 's/^[[:space:]]*//; s/ .*//' | LC_ALL=C sort -u)
            say "the toolchain is damaged ($(printf '%s\n' "$damaged" | wc -l) files," \
                "the first is /$(printf '%s\n' "$damaged" | head -n 1)): making it again"
        fi
        rm -f "$rootfs.listing"
        make_rootfs
        listing "$rootfs" >"$rootfs.listing.new"
        mv "$rootfs.listing.new" "$rootfs.listing"
    fi
    flock -s 9
fi
toolchain_seconds=$(($(date +%s) - began))

# Where packages come from, for the kernels; they are downloaded inside.
mirror=$(sh "$here/mirror.sh") || mirror=

# What the command may know of this machine. inside.sh sets the rest.
for name in $(env | sed -n 's/^\(BARBUF_[A-Z_]*\)=.*/\1/p') \
    TERM COLUMNS NO_COLOR CI http_proxy https_proxy no_proxy \
    PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_PROXY PIP_DEFAULT_TIMEOUT; do
    case $name in
    BARBUF_CACHE | BARBUF_REPO | BARBUF_MIRROR) continue ;;
    esac
    if eval "[ -n \"\${$name+set}\" ]"; then
        eval "set -- \"$name=\$$name\" \"\$@\""
    fi
done
# Where this machine's pip looks for packages; what it is told by variables comes first.
for conf in "${PIP_CONFIG_FILE-}" "${XDG_CONFIG_HOME:-${HOME:-/root}/.config}/pip/pip.conf" \
    "${HOME:-/root}/.pip/pip.conf" /etc/pip.conf; do
    if [ -f "$conf" ]; then
        set -- "BARBUF_PIP_CONF=$conf" "PIP_CONFIG_FILE=/run/pip.conf" "$@"
        break
    fi
done
set -- "BARBUF_MIRROR=$mirror" "BARBUF_HOST_REPO=$repo" "BARBUF_HOST_CACHE=$cache" \
    "BARBUF_TOOLCHAIN_SECONDS=$toolchain_seconds" "$@"

case $privilege in
sudo)
    # Everything inside runs as this user; root only mounts. Not exec: this shell keeps the lock.
    status=0
    sudo sh "$here/inside.sh" "$(id -u):$(id -g)" "$rootfs" "$repo" "$cache" "$@" || status=$?
    exit "$status"
    ;;
userns) exec sh "$here/inside.sh" userns "$rootfs" "$repo" "$cache" "$@" ;;
root) exec sh "$here/inside.sh" 0:0 "$rootfs" "$repo" "$cache" "$@" ;;
esac
