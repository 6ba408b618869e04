#!/usr/bin/env bash
# Tests Weft on a real Kubernetes of three nodes on this machine, after the cheaper tests of the
# modules with Kubernetes' libraries: the chart, and the comparison with the API server's code. At the
# end it repeats the tests that depend on kube-proxy's mode.
set -euo pipefail
cd "$(dirname "$0")"
export GOFLAGS='' GOWORK=off
go=${GO:-go}

(cd chart && "$go" test -count=1 .)
(cd ../../manifest/apiserver && "$go" test -count=1 .)
# Built before the tests, whose limit of time is for themselves. Building takes longer the first time.
./cluster.sh build
./build.sh multus helm
"$go" test -count=1 -timeout=30m -v .
PROXY_MODE=iptables "$go" test -count=1 -timeout=10m -v -run 'TestWeft/(Install|Pods|Services|NodesReachServices|Policy|PoliciesMatchNodeAddresses)$' .
