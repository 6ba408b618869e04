package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	. "weft/router/policy"
	"weft/router/policy/policytest"
)

func everyone(Endpoint) bool { return true }

// Evaluate and compiled programs give the same verdict for every packet.
func TestCompiledProgramsGiveTheVerdictsOfEvaluate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies := draw(t).Policies()
		prog := Compile(policies, suite, everyone)
		for range 20 {
			p := draw(t).Packet(suite)
			want := Evaluate(policies, suite, p)
			if got := Evaluate(policies, suite, policytest.Answer(p)); got.Allowed != want.Allowed {
				t.Fatalf("packet %+v is allowed: %v, but its reply: %v; want the same", p, want.Allowed, got.Allowed)
			}
			if got := policytest.Allows(prog, p); got != want.Allowed {
				t.Fatalf("packet %+v: the program's verdict is %v; want that of Evaluate:\n%+v\n%+v", p, got, want, prog)
			}
			for d, want := range map[Direction]Decision{Egress: want.Egress, Ingress: want.Ingress} {
				tried := want.Allowed
				if want.Tried != nil {
					tried = want.Tried.Allowed
				}
				own := p.Src
				if d == Ingress {
					own = p.Dst
				}
				told := slices.ContainsFunc(prog.Tried, func(i Isolated) bool { return i.Direction == d && i.Addr == own })
				if !told && want.Tried != nil || told && policytest.AllowsIn(prog, prog.Tried, d, p) != tried {
					t.Fatalf("packet %+v, %v: with the policies in audit mode, the program's verdict is missing or wrong; want %v: %+v\n%+v", p, d, tried, want, prog)
				}
			}
		}
	})
}

// A compiler that follows changes of endpoints gives the same program as a new compiler.
func TestCompilerFollowsEndpointChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCompiler()
		w, policies, local := World{Namespaces: map[string]map[string]string{}}, []Policy{}, map[string]bool{}
		namespaces := []map[string]map[string]string{suite.Namespaces, {"x": {"ns": "y"}}, {}}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			e := rapid.SampledFrom(suite.Endpoints).Draw(t, "endpoint")
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				policies, w.Namespaces = draw(t).Policies(), rapid.SampledFrom(namespaces).Draw(t, "namespaces")
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
			compare := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty(), cmpopts.SortSlices(func(a, b Isolated) bool {
				return fmt.Sprint(a) < fmt.Sprint(b) // the order of two endpoints with one address
			})}
			if d := cmp.Diff(want, c.Program(), compare); d != "" {
				t.Fatalf("the programs differ, want the same (-new compiler +updated compiler):\n%s", d)
			}
		}
	})
}

// Two hosts, each with the program for its own endpoints, give together the same verdict as one
// host with all endpoints.
func TestProgramsOfTwoHostsMatchEvaluate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, p := draw(t).Policies(), draw(t).Packet(suite)
		onFirst := func(e Endpoint) bool { return e.Name == "a" }
		first, second := Compile(policies, suite, onFirst), Compile(policies, suite, func(e Endpoint) bool { return !onFirst(e) })
		if want, got := Evaluate(policies, suite, p).Allowed, policytest.Allows(first, p) && policytest.Allows(second, p); got != want {
			t.Errorf("packet %+v is allowed: %v; want %v", p, got, want)
		}
	})
}

// Adding or removing an endpoint changes sets and isolated addresses, but no chain in use.
func TestEndpointChangesKeepChains(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies := draw(t).Policies()
		before := Compile(policies, suite, everyone)
		fewer := suite
		fewer.Endpoints = slices.Delete(slices.Clone(suite.Endpoints), 4, 5)
		after := Compile(policies, fewer, everyone)
		for _, c := range after.Chains {
			if !slices.ContainsFunc(before.Chains, func(b *Chain) bool { return cmp.Equal(b, c) }) {
				t.Errorf("removing the endpoint y/b changed chain %s to %+v; want only sets to change", c.Name, c)
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
				t.Errorf("removing the endpoint y/b added the set %s; want no new set", s)
			}
		}
	})
}
