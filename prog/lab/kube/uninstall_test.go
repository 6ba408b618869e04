package kube

import (
	"strings"
	"testing"
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
