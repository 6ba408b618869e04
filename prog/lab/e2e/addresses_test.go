package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// A VPN takes over a host's default route, like a second link with a better metric. The other hosts
// learn the new address, and keep using the address that works. Then gossip loses the host while its
// tunnel works: weft rmpeer does not take over its addresses, not even with --force. No packet is
// lost.
func TestANewLinkAndLostGossipLoseNoPackets(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	established(t, l)
	h3 := func() (p api.Peer) {
		peers := report(t, l, "h1").Router.Peers
		if i := slices.IndexFunc(peers, func(p api.Peer) bool { return p.Nickname == "h3" }); i >= 0 {
			return peers[i]
		}
		return p
	}
	listen(t, l, "h3/c1")
	flow, err := l.Background(t.Context(), "h1/c1", "", append([]string{"weft", "probe", "udp", "--json", "--count", "3000", "--interval", "10ms", "--timeout", "5s"}, addrs(t, l, "h3/c1")...)...)
	if err != nil {
		t.Fatal(err)
	}
	before := h3().Underlay
	if err := l.AddLink(t.Context(), "h3", 50); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 10*time.Second, "h1 knows h3's new addresses", func() bool { return len(h3().Underlay) == 4 })
	if after := h3().Underlay; !slices.Equal(after[:2], before) {
		t.Errorf("h3's first addresses changed from %v to %v, want no change", before, after)
	}

	rules := "table inet firewall {\nchain in { type filter hook input priority 0; th dport 6783 drop; }\nchain out { type filter hook output priority 0; th dport 6783 drop; }\n}\n"
	if err := l.LoadRules(t.Context(), "h3", "rules", []byte(rules)); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 30*time.Second, "gossip has lost h3", func() bool { return h3().State == "unreachable" })
	for _, args := range [][]string{{"h3"}, {"--force", "h3"}} {
		out := fails(t, l, "h1", "", append([]string{"weft", "rmpeer"}, args...)...)
		if !strings.Contains(out, "alive") || !strings.Contains(out, "its tunnel to") || strings.Contains(out, "add --force") {
			t.Errorf("rmpeer %v printed the following, want a refusal that h3's tunnel is alive, without the advice --force:\n%s", args, out)
		}
	}
	run(t, l, "h3", "nft", "delete", "table", "inet", "firewall")
	eventually.True(t, time.Minute, "gossip finds h3 again", func() bool { return h3().State == "running" })
	out, err := flow.Wait()
	var results []probe.Result
	if e := json.Unmarshal([]byte(out), &results); e != nil || err != nil || len(results) != 2 {
		t.Fatalf("the flows ended with error %v, and their result is unreadable (%v), want JSON: %s", err, e, out)
	}
	for _, r := range results {
		if r.Lost > 0 {
			t.Errorf("the flow lost packets, want none: %+v", r)
		}
	}
}
