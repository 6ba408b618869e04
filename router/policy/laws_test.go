package policy_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	. "weft/router/policy"
	"weft/router/policy/policytest"
)

var suite = policytest.World()

// draw makes the random choices from a property test.
func draw(t *rapid.T) policytest.Random {
	return func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "choice") }
}

// The order of policies, rules and peers does not matter.
func TestOrderOfPoliciesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, p := draw(t).Policies(), draw(t).Packet(suite)
		want := Evaluate(policies, suite, p).Allowed
		turned := slices.Clone(policies)
		slices.Reverse(turned)
		for i := range turned {
			turned[i].Ingress, turned[i].Egress = backwards(turned[i].Ingress), backwards(turned[i].Egress)
		}
		if got := Evaluate(turned, suite, p).Allowed; got != want {
			t.Errorf("packet %+v is allowed: %v, with the policies in reverse order: %v; want the same", p, want, got)
		}
	})
}

func backwards(rules []Rule) []Rule {
	rules = slices.Clone(rules)
	slices.Reverse(rules)
	for i := range rules {
		rules[i].Peers, rules[i].Ports = slices.Clone(rules[i].Peers), slices.Clone(rules[i].Ports)
		slices.Reverse(rules[i].Peers)
		slices.Reverse(rules[i].Ports)
	}
	return rules
}

// A packet that is allowed stays allowed when a policy has an additional rule.
func TestAdditionalRulesDenyNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, p := draw(t).Policies(), draw(t).Packet(suite)
		if len(policies) == 0 {
			return
		}
		before := Evaluate(policies, suite, p).Allowed
		more := slices.Clone(policies)
		i := rapid.IntRange(0, len(more)-1).Draw(t, "which")
		more[i].Ingress = append(slices.Clone(more[i].Ingress), draw(t).Rule())
		more[i].Egress = append(slices.Clone(more[i].Egress), draw(t).Rule())
		if after := Evaluate(more, suite, p).Allowed; before && !after {
			t.Errorf("packet %+v is denied after a rule was added; want it allowed as before", p)
		}
	})
}

// Without blocks, the verdict is the same in both families.
func TestVerdictIsSameInBothFamilies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, p := draw(t).Policies(), draw(t).Packet(suite)
		for i := range policies {
			for _, rules := range [][]Rule{policies[i].Ingress, policies[i].Egress} {
				for j := range rules {
					rules[j].Peers = slices.DeleteFunc(rules[j].Peers, func(p Peer) bool { return p.Block != nil })
				}
			}
		}
		src, known := suite.At(p.Src)
		if !known {
			return
		}
		dst, _ := suite.At(p.Dst)
		var got [2]bool
		for family := range got {
			p.Src, p.Dst = src.Addrs[family], dst.Addrs[family]
			got[family] = Evaluate(policies, suite, p).Allowed
		}
		if got[0] != got[1] {
			t.Errorf("packet %+v: allowed %v over IPv4, %v over IPv6; want the same", p, got[0], got[1])
		}
	})
}

// A denied packet has a reason for each rule that could have allowed it. An allowed packet has the
// rule that allows it, if policies apply.
func TestVerdictsHaveReasons(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := Evaluate(draw(t).Policies(), suite, draw(t).Packet(suite))
		if v.Allowed != (v.Egress.Allowed && v.Ingress.Allowed) {
			t.Errorf("the verdict contradicts its two decisions: %+v; want it allowed exactly if both allow it", v)
		}
		for _, d := range []Decision{v.Egress, v.Ingress} {
			isolated := len(d.Policies) > 0
			switch {
			case !isolated && (!d.Allowed || d.By != nil || d.Misses != nil):
				t.Errorf("no policy applies, but the decision is %+v; want it allowed without reasons", d)
			case isolated && d.Allowed && (d.By == nil || d.By.Text == "" || d.Misses != nil):
				t.Errorf("an isolated endpoint's packet is allowed by the decision %+v; want the rule that allows it", d)
			case isolated && !d.Allowed && (d.By != nil || len(d.Misses) == 0):
				t.Errorf("a packet is denied by the decision %+v; want reasons, and no rule that allows it", d)
			}
		}
	})
}
