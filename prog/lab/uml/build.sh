#!/usr/bin/env bash
# Prints the path of the guest kernel, and builds it if needed: once for each kernel.config, from
# Debian's kernel source. This takes 7 minutes of CPU, 2 GB of disk while building, and 7 MB
# afterwards.
#
# The kernel is kept in $XDG_CACHE_HOME/weft, by default ~/.cache/weft, and shared by all checkouts.
# As root, the script installs missing tools; otherwise it lists them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=6.12
limit=45m # time limit of the compilation, on the slowest supported machine

say() { echo "uml: $*" >&2; }
fail() {
	say "$*"
	say "or name a finished kernel with UML_LINUX=FILE, or skip the test of the kernel's WireGuard with WEFT_SKIP_UML=1"
	exit 1
}

cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/weft
id=$(sha256sum <"$here/kernel.config" | cut -c1-12)
kernel=$cache/linux-uml-$version-$id

mkdir -p "$cache"
exec 9>"$cache/uml.lock"
flock 9 # another run may be building the kernel
if [ -x "$kernel" ]; then
	echo "$kernel"
	exit 0
fi

# Check all requirements before doing anything.
[ "$(uname -sm)" = "Linux x86_64" ] || fail "user-mode Linux runs on Linux on x86-64, not on $(uname -sm)"
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "the kernel's source comes from Debian, with apt-get and dpkg-deb, which are missing"
packages=()
for need in gcc:gcc ld:binutils make:make flex:flex bison:bison bc:bc xz:xz-utils; do
	command -v "${need%%:*}" >/dev/null || packages+=("${need#*:}")
done
[ -e /usr/include/stdio.h ] || packages+=(libc6-dev)
apt() { apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" </dev/null >&2; }
if [ "$(id -u)" = 0 ]; then
	# The package lists may be missing, as in most images, or outdated.
	known() { apt-cache show "linux-source-$version" >/dev/null 2>&1; }
	known || apt update || fail "apt-get update failed: see above"
	[ ${#packages[@]} = 0 ] || apt install --no-install-recommends "${packages[@]}" ||
		{ apt update && apt install --no-install-recommends "${packages[@]}"; } || fail "apt-get could not install ${packages[*]}"
elif [ ${#packages[@]} -gt 0 ]; then
	fail "building the guest kernel needs: sudo apt-get install ${packages[*]}"
fi

work=$cache/build
rm -rf "$work"
mkdir -p "$work/out"
free=$(df --output=avail -m "$work" | tail -1)
[ "$free" -gt 2500 ] || fail "building the guest kernel needs 2.5 GB in $work, but only $free MB are free: set XDG_CACHE_HOME to another disk"
trap 'rm -rf "$work"' EXIT
cd "$work"

say "building the guest kernel once in $work"
apt download "linux-source-$version" 2>/dev/null ||
	{ [ "$(id -u)" = 0 ] && apt update && apt download "linux-source-$version"; } ||
	fail "apt-get cannot download linux-source-$version: run \`sudo apt-get update\`, and enable Debian 12's security archive"
dpkg-deb --fsys-tarfile linux-source-*.deb | tar -xO "./usr/src/linux-source-$version.tar.xz" | xz -dc -T0 | tar -x
rm linux-source-*.deb
source=$work/linux-source-$version

kbuild() { make -s ARCH=um -C "$source" O="$work/out" "$@"; }
kbuild allnoconfig >configure.log 2>&1
(cd out && ARCH=um "$source/scripts/kconfig/merge_config.sh" -m -O . .config "$here/kernel.config" >>../configure.log 2>&1)
kbuild olddefconfig >>configure.log 2>&1
grep '^CONFIG' "$here/kernel.config" | while read -r line; do
	grep -qxF "$line" out/.config || { say "linux $version does not accept $line of kernel.config"; exit 1; }
done

# Print progress every half minute.
files=910
start=$SECONDS
timeout "$limit" make ARCH=um -C "$source" O="$work/out" -j"${JOBS:-$(nproc)}" linux >build.log 2>&1 9>&- &
compile=$!
trap 'kill "$compile" 2>/dev/null || true; wait "$compile" || true; rm -rf "$work"' EXIT
while sleep 1 && kill -0 "$compile" 2>/dev/null; do
	[ $(((SECONDS - start) % 30)) != 0 ] || say "compiled $(grep -c '^  CC' build.log) of about $files files after $((SECONDS - start)) s"
done
wait "$compile" || { tail -20 build.log >&2; fail "the compilation failed, or took longer than $limit"; }

strip -o "$kernel.new" out/linux
mv "$kernel.new" "$kernel"
say "done after $((SECONDS - start)) s: $kernel"
echo "$kernel"
