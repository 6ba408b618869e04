package kube

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// uninstall follows site/kubernetes.md, after which nothing is left on the nodes.
func uninstall(t *testing.T) {
	kubectl(t, "delete", "pods,services,networkpolicies", "--all", "--grace-period=0", "--force")
	kubectl(t, "-n", "weft", "delete", "ds", "weft", "weft-datapath")
	kubectl(t, "apply", "-f", checkout+"/site/uninstall.yaml")
	kubectl(t, "-n", "weft", "rollout", "status", "ds/weft-uninstall", "--timeout=2m")
	kubectl(t, "delete", "-f", checkout+"/site/weft.yaml", "-f", checkout+"/site/uninstall.yaml", "--ignore-not-found")
	for _, node := range nodes {
		for what, command := range map[string]string{
			"links":    `ip -o link | grep -E ': (weft|weft-)' || true`,
			"routes":   `ip route show table all | grep -E 'weft|proto 87' || true`,
			"nftables": `nft list tables | grep weft || true`,
			"files":    `ls -d /etc/cni/net.d/*weft* /opt/cni/bin/weft-cni /var/lib/weft/* /run/weft/* /run/wireguard/weft.sock 2>/dev/null || true`,
		} {
			out, err := cluster(t, "", "in", node, "sh", "-c", command)
			if must(t, out, err) != "" {
				t.Errorf("%s: %s are left:\n%s", node, what, strings.TrimSpace(out))
			}
		}
	}
}

// founder is what the Secret says.
type founder struct {
	Metadata struct{ Annotations map[string]string }
	Data     map[string][]byte
}

// A founder named itself, and its Node was deleted before it said "founded": one of the agents takes its place, and there
// is one ring. Nobody has one yet, as after Uninstall.
func founderGone(t *testing.T) {
	kubectl(t, "wait", "--for=condition=Ready=False", "node", "--all", "--timeout=1m")
	out, err := cluster(t, "", "exec", weftProgram, "token")
	token := must(t, out, err)
	apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "List", "items": [
		{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "weft"}},
		{"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "weft", "name": "weft", "annotations": {
			"weft.dev/founder": "00112233445566aa", "weft.dev/founder-node": "node9", "weft.dev/founder-uid": "9e1d0000-0000-4000-8000-000000000009",
			"weft.dev/universe": "10.99.0.0/16,fd00:99::/64"}}, "stringData": {"token": %q}}]}`, token))
	start := time.Now()
	kubectl(t, "apply", "-f", checkout+"/site/weft.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=1m")
	t.Logf("all nodes are ready after %v", time.Since(start).Round(100*time.Millisecond))

	var f founder
	if err := json.Unmarshal([]byte(kubectl(t, "-n", "weft", "get", "secret", "weft", "-o", "json")), &f); err != nil {
		t.Fatal(err)
	}
	by, cidr := f.Metadata.Annotations, clusterRange(t)
	node := by["weft.dev/founder-node"]
	if !slices.Contains(nodes, node) || by["weft.dev/founder-uid"] != kubectl(t, "get", "node", node, "-o", "jsonpath={.metadata.uid}") ||
		by["weft.dev/founded"] != "true" || by["weft.dev/universe"] != cidr || string(f.Data["token"]) != token {
		t.Fatalf("the Secret says %v", by)
	}
	rings := map[string]bool{}
	for _, n := range nodes {
		r, err := reportOf(t, n)
		if rings[r.IPAM.Ring] = true; err != nil || !r.Ready || r.IPAM.Range+","+r.IPAM.Range6 != cidr || n == node && r.Router.ID != by["weft.dev/founder"] {
			t.Errorf("%s: %v: %+v", n, err, r)
		}
	}
	if len(rings) != 1 {
		t.Errorf("there are several rings: %v", rings)
	}
}
