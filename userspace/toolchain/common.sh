# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=sh
#
# What the scripts in this directory share. Sourced, never run.

say() {
    printf '%s\n' "$*" >&2
}

# die WHAT-IS-WRONG [WHAT-TO-DO]
die() {
    say "error: $1"
    [ $# -lt 2 ] || say "hint: $2"
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# Debian keeps mount, chroot and unshare where a user's PATH may not look.
PATH=$PATH:/usr/sbin:/sbin

# Where everything that outlives `make clean` is kept.
cache_dir() {
    dir=${BARBUF_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/barbuf}
    case $dir in
    /*) printf '%s\n' "$dir" ;;
    *) printf '%s\n' "$PWD/$dir" ;;
    esac
}

# How this user gets the rights to mount and to chroot: root, userns or sudo.
find_privilege() {
    if [ "$(id -u)" = 0 ]; then
        unshare --mount true 2>/dev/null ||
            die "root may not mount anything here" \
                "in a container, start it with --privileged"
        echo root
    elif unshare --user --map-root-user --mount true 2>/dev/null; then
        echo userns
    elif can_sudo; then
        echo sudo
    else
        die "no way to enter the toolchain: no root, no sudo, no user namespaces" \
            "run as root, install sudo, or allow user namespaces (sysctl user.max_user_namespaces)"
    fi
}

can_sudo() {
    have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }
}

# as_root WHAT-FOR COMMAND...
as_root() {
    why=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif can_sudo; then
        sudo "$@"
    else
        die "$why needs root, and there is no sudo" "as root: $*"
    fi
}

# with_clock TITLE LOG COMMAND...: runs the command with its output in the log and says how
# long it has been running: in place on a terminal, every 30 seconds elsewhere. An interrupted
# script kills the command and, with it, everything that it started.
with_clock() {
    title=$1
    log=$2
    shift 2
    began=$(date +%s)
    [ -t 2 ] || say "$title ..."
    "$@" >"$log" 2>&1 </dev/null &
    clocked=$!
    trap 'interrupted TERM 143' TERM
    trap 'interrupted INT 130' INT
    trap 'interrupted HUP 129' HUP
    ticks=0
    while kill -0 "$clocked" 2>/dev/null; do
        sleep 1
        ticks=$((ticks + 1))
        took=$(($(date +%s) - began))
        if [ -t 2 ]; then
            printf '\r\033[2K%s ... %s s' "$title" "$took" >&2
        elif [ $((ticks % 30)) = 0 ]; then
            say "$title ... $took s"
        fi
    done
    status=0
    wait "$clocked" || status=$?
    trap - TERM INT HUP
    took=$(($(date +%s) - began))
    [ ! -t 2 ] || printf '\r\033[2K' >&2
    if [ "$status" = 0 ]; then
        say "$title: done in $took s"
    else
        say "$title: failed after $took s"
    fi
    return "$status"
}

interrupted() {
    # What the command started dies with it (see rootfs.sh).
    kill -KILL "$clocked" 2>/dev/null
    wait "$clocked" 2>/dev/null
    say ""
    say "interrupted"
    exit "$2"
}
