package explain

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/prog/agent/agenttest"
	"weft/prog/agent/policytest"
	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

func newExplainer(t *testing.T, exempt nft.Exempt) (*Explainer, *policytest.Host) {
	h := policytest.New(t, true)
	return New(Config{
		Self: agenttest.Self, Policies: h.Enforcer, Kernel: policytest.Rules{}, Mesh: policytest.Alone{}, View: &h.View, Drops: &Drops{},
		Exempt: exempt, Resolver: true, Short: func(s string) string { return s },
	}), h
}

func TestExplainResolvesNames(t *testing.T) {
	x, h := newExplainer(t, nft.Exempt{})
	web := h.Endpoint("shop/web")
	for word, want := range map[string]string{
		"web": "shop/web", "shop/web": "shop/web", "web.shop": "shop/web", "here/web": "shop/web", "id-shop-w": "shop/web", "here/id-shop-w": "shop/web",
		"jobs/db": "jobs/db", web.Addrs[0].String(): "shop/web", "10.32.0.1": "the node", "here": "the node", "192.0.2.7": "",
		"db": "names several", "nobody": "is no container", "id-": "names several", "here/": "is no container",
	} {
		s, err := x.side(h.View.Get(), word, h.Enforcer.Snapshot().World)
		got := s.Endpoint
		switch {
		case err != nil:
			got = err.Error()
		case s.Node:
			got = "the node"
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%s: %q, want %q", word, got, want)
		}
	}
}

// Without a port, an explanation lists the ports that can be reached.
func TestExplainWithoutAPortListsReachablePorts(t *testing.T) {
	x, h := newExplainer(t, nft.Exempt{})
	h.Write(t, map[string]string{"shop/db": policytest.Shop})
	for _, c := range []struct {
		src, dst, open string
		allowed        bool
		exempt         bool
	}{
		{"web", "shop/db", "5432/TCP", true, false},
		{"batch", "shop/db", "none", false, false},
		{"shop/db", "batch", "all", true, false},
		{"here", "shop/db", "all", true, true},
		{"192.0.2.7", "shop/db", "none", false, false},
	} {
		e, err := x.Explain(t.Context(), api.ExplainRequest{Source: c.src, Destination: c.dst})
		if err != nil || len(e.Verdicts) == 0 || e.Verdicts[0].Allowed != c.allowed || (e.Verdicts[0].Exempt != "") != c.exempt || !c.exempt && e.Open != c.open {
			t.Errorf("%s to %s: %+v, error %v; want the row's verdict", c.src, c.dst, e, err)
		}
	}
	for _, bad := range []api.ExplainRequest{{Source: "web", Destination: "nobody"}, {Source: "web", Destination: "shop/db", Port: 8, Protocol: "icmp"}, {Source: "web", Destination: "batch", Port: 1, Protocol: "QUIC"}, {Source: "192.0.2.1", Destination: "2001:db8::1"}} {
		if e, err := x.Explain(t.Context(), bad); err == nil {
			t.Errorf("%+v: got %+v, want an error", bad, e)
		}
	}
}

// The parts of a policy that are understood still allow traffic.
func TestUnderstoodPartsOfAPolicyAllowTraffic(t *testing.T) {
	x, h := newExplainer(t, nft.Exempt{})
	h.Write(t, map[string]string{"shop/db": strings.Replace(policytest.Shop, "{port: 5432}", "{port: 443, protocol: QUIC}, {port: 5432}", 1)})
	for port, allowed := range map[uint16]bool{443: false, 5432: true} {
		if e, err := x.Explain(t.Context(), api.ExplainRequest{Source: "web", Destination: "shop/db", Port: port}); err != nil || e.Verdicts[0].Allowed != allowed {
			t.Errorf("port %d: %+v, error %v; want only 5432 allowed", port, e, err)
		}
	}
}

// A rule with ports never allows ICMP. A rule without ports does; in IPv6 it allows ICMPv6.
func TestRulesWithPortsNeverAllowICMP(t *testing.T) {
	x, h := newExplainer(t, nft.Exempt{})
	for text, allowed := range map[string]bool{policytest.Shop: false, strings.Replace(policytest.Shop, "    ports: [{port: 5432}]\n", "", 1): true} {
		h.Write(t, map[string]string{"shop/db": text})
		e, err := x.Explain(t.Context(), api.ExplainRequest{Source: "web", Destination: "shop/db", Protocol: "icmp"})
		if err != nil || len(e.Verdicts) == 0 || e.Port != "ICMP" || e.Open != "" {
			t.Fatalf("ICMP: %+v, error %v; want a verdict for ICMP, without ports", e, err)
		}
		for _, v := range e.Verdicts {
			name := "ICMP is none"
			if v.Source.Is6() {
				name = "ICMPv6 is none"
			}
			if v.Allowed != allowed || !allowed && !strings.Contains(v.Ingress.Misses[0].Text, name) {
				t.Errorf("source %v: verdict %+v; want the verdict of the table, and the policy that does not match", v.Source, v.Ingress)
			}
		}
	}
}

const jail = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: jail, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`

// Traffic from endpoints to their own host is evaluated as the kernel does it, for all of its
// addresses.
func TestTrafficToTheOwnHostIsExplainedAsTheKernelDecides(t *testing.T) {
	for _, c := range []struct {
		exempt    nft.Exempt
		host, dns bool
	}{
		{nft.Exempt{OwnHost: true}, true, true},
		{nft.Exempt{Resolver: true}, false, true},
		{nft.Exempt{ICMPErrors: true}, false, false},
	} {
		x, h := newExplainer(t, c.exempt)
		h.Write(t, map[string]string{"shop/jail": jail})
		for _, dst := range []string{"here", "10.32.0.1", "169.254.1.1"} {
			for port, want := range map[uint16]bool{53: c.dns, 8080: c.host} {
				e, err := x.Explain(t.Context(), api.ExplainRequest{Source: "web", Destination: dst, Port: port, Protocol: "UDP"})
				if err != nil || e.Verdicts[0].Allowed != want || !e.Destination.Node {
					t.Errorf("%+v: %s %d: %+v, %v, want %v", c.exempt, dst, port, e, err, want)
				}
			}
		}
	}
}

func TestPacketsFromAndToTheOwnHostAreMarked(t *testing.T) {
	x, h := newExplainer(t, nft.Exempt{Resolver: true})
	web, node := h.Endpoint("shop/web").Addrs[0], netip.MustParseAddr("10.32.0.1")
	for want, p := range map[[2]bool]policy.Packet{
		{true, false}:  {Src: node, Dst: web, Protocol: policy.TCP, DstPort: 80},
		{false, true}:  {Src: web, Dst: node, Protocol: policy.UDP, DstPort: 53},
		{false, false}: {Src: web, Dst: node, Protocol: policy.TCP, DstPort: 80},
	} {
		x.MarkOwnHost(&p)
		if got := [2]bool{p.FromOwnHost, p.ToOwnHost}; got != want {
			t.Errorf("%+v is marked %v, want the row's marks", p, got)
		}
	}
}

// A peer's request is refused if it does not describe a packet.
func TestInvalidQuestionsOfPeersAreRefused(t *testing.T) {
	x, _ := newExplainer(t, nft.Exempt{})
	for _, bad := range [][]byte{nil, []byte("garbage"), {0xa0}} {
		if answer, err := x.Handlers()[requestEvaluate](t.Context(), agenttest.Self, bad); err == nil {
			t.Errorf("request %x was answered with %x, want an error", bad, answer)
		}
	}
}

// Equal packets count as one drop, a reply is reported as the packet that it answers, and old drops
// are removed.
func TestDropsAreCountedTogether(t *testing.T) {
	var d Drops
	now := time.Unix(1000, 0)
	client, server := netip.MustParseAddr("10.32.0.2"), netip.MustParseAddr("10.32.0.3")
	p := nft.Packet{Src: client, Dst: server, Protocol: 6, SrcPort: 40000, DstPort: 80}
	d.note(nft.Logged{Packet: p}, now)
	p.SrcPort++
	d.note(nft.Logged{Packet: p}, now.Add(time.Second))
	d.note(nft.Logged{Packet: nft.Packet{Src: server, Dst: client, Protocol: 6, SrcPort: 80, DstPort: 40001, Reply: true}}, now.Add(2*time.Second))
	list, packets := d.list()
	if len(list) != 1 || list[0].Count != 3 || packets[0] != p || !list[0].Last.Equal(now.Add(2*time.Second)) {
		t.Errorf("drops %+v, packets %+v; want one drop, counted 3 times", list, packets)
	}
	for port := range uint16(2 * mostDrops) {
		p.DstPort = 1000 + port
		d.note(nft.Logged{Packet: p}, now.Add(time.Hour+time.Duration(port)))
	}
	if list, _ := d.list(); len(list) != mostDrops || list[0].Dest.Port() != 1000+2*mostDrops-1 {
		t.Errorf("%d drops are remembered, the newest is %+v; want mostDrops, and the last one first", len(list), list[0])
	}
}
