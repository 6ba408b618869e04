package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// firewallAround drops gossip between h3 and every other host, for TCP and UDP. It runs on the host where the
// packets arrive, so that the sender does not notice.
func firewallAround(host string) string {
	from := "ip saddr 192.0.2.3 th dport 6783 drop; ip6 saddr 2001:db8::3 th dport 6783 drop;"
	if host == "h3" {
		from = "iifname \"eth0\" th dport 6783 drop;"
	}
	return "table inet firewall {\nchain in { type filter hook input priority 0; " + from + " }\n}\n"
}

// insideWarning is in the warning that gossip with a host goes through the tunnel.
const insideWarning = "only through the tunnel: gossip goes through the tunnel meanwhile, and ends if the tunnel fails. Open TCP and UDP 6783 between the two hosts, both ways"

// bypassed reports whether a host warns that gossip with each of the other named hosts goes through the tunnel.
func bypassed(t *testing.T, l *lab.Lab, host string, others ...string) bool {
	t.Helper()
	n := 0
	for _, w := range report(t, l, host).Warnings {
		for _, o := range others {
			if strings.Contains(w, "("+o+")") && strings.Contains(w, insideWarning) {
				n++
			}
		}
	}
	return n == len(others)
}

// allRun reports whether all three hosts see all others as running.
func allRun(t *testing.T, l *lab.Lab) bool {
	t.Helper()
	for _, h := range l.Hosts() {
		if strings.Count(run(t, l, h, "weft", "status", "peers"), "running") != 3 {
			return false
		}
	}
	return true
}

// agentPIDs returns the processes of all agents.
func agentPIDs(t *testing.T, l *lab.Lab) string {
	t.Helper()
	s, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, h := range s.Hosts {
		out = append(out, fmt.Sprint(h.Name, h.Agent))
	}
	return strings.Join(out, " ")
}

// If a firewall blocks gossip's port of one host, gossip goes through the tunnel: names of new containers reach
// that host and come from it, all hosts stay running, and each host says which port to open. An agent that
// starts meanwhile finds the others.
func TestGossipGoesThroughTunnelPastFirewall(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	measured(t, l)
	for _, h := range l.Hosts() {
		if _, err := l.Exec(t.Context(), h, strings.NewReader(firewallAround(h)), "nft", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	pids := agentPIDs(t, l)
	resolves := func(container, name, of string) func() bool {
		return func() bool {
			if !allRun(t, l) {
				t.Error("while the tunnel works a peer is not running, want all running")
			}
			return digs(t, l, container, "+short", name+".weft.internal A")[0] == addrs(t, l, of)[0]
		}
	}
	attachNamed(t, l, "h3/far", "--name", "far")
	eventually.True(t, 15*time.Second, "a container on h1 resolves the name of one that started behind the firewall", resolves("h1/c1", "far", "h3/far"))
	attachNamed(t, l, "h1/near", "--name", "near")
	eventually.True(t, 5*time.Second, "a container on h3 resolves the name of one that started on h1", resolves("h3/c1", "near", "h1/near"))
	eventually.True(t, 90*time.Second, "each host warns, and all keep running", func() bool {
		if !allRun(t, l) {
			t.Error("while the tunnel works a peer is not running, want all running")
		}
		return bypassed(t, l, "h1", "h3") && bypassed(t, l, "h2", "h3") && bypassed(t, l, "h3", "h1", "h2")
	})
	if bypassed(t, l, "h1", "h2") {
		t.Error("h1 warns that gossip with h2 goes through the tunnel, want no such warning")
	}
	if now := agentPIDs(t, l); now != pids {
		t.Errorf("the agents are the processes %s, want %s: those from before", now, pids)
	}

	if err := l.Kill(t.Context(), "h3", "agent"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 30*time.Second, "h1 sees that the agent of h3 vanished", func() bool {
		return strings.Contains(run(t, l, "h1", "weft", "status", "peers"), "(h3)  unreachable")
	})
	start := time.Now()
	if err := l.Start(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 30*time.Second, "the new agent of h3 finds the others, and they find it", func() bool { return allRun(t, l) })
	t.Logf("the hosts reached each other %v after the start", time.Since(start))
	attachNamed(t, l, "h3/late", "--name", "late")
	eventually.True(t, 5*time.Second, "a container on h1 resolves the name of one that started after that", resolves("h1/c1", "late", "h3/late"))

	pids = agentPIDs(t, l)
	for _, h := range l.Hosts() {
		run(t, l, h, "nft", "delete", "table", "inet", "firewall")
	}
	eventually.True(t, 60*time.Second, "the warnings go when the port is open", func() bool {
		for _, h := range l.Hosts() {
			if r := report(t, l, h); !r.Ready || len(r.Warnings) > 0 {
				return false
			}
		}
		return allRun(t, l)
	})
	if now := agentPIDs(t, l); now != pids {
		t.Errorf("the agents are the processes %s, want %s: those from before", now, pids)
	}
}
