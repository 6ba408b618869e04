package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// allows interprets a program, as the kernel will.
func (prog Program) allows(p Packet) bool {
	p = p.opened()
	return p.FromOwnHost || prog.judge(prog.Isolated, Egress, p.Src, p.Dst, p) && prog.judge(prog.Isolated, Ingress, p.Dst, p.Src, p)
}

func (prog Program) judge(list []Isolated, d Direction, own, other netip.Addr, p Packet) bool {
	i := slices.IndexFunc(list, func(i Isolated) bool { return i.Direction == d && i.Addr == own })
	if i < 0 || slices.Contains(list[i].Self, other) {
		return true
	}
	c := slices.IndexFunc(prog.Chains, func(c *Chain) bool { return c.Name == list[i].Chain })
	return slices.ContainsFunc(prog.Chains[c].Matches, func(m Match) bool { return prog.fits(m, other, p) })
}

func (prog Program) set(name string) *Set {
	return prog.Sets[slices.IndexFunc(prog.Sets, func(s *Set) bool { return s.Name == name })]
}

func (s *Set) contains(a netip.Addr) bool {
	return slices.Contains(s.Addrs, a) || slices.ContainsFunc(s.Blocks, func(i Interval) bool {
		return a.BitLen() == i.First.BitLen() && !a.Less(i.First) && !i.Last.Less(a)
	})
}

func (prog Program) fits(m Match, other netip.Addr, p Packet) bool {
	switch {
	case m.Peers != "" && !prog.set(m.Peers).contains(other):
		return false
	case m.Protocol != 0 && m.Protocol != p.Protocol:
		return false
	case m.Named != "":
		return slices.Contains(prog.set(m.Named).Services, Service{p.Dst, p.Protocol, p.DstPort})
	case len(m.Ports) > 0:
		return slices.ContainsFunc(m.Ports, func(r Range) bool { return r.First <= p.DstPort && p.DstPort <= r.Last })
	}
	return true
}

func everyone(Endpoint) bool { return true }

// The two ways to an answer agree on every packet: what the program of the hosts does, and
// what the text of the API says.
func TestCompileIsEvaluate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies := somePolicies(t)
		prog := Compile(policies, suite, everyone)
		for range 20 {
			p := somePacket(t)
			p.Reply = rapid.Bool().Draw(t, "reply")
			if p.Reply {
				p.Src, p.Dst, p.SrcPort, p.DstPort = p.Dst, p.Src, p.DstPort, p.SrcPort
			}
			if rapid.IntRange(0, 5).Draw(t, "outside") == 0 {
				p.Src = rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("10.0.2.77")}).Draw(t, "stranger")
			}
			want := Evaluate(policies, suite, p)
			if got := prog.allows(p); got != want.Allowed {
				t.Fatalf("%+v: the program says %v\n%+v\n%+v", p, got, want, prog)
			}
			if p.FromOwnHost {
				continue
			}
			opened := p.opened()
			for d, want := range map[Direction]Decision{Egress: want.Egress, Ingress: want.Ingress} {
				own, other := opened.Src, opened.Dst
				if d == Ingress {
					own, other = other, own
				}
				audit := want.Allowed
				if want.Tried != nil {
					audit = want.Tried.Allowed
				}
				if len(prog.Tried) > 0 && slices.ContainsFunc(prog.Tried, func(i Isolated) bool { return i.Direction == d && i.Addr == own }) &&
					prog.judge(prog.Tried, d, own, other, opened) != audit {
					t.Fatalf("%+v, %v: what is tried is not %v: %+v\n%+v", p, d, audit, want, prog)
				}
			}
		}
	})
}

// A compiler that has seen endpoints come, go and change says what a new one says.
func TestCompilerFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCompiler()
		w, policies, local := World{Namespaces: map[string]map[string]string{}}, []Policy{}, map[string]bool{}
		namespaces := []map[string]map[string]string{suite.Namespaces, {"x": {"ns": "y"}}, {}}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			e := rapid.SampledFrom(suite.Endpoints).Draw(t, "endpoint")
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				policies, w.Namespaces = somePolicies(t), rapid.SampledFrom(namespaces).Draw(t, "namespaces")
				c.SetPolicies(policies, w.Namespaces)
			case 1:
				c.Remove(e.ID)
				w.Endpoints = slices.DeleteFunc(slices.Clone(w.Endpoints), func(o Endpoint) bool { return o.ID == e.ID })
			default:
				other := rapid.SampledFrom(suite.Endpoints).Draw(t, "other")
				e.Labels = other.Labels
				if rapid.IntRange(0, 4).Draw(t, "address of another") == 0 {
					e.Addrs = other.Addrs
				}
				local[e.ID] = rapid.Bool().Draw(t, "local")
				c.Put(e, local[e.ID])
				w.Endpoints = append(slices.DeleteFunc(slices.Clone(w.Endpoints), func(o Endpoint) bool { return o.ID == e.ID }), e)
			}
			want := Compile(policies, w, func(e Endpoint) bool { return local[e.ID] })
			compare := gocmp.Options{gocmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty(), cmpopts.SortSlices(func(a, b Isolated) bool {
				return fmt.Sprint(a) < fmt.Sprint(b) // two endpoints with one address
			})}
			if d := gocmp.Diff(want, c.Program(), compare); d != "" {
				t.Fatalf("(-anew +followed)\n%s", d)
			}
		}
	})
}

// Two hosts, each with the program for its own endpoints, do together what one for all does.
func TestEachHostDoesItsPart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, p := somePolicies(t), somePacket(t)
		onFirst := func(e Endpoint) bool { return e.Name == "a" }
		first, second := Compile(policies, suite, onFirst), Compile(policies, suite, func(e Endpoint) bool { return !onFirst(e) })
		if want, got := Evaluate(policies, suite, p).Allowed, first.allows(p) && second.allows(p); got != want {
			t.Errorf("%+v: %v, want %v", p, got, want)
		}
	})
}

// An endpoint that comes or goes changes sets and who is isolated, and no chain that is in use.
func TestEndpointsChangeElementsOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies := somePolicies(t)
		before := Compile(policies, suite, everyone)
		fewer := suite
		fewer.Endpoints = slices.Delete(slices.Clone(suite.Endpoints), 4, 5)
		after := Compile(policies, fewer, everyone)
		for _, c := range after.Chains {
			if !slices.ContainsFunc(before.Chains, func(b *Chain) bool { return gocmp.Equal(b, c) }) {
				t.Errorf("chain %s is another one without y/b: %+v", c.Name, c)
			}
		}
		names := func(p Program) (out []string) {
			for _, s := range p.Sets {
				out = append(out, s.Name)
			}
			return out
		}
		for _, s := range names(after) {
			if !slices.Contains(names(before), s) {
				t.Errorf("set %s is new without y/b", s)
			}
		}
	})
}

// Two selectors that read alike, by odd labels, are two sets.
func TestSelectorsAreNotMistaken(t *testing.T) {
	odd := Selector{Labels: map[string]string{"a=b,c": "d"}}
	even := Selector{Labels: map[string]string{"a": "b", "c": "d"}}
	prog := Compile([]Policy{on().in(from(Peer{Pods: &odd}), from(Peer{Pods: &even}))}, suite, everyone)
	if odd.String() != even.String() || len(prog.Sets) != 2 {
		t.Errorf("%q and %q: %+v", odd, even, prog.Sets)
	}
}

// Endpoints under the same policies share a chain, rules that mean the same share a set.
func TestSharing(t *testing.T) {
	policies := []Policy{
		on().in(from(Peer{Pods: pods("pod", "b")}), from(block("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.255.255.255/32"))),
		on().in(from(Peer{Pods: pods("pod", "b")}).ports(tcp81, tcp80, Port{Protocol: TCP, Number: 79})),
	}
	prog := Compile(policies, suite, everyone)
	if len(prog.Chains) != 1 || len(prog.Isolated) != 6 || len(prog.Sets) != 2 || len(prog.Chains[0].Matches) != 3 {
		t.Errorf("%+v", prog)
	}
	want := []Interval{
		{netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.0.255.255")},
		{netip.MustParseAddr("10.2.0.0"), netip.MustParseAddr("10.255.255.254")},
	}
	compareAddr := gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if d := gocmp.Diff(want, policies[0].Ingress[1].Peers[0].Block.intervals(), compareAddr); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	for _, c := range []struct{ list, want []Range }{
		{[]Range{{81, 81}, {80, 80}, {79, 79}}, []Range{{79, 81}}},
		{[]Range{{80, 80}, {70, 90}, {92, 92}}, []Range{{70, 90}, {92, 92}}},
		{[]Range{{65535, 65535}, {1, 65535}}, []Range{{1, 65535}}},
	} {
		if d := gocmp.Diff(c.want, joined(c.list)); d != "" {
			t.Error(d)
		}
	}
}
