#!/usr/bin/env bash
# Runs upstream's end-to-end specs on the running cluster, and prints a line for each. The log and the
# JUnit report of each run are kept in bin/conformance, in a folder named by its time; `latest` is the
# last one.
#
#   SET            conformance (default): sig-network's specs of Conformance; netpol: those of NetworkPolicy; further: all
#                  others of sig-network, except those that site/docs/conformance.md excludes
#   FOCUS, SKIP    regular expressions for specs' names, instead of a set's
#   DRY=1          only list them
#
# SCTP specs are excluded if the kernel has no SCTP.
set -euo pipefail
. "$(dirname "$0")/env.sh"
case ${SET:-conformance} in
	conformance) focus='\[sig-network\].*\[Conformance\]' skip= ;;
	netpol) focus='\[sig-network\] Netpol' skip= ;;
	further)
		focus='\[sig-network\]'
		skip='\[Conformance\]|Netpol|LoadBalancer|Provider:GCE|OffByDefault|Disruptive|Serial|PerformanceDNS|KubeProxyNFAcct'
		skip+='|Internet connection|IPerf2|for evicted pods|HealthCheckNodePort correctly when'
		;;
	*) fail "invalid SET=$SET: want conformance, netpol or further" ;;
esac
focus=${FOCUS:-$focus}
skip=${SKIP:-$skip}
[ -e /proc/sys/net/sctp ] || skip+="${skip:+|}SCTP"

# All images are in the lab's registry, which the nodes have.
for name in promoterE2eRegistry gcRegistry buildImageRegistry; do echo "$name: $registry"; done >"$cache/registries.yaml"
export KUBE_TEST_REPO_LIST=$cache/registries.yaml
args=(--provider=local --ginkgo.focus="$focus" --ginkgo.skip="$skip" --ginkgo.v --ginkgo.no-color --ginkgo.silence-skips)

if [ -n "${DRY:-}" ]; then
	"$kube/build.sh" e2e.test
	list=$(e2e.test "${args[@]}" --ginkgo.dry-run 2>&1) || fail "$list"
	grep '^\[sig-' <<<"$list" || fail "no spec matches"
	exit
fi
[ -f "$run/settings" ] || fail "there is no cluster: run make kube-up"
"$kube/build.sh" e2e.test
"$kube/cluster.sh" dns >/dev/null
if [ "${SET:-}" = further ]; then # a zone per node: several of these specs need three
	for node in $("$kube/cluster.sh" kubectl get nodes -o 'jsonpath={.items[*].metadata.name}'); do
		"$kube/cluster.sh" kubectl label --overwrite node "$node" "topology.kubernetes.io/zone=zone-$node" >/dev/null
	done
fi
out=$checkout/bin/conformance/$(date -u +%Y%m%dT%H%M%SZ)
mkdir -p "$out"
ln -sfn "$(basename "$out")" "$(dirname "$out")/latest"

# A spec's part of the log begins with its name, and contains a line with a bullet and its result.
progress='
	/^Will run/ {of = $3; print}
	/^\[sig-/ {name = $0}
	/^• / {print ++n "/" of " " $0 " " name; fflush()}
	/^(Ran [0-9]|SUCCESS|FAIL|PASS)/'
status=0
"$kube/cluster.sh" exec e2e.test "${args[@]}" --report-dir="$out" --dump-logs-on-failure=false 2>&1 |
	tee "$out/e2e.log" | awk "$progress" || status=$?
say "the results are in $out"
exit $status
