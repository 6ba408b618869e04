package kube

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// A CNI configuration that sorts after Weft's changes nothing. If Multus' configuration sorts before
// Weft's, pods have Weft's eth0 with host ports, and the networks that Multus adds. Weft detects that
// Multus calls its plugin.
func multus(t *testing.T) {
	const node, netd = "node1", "/etc/cni/net.d/"
	const first, later = "00-multus.conf", "20-other.conflist"
	build := exec.CommandContext(t.Context(), "./build.sh", "multus") // only this test needs Multus
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		t.Fatal(err)
	}
	defer func() { // remove Multus again, since Uninstall expects an ordinary node
		out, err := cluster(t, "", "in", node, "sh", "-c", "rm -f /opt/cni/bin/multus "+netd+first+" "+netd+later+"; ip link del second 2>/dev/null || true")
		must(t, out, err)
	}()
	put := func(file, content string) {
		out, err := cluster(t, content, "in", node, "sh", "-c", "cat >/run/new && mv /run/new "+netd+file)
		must(t, out, err)
		time.Sleep(500 * time.Millisecond) // containerd reloads the configuration without any notice
	}

	put(later, `{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge", "bridge": "other", "ipam": {"type": "host-local", "subnet": "192.168.78.0/24"}}]}`)
	apply(t, manifestOf(t, "beside.yaml", node))
	ready(t, "beside")
	mayReach(t, "beside", "server-node3", true)
	if r, err := reportOf(t, node); err != nil || !r.has("beside") || len(r.Warnings) > 0 {
		t.Errorf("with a CNI configuration after Weft's: error %v, report %+v, want the pod beside and no warnings", err, r)
	}

	out, err := cluster(t, "", "exec", "sh", "-c", "echo $KUBECONFIG; command -v multus")
	config, program, _ := strings.Cut(must(t, out, err), "\n")
	out, err = cluster(t, "", "in", node, "cp", program, "/opt/cni/bin/multus")
	must(t, out, err)
	// By default Multus looks for a network by name in its own folder.
	put(first, `{"cniVersion": "1.0.0", "name": "multus", "type": "multus", "capabilities": {"portMappings": true}, "kubeconfig": "`+config+`",
		"clusterNetwork": "weft", "confDir": "`+netd+`"}`)
	kubectl(t, "apply", "-f", "testdata/multus-kind.yaml")
	kubectl(t, "wait", "--for=condition=Established", "crd/network-attachment-definitions.k8s.cni.cncf.io")
	apply(t, manifestOf(t, "multus.yaml", node))
	ready(t, "multus")
	kubectl(t, "delete", "pod", "beside", "--force", "--grace-period=0") // see forcedDeletion
	throughMultus(t, node)
	if r, err := reportOf(t, node); err != nil || !r.has("multus") || !r.has("beside") || len(r.Warnings) > 0 {
		t.Errorf("with Multus' CNI configuration before Weft's: error %v, report %+v, want both pods and no warnings", err, r)
	}
	kubectl(t, "delete", "pod", "multus")
	ended(t, node, "multus", 20*time.Second)
}

// Multus does not pass on the DEL of a pod that is older than Multus and was deleted by force. Its
// address is released nevertheless.
func forcedDeletion(t *testing.T) { ended(t, "node1", "beside", time.Minute) }

// ended waits until Weft has no endpoint for a pod.
func ended(t *testing.T, node, pod string, within time.Duration) {
	t.Helper()
	eventually(t, within, "no endpoint for "+pod, func() error {
		r, err := reportOf(t, node)
		if err == nil && r.has(pod) {
			err = errNot
		}
		return err
	})
}

// throughMultus asserts that Multus made a pod's networks, and that its eth0 is the same as without
// Multus.
func throughMultus(t *testing.T, node string) {
	t.Helper()
	var made []struct {
		Name, Interface string
		Default         bool
		IPs             []string
	}
	status := kubectl(t, "get", "pod", "multus", "-o", `jsonpath={.metadata.annotations.k8s\.v1\.cni\.cncf\.io/network-status}`)
	if err := json.Unmarshal([]byte(status), &made); err != nil || len(made) != 2 {
		t.Fatalf("Multus reports the pod's networks as %[2]q (%[1]v), want two networks", err, status)
	}
	p := getPod(t, "multus")
	if eth0 := made[0]; eth0.Name != "weft" || eth0.Interface != "eth0" || !eth0.Default || !slices.Equal(eth0.IPs, []string{p.ip(t, false), p.ip(t, true)}) {
		t.Errorf("the default network in Multus's status is %+v, want Weft's with %+v", eth0, p.Status.PodIPs)
	}
	if net1 := made[1]; net1.Name != "default/second" || net1.Interface != "net1" || len(net1.IPs) != 1 || !strings.HasPrefix(net1.IPs[0], "192.168.77.") {
		t.Errorf("the second network in Multus's status is %+v, want net1 of default/second in 192.168.77.0/24", net1)
	}
	mayReach(t, "multus", "server-node3", true)
	mayReach(t, "server-node3", "multus", true)
	if _, err := cluster(t, "", "exec", "curl", "-sgf", "--max-time", "3", url("10.200.0.11", 8112, "/hostname")); err != nil {
		t.Errorf("the pod's host port on %s returned %v, want an answer", node, err)
	}
}
