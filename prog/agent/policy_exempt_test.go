package agent

import (
	"net/netip"
	"slices"
	"testing"

	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

const jailYAML = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: jail, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`

// What endpoints may ask of their own host is as the kernel has it, under whichever of its
// addresses they ask.
func TestExplainOwnHost(t *testing.T) {
	for _, c := range []struct {
		exempt    nft.Exempt
		host, dns bool
	}{
		{nft.Exempt{OwnHost: true}, true, true},
		{nft.Exempt{Resolver: true}, false, true},
		{nft.Exempt{ICMPErrors: true}, false, false},
	} {
		a := shop(t)
		a.opts.Exempt = c.exempt
		if _, err := apply(t, a, jailYAML); err != nil {
			t.Fatal(err)
		}
		for _, dst := range []string{"here", "10.32.0.1", "169.254.1.1", "fe80::1"} {
			for port, want := range map[uint16]bool{53: c.dns, 8080: c.host} {
				e, err := a.Explain(t.Context(), api.ExplainRequest{Source: "web", Destination: dst, Port: port, Protocol: "UDP"})
				if dst == "fe80::1" && !a.ipv6 {
					continue // they have no address of one family
				}
				if err != nil || e.Verdicts[0].Allowed != want || !e.Destination.Node {
					t.Errorf("%+v: %s %d: %+v, %v, want %v", c.exempt, dst, port, e, err, want)
				}
			}
		}
	}
}

// A dry run does not tell of connections that policies do not apply to.
func TestMarkOwnHost(t *testing.T) {
	a := shop(t)
	a.opts.Exempt = nft.Exempt{Resolver: true}
	k := a.know()
	web := k.world.Endpoints[slices.IndexFunc(k.world.Endpoints, func(e policy.Endpoint) bool { return e.Name == "web" })].Addrs[0]
	node := netip.MustParseAddr("10.32.0.1")
	for want, p := range map[[2]bool]policy.Packet{
		{true, false}:  {Src: node, Dst: web, Protocol: policy.TCP, DstPort: 80},
		{false, true}:  {Src: web, Dst: node, Protocol: policy.UDP, DstPort: 53},
		{false, false}: {Src: web, Dst: node, Protocol: policy.TCP, DstPort: 80},
	} {
		a.markOwnHost(&p)
		if got := [2]bool{p.FromOwnHost, p.ToOwnHost}; got != want {
			t.Errorf("%+v: %v", p, got)
		}
	}
}
