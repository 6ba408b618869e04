package kube

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The steps install Weft and test its promises. Each step builds on the steps before.
func TestWeftKeepsItsPromisesOnACluster(t *testing.T) {
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Install", install},
		{"Pods", pods},
		{"NoPlaintext", noPlaintext},
		{"Services", services},
		{"NodesReachServices", nodesReachServices},
		{"Policy", policy},
		{"PoliciesMatchNodeAddresses", policiesMatchNodeAddresses},
		{"Annotations", annotations},
		{"LongNames", longNames},
		{"Names", names},
		{"Plugin", plugin},
		{"Settings", settings},
		{"Multus", multus},
		{"ForcedDeletion", forcedDeletion}, // before agents restart, which would release it as well
		{"ClusterCIDR", clusterCIDR},
		{"AgentsKilledAndRolled", agentsKilledAndRolled},
		{"RightMissing", rightMissing},
		{"SecretDeleted", secretDeleted},
		{"Drained", drained},
		{"WithoutAPIServer", withoutAPIServer},
		{"NodeRebooted", nodeRebooted},
		{"DiskLost", diskLost},
		{"NodeDeleted", nodeDeleted},
		{"Uninstall", uninstall},
		{"Helm", byHelm},
		{"FounderGone", founderGone},
	} {
		if !t.Run(step.name, step.run) && step.name == "Install" {
			t.Fatal("the installation failed, want it running: the remaining tests need it")
		}
	}
}

// installTime is the longest time until the nodes of a new cluster are ready.
const installTime = time.Minute

func install(t *testing.T) {
	cidr := clusterRange(t)
	proxyConfig(t, cidr)
	start := time.Now()
	kubectl(t, "apply", "-f", checkout+"/site/deploy/weft.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=3m")
	took := time.Since(start)
	t.Logf("from kubectl apply to all nodes ready: %v", took.Round(100*time.Millisecond))
	if took > installTime {
		t.Errorf("the nodes were ready after %v, want at most %v", took, installTime)
	}
	kubectl(t, "-n", "weft", "rollout", "status", "ds/weft", "--timeout=1m")
	for _, node := range nodes {
		r, err := reportOf(t, node)
		if err != nil || !r.Ready || len(r.Warnings) > 0 || len(r.Router.Peers) != len(nodes) {
			t.Errorf("%s: error %v, want a ready agent: %+v", node, err, r)
		}
		if four, six, _ := strings.Cut(cidr, ","); r.IPAM.Range != four || r.IPAM.Range6 != six {
			t.Errorf("%s: the universe is %s,%s, want kube-proxy's clusterCIDR %s", node, r.IPAM.Range, r.IPAM.Range6, cidr)
		}
		if len(r.CNI.Plugins) != 2 {
			t.Errorf("%s: plugins %v, want portmap after weft-cni", node, r.CNI.Plugins)
		}
		eventually(t, 10*time.Second, node+"'s network is available", func() error { // the agent updates the condition once a second
			status := kubectl(t, "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="NetworkUnavailable")].status}`)
			if status != "False" {
				return fmt.Errorf("NetworkUnavailable is %q", status)
			}
			return nil
		})
	}
	if out := kubectl(t, "get", "events", "--field-selector", "type=Warning,involvedObject.kind=Node,source=weft", "-o", "name"); out != "" {
		t.Errorf("got the warning events %s, want none", out)
	}
	out, err := cluster(t, "", "dns")
	must(t, out, err)
}

// clusterRange returns kube-proxy's pod ranges of both families.
func clusterRange(t *testing.T) string {
	t.Helper()
	cidr, err := cluster(t, "", "exec", "sh", "-c", ". "+checkout+"/prog/lab/kube/env.sh; echo $CLUSTER_CIDR")
	return must(t, cidr, err)
}

// proxyConfig writes the ConfigMap of kubeadm's kube-proxy; the lab's kube-proxy has its own
// configuration.
func proxyConfig(t *testing.T, cidr string) {
	t.Helper()
	apply(t, fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-proxy, namespace: kube-system}\ndata:\n  config.conf: |\n    kind: KubeProxyConfiguration\n    clusterCIDR: %s\n", cidr))
}

// agnhost returns the name of the image agnhost, Kubernetes' test server, on the nodes.
func agnhost(t *testing.T) string {
	t.Helper()
	out, err := cluster(t, "", "in", nodes[0], "ctr", "-n", "k8s.io", "images", "ls", "-q")
	for name := range strings.Lines(must(t, out, err)) {
		if strings.Contains(name, "/agnhost:") {
			return strings.TrimSpace(name)
		}
	}
	t.Fatal("the nodes have no agnhost image, want one")
	return ""
}

// image returns the name of Weft's image in the manifests.
func image(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(checkout + "/site/deploy/uninstall.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, name, _ := strings.Cut(string(data), "image: ")
	name, _, ok := strings.Cut(name, "\n")
	if !ok {
		t.Fatal("site/deploy/uninstall.yaml has no line with image:, want one")
	}
	return name
}

// manifestOf returns a file of testdata for a node.
func manifestOf(t *testing.T, file, node string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("NODE", node, "AGNHOST", agnhost(t), "THE-IMAGE", image(t)).Replace(string(data))
}

func ready(t *testing.T, names ...string) {
	t.Helper()
	kubectl(t, append([]string{"wait", "--for=condition=Ready", "--timeout=90s", "pod"}, names...)...)
}

// Every pod reaches every other pod in both families with its own source address. The kubelet's probes
// and pods on the host's network reach them as well.
func pods(t *testing.T) {
	for _, node := range nodes {
		apply(t, manifestOf(t, "pods.yaml", node))
	}
	for _, node := range nodes {
		ready(t, nodePods(node)...)
	}
	for _, node := range nodes { // a lost handshake is retried with the next keepalive, 25 s later
		took := eventually(t, 40*time.Second, node+"'s tunnels", func() error {
			out, err := weft(t, node, "report", "-f", "{{range .router.connections}}{{.state}} {{end}}")
			if err == nil && strings.Count(out, "direct") != len(nodes)-1 {
				err = fmt.Errorf("connections: %s", out)
			}
			return err
		})
		t.Logf("%s: all tunnels worked after %v", node, took.Round(100*time.Millisecond))
	}
	for _, from := range nodes {
		a := getPod(t, "server-"+from)
		for _, to := range nodes {
			b := getPod(t, "server-"+to)
			for _, six := range []bool{false, true} {
				seen, err := get(t, "server-"+from, url(b.ip(t, six), 8080, "/clientip"))
				if host, e := netip.ParseAddrPort(seen); err != nil || e != nil || host.Addr().String() != a.ip(t, six) {
					t.Errorf("%s to %s, IPv6 %v: error %v, source address %q, want %s", from, to, six, err, seen, a.ip(t, six))
				}
				if _, err := get(t, "host-"+from, url(b.ip(t, six), 8080, "/hostname")); err != nil {
					t.Errorf("a pod on the host network of %s to %s, IPv6 %v: %v, want an answer", from, to, six, err)
				}
			}
		}
	}
}

// The traffic between pods is encrypted between the nodes.
func noPlaintext(t *testing.T) {
	const marker = "this must be encrypted"
	from, to := getPod(t, "server-node1"), getPod(t, "probe-node2")
	pid := from.pid(t) // all questions to the API server come first: the capture ends after its time
	capture := exec.CommandContext(t.Context(), "./cluster.sh", "exec", weftProgram, "probe", "capture", "--json", "--duration", "8s", "--marker", marker, "fabric")
	out, err := capture.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	says, err := capture.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := capture.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(says).ReadString('\n'); strings.TrimSpace(line) != "capturing" {
		t.Fatalf("the capture says %q, error %v; want that it captures", line, err)
	}
	for _, six := range []bool{false, true} {
		for _, proto := range []string{"udp", "tcp"} {
			o, err := cluster(t, "", "in", from.Spec.NodeName, "nsenter", "-t", pid, "--net",
				weftProgram, "probe", proto, "--count", "20", "--interval", "10ms", "--marker", marker, "--size", "200", to.ip(t, six))
			must(t, o, err)
		}
	}
	var seen struct {
		Packets, Marked, Dropped int
		Flows                    []struct {
			Kind    string
			Port    int
			Packets int
		}
	}
	if err := json.NewDecoder(out).Decode(&seen); err != nil {
		t.Fatal(err)
	}
	if err := capture.Wait(); err != nil {
		t.Fatal(err)
	}
	tunnelled := 0
	for _, f := range seen.Flows {
		if f.Kind == "udp" && f.Port == 6784 {
			tunnelled += f.Packets
		}
		if f.Port == 7007 {
			t.Errorf("the underlay carried %d packets to the probe's port, want none outside of tunnels", f.Packets)
		}
	}
	if seen.Marked > 0 || seen.Dropped > 0 || tunnelled < 160 {
		t.Errorf("the capture has %d packets with the marker, %d missed, %d in tunnels; want 0, 0 and at least 160", seen.Marked, seen.Dropped, tunnelled)
	}
}

func services(t *testing.T) {
	apply(t, manifestOf(t, "services.yaml", ""))
	ready(t, "hostport")
	for _, name := range []string{"other", "own"} {
		for ip := range strings.FieldsSeq(kubectl(t, "get", "service", name, "-o", `jsonpath={.spec.clusterIPs[0]} {.spec.clusterIPs[1]}`)) {
			from := getPod(t, "server-node1")
			eventually(t, 20*time.Second, name+" at "+ip, func() error {
				seen, err := get(t, "server-node1", url(ip, 80, "/clientip"))
				if err != nil || name == "own" {
					return err // kube-proxy masquerades a pod that reaches itself through a service
				}
				host, err := netip.ParseAddrPort(seen)
				if err == nil && host.Addr().String() != from.ip(t, strings.Contains(ip, ":")) {
					t.Fatalf("the server saw %s as %v, want the pod's own address", from.Metadata.Name, host)
				}
				return err
			})
		}
	}
	node := func(i int) string { return fmt.Sprintf("10.200.0.%d", 10+i) }
	outside := func(address string) (string, error) {
		return cluster(t, "", "exec", "curl", "-sgf", "--max-time", "3", address)
	}
	eventually(t, 20*time.Second, "externalTrafficPolicy: Local", func() error {
		seen, err := outside(url(node(2), 30080, "/clientip"))
		if err == nil && !strings.HasPrefix(seen, "10.200.0.1:") {
			t.Fatalf("the server saw a client outside the cluster as %s, want 10.200.0.1", seen)
		}
		return err
	})
	if _, err := outside(url(node(1), 30080, "/clientip")); err == nil {
		t.Error("a node without a server answered, want no answer, since externalTrafficPolicy is Local")
	}
	if _, err := outside(url(node(1), 8111, "/hostname")); err != nil {
		t.Errorf("hostPort from outside the cluster returned %v, want an answer", err)
	}
	if _, err := get(t, "server-node2", url(node(1), 8111, "/hostname")); err != nil {
		t.Errorf("hostPort from a pod of another node returned %v, want an answer", err)
	}
	if _, err := get(t, "server-node1", url(node(2), 8088, "/hostname")); err != nil {
		t.Errorf("a pod on another node's host network returned %v, want an answer", err)
	}
	eventually(t, 20*time.Second, "the name of a headless Service", func() error {
		seen, err := get(t, "server-node3", "http://headless.default.svc.cluster.local:8080/hostname")
		if err == nil && seen != "server-node2" {
			err = fmt.Errorf("the answer came from %q, want server-node2", seen)
		}
		return err
	})
}

// mayReach waits until a pod reaches a server by its addresses, or with want false until it does not.
func mayReach(t *testing.T, from, to string, want bool) {
	t.Helper()
	for _, six := range []bool{false, true} {
		address := url(getPod(t, to).ip(t, six), 8080, "/hostname")
		eventually(t, 20*time.Second, fmt.Sprintf("%s reaches %s: want %v", from, to, want), func() error {
			if _, err := get(t, from, address); (err == nil) != want {
				return fmt.Errorf("it reaches the server: %v", err == nil)
			}
			return nil
		})
	}
}

func policy(t *testing.T) {
	apply(t, manifestOf(t, "policy.yaml", ""))
	mayReach(t, "server-node1", "server-node2", false)
	mayReach(t, "server-node2", "server-node1", true)
	kubectl(t, "label", "pod", "server-node1", "friend=yes")
	mayReach(t, "server-node1", "server-node2", true)
	mayReach(t, "server-node3", "server-node2", false)
	ready(t, "server-node2") // policies never apply to the kubelet's probes
}

// names queries the name server on the pod's gateway address, as a CoreDNS that forwards Weft's
// domain would.
func names(t *testing.T) {
	want := getPod(t, "server-node2").ip(t, false)
	out, err := cluster(t, "", "kubectl", "exec", "server-node1", "--", "nslookup", "server-node2.default.weft.internal", "169.254.1.1")
	if !strings.Contains(must(t, out, err), want) {
		t.Errorf("server-node2.default.weft.internal does not resolve to %s:\n%s", want, out)
	}
}

// plugin tests kubectl-weft, the plugin for kubectl, with a real cluster.
func plugin(t *testing.T) {
	ask := func(args ...string) string {
		out, err := cluster(t, "", append([]string{"exec", checkout + "/site/deploy/kubectl-weft"}, args...)...)
		return must(t, out, err)
	}
	if out := ask("status"); strings.Count(out, "Service: router") != len(nodes) {
		t.Errorf("status of all nodes, want one per node:\n%s", out)
	}
	if out := ask("status", "server-node2", "policy"); !strings.Contains(out, "default/friends") {
		t.Errorf("the policy status of server-node2 lacks default/friends, want it:\n%s", out)
	}
	if out := ask("explain", "server-node3", "server-node2", "8080"); !strings.Contains(out, "default/friends") || !strings.Contains(out, "friend") {
		t.Errorf("explain lacks the policy default/friends or its label friend, want both:\n%s", out)
	}
	if out := ask("report", "default/server-node1"); !strings.Contains(out, `"ready": true`) {
		t.Errorf("report lacks \"ready\": true, want it:\n%s", out)
	}
	if out := ask("report", "server-node1", "--context=lab", "-n", "default"); !strings.Contains(out, `"ready": true`) {
		t.Errorf("report with flags of kubectl lacks \"ready\": true, want it:\n%s", out)
	}
	if out := ask("check", "--containers"); !strings.Contains(out, "test containers of 3 hosts reach each other") {
		t.Errorf("check of containers, want that those of 3 hosts reach each other:\n%s", out)
	}
	if out := ask("check"); !strings.Contains(out, "3 hosts answered") || !strings.Contains(out, " 0 failed") {
		t.Errorf("check of all nodes, want that 3 hosts answered and nothing failed:\n%s", out)
	}
	if out := ask("flows", "--to", "default/server-node2", "--verdict", "denied"); !strings.Contains(out, "default/friends") {
		t.Errorf("the denied flows lack the policy default/friends, want it:\n%s", out)
	}
	if out := ask("flows", "server-node1", "--from", "default/"); !strings.Contains(out, "default/server-node1") {
		t.Errorf("the flows lack those from server-node1, want them:\n%s", out)
	}
	page(t)
	for args, want := range map[string]string{ // these cases need the real kubectl; prog/cli tests all others with a fake
		"status --context=none":     `context "none" does not exist`,
		"report nothing":            "there is no pod default/nothing, and no node nothing",
		"report server-node1 -n no": "there is no pod no/server-node1",
	} {
		_, err := cluster(t, "", append([]string{"exec", checkout + "/site/deploy/kubectl-weft"}, strings.Fields(args)...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", args, err, want)
		}
	}
}

// page asserts that kubectl weft ui shows all nodes to a client on this machine, and that nothing of it is left once it
// is ended.
func page(t *testing.T) {
	t.Helper()
	out, err := cluster(t, "", "exec", "timeout", "60", "bash", "-c", `
		"$0" ui >"$1" & plugin=$!
		until grep -q http:// "$1"; do kill -0 $plugin && sleep 0.1 || exit 1; done
		url=$(sed -n 's/.*\(http:[^ ]*\).*/\1/p' "$1" | head -n 1)
		curl -sSf --max-time 10 -H "Authorization: Bearer ${url#*token=}" -H 'Content-Type: application/json' -d '{}' "${url%%#*}api/network"
		kill $plugin; wait $plugin`, checkout+"/site/deploy/kubectl-weft", t.TempDir()+"/url")
	for _, node := range nodes {
		if !strings.Contains(out, `"nickname":"`+node+`"`) {
			t.Errorf("the page's data lacks %s, want all nodes; error %v:\n%.2000s", node, err, out)
		}
	}
	eventually(t, 20*time.Second, "the end of weft ui in the pods", func() error {
		for _, node := range nodes {
			if left, _ := cluster(t, "", "in", node, "pgrep", "-f", "weft ui --listen"); left != "" { // pgrep fails if there is none
				return fmt.Errorf("weft ui still runs on %s: %s", node, left)
			}
		}
		return nil
	})
}
