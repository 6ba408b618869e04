#!/usr/bin/env bash
# Installs the missing Debian packages that the cluster runs, or that its images are made of.
set -euo pipefail
. "$(dirname "$0")/env.sh"

packages=(
	containerd runc containernetworking-plugins        # each node's runtime, and CNI=bridge
	conntrack ethtool socat nftables iptables ipset    # for the kubelet and kube-proxy
	iproute2 util-linux                                # namespaces
	busybox-static dash netcat-openbsd curl wget libc-bin bind9-dnsutils # used by the specs in their pods
)
missing=()
for p in "${packages[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

[ "$(id -u)" = 0 ] || fail "packages are missing: run sudo apt-get install ${missing[*]}"
say "installing Debian's ${missing[*]}"
apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" </dev/null >/dev/null; }
apt install --no-install-recommends "${missing[@]}" 2>/dev/null ||
	{ apt update && apt install --no-install-recommends "${missing[@]}"; } || # the package lists may be missing or outdated
	fail "apt-get could not install ${missing[*]}: see above"
