package nft

import (
	"fmt"
	"testing"

	"net/netip"

	"weft/ipam/slot"
	"weft/router/policy"
	"weft/router/routertest"
)

// crowd is a cluster of 10,000 endpoints in 100 namespaces, under 1,000 policies.
func crowd(local int) (policies []policy.Policy, endpoints []policy.Endpoint, isLocal func(policy.Endpoint) bool) {
	sel := func(k, v string) *policy.Selector { return &policy.Selector{Labels: map[string]string{k: v}} }
	for n := range 1000 {
		ns := fmt.Sprintf("ns%d", n%100)
		policies = append(policies, policy.Policy{
			Namespace: ns, Name: fmt.Sprint("p", n), Pods: *sel("app", fmt.Sprint("app", n/100)), Isolates: policy.Both,
			Ingress: []policy.Rule{
				{Peers: []policy.Peer{{Pods: sel("app", fmt.Sprint("app", (n/100+1)%10))}}, Ports: []policy.Port{{Protocol: policy.TCP, Number: uint16(8000 + n%7)}}},
				{Peers: []policy.Peer{{Namespaces: sel("team", fmt.Sprint("t", n%10)), Pods: sel("tier", "front")}}, Ports: []policy.Port{{Protocol: policy.TCP, Name: "http"}}},
			},
			Egress: []policy.Rule{
				{Peers: []policy.Peer{{Block: &policy.Block{CIDR: netip.MustParsePrefix(fmt.Sprintf("198.18.%d.0/24", n%256))}}}},
				{Peers: []policy.Peer{{Namespaces: sel("team", fmt.Sprint("t", (n+3)%10))}}},
			},
		})
	}
	for n := range 10000 {
		s := slot.Slot(n + 2)
		endpoints = append(endpoints, policy.Endpoint{
			ID: fmt.Sprint(n), Namespace: fmt.Sprintf("ns%d", n%100), Name: fmt.Sprint("pod", n),
			Labels: map[string]string{"app": fmt.Sprint("app", n/100%10), "tier": []string{"front", "back"}[n/1000%2], "pod-template-hash": fmt.Sprint(n / 300)},
			Addrs:  []netip.Addr{universe.Addr4(s), universe.Addr6(s)},
			Ports:  []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Number: uint16(8000 + n%3)}},
		})
	}
	return policies, endpoints, func(e policy.Endpoint) bool {
		var n int
		fmt.Sscan(e.ID, &n)
		return n*7919%10000 < local
	}
}

func namespaces() map[string]map[string]string {
	out := map[string]map[string]string{}
	for n := range 100 {
		out[fmt.Sprintf("ns%d", n)] = map[string]string{"team": fmt.Sprint("t", n%10)}
	}
	return out
}

func BenchmarkLoad(b *testing.B) {
	for _, local := range []int{200} {
		policies, endpoints, isLocal := crowd(local)
		w := policy.World{Namespaces: namespaces(), Endpoints: endpoints}
		b.Run(fmt.Sprint(local), func(b *testing.B) {
			routertest.New(b).Do(func() {
				for b.Loop() {
					var k Kernel
					var bu Builder
					prog := policy.Compile(policies, w, isLocal)
					if err := k.Apply(bu.Build(config(func(c *Config) { c.Policy = &prog }))); err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(len(prog.Chains)), "chains")
					b.ReportMetric(float64(len(prog.Sets)), "sets")
					k.Close()
				}
			})
		})
	}
}

func BenchmarkOnePod(b *testing.B) {
	for _, local := range []int{200} {
		policies, endpoints, isLocal := crowd(local)
		b.Run(fmt.Sprint(local), func(b *testing.B) {
			c := policy.NewCompiler()
			c.SetPolicies(policies, namespaces())
			for _, e := range endpoints {
				c.Put(e, isLocal(e))
			}
			var k Kernel
			var bu Builder
			defer k.Close()
			apply := func() {
				prog := c.Program()
				if err := k.Apply(bu.Build(config(func(c *Config) { c.Policy = &prog }))); err != nil {
					b.Fatal(err)
				}
			}
			routertest.New(b).Do(apply) // opens the socket there
			e := endpoints[0]
			for b.Loop() {
				c.Remove(e.ID)
				apply()
				c.Put(e, true)
				apply()
			}
		})
	}
}
