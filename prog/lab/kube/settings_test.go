package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// An invalid setting is an event on the Node, and only affects that agent.
func settings(t *testing.T) {
	const node = "node1"
	agent := func() string {
		return kubectl(t, "-n", "weft", "get", "pods", "-l", "app=weft", "--field-selector=spec.nodeName="+node, "-o", "name")
	}
	kubectl(t, "-n", "weft", "create", "configmap", "weft", "--from-literal=WEFT_MTU=12")
	kubectl(t, "-n", "weft", "delete", "--grace-period=0", "--force", agent())
	eventually(t, time.Minute, "the event InvalidSetting", func() error {
		out := kubectl(t, "get", "events", "--field-selector=reason=InvalidSetting,involvedObject.name="+node, "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, "WEFT_MTU") {
			return fmt.Errorf("got the events %q, want one about WEFT_MTU", out)
		}
		return nil
	})
	mayReach(t, "server-"+node, "server-node2", true)
	kubectl(t, "-n", "weft", "patch", "configmap", "weft", "-p", `{"data":{"WEFT_MTU":"1380","WEFT_CNI_CHAIN":"portmap,bandwidth","WEFT_METRICS_ADDR":":6788"}}`)
	kubectl(t, "-n", "weft", "delete", agent()) // delete the pod without force: it may already run with the new settings
	eventually(t, time.Minute, "the MTU and the plugins of the settings", func() error {
		out, err := weft(t, node, "report", "-f", "{{.router.mtu}} {{.cni.plugins}} {{.ready}}")
		if err == nil && out != "1380 [weft-cni portmap bandwidth] true" {
			err = fmt.Errorf("MTU, plugins and readiness are %s, want those of the ConfigMap, and true", out)
		}
		return err
	})
	bandwidth(t, node)
	metrics(t, node)
	kubectl(t, "-n", "weft", "delete", "configmap", "weft")
}

// metrics asserts that a pod reads a node's metrics at the address for metrics, and nothing else there.
func metrics(t *testing.T, node string) {
	t.Helper()
	addr := kubectl(t, "get", "node", node, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	addr, _, _ = strings.Cut(addr, " ") // a node has an address of each family
	if out, err := get(t, "server-node2", url(addr, 6788, "/metrics")); err != nil || !strings.Contains(out, "\nweft_ready 1\n") {
		t.Errorf("the metrics of %s at %s: error %v, %d bytes; want weft_ready 1 in them", node, addr, err, len(out))
	}
	if out, err := get(t, "server-node2", url(addr, 6788, "/status")); err == nil {
		t.Errorf("the address for metrics of %s also serves the status: %.100s", node, out)
	}
}

// bandwidth asserts that the limits of a pod's annotations are set on its link and removed with it.
// It does not measure the speed, since containerd allows a burst of 512 MiB.
func bandwidth(t *testing.T, node string) {
	t.Helper()
	limits := func() string {
		out, err := cluster(t, "", "in", node, "sh", "-c", "tc qdisc show | grep tbf || true")
		return must(t, out, err)
	}
	apply(t, manifestOf(t, "limited.yaml", node))
	ready(t, "limited")
	link, err := weft(t, node, "report", "-f", `{{range .endpoints}}{{if eq .name "limited"}}{{.hostLink}}{{end}}{{end}}`)
	must(t, link, err)
	var in, out int
	all := limits()
	for line := range strings.Lines(all) {
		switch {
		case strings.Contains(line, " dev "+link+" ") && strings.Contains(line, " rate 8Mbit "):
			in++
		case strings.Contains(line, " dev bwp") && strings.Contains(line, " rate 16Mbit "): // traffic from the pod is limited on this interface
			out++
		}
	}
	if in != 1 || out != 1 {
		t.Errorf("want 8 Mbit/s to and 16 Mbit/s from the pod at %s, got\n%s", link, all)
	}
	mayReach(t, "server-node2", "limited", true)
	mayReach(t, "limited", "server-node3", true)
	kubectl(t, "delete", "pod", "limited")
	eventually(t, 20*time.Second, "the removal of the limits", func() error {
		if left := limits(); left != "" {
			return fmt.Errorf("these limits are still set:\n%s", left)
		}
		return nil
	})
}

// If kube-proxy's range is not Weft's, each Node has an event and a warning in the status until it is
// fixed.
func clusterCIDR(t *testing.T) {
	const other = "10.244.0.0/16"
	warned := func(node string) (bool, error) {
		r, err := reportOf(t, node)
		return strings.Contains(strings.Join(r.Warnings, "\n"), other), err
	}
	proxyConfig(t, other)
	before := agentPods(t) // agents are restarted below, since they check at their start, and rarely later
	kubectl(t, "-n", "weft", "delete", "pods", "-l", "app=weft", "--force", "--grace-period=0")
	agentsReplaced(t, before)
	for _, node := range nodes {
		eventually(t, 20*time.Second, node+": the warning is reported", func() error {
			events := kubectl(t, "get", "events", "--field-selector=type=Warning,reason=ClusterCIDRMismatch,involvedObject.kind=Node,involvedObject.name="+node, "-o", "jsonpath={.items[*].message}")
			if is, err := warned(node); err != nil || !is || !strings.Contains(events, other) {
				return fmt.Errorf("in the status: %v (%w), events: %q", is, err, events)
			}
			return nil
		})
	}
	proxyConfig(t, clusterRange(t))
	for _, node := range nodes {
		took := eventually(t, time.Minute, node+": the warning is cleared", func() error {
			is, err := warned(node)
			if err == nil && is {
				err = errNot
			}
			return err
		})
		t.Logf("%s: the warning was cleared after %v", node, took.Round(time.Second))
	}
}
