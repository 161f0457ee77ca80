#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Prints the Debian mirror to use: $BARBUF_MIRROR, or else the one that apt uses on this machine.
# With the argument `security` it prints the archive of security updates, if apt knows one.

set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=userspace/toolchain/common.sh
. "$here/common.sh"

suffix=
[ "${1-}" != security ] || suffix=-security

if [ -z "$suffix" ] && [ -n "${BARBUF_MIRROR-}" ]; then
    printf '%s\n' "$BARBUF_MIRROR"
    exit
fi
have apt-get || exit 1
codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")

# What apt would fetch names every suite of every source, also where no list was ever fetched:
# 'URI/dists/SUITE/InRelease'. This release's own suite first, then another of Debian's.
uri=$(
    apt-get update --print-uris 2>/dev/null |
        sed -n "s|^'\(.*\)/dists/\([^/']*\)/InRelease'.*|\2 \1|p" |
        awk -v suffix="$suffix" -v codename="$codename" '
            $1 == codename suffix { print $2; found = 1; exit }
            $1 ~ "^(stable|oldstable|testing|bookworm|trixie|forky)" suffix "$" && !other { other = $2 }
            END { if (!found && other) print other }'
)
case $uri in
mirror+file:*)
    # A file with a list of mirrors, as cloud images have it.
    uri=$(sed -n 's/[[:space:]].*//; /^http/{p;q}' "${uri#mirror+file:}")
    uri=${uri%/}
    ;;
esac
case $uri in
http://* | https://*) printf '%s\n' "$uri" ;;
*) exit 1 ;;
esac
