#!/usr/bin/env bash
# Runs upstream's end-to-end specs on the cluster that is up, and keeps what they say in bin/conformance: the log and
# the JUnit report of each run in a folder by its time, `latest` being the last.
#
#   FOCUS, SKIP    regular expressions of specs' names; by default sig-network's of Conformance, and none
#   DRY=1          only list them
#
# SCTP is always left out where the kernel has none.
set -euo pipefail
. "$(dirname "$0")/env.sh"
focus=${FOCUS:-'\[sig-network\].*\[Conformance\]'}
skip=${SKIP:-}
[ -e /proc/sys/net/sctp ] || skip+="${skip:+|}SCTP"

[ -n "${DRY:-}" ] || [ -f "$run/settings" ] || fail "there is no cluster: make kube-up"
"$kube/build.sh" e2e.test
out=$checkout/bin/conformance/$(date -u +%Y%m%dT%H%M%SZ)
mkdir -p "$out"
ln -sfn "$(basename "$out")" "$(dirname "$out")/latest"

# All images are of our registry, which the nodes have.
for name in promoterE2eRegistry gcRegistry buildImageRegistry; do echo "$name: $registry"; done >"$out/registries.yaml"
args=(--provider=local --ginkgo.focus="$focus" --ginkgo.skip="$skip" --ginkgo.no-color)
if [ -n "${DRY:-}" ]; then
	in_reach=(env)
	args+=(--ginkgo.dry-run --ginkgo.v)
else
	in_reach=("$kube/cluster.sh" exec)
	"$kube/cluster.sh" dns >/dev/null
	args+=(--report-dir="$out" --dump-logs-on-failure=false)
fi
status=0
"${in_reach[@]}" env KUBE_TEST_REPO_LIST="$out/registries.yaml" e2e.test "${args[@]}" 2>&1 | tee "$out/e2e.log" || status=$?
say "kept in $out"
exit $status
