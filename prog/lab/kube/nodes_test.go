package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// nodeIP returns a node's address on the underlay.
func nodeIP(n int, six bool) string {
	if six {
		return fmt.Sprintf("fd00:10:200::%d", 10+n)
	}
	return fmt.Sprintf("10.200.0.%d", 10+n)
}

// nodesReachServices asserts that nodes themselves reach services: the server's own node and another node.
func nodesReachServices(t *testing.T) {
	apply(t, manifestOf(t, "nodes.yaml", ""))
	ready(t, "hostdns")
	defer kubectl(t, "delete", "service/far", "service/sticky", "pod/hostdns")
	server := getPod(t, "server-node2")
	for _, six := range []bool{false, true} {
		clusterIP := serviceIP(t, "far", six)
		external := map[bool]string{false: "203.0.113.7", true: "2001:db8:7::7"}[six]
		for n, node := range []string{"node1", "node2"} {
			ask := func(command ...string) (string, error) {
				return cluster(t, "", append([]string{"in", node}, command...)...)
			}
			curl := func(address string) (string, error) { return ask("curl", "-sgf", "--max-time", "3", address) }
			for way, at := range map[string]struct {
				addr      string
				http, udp int
			}{
				"the server's ClusterIP":          {clusterIP, 80, 81},
				"the server's external IP":        {external, 80, 81},
				"a NodePort of this node":         {nodeIP(n+1, six), 30090, 30091},
				"a NodePort of the server's node": {nodeIP(2, six), 30090, 30091},
				"a NodePort of a third node":      {nodeIP(3, six), 30090, 30091},
				"the pod's own address":           {server.ip(t, six), 8080, 8081},
			} {
				what := fmt.Sprintf("from %s to %s (%s)", node, way, at.addr)
				eventually(t, 20*time.Second, what, func() error {
					got, err := curl(url(at.addr, at.http, "/hostname"))
					if err == nil && got != "server-node2" {
						err = fmt.Errorf("got an answer from %q, want server-node2", got)
					}
					return err
				})
				big := strings.Repeat("weft", 5000)
				if got, err := curl(url(at.addr, at.http, "/echo?msg="+big)); err != nil || got != big {
					t.Errorf("%s, a large response: error %v, got %d bytes, want %d", what, err, len(got), len(big))
				}
				if got, err := ask("sh", "-c", fmt.Sprintf("echo hostname | nc -u -w 2 %s %d", at.addr, at.udp)); err != nil || got != "server-node2" {
					t.Errorf("%s, UDP: error %v, got an answer from %q, want server-node2", what, err, got)
				}
				seen, err := curl(url(at.addr, at.http, "/clientip"))
				if from, e := netip.ParseAddrPort(seen); err != nil || e != nil || node == "node1" && !slices.Contains(overlayOf(t, node), from.Addr().String()) && !strings.Contains(way, "NodePort") {
					t.Errorf("%s: error %v, the client's address is %q, want one of %v", what, err, seen, overlayOf(t, node))
				} else {
					t.Logf("%s: the client's address is %v", what, from.Addr())
				}
			}
			sticky, last := serviceIP(t, "sticky", six), ""
			for range 8 {
				got, err := curl(url(sticky, 80, "/hostname"))
				if err != nil || last != "" && got != last {
					t.Errorf("%s, session affinity, IPv6 %v: error %v, got an answer from %q first, and then from %q; want the same server", node, six, err, last, got)
				}
				last = got
			}
		}
		if got, err := get(t, "host-node1", url(clusterIP, 80, "/hostname")); err != nil || got != "server-node2" {
			t.Errorf("the ClusterIP from a pod on the host's network, IPv6 %v: error %v, got an answer from %q, want server-node2", six, err, got)
		}
	}
	if got, err := get(t, "hostdns", "http://far.default.svc.cluster.local/hostname"); err != nil || got != "server-node2" {
		t.Errorf("a Service's name from a pod on the host's network: error %v, got an answer from %q, want server-node2", err, got)
	}
}

// serviceIP returns a service's ClusterIP of a family.
func serviceIP(t *testing.T, name string, six bool) string {
	t.Helper()
	for ip := range strings.FieldsSeq(kubectl(t, "get", "service", name, "-o", "jsonpath={.spec.clusterIPs[0]} {.spec.clusterIPs[1]}")) {
		if strings.Contains(ip, ":") == six {
			return ip
		}
	}
	t.Fatalf("the Service %s has no ClusterIP of the family (IPv6: %v), want one", name, six)
	return ""
}

// overlayOf returns a node's addresses in the overlay.
func overlayOf(t *testing.T, node string) []string {
	t.Helper()
	out, err := weft(t, node, "report", "-f", "{{range .router.node}}{{.}} {{end}}")
	return strings.Fields(must(t, out, err))
}
