#!/usr/bin/env bash
# Runs a Kubernetes cluster of several nodes on this machine.
#
#   cluster.sh build                  build what a cluster needs
#   cluster.sh up                     start the cluster; builds what it needs first
#   cluster.sh down                   remove the cluster in any state
#   cluster.sh kubectl ARG…           kubectl
#   cluster.sh shell                  a shell with kubectl
#   cluster.sh exec CMD…              run a command with access to the API server, and KUBECONFIG set
#   cluster.sh in NODE CMD…           a command inside a node
#   cluster.sh node-up NAME INDEX     add a node; its addresses end in INDEX + 10
#   cluster.sh node-down NAME         remove a node with its disk, but not its Node object
#   cluster.sh node-restart NAME      switch a node off and on: it keeps its disk, but not /run
#   cluster.sh apiserver-stop, apiserver-start
#   cluster.sh dns                    run CoreDNS, at 10.96.0.10 and fd00:10:96::a
#   cluster.sh import FILE            import an image archive into every node
#   cluster.sh memory                 show the memory in use, by program
#
# Settings, from the environment of `up`:
#   NODES          number of nodes, by default 3
#   CNI            weft: installed from site/deploy/weft.yaml (default); none: nodes wait for a plugin; bridge: Debian's plugins,
#                  with routes between the nodes, to distinguish the lab's faults from Weft's
#   PROXY_MODE     nftables (default) or iptables
#   CLUSTER_CIDR   the pods' ranges, one of each address family
#
# The control plane, and the bridge that connects the nodes, have their own network namespace, so the
# machine's own is not changed. A node is a network, mount, PID, UTS, IPC and cgroup namespace with
# the usual paths. It ends, with all its pods, when its first process does. Every program runs in a
# cgroup of the cluster, by which this script finds it. Logs: /var/tmp/weft-kube/log. Pod Security
# enforces `baseline`, except in kube-system and default.
set -euo pipefail
. "$(dirname "$0")/env.sh"
settings=$run/settings
[ ! -f "$settings" ] || . "$settings"
CNI=${CNI:-weft} PROXY_MODE=${PROXY_MODE:-nftables}

cp_ns() { nsenter --net=/run/netns/$lab "$@"; }
kc() { cp_ns kubectl --kubeconfig="$run/pki/admin.kubeconfig" "$@"; }

wait_for() { # SECONDS WHAT COMMAND…
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "timeout while waiting for $what: see $run/log"
		sleep 0.5
	done
}

# --- cgroups: one per program of the control plane and per node, in every hierarchy of cgroup v1

enter_cgroup() { # NAME: moves the calling shell into a cgroup; what the shell starts is in the cgroup, too
	local c
	for c in /sys/fs/cgroup/*/; do
		mkdir -p "$c$lab"
		if [ "$c" = /sys/fs/cgroup/cpuset/ ] && [ ! -s "$c$lab/cpuset.cpus" ]; then
			cat "${c}cpuset.cpus" >"$c$lab/cpuset.cpus"
			cat "${c}cpuset.mems" >"$c$lab/cpuset.mems"
			echo 1 >"$c$lab/cgroup.clone_children" # inherited by child cgroups
		fi
		mkdir -p "$c$lab/$1"
		echo "$BASHPID" >"$c$lab/$1/cgroup.procs"
	done
}

members() { find "/sys/fs/cgroup/pids/$lab/$1" -name cgroup.procs -exec cat {} + 2>/dev/null || true; }

end() { # NAME: kills everything in a cgroup, and removes it
	local name=$1 c pids
	for _ in $(seq 100); do
		pids=$(members "$name")
		# shellcheck disable=SC2086
		[ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
		for c in /sys/fs/cgroup/*/; do
			find "$c$lab/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
		done
		compgen -G "/sys/fs/cgroup/*/$lab/$name" >/dev/null || return 0
		sleep 0.1
	done
	fail "cannot remove the cgroup of $name: these processes do not end: $(members "$name" | xargs)"
}

# --- the control plane

start() { # NAME COMMAND…: starts a command in the background, in the control plane's network namespace
	local name=$1
	shift
	(
		enter_cgroup "$name"
		exec setsid nsenter --net=/run/netns/$lab "$@" >>"$run/log/$name.log" 2>&1 </dev/null
	) &
}

fabric_up() {
	ip netns add $lab
	ip -n $lab link set lo up
	ip -n $lab link add fabric type bridge
	ip -n $lab addr add ${fabric4}1/24 dev fabric
	ip -n $lab addr add ${fabric6}1/64 dev fabric nodad
	ip -n $lab link set fabric up
	# With CNI=bridge it also routes between the nodes' pods, all of which are on one link.
	cp_ns sh -c 'cd /proc/sys/net && echo 1 >ipv4/ip_forward && echo 1 >ipv6/conf/all/forwarding &&
		echo 0 >ipv4/conf/all/send_redirects && echo 0 >ipv4/conf/fabric/send_redirects'
}

# As in a hardened cluster, pods on the host's network are only allowed in labelled namespaces, so the
# installation of Weft must set that label.
admission_config() {
	cat <<-YAML
		apiVersion: apiserver.config.k8s.io/v1
		kind: AdmissionConfiguration
		plugins:
		- name: PodSecurity
		  configuration:
		    apiVersion: pod-security.admission.config.k8s.io/v1
		    kind: PodSecurityConfiguration
		    defaults: {enforce: baseline}
		    exemptions: {namespaces: [kube-system]}
	YAML
}

apiserver_start() {
	local pki=$run/pki
	[ -z "$(members apiserver)" ] || fail "the API server is already running"
	admission_config >"$run/admission.yaml"
	start apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
		--advertise-address=${fabric4}1 --allow-privileged --service-cluster-ip-range=$service_cidr \
		--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
		--admission-control-config-file="$run/admission.yaml" \
		--tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
		--kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$pki/ca.crt" \
		--kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
		--kubelet-client-key="$pki/apiserver-kubelet-client.key" \
		--service-account-issuer=https://kubernetes.default.svc.cluster.local \
		--service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
		--proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key" \
		--requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
		--requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
		--requestheader-extra-headers-prefix=X-Remote-Extra-
	wait_for 120 "the API server" kc get --raw=/readyz
}

control_plane_up() {
	local pki=$run/pki config cidrs=(--allocate-node-cidrs=false)
	# The controller manager splits a range into at most 65,536 parts: /64 into /80.
	[ "$CNI" != bridge ] || cidrs=(--allocate-node-cidrs --node-cidr-mask-size-ipv6=80)
	pki
	start etcd etcd --data-dir="$run/etcd" --unsafe-no-fsync --log-level=warn
	apiserver_start
	config=$pki/kube-controller-manager.kubeconfig
	start controller-manager kube-controller-manager --leader-elect=false --use-service-account-credentials \
		--kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
		--service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" \
		--cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
		--cluster-cidr="$CLUSTER_CIDR" --service-cluster-ip-range=$service_cidr "${cidrs[@]}"
	config=$pki/kube-scheduler.kubeconfig
	start scheduler kube-scheduler --leader-elect=false \
		--kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config"
}

pki() { # [NODE=IPS]
	"$run/bin/mkpki" -dir "$run/pki" -server "https://${fabric4}1:6443" -ip "${fabric4}1,${fabric6}1,127.0.0.1,$service_ips" "$@"
}

# --- nodes

known() { [ -d "$run/$1/disk" ] || fail "there is no node $1; the nodes are: $(cd "$run" && printf '%s ' */disk | sed 's,/disk,,g')"; }

node_start() { # NAME: starts a node whose settings are in the folder $run/NAME
	local name=$1 index ns=$lab-$1 ip4 ip6 images
	images=$("$kube/images.sh") # images.sh makes the images again if their definition changed
	index=$(cat "$run/$name/index")
	ip4=$fabric4$((index + 10)) ip6=$fabric6$((index + 10))
	pki "$name=$ip4,$ip6"
	ip netns add "$ns"
	ip link add "node$index" netns $lab type veth peer name eth0 netns "$ns"
	ip -n $lab link set "node$index" master fabric up
	ip -n "$ns" link set lo up
	ip -n "$ns" addr add "$ip4/24" dev eth0
	ip -n "$ns" addr add "$ip6/64" dev eth0 nodad
	ip -n "$ns" link set eth0 up
	ip -n "$ns" route add default via ${fabric4}1
	ip -n "$ns" route add default via ${fabric6}1
	(
		enter_cgroup "$name"
		export NAME=$name IPS=$ip4,$ip6 IMAGES=$images CLUSTER_CIDR PROXY_MODE
		exec setsid nsenter --net="/run/netns/$ns" \
			unshare --mount --uts --ipc --pid --cgroup --fork --kill-child --propagation private --mount-proc \
			"$kube/node-init.sh" >>"$run/log/$name.log" 2>&1 </dev/null
	) &
	echo $! >"$run/$name/pid"
}

# Succeeds if the kubelet has reported after MOMENT, and with CNI=bridge that the node is ready. A
# report before MOMENT can be from an earlier node of the same name.
reported() { # NAME MOMENT
	local got
	got=$(kc get node "$1" -o jsonpath='{range .status.conditions[?(@.type=="Ready")]}{.lastHeartbeatTime} {.status}{end}')
	[[ -n $got && ! ${got% *} < $2 ]] && [[ $CNI != bridge || ${got#* } = True ]]
}

has_cidrs() { [ -n "$(kc get node "$1" -o jsonpath='{.spec.podCIDRs}')" ]; }

node_wait() { # NAME MOMENT
	wait_for 180 "$1 to register" kc get node "$1"
	if [ "$CNI" = bridge ]; then
		wait_for 60 "the ranges of $1" has_cidrs "$1"
		bridge_config "$1"
	fi
	wait_for 180 "$1" reported "$1" "$2"
}

# The API server is on no node, so it reaches pods through a node, as some specs require.
weft_up() {
	kc create configmap kube-proxy -n kube-system --from-literal=config.conf="clusterCIDR: $CLUSTER_CIDR" >&2
	kc apply -f "$checkout/site/deploy/weft.yaml" >&2
	kc wait --for=condition=Ready node --all --timeout=120s >&2
	in_node node1 "$checkout/bin/weft" expose
	ip -n $lab route add "${CLUSTER_CIDR%,*}" via "${fabric4}11"
	ip -n $lab route add "${CLUSTER_CIDR#*,}" via "${fabric6}11"
}

# CNI=bridge: a bridge on each node, and routes between their ranges.
bridge_config() { # NAME
	local index ranges='' range
	index=$(cat "$run/$1/index")
	for range in $(kc get node "$1" -o jsonpath='{.spec.podCIDRs[*]}'); do
		ranges+="${ranges:+, }[{\"subnet\": \"$range\"}]"
		case $range in
			*:*) ip -n $lab route replace "$range" via "$fabric6$((index + 10))" ;;
			*) ip -n $lab route replace "$range" via "$fabric4$((index + 10))" ;;
		esac
	done
	cat >"$run/$1/disk/etc/cni/net.d/10-bridge.conflist" <<-JSON
		{"cniVersion": "1.0.0", "name": "lab", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
		   "ipam": {"type": "host-local", "ranges": [$ranges]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	JSON
}

node_up() { # NAME INDEX
	[[ ${1:-} =~ ^[a-z][a-z0-9-]*$ && ${2:-} =~ ^[1-9][0-9]?$ ]] || fail "want a name and an index from 1 to 99"
	[ ! -d "$run/$1" ] || fail "node $1 exists: run cluster.sh node-down $1, or choose another name"
	! grep -qx "$2" "$run"/*/index 2>/dev/null || fail "another node has the index $2"
	mkdir -p "$run/$1/disk"
	echo "$2" >"$run/$1/index"
	node_start "$1"
}

node_stop() { # NAME: like switching the power off
	end "$1"
	ip netns del "$lab-$1" 2>/dev/null || true # this also removes the node's link
}

now() { date -u +%FT%TZ; }

in_node() { # NAME CMD…
	local init
	known "$1"
	init=$(cat "/proc/$(cat "$run/$1/pid")/task/"*/children 2>/dev/null) || fail "node $1 does not run: see $run/log/$1.log"
	shift
	nsenter -t "${init%% *}" --mount --uts --ipc --net --pid --cgroup "$@"
}

node_names() { (cd "$run" && ls -d -- */disk | cut -d/ -f1); }

# --- the whole cluster

check_machine() {
	local archive=$checkout/bin/weft-image.tar image
	[ "$(id -u)" = 0 ] || fail "a cluster needs root: it runs real containers"
	[ -d /sys/fs/cgroup/pids ] || fail "the nodes need cgroup v1 at /sys/fs/cgroup"
	case $CNI in weft | none | bridge) ;; *) fail "CNI=$CNI: want weft, none or bridge" ;; esac
	[ "$CNI" != weft ] || [ -f "$archive" ] || fail "Weft's image is missing: run make image"
	if [ -f "$archive" ]; then # nodes have no other image, and could not run the manifests'
		image=$(sed -n 's/^ *image: //p' "$checkout/site/deploy/uninstall.yaml")
		tar -xOf "$archive" index.json | grep -qF "\"$image\"" ||
			fail "$archive is not $image, which site/deploy/weft.yaml needs: run make image, without VERSION and IMAGE"
	fi
	case $PROXY_MODE in nftables | iptables) ;; *) fail "PROXY_MODE=$PROXY_MODE: want nftables or iptables" ;; esac
	[ -z "$(members .)" ] || fail "a cluster is running: use it with make kube-shell, or remove it with make kube-down"
	[ -z "$(leftovers)" ] || fail "remains of a cluster: $(leftovers): run make kube-down"
}

leftovers() {
	{
		compgen -G "$run"
		compgen -G "/run/netns/$lab*"
		compgen -G "/sys/fs/cgroup/*/$lab"
		awk -v dir="$run/" 'index($2, dir) == 1 {print $2}' /proc/mounts
	} | xargs
}

build() {
	"$kube/packages.sh"
	"$kube/build.sh" kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl etcd
	"$kube/images.sh" >/dev/null
}

up() {
	local n=${NODES:-3} since
	[[ $n =~ ^[1-9][0-9]?$ ]] || fail "NODES=$n: want a number from 1 to 99"
	check_machine
	build
	SECONDS=0
	mkdir -p "$run/log" "$run/bin"
	(cd "$kube" && GOFLAGS= GOWORK=off go build -o "$run/bin/" ./mkpki)
	printf '%s=%s\n' CNI "$CNI" PROXY_MODE "$PROXY_MODE" CLUSTER_CIDR "$CLUSTER_CIDR" >"$settings"
	fabric_up
	control_plane_up
	since=$(now)
	for i in $(seq "$n"); do node_up "node$i" "$i"; done
	for i in $(seq "$n"); do node_wait "node$i" "$since"; done
	[ "$CNI" != weft ] || weft_up
	wait_for 60 "the default service account" kc -n default get serviceaccount default
	kc label namespace default pod-security.kubernetes.io/enforce=privileged >/dev/null # for experiments there
	say "the cluster is up after $SECONDS s"
	kc get nodes -o wide
}

down() {
	local c left
	for c in /sys/fs/cgroup/pids/$lab/*/; do
		[ ! -d "$c" ] || end "$(basename "$c")"
	done
	for c in /sys/fs/cgroup/*/$lab; do
		[ ! -d "$c" ] || find "$c" -depth -type d -exec rmdir {} + 2>/dev/null || true
	done
	for c in /run/netns/$lab*; do
		[ ! -e "$c" ] || ip netns del "$(basename "$c")"
	done
	rm -rf --one-file-system "$run"
	left=$(leftovers)
	[ -z "$left" ] || fail "cannot remove $left, which another program uses: stop that and try again"
}

memory() {
	local p
	members . | while read -r p; do
		awk -v name="$(cat "/proc/$p/comm" 2>/dev/null)" '/^Pss:/ {print name, $2 / 1024}' "/proc/$p/smaps_rollup" 2>/dev/null || true
	done | awk '{mib[$1] += $2; n[$1]++; all += $2}
		END {for (p in mib) printf "%-24s x%-3d %7.1f MiB\n", p, n[p], mib[p] | "sort -k3 -n"
			close("sort -k3 -n"); printf "%-24s %4s %7.1f MiB\n", "all", "", all}'
}

command=${1:-help}
case $command in
	build | up | down | help) ;;
	*) [ -f "$settings" ] || fail "there is no cluster: run make kube-up" ;;
esac
[ $# = 0 ] || shift
case $command in
	build) build ;;
	up) up ;;
	down) down ;;
	kubectl) kc "$@" ;;
	shell)
		say "kubectl is configured for the cluster; exit only ends this shell"
		cp_ns env KUBECONFIG="$run/pki/admin.kubeconfig" "${SHELL:-bash}"
		;;
	exec) cp_ns env KUBECONFIG="$run/pki/admin.kubeconfig" "$@" ;;
	in) in_node "$@" ;;
	node-up)
		since=$(now)
		node_up "$@"
		node_wait "$1" "$since"
		;;
	node-down)
		known "$1"
		node_stop "$1"
		rm -rf "${run:?}/$1"
		;;
	node-restart)
		known "$1"
		node_stop "$1"
		since=$(now)
		node_start "$1"
		node_wait "$1" "$since"
		;;
	apiserver-stop) end apiserver ;;
	apiserver-start) apiserver_start ;;
	dns)
		kc apply -f "$kube/dns.yaml"
		kc -n kube-system rollout status deployment/coredns --timeout=120s
		;;
	import)
		file=$(realpath "$1")
		for node in $(node_names); do in_node "$node" ctr -n k8s.io images import "$file"; done
		;;
	memory) memory ;;
	*)
		sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
		[ "$command" = help ] || exit 2
		;;
esac
