#!/usr/bin/env bash
# build.sh [PROGRAM…]
#
# Builds Kubernetes, etcd, CoreDNS, Multus and Helm from their Go modules, with the versions of
# go.mod, etcd/go.mod, multus/go.mod and chart/go.mod. Each program is built once and kept by version
# in $XDG_CACHE_HOME/weft (by default ~/.cache/weft). Without arguments it builds all of them, which a
# cluster needs first: 14 minutes on two cores, 5 GB in Go's caches, and 0.8 GB permanently.
set -euo pipefail
. "$(dirname "$0")/env.sh"

all=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl etcd coredns multus helm agnhost regression-issue-74839 e2e.test)
[ $# -gt 0 ] || set -- "${all[@]}"

place() { # PROGRAM: the path of the built program
	case $1 in
		etcd) echo "$etcd_dir/etcd" ;;
		coredns) echo "$coredns_dir/coredns" ;;
		multus) echo "$multus_dir/multus" ;;
		helm) echo "$helm_dir/helm" ;;
		*) echo "$cache/bin/$1" ;;
	esac
}

# Set the version as upstream's own build does: `kubectl version` prints it, and some specs check it.
minor=${k8s_version#v1.}
stamp=
for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	stamp+=" -X $pkg.gitVersion=$k8s_version -X $pkg.gitMajor=1 -X $pkg.gitMinor=${minor%%.*} -X $pkg.gitTreeState=clean"
done

compile() { # PROGRAM FILE
	cd "$kube"
	case $1 in
		etcd) cd etcd && exec go build -trimpath -ldflags '-s -w' -o "$2" go.etcd.io/etcd/server/v3 ;;
		# Its module has no replace lines, so it does not need ours.
		coredns) GOBIN=$(dirname "$2") exec go install -trimpath -ldflags '-s -w' "github.com/coredns/coredns@$coredns_version" ;;
		multus) cd multus && exec go build -trimpath -ldflags '-s -w' -o "$2" gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus ;;
		helm) cd chart && exec go build -trimpath -ldflags '-s -w' -o "$2" helm.sh/helm/v3/cmd/helm ;;
		agnhost | regression-issue-74839) exec go build -trimpath -ldflags "-s -w" -o "$2" "k8s.io/kubernetes/test/images/$1" ;;
		e2e.test) exec go test -c -trimpath -ldflags "-s -w$stamp" -o "$2" k8s.io/kubernetes/test/e2e ;;
		*) exec go build -trimpath -ldflags "-s -w$stamp" -o "$2" "k8s.io/kubernetes/cmd/$1" ;;
	esac
}

# On a terminal, one line counts the seconds. Elsewhere there is one line at the beginning and one at
# the end.
build() { # PROGRAM NTH OF
	local file what="$1 ($2 of $3)" dir start pid
	file=$(place "$1")
	[ ! -x "$file" ] || return 0
	mkdir -p "$(dirname "$file")"
	exec 9>"$weft_cache/kube-build.lock"
	flock -n 9 || {
		say "$what: another process is building it, waiting"
		flock 9
	}
	[ ! -x "$file" ] || return 0

	# Build in a new folder and rename it, so that an interrupted build is never used.
	dir=$(dirname "$file")/new
	rm -rf "$dir"
	mkdir "$dir"
	start=$SECONDS
	[ -t 2 ] || say "$what: building"
	compile "$1" "$dir/$1" >"$dir/log" 2>&1 9>&- &
	pid=$!
	trap 'kill "$pid" 2>/dev/null || true' EXIT # Ctrl-C does not end background processes
	while kill -0 "$pid" 2>/dev/null; do
		[ ! -t 2 ] || printf '\rkube: %s: building, %d s ' "$what" $((SECONDS - start)) >&2
		sleep 1
	done
	[ ! -t 2 ] || printf '\r' >&2
	wait "$pid" || {
		tail -20 "$dir/log" >&2
		fail "$what: the build failed after $((SECONDS - start)) s, see above and $dir/log; finished builds are kept, so run make kube-build again"
	}
	trap - EXIT
	mv "$dir/$1" "$file"
	rm -rf "$dir"
	exec 9>&-
	say "$what: built in $((SECONDS - start)) s, $(($(stat -c %s "$file") / 1000000)) MB"
}

command -v go >/dev/null || fail "building needs Go 1.26 in the PATH"
export CGO_ENABLED=0 GOFLAGS= GOWORK=off
n=0
for program; do
	build "$program" $((++n)) $#
done
