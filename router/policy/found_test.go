package policy_test

import (
	"net/netip"
	"testing"

	. "weft/router/policy"
	"weft/router/policy/policytest"
)

// Random tests found these cases while the compiler was written. Each case is reduced to a minimum.
// The program of one host, and the programs of two hosts, give the same verdict as Evaluate.
func TestProgramsMatchEvaluateInCasesThatFailedBefore(t *testing.T) {
	addr := netip.MustParseAddr
	all := func(list ...Port) []Rule { return []Rule{{Ports: list}} }
	blocks := func(cidr string, except ...netip.Prefix) Rule {
		return Rule{Peers: []Peer{{Block: &Block{CIDR: netip.MustParsePrefix(cidr), Except: except}}}}
	}
	anyTCP := Port{Protocol: TCP}
	pod := func(name string) Selector { return Selector{Labels: map[string]string{"pod": name}} }
	x := func(pods Selector, isolates Directions, ingress, egress []Rule) Policy {
		return Policy{Namespace: "x", Name: "p", Pods: pods, Isolates: isolates, Ingress: ingress, Egress: egress}
	}
	tried := x(Selector{}, Of(Egress), nil, nil)
	tried.Audit = true
	withPorts := blocks("fd00::/96")
	withPorts.Ports = []Port{anyTCP, {Protocol: UDP}}

	for name, c := range map[string]struct {
		policy   Policy
		src, dst string
		protocol Protocol
		port     uint16
		allowed  bool
	}{
		"audit policy denies nothing":                     {tried, "fd00::102", "fd00::301", UDP, 81, true},
		"port range contains the ports between its ends":  {x(Selector{}, Of(Ingress), all(Port{Protocol: TCP, Number: 70, End: 90}), nil), "10.0.3.2", "10.0.1.2", TCP, 81, true},
		"port range excludes the ports after its end":     {x(Selector{}, Of(Ingress), all(Port{Protocol: TCP, Number: 70, End: 90}), nil), "10.0.3.2", "10.0.1.2", TCP, 91, false},
		"protocol without port means all its ports":       {x(pod("c"), Of(Ingress), all(Port{Protocol: SCTP, Number: 70, End: 90}, anyTCP), nil), "10.0.2.1", "10.0.1.3", TCP, 69, true},
		"block applies to each protocol of its rule":      {x(pod("b"), Of(Egress), nil, []Rule{withPorts}), "fd00::102", "fd00::101", TCP, 90, true},
		"IPv4 block contains no IPv6 address":             {x(Selector{}, Of(Egress), nil, []Rule{blocks("0.0.0.0/0", netip.MustParsePrefix("10.0.3.0/24"))}), "fd00::101", "fd00::201", ICMPv6, 0, false},
		"except removes its whole range from a block":     {x(Selector{}, Of(Ingress), []Rule{blocks("fd00::/96", netip.MustParsePrefix("fd00::200/120"))}, nil), "fd00::202", "fd00::102", TCP, 81, false},
		"addresses after an except are in the block":      {x(Selector{}, Of(Ingress), []Rule{blocks("fd00::/96", netip.MustParsePrefix("fd00::200/120"))}, nil), "fd00::301", "fd00::102", TCP, 81, true},
		"isolated endpoint reaches itself":                {x(pod("a"), Both, nil, nil), "10.0.1.1", "10.0.1.1", TCP, 70, true},
		"undeclared port name allows nothing":             {x(Selector{}, Of(Ingress), all(Port{Protocol: TCP, Name: "nothing"}), nil), "10.0.3.3", "10.0.1.2", TCP, 80, false},
		"named port is looked up at the destination":      {x(Selector{}, Of(Ingress), all(Port{Protocol: UDP, Name: "serve-udp"}), nil), "10.0.2.77", "10.0.1.2", UDP, 80, true},
		"named port never matches an unknown destination": {x(Selector{}, Of(Egress), nil, all(Port{Protocol: UDP, Name: "serve-udp"})), "10.0.1.2", "10.0.2.77", UDP, 80, false},
	} {
		t.Run(name, func(t *testing.T) {
			policies := []Policy{c.policy}
			p := Packet{Src: addr(c.src), Dst: addr(c.dst), Protocol: c.protocol, SrcPort: 40000, DstPort: c.port}
			if c.protocol == ICMPv6 {
				p.SrcPort = 0
			}
			if got := Evaluate(policies, suite, p).Allowed; got != c.allowed {
				t.Errorf("Evaluate allows the packet: %v; want %v", got, c.allowed)
			}
			if got := policytest.Allows(Compile(policies, suite, everyone), p); got != c.allowed {
				t.Errorf("the program allows the packet: %v; want %v", got, c.allowed)
			}
			first := func(e Endpoint) bool { return e.Name == "a" }
			second := func(e Endpoint) bool { return !first(e) }
			if got := policytest.Allows(Compile(policies, suite, first), p) && policytest.Allows(Compile(policies, suite, second), p); got != c.allowed {
				t.Errorf("the programs of the two hosts allow the packet: %v; want %v", got, c.allowed)
			}
			if got := Evaluate(policies, suite, policytest.Answer(p)).Allowed; got != c.allowed {
				t.Errorf("Evaluate allows the reply: %v; want %v", got, c.allowed)
			}
		})
	}
}
