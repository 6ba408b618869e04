package e2e

import (
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// If a firewall closes WireGuard's port on one host, that host is not ready, since its containers
// would be isolated. A host whose only tunnel is blocked says so at its launch. The other hosts report the failed tunnel in the status and the metrics.
// Everything recovers once the port is open.
func TestBlockedPortIsReported(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Bare: true})
	rules := "table inet firewall {\nchain in { type filter hook input priority 0; udp dport 6784 drop; }\nchain out { type filter hook output priority 0; udp dport 6784 drop; }\n}\n"
	if _, err := l.Exec(t.Context(), "h1", strings.NewReader(rules), "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	run(t, l, "h1", "weft", "launch")
	token := run(t, l, "h1", "cat", "/var/lib/weft/secret")
	first, err := l.UnderlayAddr("h1")
	if err != nil {
		t.Fatal(err)
	}
	const port = "UDP 6784"
	said := fails(t, l, "h2", token, "weft", "launch", "--token", "-", first.String())
	says(t, said, "exit code 4", "no tunnel works", port, "(h1)", "open UDP 6784", "weft status connections --watch")
	if _, err := l.Exec(t.Context(), "h3", strings.NewReader(token), "weft", "launch", "--token", "-", first.String()); err != nil {
		t.Fatalf("h3 has a tunnel to h2, so its launch succeeds; got error %v", err)
	}
	eventually.True(t, 70*time.Second, "h1 is not ready", func() bool {
		r := report(t, l, "h1")
		return !r.Ready && strings.Contains(r.NotReady, "no tunnel works")
	})
	eventually.True(t, 20*time.Second, "h2 warns of h1, and is ready", func() bool {
		r := report(t, l, "h2")
		w := strings.Join(r.Warnings, "\n")
		return r.Ready && len(r.Warnings) == 1 && strings.Contains(w, "(h1)") && strings.Contains(w, port)
	})
	if out, err := l.Exec(t.Context(), "h2", nil, toolArgs(t, "get", "http://127.0.0.1:6784/metrics")...); err != nil || !strings.Contains(out, `weft_warnings{reason="PortBlocked"} 1`) {
		t.Errorf("the metrics lack a warning for PortBlocked, want one: error %v", err)
	}
	run(t, l, "h1", "nft", "delete", "table", "inet", "firewall")
	eventually.True(t, 40*time.Second, "all hosts are ready without warnings", func() bool {
		for _, h := range l.Hosts() {
			if r := report(t, l, h); !r.Ready || len(r.Warnings) > 0 {
				return false
			}
		}
		return true
	})
}
