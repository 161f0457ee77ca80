#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Runs a command in the root file system, in namespaces of its own: mounts vanish with the last
# process, and every process ends with this script, however it ends.
#
# usage: inside.sh USER ROOTFS REPO CACHE [NAME=VALUE...] COMMAND [ARGUMENT...]
#   The command sees the named variables and those that are set below, no others.
#   USER is `userns` for an ordinary user, who becomes root of a user namespace, or UID:GID,
#   which needs root: the command then runs as that user.

set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=userspace/toolchain/common.sh
. "$here/common.sh"

# Second stage: root of the new namespaces, and their first process.
enter() {
    user=$1
    root=$2
    repo=$3
    cache=$4
    shift 4
    mount --bind "$root" "$root"
    mount --rbind /dev "$root/dev"
    # A new /proc is refused where the machine hides parts of its own, as in some containers.
    mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
    mount --rbind /sys "$root/sys"
    for scratch in tmp run var/tmp; do
        mount -t tmpfs -o mode=1777 tmpfs "$root/$scratch"
    done
    mount --bind "$repo" "$root/barbuf"
    mount --bind "$cache" "$root/cache"
    # Names, and the certificates that this machine trusts, which may include a proxy's.
    for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
        if [ -f "$file" ] && [ -f "$root$file" ]; then
            mount --bind "$(readlink -f "$file")" "$root$file"
        fi
    done
    # pip's configuration of this machine (see enter.sh).
    for word in "$@"; do
        case $word in
        BARBUF_PIP_CONF=*)
            : >"$root/run/pip.conf"
            mount --bind "$(readlink -f "${word#*=}")" "$root/run/pip.conf"
            ;;
        *=*) ;;
        *) break ;;
        esac
    done
    # Refused in a user namespace when the disk is mounted with flags that may not be dropped.
    mount -o remount,bind,ro "$root" 2>/dev/null || :

    set -- env -i BARBUF_REPO=/barbuf BARBUF_CACHE=/cache HOME=/cache/home \
        CARGO_HOME=/cache/cargo CARGO_TARGET_DIR=/barbuf/target CCACHE_DIR=/cache/ccache \
        LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=/barbuf "$@"
    # The shell stays as the namespace's first process and takes in orphans.
    set -- "$root" /bin/sh -c 'cd /barbuf && "$@"; exit $?' sh "$@"
    case $user in
    userns | 0:0) ;;
    *) set -- --userspec="$user" "$@" ;;
    esac
    exec chroot "$@"
}

if [ "$1" = --enter ]; then
    shift
    enter "$@"
fi

user=$1
flags=
[ "$user" != userns ] || flags="--user --map-root-user"

# A background process has no standard input unless it is given one.
exec 3<&0
terminal=
[ ! -t 0 ] || terminal=$(stty -g 2>/dev/null) || :
# A chain of deaths, so that nothing outlives this script even when it is killed: unshare gets
# SIGKILL when this shell ends, the namespace's first process when unshare ends, and the kernel
# kills what else is in the namespace.
# shellcheck disable=SC2086 # flags are words
setpriv --pdeathsig KILL unshare $flags --mount --pid --fork --kill-child sh "$here/inside.sh" --enter "$@" <&3 3<&- &
child=$!
exec 3<&-

# Every step is made so that it can be stopped at any point.
# shellcheck disable=SC2317 # called by the traps
end() {
    kill -KILL "$child" 2>/dev/null || :
    wait "$child" 2>/dev/null || :
    [ -z "$terminal" ] || stty "$terminal" 2>/dev/null || :
    say ""
    say "interrupted"
    exit "$1"
}
trap 'end 130' INT
trap 'end 143' TERM
trap 'end 129' HUP
status=0
wait "$child" || status=$?
exit "$status"
