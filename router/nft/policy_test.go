package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"

	"weft/ipam/slot"
	"weft/router/policy"
	"weft/router/routertest"
)

// shop is the program of policies with everything in it: who may ask the database, and by
// which ports, and what the web may ask outside. more adds one that is only tried, named
// ports, and SCTP.
func shop(more bool) *policy.Program {
	end := func(name, app string, n slot.Slot, ports ...policy.NamedPort) policy.Endpoint {
		e := policy.Endpoint{ID: name, Namespace: "shop", Name: name, Labels: map[string]string{"app": app}, Ports: ports}
		e.Addrs = []netip.Addr{universe.Addr4(n), universe.Addr6(n)}
		return e
	}
	app := func(name string) policy.Selector { return policy.Selector{Labels: map[string]string{"app": name}} }
	web, everybody := app("web"), policy.Selector{}
	policies := []policy.Policy{
		{
			Namespace: "shop", Name: "db", Pods: app("db"), Isolates: policy.Of(policy.Ingress),
			Ingress: []policy.Rule{{
				Peers: []policy.Peer{{Pods: &web}},
				Ports: []policy.Port{{Protocol: policy.TCP, Number: 5432}, {Protocol: policy.UDP}},
			}},
		},
		{
			Namespace: "shop", Name: "web", Pods: web, Isolates: policy.Both,
			Ingress: []policy.Rule{{Ports: []policy.Port{{Protocol: policy.TCP, Number: 80}, {Protocol: policy.TCP, Number: 8000, End: 8999}}}},
			Egress: []policy.Rule{{Peers: []policy.Peer{
				{Block: &policy.Block{CIDR: netip.MustParsePrefix("0.0.0.0/0"), Except: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
				{Namespaces: &everybody},
			}}},
		},
	}
	if more {
		policies = append(policies, policy.Policy{
			Namespace: "shop", Name: "strict", Pods: app("db"), Isolates: policy.Both, Audit: true,
			Ingress: []policy.Rule{{
				Peers: []policy.Peer{{Block: &policy.Block{CIDR: netip.MustParsePrefix("2001:db8::/32")}}, {Namespaces: &everybody, Pods: &web}},
				Ports: []policy.Port{{Protocol: policy.TCP, Name: "sql"}, {Protocol: policy.SCTP, Number: 9}},
			}},
			Egress: []policy.Rule{{Ports: []policy.Port{{Protocol: policy.UDP, Name: "dns"}}}},
		})
	}
	w := policy.World{Endpoints: []policy.Endpoint{
		end("web1", "web", 2), end("web2", "web", 0x30002),
		end("db1", "db", 3, policy.NamedPort{Name: "sql", Protocol: policy.TCP, Number: 5432}, policy.NamedPort{Name: "dns", Protocol: policy.UDP, Number: 53}),
	}}
	prog := policy.Compile(policies, w, func(e policy.Endpoint) bool { return e.Name != "web2" })
	return &prog
}

// handles are the rules that the kernel has, which keep their numbers while they stay.
func handles(t *testing.T) (out []string) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			out = append(out, fmt.Sprint(c.Name, r.Handle))
		}
	}
	slices.Sort(out)
	return out
}

// An endpoint that comes or goes changes elements: no rule is made anew.
func TestEndpointsChangeElementsOnly(t *testing.T) {
	routertest.New(t).Do(func() {
		c := policy.NewCompiler()
		web := policy.Selector{Labels: map[string]string{"app": "web"}}
		c.SetPolicies([]policy.Policy{{
			Namespace: "shop", Name: "db", Isolates: policy.Of(policy.Ingress),
			Ingress: []policy.Rule{{Peers: []policy.Peer{{Pods: &web}}, Ports: []policy.Port{{Protocol: policy.TCP, Name: "sql"}}}},
		}}, nil)
		put := func(n slot.Slot, local bool) {
			c.Put(policy.Endpoint{
				ID: fmt.Sprint(n), Namespace: "shop", Labels: map[string]string{"app": "web"},
				Addrs: []netip.Addr{universe.Addr4(n), universe.Addr6(n)}, Ports: []policy.NamedPort{{Name: "sql", Protocol: policy.TCP, Number: 5432}},
			}, local)
		}
		var k Kernel
		defer k.Close()
		var b Builder
		apply := func(what string) []string {
			t.Helper()
			prog := c.Program()
			p := b.Build(config(func(c *Config) { c.Policy = &prog }))
			if err := k.Apply(p); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			compareWithNft(t, what, p)
			return handles(t)
		}
		put(2, true)
		before := apply("one")
		for n := range slot.Slot(2000) {
			put(n+3, n < 50)
		}
		if after := apply("many"); !slices.Equal(before, after) {
			t.Errorf("rules were made anew: %v, %v", before, after)
		}
		for n := range slot.Slot(2000) {
			c.Remove(fmt.Sprint(n + 3))
		}
		if after := apply("one again"); !slices.Equal(before, after) {
			t.Errorf("rules were made anew: %v, %v", before, after)
		}
	})
}
