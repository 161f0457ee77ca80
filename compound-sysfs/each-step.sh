#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Applies the series patch by patch, as git am does, and compiles after each one the objects that it
# touches, or if it touches a header all that the series touches: with the options of the kernel in
# BUILD, and without transparent huge pages. Then mm/huge_memory.c is no part of the kernel, and no
# other object may refer to what only that one defines. Nothing else is linked, and nothing is booted.
#
# usage: each-step.sh SOURCE BUILD
#   SOURCE  the unpatched kernel source; nothing is written there
#   BUILD   the build tree of a kernel from it, configured and prepared, for its compiler's flags
#
# In the toolchain, once the base kernel is there:
#   V=$(ls -d /cache/kernels/*/base); compound-sysfs/each-step.sh "${V%/base}/source" "$V/build"

set -eu

if [ $# -ne 2 ] || [ ! -f "$1/mm/huge_memory.c" ] || [ ! -f "$2/kernel/.bounds.s.cmd" ]; then
	sed -n 's/^# usage: /usage: /p' "$0" >&2
	exit 2
fi
source=$(cd "$1" && pwd)
build=$(cd "$2" && pwd)
series=$(cd "$(dirname "$0")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

patches=$(find "$series" -name '*.patch' | awk -F/ '{ print $NF, $0 }' | sort | cut -d' ' -f2-)

# A repository of the files that are touched, and nothing else: the whole source takes minutes.
git -C "$tree" -c init.defaultBranch=main init -q
# shellcheck disable=SC2086
sed -n 's#^--- a/##p' $patches | sort -u | while read -r file; do
	mkdir -p "$tree/$(dirname "$file")"
	cp "$source/$file" "$tree/$file"
done
# Who commits here is of no interest, but git wants to know.
export GIT_AUTHOR_NAME=- GIT_AUTHOR_EMAIL=- GIT_COMMITTER_NAME=- GIT_COMMITTER_EMAIL=-
git -C "$tree" add -A
git -C "$tree" commit -q -m 'the source'

# The flags of an object of the core kernel, without what is that object's own. Headers of the tree
# come before those that the build saw, be it the source or the patched source.
flags=$(sed -n '1s/^savedcmd[^:]*:= ccache //p' "$build/kernel/.bounds.s.cmd" |
	sed 's/-Wp,-MMD,[^ ]*//; s/-DKBUILD_.*//; s/\\#/#/g' |
	sed "s#/[^ =]*/source-patched/#$source/#g")

# The options without transparent huge pages, and without those that depend on them. What the
# architecture could do stays, as it does in a kernel without.
small=$tree/.git/small
mkdir -p "$small/generated"
grep -vE '^#define CONFIG_(TRANSPARENT_HUGEPAGE|THP_|ARCH_ENABLE_THP_|READ_ONLY_THP_)' \
	"$build/include/generated/autoconf.h" >"$small/generated/autoconf.h"

# compile FILE OBJECT INCLUDES [FLAGS]
compile() {
	name=$(basename "$1" .c)
	# shellcheck disable=SC2086 # the last argument is several words, or none
	(cd "$build" && eval "$(printf '%s' "$flags" | sed "s#-nostdinc#-nostdinc $3 -I$tree/include#")" \
		"-I$source/$(dirname "$1")" ${4:-} -Werror \
		"-DKBUILD_MODFILE='\"$name\"' -DKBUILD_BASENAME='\"$name\"' -DKBUILD_MODNAME='\"$name\"'" \
		"-D__KBUILD_MODNAME=$name -c -o $2 $tree/$1")
}

symbols() {
	nm "$1" "$2" | awk '{ print $NF }' | sort -u
}

# shellcheck disable=SC2086
objects=$(sed -n 's#^+++ b/\(.*\.c\)$#\1#p' $patches | sort -u)
huge=$tree/.git/huge_memory.o
step=0
for patch in $patches; do
	step=$((step + 1))
	git -C "$tree" am -q "$patch"
	headers=$(grep -c '^+++ b/.*\.h$' "$patch" || true)
	for file in $objects; do
		[ "$headers" -gt 0 ] || grep -qxF "+++ b/$file" "$patch" || continue
		own=
		case $file in
		drivers/accel/habanalabs/*)
			# No kernel that is built here has this driver.
			habana=$source/drivers/accel/habanalabs
			own="-DCONFIG_HL_HLDIO=1 -I$habana/include -I$habana/common"
			;;
		mm/huge_memory.c)
			compile "$file" "$huge" ''
			continue
			;;
		esac
		object=$tree/.git/$(echo "$file" | tr / -).o
		# Both at once.
		compile "$file" "$object.small" "-I$small" "$own" &
		compile "$file" "$object" '' "$own"
		wait $!
	done
	symbols "$huge" --defined-only >"$tree/.git/huge"
	for object in "$tree"/.git/*.o.small; do
		missing=$(symbols "$object" --undefined-only | comm -12 - "$tree/.git/huge")
		[ -z "$missing" ] || {
			echo "$(basename "$patch"): $(basename "$object") needs $missing" >&2
			exit 1
		}
	done
	echo "$step  $(basename "$patch" .patch)"
done
