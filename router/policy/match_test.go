package policy

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func everyone(Endpoint) bool { return true }

// Selectors that print the same text because of unusual labels still have separate sets.
func TestSelectorsThatPrintAlikeAreDistinct(t *testing.T) {
	odd := Selector{Labels: map[string]string{"a=b,c": "d"}}
	even := Selector{Labels: map[string]string{"a": "b", "c": "d"}}
	prog := Compile([]Policy{on().in(from(Peer{Pods: &odd}), from(Peer{Pods: &even}))}, suite, everyone)
	if odd.String() != even.String() || len(prog.Sets) != 2 {
		t.Errorf("the selectors %q and %q differ, but share a set: %+v; want two sets", odd, even, prog.Sets)
	}
}

// Endpoints under the same policies share a chain, and equal rules share a set.
func TestEqualPoliciesShareChainsAndSets(t *testing.T) {
	policies := []Policy{
		on().in(from(Peer{Pods: pods("pod", "b")}), from(block("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.255.255.255/32"))),
		on().in(from(Peer{Pods: pods("pod", "b")}).ports(tcp81, tcp80, Port{Protocol: TCP, Number: 79})),
	}
	prog := Compile(policies, suite, everyone)
	if len(prog.Chains) != 1 || len(prog.Isolated) != 6 || len(prog.Sets) != 2 || len(prog.Chains[0].Matches) != 3 {
		t.Errorf("the program is %+v; want 1 chain with 3 matches, 6 isolated addresses and 2 sets", prog)
	}
	want := []Interval{
		{netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.0.255.255")},
		{netip.MustParseAddr("10.2.0.0"), netip.MustParseAddr("10.255.255.254")},
	}
	compareAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if d := cmp.Diff(want, policies[0].Ingress[1].Peers[0].Block.intervals(), compareAddr); d != "" {
		t.Errorf("the intervals of the block differ (-want +got)\n%s", d)
	}
	for _, c := range []struct{ list, want []Range }{
		{[]Range{{81, 81}, {80, 80}, {79, 79}}, []Range{{79, 81}}},
		{[]Range{{80, 80}, {70, 90}, {92, 92}}, []Range{{70, 90}, {92, 92}}},
		{[]Range{{65535, 65535}, {1, 65535}}, []Range{{1, 65535}}},
	} {
		if d := cmp.Diff(c.want, joined(c.list)); d != "" {
			t.Error("the joined port ranges differ (-want +got):", d)
		}
	}
}
