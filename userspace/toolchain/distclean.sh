#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Removes the cache, having said what is in it. Only what enter.sh and xtask put there goes:
# the directory may be one that the user shares with other things.

set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=userspace/toolchain/common.sh
. "$here/common.sh"

cache=$(cache_dir)
[ -d "$cache" ] || {
    say "there is no cache ($cache)"
    exit
}
for lock in "$cache"/rootfs/*.lock; do
    [ ! -e "$lock" ] || flock -n "$lock" true ||
        die "another run uses the cache $cache" "wait for it, or end it"
done
for part in rootfs apt kernels cargo ccache home; do
    if [ -d "$cache/$part" ]; then
        say "removing $cache/$part ($(du -sh "$cache/$part" 2>/dev/null | cut -f1))"
        # The toolchain has files that even their owner may not write.
        chmod -R u+w "$cache/$part" 2>/dev/null || :
        rm -rf "${cache:?}/$part" 2>/dev/null || as_root "removing $cache/$part" rm -rf "$cache/$part"
    fi
done
rmdir "$cache" 2>/dev/null || :
