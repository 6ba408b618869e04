package nft

import (
	"net/netip"
	"slices"
	"testing"

	"weft/router/policy"
	"weft/router/routertest"
)

// hosts are this host and two other hosts. One of these uses other ports and has no IPv6.
var hosts = Hosts{
	TCP: []uint16{6783}, UDP: []uint16{6783, 6784},
	Peers: slices.Concat(agentAt("192.0.2.2", 6783, 6784), agentAt("2001:db8::2", 6783, 6784), agentAt("192.0.2.3", 7000, 7001),
		agentAt("::ffff:192.0.2.3", 7000, 7001), []policy.Service{{}}),
	Nodes: []netip.Addr{universe.Addr4(0x50001), universe.Addr6(0x50001), universe.Addr4(0x60001), {}},
}

// agentAt returns the services of an agent and its tunnel at an address.
func agentAt(addr string, gossip, tunnel uint16) []policy.Service {
	a := netip.MustParseAddr(addr)
	return []policy.Service{{Addr: a, Protocol: policy.TCP, Port: gossip}, {Addr: a, Protocol: policy.UDP, Port: gossip}, {Addr: a, Protocol: policy.UDP, Port: tunnel}}
}

// manyHosts is the configuration with a thousand hosts, each with four addresses, two ports and a node
// address. port is the WireGuard port of the first host.
func manyHosts(port uint16, policies *policy.Program) Config {
	return config(func(c *Config) {
		c.Policy.Program = policies
		c.Guard.Hosts.TCP, c.Guard.Hosts.UDP = []uint16{6783, 6784}, []uint16{6783, 6784}
		for i := range 1000 {
			hi, lo := byte(i>>8), byte(i)
			for _, a := range []netip.Addr{
				netip.AddrFrom4([4]byte{192, 168, hi, lo}), netip.AddrFrom4([4]byte{172, 16, hi, lo}),
				netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: hi, 15: lo}), netip.AddrFrom16([16]byte{0xfd, 9, 14: hi, 15: lo}),
			} {
				for _, number := range []policy.Protocol{policy.TCP, policy.UDP} {
					c.Guard.Hosts.Peers = append(c.Guard.Hosts.Peers, policy.Service{Addr: a, Protocol: number, Port: 6783}, policy.Service{Addr: a, Protocol: number, Port: port})
				}
			}
			c.Guard.Hosts.Nodes = append(c.Guard.Hosts.Nodes, netip.AddrFrom4([4]byte{10, 40, hi, lo}))
			port = 6784
		}
	})
}

// All addresses of many hosts are loaded. If one host changes, only the elements of that host
// change: neither the guard nor the policies are rebuilt.
func TestChangeOfOneHostChangesOnlyTheElementsOfThatHost(t *testing.T) {
	routertest.New(t).Do(func() {
		var b Builder
		var k Kernel
		defer k.Close()
		policies := shop(false)
		before := manyHosts(6784, policies)
		first := b.Build(before)
		if err := k.Apply(first); err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, s := range first.Sets {
			if !s.Interval {
				total += s.Elements.Len()
			}
		}
		if total < 17000 {
			t.Errorf("the program has %d elements, want those of a thousand hosts", total)
		}
		if _, elements := counts(t); elements < total {
			t.Errorf("the kernel has %d elements, want at least %d", elements, total)
		}
		slices.Reverse(before.Guard.Hosts.Peers) // the order must not matter
		if again := b.Build(before); len(changed(first, again)) > 0 {
			t.Errorf("the same hosts in another order change the sets by %v elements, want none", changed(first, again))
		}
		second := b.Build(manyHosts(7000, policies))
		if got := changed(first, second); !slices.Equal(got, []int{4, 4, 4, 4}) { // one set of each family loses and gains elements
			t.Errorf("changing one host deletes and adds %v elements; want 4 deleted and 4 added elements in one set of each family", got)
		}
		if gone, come := differing(first.Chains, second.Chains); len(gone)+len(come) > 0 {
			t.Errorf("%d chains were deleted and %d added, want none", len(gone), len(come))
		}
		if err := k.load(second); err != nil {
			t.Fatal(err)
		}
		compareWithNft(t, "changed", second)
	})
}

// changed returns the numbers of deleted and added elements of each changed set.
func changed(before, after Program) (out []int) {
	olds, news := byName(before.Sets, setName), byName(after.Sets, setName)
	for _, s := range after.Sets {
		for _, n := range []int{len(olds[s.Name].missing(s)), len(s.missing(olds[s.Name]))} {
			if n > 0 {
				out = append(out, n)
			}
		}
	}
	if len(olds) != len(news) {
		out = append(out, -1)
	}
	return out
}

// BenchmarkOneHostOfThousandChanges measures a changed port of one of a thousand hosts, from the
// agent's list to the kernel.
func BenchmarkOneHostOfThousandChanges(b *testing.B) {
	routertest.New(b).Do(func() {
		var builder Builder
		var k Kernel
		defer k.Close()
		configs := []Config{manyHosts(6784, nil), manyHosts(7000, nil)}
		i := 0
		for b.Loop() {
			i++
			if err := k.Apply(builder.Build(configs[i%2])); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkThousandHostsUnchanged measures the check that the agent makes every two seconds, for a
// thousand unchanged hosts.
func BenchmarkThousandHostsUnchanged(b *testing.B) {
	routertest.New(b).Do(func() {
		var builder Builder
		var k Kernel
		defer k.Close()
		c := manyHosts(6784, nil)
		for b.Loop() {
			if err := k.Apply(builder.Build(c)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
