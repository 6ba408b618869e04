#!/usr/bin/env bash
# Makes the images that the cluster runs from this machine's files, and prints their folder. The
# folder is kept beside the built programs, and made again when a file that defines the images changes.
#
# The images have the names and versions that e2e.test expects, in a registry that does not exist.
# sig-network's specs need them: Conformance, Netpol, conntrack, the granular checks.
# Images that are not made, so specs that need them cannot run:
#   agnhost's iperf        [Feature:Networking-Performance] measures the lab, not Weft
#   everything else        specs of other groups: storage, autoscaling, the API server's extensions, private registries
set -euo pipefail
. "$(dirname "$0")/env.sh"
cd "$kube"

id=$(cat images.sh mkimage/*.go pause/*.go | sha256sum | cut -c1-12)
images=$cache/images-$id
mkdir -p "$cache"
exec 9>"$cache/images.lock"
flock 9
if [ -d "$images" ]; then
	echo "$images"
	exit 0
fi

"$kube/packages.sh" 9>&-
"$kube/build.sh" agnhost regression-issue-74839 coredns 9>&-
say "building the images"
rm -rf "$cache"/images-*
new=$images.new
mkdir -p "$new/bin"
CGO_ENABLED=0 GOFLAGS= GOWORK=off go build -trimpath -ldflags '-s -w' -o "$new/bin/" ./mkimage ./pause
mkimage() { "$new/bin/mkimage" "$@"; }

GOFLAGS= GOWORK=off go mod download k8s.io/kubernetes # the module cache may have been cleaned, while the programs are kept elsewhere
source=$(GOFLAGS= GOWORK=off go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test
manifest=$source/utils/image/manifest.go
ref() { # CONSTANT…: the names of images in the specs, comma separated
	local constant refs=()
	for constant; do
		refs+=("$registry/$(sed -nE "s/^\tconfigs\[$constant\] += Config\{[^,]*, \"([^\"]+)\", \"([^\"]+)\"\}/\1:\2/p" "$manifest")")
	done
	(IFS=,; echo "${refs[*]}")
}

with_libraries() { # PROGRAM[:PATH]…: as mkimage's arguments, with their shared libraries
	local arg lib
	for arg; do echo "${arg%%:*}:${arg#*:}"; done
	for lib in $(ldd "${@%%:*}" | grep -oE '\s/[^ :]+ ' | sort -u); do echo "$(realpath "$lib"):$lib"; done
}

applets=(awk cat chmod cp cut date echo env false find grep head hostname id kill ln ls mkdir mount mv netstat nslookup
	ping printf ps rm sed seq sleep sort tail test timeout top touch tr traceroute true vi wc xargs ip which)
busybox=(/bin/busybox:/bin/busybox tmp/ etc/ root/)
for a in "${applets[@]}"; do busybox+=("->busybox:/bin/$a"); done

# Debian's programs replace busybox's where the specs need more features, or where busybox fails: its
# statically linked wget sometimes crashes. The shell is dash: busybox's shell would always run its
# own nc, whatever PATH says.
programs=$(with_libraries /bin/dash:/bin/sh /bin/nc.openbsd:/bin/nc /usr/bin/curl /usr/bin/dig /usr/bin/getent \
	/bin/ss:/usr/bin/ss /usr/bin/wget:/bin/wget "$coredns_dir/coredns:/coredns")

mkimage -ref "$(ref Pause)" -entrypoint /pause -o "$new/pause.tar" "$new/bin/pause:/pause" tmp/
mkimage -ref "$(ref BusyBox)" -cmd sh -o "$new/busybox.tar" "${busybox[@]}" "->busybox:/bin/sh" "->busybox:/bin/nc" "->busybox:/bin/wget"
# One image has several names: the specs only use dig and getent of dnsutils, the shell of
# distroless-iptables, and of nginx only that it runs.
# shellcheck disable=SC2086
mkimage -ref "$(ref Agnhost JessieDnsutils DistrolessIptables Nginx)" -entrypoint /agnhost -cmd pause -o "$new/agnhost.tar" \
	"$cache/bin/agnhost:/agnhost" "->agnhost:/agnhost-2" "$source/images/agnhost/porter/localhost.crt:/localhost.crt" \
	"$source/images/agnhost/porter/localhost.key:/localhost.key" "${busybox[@]}" $programs uploads/
mkimage -ref "$(ref RegressionIssue74839)" -entrypoint /regression-issue-74839 -o "$new/regression-issue-74839.tar" \
	"$cache/bin/regression-issue-74839:/regression-issue-74839" "${busybox[@]}"
# Add shared libraries, since these programs may be linked with C.
# shellcheck disable=SC2046
mkimage -ref "$registry/coredns:lab" -entrypoint /coredns -o "$new/coredns.tar" $(with_libraries "$coredns_dir/coredns:/coredns") tmp/

ref Pause >"$new/sandbox" # name of the image of pod sandboxes
rm -r "$new/bin"
mv "$new" "$images"
echo "$images"
