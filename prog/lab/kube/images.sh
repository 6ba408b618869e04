#!/usr/bin/env bash
# Makes the images that the cluster runs, by hand from this machine's files, and prints the folder that they are in.
# It is kept beside the programs, and made again when one of the files that say how changes.
#
# They go by the names and versions that e2e.test asks for, of a registry that does not exist. Made are those of the
# specs of sig-network: Conformance, Netpol, conntrack, the granular checks. Left out, with the specs that want them:
#   agnhost's iperf        [Feature:Networking-Performance] measures the lab, not us
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
say "making the images"
rm -rf "$cache"/images-*
new=$images.new
mkdir -p "$new/bin"
CGO_ENABLED=0 GOFLAGS= GOWORK=off go build -trimpath -ldflags '-s -w' -o "$new/bin/" ./mkimage ./pause
mkimage() { "$new/bin/mkimage" "$@"; }

GOFLAGS= GOWORK=off go mod download k8s.io/kubernetes # it may be gone from the module cache: the programs are kept elsewhere
source=$(GOFLAGS= GOWORK=off go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test
manifest=$source/utils/image/manifest.go
ref() { # CONSTANT…: the names that the specs know images by, comma separated
	local constant refs=()
	for constant; do
		refs+=("$registry/$(sed -nE "s/^\tconfigs\[$constant\] += Config\{[^,]*, \"([^\"]+)\", \"([^\"]+)\"\}/\1:\2/p" "$manifest")")
	done
	(IFS=,; echo "${refs[*]}")
}

with_libraries() { # PROGRAM[:PATH]…: as mkimage's arguments, with what they are linked with
	local arg lib
	for arg; do echo "${arg%%:*}:${arg#*:}"; done
	for lib in $(ldd "${@%%:*}" | grep -oE '\s/[^ :]+ ' | sort -u); do echo "$(realpath "$lib"):$lib"; done
}

applets=(awk cat chmod cp cut date echo env false find grep head hostname id kill ln ls mkdir mount mv netstat nslookup
	ping printf ps rm sed seq sleep sort tail test timeout top touch tr traceroute true vi wc xargs ip which)
busybox=(/bin/busybox:/bin/busybox tmp/ etc/ root/)
for a in "${applets[@]}"; do busybox+=("->busybox:/bin/$a"); done

# Debian's own programs where the specs use more than busybox has, or what fails in it: its wget, linked statically, ends
# in a segmentation fault now and then. The shell is dash: busybox's would take its own nc, whatever the PATH says.
programs=$(with_libraries /bin/dash:/bin/sh /bin/nc.openbsd:/bin/nc /usr/bin/curl /usr/bin/dig /usr/bin/getent \
	/bin/ss:/usr/bin/ss /usr/bin/wget:/bin/wget "$coredns_dir/coredns:/coredns")

mkimage -ref "$(ref Pause)" -entrypoint /pause -o "$new/pause.tar" "$new/bin/pause:/pause" tmp/
mkimage -ref "$(ref BusyBox)" -cmd sh -o "$new/busybox.tar" "${busybox[@]}" "->busybox:/bin/sh" "->busybox:/bin/nc" "->busybox:/bin/wget"
# One image stands for several: of dnsutils the specs use dig and getent, of distroless-iptables the shell, and of nginx only
# that it runs.
# shellcheck disable=SC2086
mkimage -ref "$(ref Agnhost JessieDnsutils DistrolessIptables Nginx)" -entrypoint /agnhost -cmd pause -o "$new/agnhost.tar" \
	"$cache/bin/agnhost:/agnhost" "->agnhost:/agnhost-2" "$source/images/agnhost/porter/localhost.crt:/localhost.crt" \
	"$source/images/agnhost/porter/localhost.key:/localhost.key" "${busybox[@]}" $programs uploads/
mkimage -ref "$(ref RegressionIssue74839)" -entrypoint /regression-issue-74839 -o "$new/regression-issue-74839.tar" \
	"$cache/bin/regression-issue-74839:/regression-issue-74839" "${busybox[@]}"
# With libraries, since another build of ours may have put one that is linked with C there.
# shellcheck disable=SC2046
mkimage -ref "$registry/coredns:lab" -entrypoint /coredns -o "$new/coredns.tar" $(with_libraries "$coredns_dir/coredns:/coredns") tmp/

ref Pause >"$new/sandbox" # the name of the image that containerd makes pods with
rm -r "$new/bin"
mv "$new" "$images"
echo "$images"
