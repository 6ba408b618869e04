#!/usr/bin/env bash
# Runs many pods on one node: first with the reference plugins (bridge, host-local, portmap), then
# with Weft, each on its own cluster. Prints the duration of CNI ADD for all plugins of the chain
# together. With Weft, the script then deletes and replaces pods, and fails if something of them is left.
#
#   PODS    pods created at once, by default 100
#   CHURN   seconds for replacing pods, by default 600; the script continues until pods were replaced three times on average
set -euo pipefail
. "$(dirname "$0")/env.sh"
pods=${PODS:-100} churn=${CHURN:-600}
node=node1
c=$kube/cluster.sh

# A wrapper script times a plugin's calls. It adds the same few milliseconds to the calls of both clusters.
wrap() { # PLUGIN…
	local p
	for p; do
		"$c" in $node sh -c "cd /opt/cni/bin && mv $p $p.timed && cat >$p && chmod 755 $p" <<-'SH'
			#!/bin/sh
			start=$(date +%s%N)
			"$0.timed"
			code=$?
			echo "$CNI_COMMAND $CNI_CONTAINERID $(($(date +%s%N) - start))" >>/run/cni-times
			exit $code
		SH
	done
}

times() { # VERB: prints number, median and p99 in ms; the plugins' times for one container are added
	"$c" in $node cat /run/cni-times | awk -v verb="$1" '$1 == verb {ns[$2] += $3} END {for (id in ns) print ns[id] / 1e6}' | sort -n |
		awk '{ms[NR] = $1} END {printf "%d calls, median %.0f ms, p99 %.0f ms, slowest %.0f ms\n", NR, ms[int((NR + 1) / 2)], ms[int(NR * 0.99)], ms[NR]}'
}

deploy() {
	"$c" kubectl apply -f - >&2 <<-YAML
		apiVersion: apps/v1
		kind: Deployment
		metadata: {name: density}
		spec:
		  replicas: $pods
		  selector: {matchLabels: {app: density}}
		  template:
		    metadata: {labels: {app: density}}
		    spec:
		      terminationGracePeriodSeconds: 0
		      enableServiceLinks: false
		      containers: [{name: pause, image: $(cat "$("$kube/images.sh")/sandbox")}]
	YAML
}

running() { [ "$("$c" kubectl get deployment density -o 'jsonpath={.status.readyReplicas}')" = "$pods" ]; }

all_running() { # waits up to 10 minutes
	local end=$((SECONDS + 600))
	until running; do
		[ $SECONDS -lt $end ] || fail "after 10 minutes $("$c" kubectl get pods | grep -vc Running) pods do not run: see the logs in $run/log"
		sleep 0.5
	done
}

# Counts everything that belongs to endpoints: links, routes, elements of nftables' maps, and
# addresses.
traces() {
	"$c" in $node sh -c 'ip -o link | grep -c ": weft-" || true; ip route | grep -c "dev weft-" || true
		ip -6 route | grep -c "dev weft-" || true; nft list table inet weft | wc -l; ls /run/netns | wc -l' | xargs
	"$c" in $node "$checkout/bin/weft" report -f '{{.ipam.active}} addresses, {{len .endpoints}} endpoints'
}

come_and_go() {
	local end=$((SECONDS + churn)) gone=0 batch=$((pods / 5))
	while [ $SECONDS -lt $end ] || [ $gone -lt $((3 * pods)) ]; do
		"$c" kubectl get pods -l app=density -o name | shuf -n $batch | xargs "$c" kubectl delete --wait=false >/dev/null
		gone=$((gone + batch))
		all_running
		printf '\r%d pods were replaced, %d s left ' $gone $((end > SECONDS ? end - SECONDS : 0)) >&2
	done
	echo >&2
	echo "$gone pods were replaced"
}

settle() { # waits until nothing changes any more: released addresses are in quarantine for a while
	local before='' now=x end=$((SECONDS + 120))
	while [ "$before" != "$now" ] && [ $SECONDS -lt $end ]; do
		before=$now
		sleep 3
		now=$(traces)
	done
}

start_all() { # CNI PLUGIN…: makes a cluster, creates all pods at once, and prints the times
	CNI=$1 NODES=1 "$c" up >&2
	shift
	wrap "$@"
	local start=$EPOCHREALTIME
	deploy
	all_running
	echo "all $pods pods were running after $(awk "BEGIN {printf \"%.1f\", $EPOCHREALTIME - $start}") s; ADD: $(times ADD)"
}

echo "bridge, host-local, portmap: $(start_all bridge bridge portmap)"
"$c" down
echo "weft-cni, portmap: $(start_all weft weft-cni portmap)"
policies='{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"deny"},"spec":{"podSelector":{},"policyTypes":["Ingress","Egress"]}}'
"$c" kubectl apply -f - <<<"$policies" >&2
"$c" kubectl scale deployment density --replicas=0 >&2
settle
before=$(traces)
"$c" kubectl scale deployment density --replicas="$pods" >&2
all_running
come_and_go
"$c" kubectl scale deployment density --replicas=0 >&2
settle
after=$(traces)
echo "DEL: $(times DEL)"
echo "before: $before"
echo "after:  $after"
"$c" down
[ "$before" = "$after" ] || fail "deleted pods left links, routes, rules, namespaces or addresses: compare before and after"
