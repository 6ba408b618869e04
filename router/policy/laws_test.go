package policy

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Random policies over the suite's cluster, whose labels and addresses they hit often.

func someSelector(t *rapid.T) *Selector {
	s := &Selector{}
	for key, values := range map[string][]string{"pod": {"a", "b", "c"}, "ns": {"x", "y", "z"}} {
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			s.Labels = map[string]string{key: rapid.SampledFrom(values).Draw(t, "value")}
		case 1:
			op := rapid.SampledFrom([]Op{In, NotIn}).Draw(t, "op")
			s.Expressions = append(s.Expressions, Expression{key, op, rapid.SliceOfN(rapid.SampledFrom(values), 1, 2).Draw(t, "values")})
		case 2:
			s.Expressions = append(s.Expressions, Expression{Key: key, Op: rapid.SampledFrom([]Op{Exists, DoesNotExist}).Draw(t, "op")})
		}
	}
	return s
}

func somePeer(t *rapid.T) Peer {
	switch rapid.IntRange(0, 3).Draw(t, "peer") {
	case 0:
		return Peer{Pods: someSelector(t)}
	case 1:
		return Peer{Namespaces: someSelector(t)}
	case 2:
		return Peer{Namespaces: someSelector(t), Pods: someSelector(t)}
	}
	return rapid.SampledFrom([]Peer{
		block("10.0.0.0/16"), block("10.0.2.0/24", "10.0.2.2/32"), block("10.0.0.0/8", "10.0.1.0/24", "10.0.1.0/31"),
		block("fd00::/96", "fd00::200/120"), block("::/0"), block("0.0.0.0/0", "10.0.3.0/24"),
	}).Draw(t, "block")
}

func somePort(t *rapid.T) Port {
	proto := rapid.SampledFrom([]Protocol{TCP, UDP, SCTP}).Draw(t, "protocol")
	return rapid.SampledFrom([]Port{
		{Protocol: proto},
		{Protocol: proto, Number: 80},
		{Protocol: proto, Number: 81},
		{Protocol: proto, Number: 70, End: 90},
		{Protocol: proto, Name: "serve-tcp"},
		{Protocol: proto, Name: "serve-udp"},
		{Protocol: proto, Name: "nothing"},
	}).Draw(t, "port")
}

func someRule(t *rapid.T) (r Rule) {
	for range rapid.IntRange(0, 2).Draw(t, "peers") {
		r.Peers = append(r.Peers, somePeer(t))
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		r.Ports = append(r.Ports, somePort(t))
	}
	return r
}

func somePolicies(t *rapid.T) (out []Policy) {
	for range rapid.IntRange(0, 4).Draw(t, "policies") {
		p := Policy{
			Namespace: rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "namespace"), Name: "p", Pods: *someSelector(t),
			Isolates: rapid.SampledFrom([]Directions{Of(Ingress), Of(Egress), Both}).Draw(t, "isolates"),
			Audit:    rapid.IntRange(0, 7).Draw(t, "audit") == 0,
		}
		for range rapid.IntRange(0, 2).Draw(t, "ingress") {
			p.Ingress = append(p.Ingress, someRule(t))
		}
		for range rapid.IntRange(0, 2).Draw(t, "egress") {
			p.Egress = append(p.Egress, someRule(t))
		}
		out = append(out, p)
	}
	return out
}

func somePacket(t *rapid.T) Packet {
	family := rapid.IntRange(0, 1).Draw(t, "family")
	return Packet{
		Src: addr(rapid.SampledFrom(all).Draw(t, "src"), family), Dst: addr(rapid.SampledFrom(all).Draw(t, "dst"), family),
		Protocol: rapid.SampledFrom([]Protocol{TCP, UDP, SCTP, 1}).Draw(t, "protocol"),
		SrcPort:  40000, DstPort: rapid.SampledFrom([]uint16{69, 70, 80, 81, 90, 91}).Draw(t, "port"),
	}
}

// The order of policies, of rules and of peers does not matter.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, p := somePolicies(t), somePacket(t)
		want := Evaluate(policies, suite, p).Allowed
		turned := slices.Clone(policies)
		slices.Reverse(turned)
		for i := range turned {
			turned[i].Ingress, turned[i].Egress = backwards(turned[i].Ingress), backwards(turned[i].Egress)
		}
		if got := Evaluate(turned, suite, p).Allowed; got != want {
			t.Errorf("%+v: %v, turned round %v", p, want, got)
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

// One more rule in a policy allows more, or the same.
func TestRulesOnlyAllow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, p := somePolicies(t), somePacket(t)
		if len(policies) == 0 {
			return
		}
		before := Evaluate(policies, suite, p).Allowed
		more := slices.Clone(policies)
		i := rapid.IntRange(0, len(more)-1).Draw(t, "which")
		more[i].Ingress = append(slices.Clone(more[i].Ingress), someRule(t))
		more[i].Egress = append(slices.Clone(more[i].Egress), someRule(t))
		if after := Evaluate(more, suite, p).Allowed; before && !after {
			t.Errorf("%+v: a further rule denies it", p)
		}
	})
}

// Whoever asks in words gets the same answer in both families, but for blocks.
func TestFamiliesAreAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, p := somePolicies(t), somePacket(t)
		for i := range policies {
			for _, rules := range [][]Rule{policies[i].Ingress, policies[i].Egress} {
				for j := range rules {
					rules[j].Peers = slices.DeleteFunc(rules[j].Peers, func(p Peer) bool { return p.Block != nil })
				}
			}
		}
		src, _ := suite.At(p.Src)
		dst, _ := suite.At(p.Dst)
		var got [2]bool
		for family := range got {
			p.Src, p.Dst = src.Addrs[family], dst.Addrs[family]
			got[family] = Evaluate(policies, suite, p).Allowed
		}
		if got[0] != got[1] {
			t.Errorf("%+v: %v over IPv4, %v over IPv6", p, got[0], got[1])
		}
	})
}

// A denied packet has a reason for each rule that could have allowed it; an allowed one
// names the rule, where policies have a say.
func TestVerdictsHaveReasons(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := Evaluate(somePolicies(t), suite, somePacket(t))
		if v.Allowed != (v.Egress.Allowed && v.Ingress.Allowed) {
			t.Errorf("the parts do not make the whole: %+v", v)
		}
		for _, d := range []Decision{v.Egress, v.Ingress} {
			isolated := len(d.Policies) > 0
			switch {
			case !isolated && (!d.Allowed || d.By != nil || d.Misses != nil):
				t.Errorf("not isolated, and yet: %+v", d)
			case isolated && d.Allowed && (d.By == nil || d.By.Text == "" || d.Misses != nil):
				t.Errorf("allowed by whom? %+v", d)
			case isolated && !d.Allowed && (d.By != nil || len(d.Misses) == 0):
				t.Errorf("denied, why? %+v", d)
			}
		}
	})
}
