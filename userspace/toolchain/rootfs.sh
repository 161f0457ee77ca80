# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=sh
#
# Makes the toolchain's root file system. enter.sh sources it with the lock held, and `here`,
# `privilege`, `cache` and `rootfs` set. An interrupted run leaves a staging directory, which
# the next one removes.
# shellcheck disable=SC2154

staging=$cache/rootfs/staging
log=$cache/rootfs/mmdebstrap.log
# Unpacked, and the packages that are downloaded for it.
need_mib=4096

# Removes a tree, also one that belongs to the other users of a user namespace.
remove() {
    [ -e "$1" ] || return 0
    chmod -R u+w "$1" 2>/dev/null || :
    rm -rf "$1" 2>/dev/null && return 0
    [ "$privilege" != userns ] ||
        unshare --user --map-root-user --map-auto rm -rf "$1" 2>/dev/null || :
    [ ! -e "$1" ] || as_root "removing $1, which an interrupted run left," rm -rf "$1"
}

check_host() {
    id=$(. /etc/os-release 2>/dev/null && printf '%s' "${ID-}") || id=
    if [ "$id" != debian ]; then
        if ! have mmdebstrap || [ -z "${BARBUF_MIRROR-}" ]; then
            die "this is no Debian (${id:-unknown system})" \
                "use Debian 12 or 13, or install mmdebstrap and set BARBUF_MIRROR to a Debian mirror"
        fi
    fi
    free_mib=$(df -Pm "$cache" | awk 'NR == 2 { print $4 }')
    [ "$free_mib" -ge "$need_mib" ] ||
        die "the disk is too full: $cache has $free_mib MiB free, the toolchain needs $need_mib MiB" \
            "free some space, or set BARBUF_CACHE to a directory on a larger disk"
    mirror=$(sh "$here/mirror.sh") ||
        die "this machine's apt names no Debian mirror that can be reached over http" \
            "set BARBUF_MIRROR to one: BARBUF_MIRROR=http://MIRROR/debian make ..."
    security=$(sh "$here/mirror.sh" security) || security=
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -f "$keyring" ] ||
        die "the keys that sign Debian's packages are missing ($keyring)" \
            "apt-get install debian-archive-keyring"
}

# Installs what the host lacks: mmdebstrap, and the setuid helpers that it needs without root.
install_tools() {
    missing=
    have mmdebstrap || missing=mmdebstrap
    have mount || missing="$missing mount"
    if [ "$privilege" = userns ] && ! have newuidmap; then
        missing="$missing uidmap"
    fi
    missing=${missing# }
    [ -n "$missing" ] || return 0
    say "installing on this machine with apt-get: $missing"
    # shellcheck disable=SC2086 # a list of words
    {
        as_root "installing $missing" apt-get -qq update >"$log" 2>&1 </dev/null &&
            as_root "installing $missing" env DEBIAN_FRONTEND=noninteractive \
                apt-get -qq -y --no-install-recommends install $missing >>"$log" 2>&1 </dev/null
    } || {
        explain
        die "apt-get could not install $missing (see $log)" "apt-get update && apt-get install $missing"
    }
}

# Turns what apt and mmdebstrap say into one line and what to do about it.
explain() {
    if grep -q -E 'NO_PUBKEY|is not signed|EXPKEYSIG|REVKEYSIG|invalid signature' "$log"; then
        die "this machine's keys are too old to verify Debian trixie" \
            "apt-get update && apt-get install debian-archive-keyring"
    fi
    if grep -q -E 'No space left on device' "$log"; then
        die "the disk is full ($(df -Pm "$cache" | awk 'NR == 2 { print $4 }') MiB free in $cache)" \
            "free $need_mib MiB, or set BARBUF_CACHE to a directory on a larger disk"
    fi
    if grep -q -E 'Could not resolve|Could not connect|Connection failed|Temporary failure|Network is unreachable|Cannot initiate the connection|Failed to fetch|Unable to connect|does not have a Release file|404 +Not Found' "$log"; then
        die "the Debian mirror $mirror cannot be reached or lacks trixie (see $log)" \
            "check the network, or set BARBUF_MIRROR to another mirror"
    fi
}

bootstrap() {
    include=$(sed 's/#.*//; /^[[:space:]]*$/d' "$here/packages" | tr -s '[:space:]' ',')
    # shellcheck disable=SC2016 # mmdebstrap's hooks expand these
    set -- --variant=minbase --architectures=amd64 --include="${include%,}" \
        --aptopt='Acquire::Languages "none"' \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' \
        --keyring="$keyring" \
        --setup-hook='mkdir -p "$1/etc/apt/preferences.d"' \
        --setup-hook='printf "Package: qemu-* seabios\nPin: release n=trixie-backports\nPin-Priority: 900\n" >"$1/etc/apt/preferences.d/qemu"'
    sources="deb $mirror trixie main
deb $mirror trixie-backports main"
    [ -z "$security" ] || sources="$sources
deb $security trixie-security main"
    proxy=$(apt-config shell value Acquire::http::Proxy 2>/dev/null) || proxy=
    if [ -n "$proxy" ]; then
        eval "$proxy"
        set -- "$@" --aptopt="Acquire::http::Proxy \"$value\""
    fi

    case $privilege in
    root)
        # The namespaces end with their first process: no mount and no process is left behind.
        printf '%s\n' "$sources" >"$staging.list"
        export TMPDIR="$staging.tmp"
        exec setpriv --pdeathsig KILL \
            unshare --mount --pid --fork --kill-child --mount-proc \
            mmdebstrap --mode=root "$@" trixie "$staging" "$staging.list"
        ;;
    userns)
        if have newuidmap && grep -q "^$(id -un):" /etc/subuid && grep -q "^$(id -un):" /etc/subgid; then
            # It unmounts and removes what it made when it is asked to end.
            set -- setpriv --pdeathsig TERM mmdebstrap --mode=unshare "$@"
            # The other users of the namespace must get there: not below a home directory.
            export TMPDIR="$unshared"
        elif can_sudo; then
            set -- sudo mmdebstrap --mode=root "$@"
        else
            die "making the toolchain needs root, sudo or subordinate user ids" \
                "add a line for $(id -un) to /etc/subuid and /etc/subgid (usermod --add-subuids)"
        fi
        to_tar "$@" | unshare --user --map-root-user \
            tar -x -C "$staging" --no-same-owner --exclude='./dev/*'
        return "$(cat "$staging.status")"
        ;;
    sudo)
        to_tar sudo mmdebstrap --mode=root "$@" |
            tar -x -C "$staging" --no-same-owner --exclude='./dev/*'
        return "$(cat "$staging.status")"
        ;;
    esac
}

# A pipe tells only its last command's end; that of the first is kept in a file.
to_tar() {
    status=0
    printf '%s\n' "$sources" | "$@" --format=tar trixie - - || status=$?
    echo "$status" >"$staging.status"
}

make_rootfs() {
    check_host
    install_tools
    unshared=/var/tmp/barbuf-rootfs-$(id -u)
    remove "$rootfs"
    remove "$staging"
    remove "$staging.tmp"
    remove "$unshared"
    mkdir -p "$staging" "$staging.tmp"
    if [ "$privilege" = userns ]; then
        mkdir -m 0755 "$unshared"
    fi

    if ! with_clock "making the toolchain (Debian trixie, about a minute and 3 GiB)" "$log" bootstrap; then
        explain
        tail -n 15 "$log" >&2
        die "the toolchain could not be made (the end of $log is above)" "run the command again"
    fi

    # Where inside.sh mounts things.
    mkdir -p "$staging/barbuf" "$staging/cache"
    rm -rf "$staging/etc/resolv.conf" "$staging/etc/hosts"
    touch "$staging/etc/resolv.conf" "$staging/etc/hosts"
    # Package lists are kept in the cache instead, and these would be out of date.
    rm -rf "$staging"/var/lib/apt/lists/* "$staging"/var/cache/apt/*
    mv "$staging" "$rootfs"
    remove "$staging.tmp"
    remove "$unshared"
    rm -f "$staging.list" "$staging.status"

    # Root file systems of older recipes that no run uses any more.
    for old in "$cache"/rootfs/*.lock; do
        name=${old%.lock}
        if [ "$name" != "$rootfs" ] && flock -n "$old" true; then
            rm -f "$name.listing"
            remove "$name"
        fi
    done
}
