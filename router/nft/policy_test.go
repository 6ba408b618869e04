package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"

	"weft/ipam/slot"
	"weft/router/policy"
	"weft/router/routertest"
)

// shop is a program with all kinds of policies. The policies say which endpoints may reach the
// database on which ports, and which outside destinations the web servers may reach. more adds a
// policy in audit mode, named ports and SCTP.
func shop(more bool) *policy.Program {
	policies, w := shopPolicies(more)
	prog := policy.Compile(policies, w, func(e policy.Endpoint) bool { return e.Name != "web2" })
	return &prog
}

func shopPolicies(more bool) ([]policy.Policy, policy.World) {
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
	return policies, w
}

// policy.Evaluate, the program, and the rules and sets that are read back from the kernel agree on
// packets.
func TestKernelEvaluatesLikePolicy(t *testing.T) {
	policies, w := shopPolicies(true)
	p := build(golden["policies"])
	routertest.New(t).Do(func() {
		var k Kernel
		defer k.Close()
		if err := k.Apply(p); err != nil {
			t.Fatal(err)
		}
		outside := policy.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
		denied := 0
		for _, src := range append(slices.Clone(w.Endpoints), outside) {
			for _, dst := range append(slices.Clone(w.Endpoints), outside) {
				for n := range 16 {
					q := policy.Packet{
						Src: src.Addrs[n%2], Dst: dst.Addrs[n%2], SrcPort: 40000,
						Protocol: []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, 1}[n/2%4], DstPort: []uint16{80, 5432}[n/8],
					}
					want := policy.Evaluate(policies, w, q)
					if src.ID == dst.ID || src.Name == "web2" {
						continue
					}
					packet := Packet{Src: q.Src, Dst: q.Dst, Protocol: byte(q.Protocol), SrcPort: q.SrcPort, DstPort: q.DstPort}
					m := machine{tables: p, packet: packet}
					out, err := m.run("policies", 0)
					ingress, egress := want.Ingress.Allowed, want.Egress.Allowed
					if dst.Name == "web2" { // web2 is an endpoint of another host
						ingress = true
					}
					if err != nil || (out != drops) != (ingress && egress) {
						t.Errorf("packet %+v: outcome %v, error %v, through chains %v; want %+v", q, out, err, m.passed, want)
					}
					answer := machine{tables: p, packet: Packet{Src: q.Dst, Dst: q.Src, Protocol: packet.Protocol, SrcPort: q.DstPort, DstPort: q.SrcPort, Reply: true}}
					if out, err := answer.run("policies", 0); err != nil || (out != drops) != (ingress && egress) {
						t.Errorf("reply to %+v: outcome %v, error %v, through chains %v; want %+v", q, out, err, answer.passed, want)
					}
					for d, allowed := range map[policy.Direction]bool{policy.Ingress: ingress, policy.Egress: egress} {
						own := q.Src
						if d == policy.Ingress {
							own = q.Dst
						}
						j, err := k.Evaluate(d, own, packet)
						if err != nil || j.Allowed != allowed {
							t.Errorf("packet %+v: %v in the kernel is %+v, error %v; want %v", q, d, j, err, allowed)
						}
						if !allowed {
							denied++
						}
					}
				}
			}
		}
		if denied < 20 {
			t.Errorf("only %d packets were denied; want at least 20, else the test proves nothing", denied)
		}
	})
}

// handles returns the handles of all rules in the kernel. A rule that is not replaced keeps its handle.
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

// The chain of an endpoint has all its rules one transaction before anything refers to it.
// Otherwise a packet could meanwhile pass through the empty chain.
func TestChainsAreCompleteBeforeAnythingRefersToThem(t *testing.T) {
	routertest.New(t).Do(func() {
		var k Kernel
		defer k.Close()
		before := build(golden["guard"])
		if err := k.Apply(before); err != nil {
			t.Fatal(err)
		}
		after := build(golden["policies"])
		b := &batch{Kernel: &k, oldSets: byName(before.Sets, setName), oldChains: byName(before.Chains, chainName)}
		b.prepare(after)
		if err := errors.Join(b.err, k.conn.Flush()); err != nil {
			t.Fatal(err)
		}
		prepared := 0
		for _, c := range after.Chains {
			if c.Hook != nil || b.oldChains[c.Name] != nil {
				continue
			}
			prepared++
			rules, err := k.conn.GetRules(table, &nftables.Chain{Name: c.Name, Table: table})
			if err != nil || len(rules) != len(c.Rules) {
				t.Errorf("chain %s in the kernel has %d rules; want %d: %v", c.Name, len(rules), len(c.Rules), err)
			}
		}
		for _, c := range before.Chains {
			rules, err := k.conn.GetRules(table, &nftables.Chain{Name: c.Name, Table: table})
			if err != nil || len(rules) != len(c.Rules) {
				t.Errorf("chain %s of the old program has %d rules, want %d: %v", c.Name, len(rules), len(c.Rules), err)
			}
		}
		if prepared < 10 {
			t.Errorf("only %d chains are new, want at least 10", prepared)
		}
		b.goOver(before, after, byName(after.Sets, setName))
		if err := errors.Join(b.err, k.conn.Flush()); err != nil {
			t.Fatal(err)
		}
		compareWithNft(t, "after both transactions", after)
		k.loaded = nil

		// Apply makes two transactions of this change, and one transaction of a change that adds no
		// chain.
		transactions := func(p Program) uint32 {
			t.Helper()
			from, err := k.generation()
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Apply(p); err != nil {
				t.Fatal(err)
			}
			to, err := k.generation()
			if err != nil {
				t.Fatal(err)
			}
			return to - from
		}
		transactions(before)
		if n := transactions(after); n != 2 {
			t.Errorf("Apply made %d transactions for a program with new chains, want 2", n)
		}
		if n := transactions(before); n != 1 {
			t.Errorf("Apply made %d transactions for a program without new chains, want 1", n)
		}
	})
}

// Adding or removing an endpoint changes elements and keeps all rules.
func TestEndpointChangesKeepRules(t *testing.T) {
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
			p := b.Build(config(func(c *Config) { c.Policy.Program = &prog }))
			if err := k.Apply(p); err != nil {
				t.Fatalf("applying the policies, %s: %v", what, err)
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
			t.Errorf("adding endpoints replaced the rules %v by %v; want the same rules", before, after)
		}
		for n := range slot.Slot(2000) {
			c.Remove(fmt.Sprint(n + 3))
		}
		if after := apply("one again"); !slices.Equal(before, after) {
			t.Errorf("removing endpoints replaced the rules %v by %v; want the same rules", before, after)
		}
	})
}

// A thousand endpoints with separate policies are loaded in one transaction.
func TestKernelLoadsManyChains(t *testing.T) {
	const endpoints = 1000
	var policies []policy.Policy
	w := policy.World{Namespaces: map[string]map[string]string{"shop": nil}}
	for n := range endpoints {
		app := fmt.Sprint("app", n)
		w.Endpoints = append(w.Endpoints, policy.Endpoint{
			ID: app, Namespace: "shop", Name: app, Labels: map[string]string{"app": app}, Addrs: []netip.Addr{universe.Addr4(slot.Slot(n + 2))},
		})
		p := policy.Policy{Namespace: "shop", Name: app, Pods: policy.Selector{Labels: map[string]string{"app": app}}, Isolates: policy.Both}
		for i := range 10 {
			rule := policy.Rule{Ports: []policy.Port{{Protocol: policy.TCP, Number: uint16(1 + n*10 + i)}}, Peers: []policy.Peer{{Block: &policy.Block{CIDR: universe.V4}}}}
			p.Ingress, p.Egress = append(p.Ingress, rule), append(p.Egress, rule)
		}
		policies = append(policies, p)
	}
	prog := policy.Compile(policies, w, func(policy.Endpoint) bool { return true })
	routertest.New(t).Do(func() {
		var k Kernel
		defer k.Close()
		if err := k.Apply(build(config(func(c *Config) { c.Policy.Program = &prog }))); err != nil {
			t.Fatal(err)
		}
		if rules, _ := counts(t); rules < 4*endpoints*10 {
			t.Errorf("the kernel has %d rules for %d endpoints; want at least 40 for each", rules, endpoints)
		}
	})
}
