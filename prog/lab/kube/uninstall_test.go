package kube

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// documented returns the commands of a section of site/docs/kubernetes.md, block by block.
func documented(t *testing.T, section string) (blocks [][]string) {
	t.Helper()
	data, err := os.ReadFile(checkout + "/site/docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	inside := false
	for line := range strings.Lines(text) {
		command, is := strings.CutPrefix(line, "    ")
		if is && !inside {
			blocks = append(blocks, nil)
		}
		if inside = is; is {
			blocks[len(blocks)-1] = append(blocks[len(blocks)-1], strings.TrimSpace(command))
		}
	}
	return blocks
}

// follow runs documented commands in site/deploy. Each must succeed.
func follow(t *testing.T, commands ...string) {
	t.Helper()
	for _, command := range commands {
		out, err := cluster(t, "", "exec", "timeout", "180", "sh", "-c", "cd "+checkout+"/site/deploy && "+command)
		must(t, out, err)
	}
}

// uninstall follows site/docs/kubernetes.md, and asserts that nothing is left.
func uninstall(t *testing.T) {
	kubectl(t, "delete", "pods,services,networkpolicies", "--all", "--grace-period=0", "--force")
	steps := documented(t, "Uninstall")[0]
	follow(t, steps...)
	nothingLeft(t)
	follow(t, steps[0], steps[len(steps)-1]) // run steps again, as an unsure user would
}

// byHelm installs Weft with the documented command and uninstalls it. The cluster's Pod Security
// refuses pods on the host's network, unless their namespace is labelled.
func byHelm(t *testing.T) {
	build := exec.CommandContext(t.Context(), "./build.sh", "helm")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		t.Fatal(err)
	}
	_, err := cluster(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "kube-public", "name": "host"}, "spec":
		{"hostNetwork": true, "containers": [{"name": "host", "image": %q}]}}`, image(t)), "kubectl", "apply", "--dry-run=server", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
		t.Errorf("a pod with hostNetwork in a namespace without the label: got error %v, want it refused", err)
	}
	kubectl(t, "wait", "--for=condition=Ready=False", "node", "--all", "--timeout=1m")
	install, un := documented(t, "Install"), documented(t, "Uninstall")
	follow(t, install[1]...)
	kubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=2m")
	for _, block := range documented(t, "Upgrade") {
		for _, command := range block {
			if strings.HasPrefix(command, "helm ") || strings.Contains(command, "rollout status") {
				follow(t, command)
			}
		}
	}
	if pods := strings.Fields(kubectl(t, "-n", "weft", "get", "pods", "-l", "app in (weft,weft-datapath)", "-o", "name")); len(pods) != 2*len(nodes) {
		t.Errorf("got the pods %v, want an agent and a data path on each node", pods)
	}
	follow(t, append(slices.Clone(un[0][:len(un[0])-1]), un[1]...)...)
	nothingLeft(t)
}

// nothingLeft asserts that nothing of Weft is left at the API server and on the nodes.
func nothingLeft(t *testing.T) {
	t.Helper()
	for _, where := range [][]string{
		{"namespace/weft", "clusterrole/weft", "clusterrolebinding/weft"},
		{"-n", "default", "role/weft-events", "rolebinding/weft-events"},
		{"-n", "kube-system", "role/weft-cluster-cidr", "rolebinding/weft-cluster-cidr"},
		{"-n", "weft", "secrets"},
	} {
		if left := kubectl(t, append([]string{"get", "--ignore-not-found", "-o", "name"}, where...)...); left != "" {
			t.Errorf("after uninstalling, the API server has %s, want none of them", strings.Join(strings.Fields(left), ", "))
		}
	}
	if out := kubectl(t, "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="NetworkUnavailable")].reason}`); out != "" {
		t.Errorf("after uninstalling, Nodes have the network conditions %s, want none", out)
	}
	for _, node := range nodes {
		for what, command := range map[string]string{
			"links":    `ip -o link | grep -E ': (weft|weft-)' || true`,
			"routes":   `ip route show table all | grep -E 'weft|proto 87' || true`,
			"nftables": `nft list tables | grep weft || true`,
			"files":    `ls -d /etc/cni/net.d/*weft* /opt/cni/bin/weft-cni /var/lib/weft/* /run/weft/* /run/wireguard/weft.sock 2>/dev/null || true`,
		} {
			out, err := cluster(t, "", "in", node, "sh", "-c", command)
			if must(t, out, err) != "" {
				t.Errorf("after uninstalling, %s has %s of Weft, want none:\n%s", node, what, strings.TrimSpace(out))
			}
		}
	}
}

// founder has the fields of the Secret that name the founder.
type founder struct {
	Metadata struct{ Annotations map[string]string }
	Data     map[string][]byte
}

// The Node of a founder is deleted before it sets "founded": another agent takes its place, and there
// is one ring. No node has a ring yet, as after Uninstall.
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
	kubectl(t, "apply", "-f", checkout+"/site/deploy/weft.yaml")
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
		t.Fatalf("the Secret has the annotations %v, want a founder among the Nodes, founded, the universe %s and the same token", by, cidr)
	}
	rings := map[string]bool{}
	for _, n := range nodes {
		r, err := reportOf(t, n)
		if rings[r.IPAM.Ring] = true; err != nil || !r.Ready || r.IPAM.Range+","+r.IPAM.Range6 != cidr || n == node && r.Router.ID != by["weft.dev/founder"] {
			t.Errorf("%s: error %v, want a ready agent in the founded ring: %+v", n, err, r)
		}
	}
	if len(rings) != 1 {
		t.Errorf("got several rings, want one: %v", rings)
	}
}
