package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/prog/api"
	"weft/prog/lab"
)

// The cluster of Kubernetes' own test suite (kubernetes/test/e2e/network/netpol): namespaces x, y and
// z with the pods a, b and c in each, which serve ports 80 and 81 over TCP, UDP and SCTP.
//
//	h1   x/a y/c z/b
//	h2   x/b y/a z/c
//	h3   x/c y/b z/a
var suitePods = strings.Fields("x/a x/b x/c y/a y/b y/c z/a z/b z/c")

// suitePorts are the ports tried for every pair.
var suitePorts = []string{"80/TCP", "81/TCP", "80/UDP", "81/UDP", "80/SCTP", "81/SCTP"}

// home returns the container that plays a pod of the suite.
func home(pod string) string {
	namespace, name, _ := strings.Cut(pod, "/")
	return fmt.Sprintf("h%d/%s%s", (int(namespace[0]-'x')+int(name[0]-'a'))%3+1, namespace, name)
}

func suiteLab(t *testing.T) *policyLab {
	t.Helper()
	p := newPolicyLab(t, lab.Options{Hosts: 3})
	for _, pod := range suitePods {
		namespace, name, _ := strings.Cut(pod, "/")
		as := lab.Identity{Namespace: namespace, Name: name, Labels: map[string]string{"pod": name}}
		for _, port := range []uint16{80, 81} {
			for _, proto := range []string{"tcp", "udp", "sctp"} {
				as.Ports = append(as.Ports, lab.Port{Name: fmt.Sprintf("serve-%d-%s", port, proto), Protocol: proto, Number: port})
			}
		}
		p.add(home(pod), as, 80, 81)
	}
	p.apply("h1", space("x", "ns", "x")+space("y", "ns", "y")+space("z", "ns", "z"))
	return p
}

// situation is a set of policies with the expected connectivity.
type situation struct {
	name     string
	policies []string // each policy as "NAMESPACE: {spec}"
	// want lists the isolated pods, with the connections that they still accept
	// ("x/a <- y/* x/b on 80/TCP") or may open ("x/a -> y/*"). Of several lines about a pod, each allows
	// more. Pods without a line are not isolated. Every pod reaches itself.
	want []string
}

// reach reports whether a connection should succeed.
func (s situation) reach(src, dst, port string) bool {
	return src == dst || s.open(" <- ", dst, src, port) && s.open(" -> ", src, dst, port)
}

// open reports whether the lines of one direction allow traffic between two pods.
func (s situation) open(arrow, pod, other, port string) bool {
	isolated := false
	for _, line := range s.want {
		who, rest, ok := strings.Cut(line, arrow)
		if !ok || !covers(who, pod) {
			continue
		}
		isolated = true
		others, ports, limited := strings.Cut(rest, " on ")
		if covers(others, other) && (!limited || slices.ContainsFunc(strings.Fields(ports), func(p string) bool { return strings.HasSuffix(port, p) })) {
			return true
		}
	}
	return !isolated
}

// covers reports whether a pod matches a list such as "x/* y/a"; "none" matches no pod.
func covers(list, pod string) bool {
	return slices.ContainsFunc(strings.Fields(list), func(w string) bool {
		n, p, _ := strings.Cut(w, "/")
		return (n == "*" || n == pod[:1]) && (p == "*" || p == pod[2:])
	})
}

// Every pair of pods connects on every port, protocol and family exactly as the table says, and weft
// policy explain says the same.
func TestPoliciesAllowWhatKubernetesSpecifies(t *testing.T) {
	p := suiteLab(t)
	p.expect(situation{name: "no policies"})
	blocks := p.blocks()
	applied := []string{}
	for i, s := range situations {
		host := p.Hosts()[i%3]
		for k, one := range s.policies {
			s.policies[k] = blocks.Replace(one)
		}
		var names []string
		for k, one := range s.policies {
			namespace, _, _ := strings.Cut(one, ": ")
			names = append(names, fmt.Sprintf("%s/p%d", namespace, k))
		}
		// apply replaces policies with the same name. Delete all other policies of the last situation first.
		old := slices.DeleteFunc(slices.Clone(applied), func(n string) bool { return slices.Contains(names, n) })
		if len(old) > 0 {
			if _, err := p.weft(host, "", append([]string{"policy", "delete"}, old...)...); err != nil {
				t.Fatal(err)
			}
		}
		p.apply(host, manifest(s.policies...))
		applied = names
		p.expect(s)
		if t.Failed() {
			t.Logf("the policies of %q:\n%s", s.name, manifest(s.policies...))
		}
	}
	p.remove("h2", applied...)
	p.expect(situation{name: "deleted policies are no longer enforced"})
}

// blocks replaces <x/a 4> by that pod's address as a prefix, and <all 4> by the range of all endpoint
// addresses.
func (p *policyLab) blocks() *strings.Replacer {
	var pairs []string
	for _, pod := range suitePods {
		for i, family := range []string{"4", "6"} {
			addr := p.addrs[home(pod)][i]
			pairs = append(pairs, fmt.Sprintf("<%s %s>", pod, family), netip.PrefixFrom(addr, addr.BitLen()).String())
		}
	}
	v6 := netip.PrefixFrom(p.addrs[home("x/a")][1], 64).Masked()
	return strings.NewReplacer(append(pairs, "<all 4>", "10.32.0.0/12", "<all 6>", v6.String())...)
}

// expect tries all connections and compares the results.
func (p *policyLab) expect(s situation) {
	p.t.Helper()
	start := time.Now()
	before := p.heardBy(suitePods)
	var group sync.WaitGroup
	for _, src := range suitePods {
		group.Go(func() { p.expectFrom(s, src) })
	}
	group.Go(func() { p.expectExplained(s) })
	group.Wait()
	// A denied packet may arrive although its answer is lost, so also check what the pods received.
	for dst, now := range p.heardBy(suitePods) {
		for h, n := range now {
			src, ok := p.podAt(h.From)
			port := fmt.Sprintf("%d/%s", h.Port, strings.ToUpper(h.Network))
			if n > before[dst][h] && (!ok || !s.reach(src, dst, port)) {
				p.t.Errorf("%s: %s received a packet from %s (%v) on %s, want it denied", s.name, dst, src, h.From, port)
			}
		}
	}
	p.t.Logf("%-100s %v", s.name, time.Since(start).Round(10*time.Millisecond))
}

// heardBy returns what has arrived at pods so far.
func (p *policyLab) heardBy(pods []string) map[string]map[Heard]int {
	p.t.Helper()
	out := map[string]map[Heard]int{}
	for _, pod := range pods {
		out[pod] = ask[map[Heard]int](p, home(pod), "Heard", Nothing{})
	}
	return out
}

// podAt returns the pod of the suite with an address.
func (p *policyLab) podAt(addr netip.Addr) (string, bool) {
	i := slices.IndexFunc(suitePods, func(pod string) bool { return slices.Contains(p.addrs[home(pod)], addr) })
	if i < 0 {
		return "", false
	}
	return suitePods[i], true
}

// expectFrom tries all connections of one source. It may run concurrently.
func (p *policyLab) expectFrom(s situation, src string) {
	type pair struct{ dst, port string }
	var tries []Try
	var pairs []pair
	for _, dst := range suitePods {
		for _, port := range suitePorts {
			number, network := uint16(80), strings.ToLower(port[3:])
			if port[:2] == "81" {
				number = 81
			}
			patience := impatient
			if s.reach(src, dst, port) {
				patience = patient
			}
			for _, addr := range p.addrs[home(dst)] {
				tries, pairs = append(tries, Try{network, netip.AddrPortFrom(addr, number), patience}), append(pairs, pair{dst, port})
			}
		}
	}
	var got []bool
	if err := p.pods[home(src)].Call("Pod.Reach", tries, &got); err != nil {
		p.t.Errorf("probes from %s returned %v, want results", src, err)
		return
	}
	for i, yes := range got {
		if want := s.reach(src, pairs[i].dst, pairs[i].port); yes != want {
			p.t.Errorf("%s: %s to %s on %s (%v): reached %v, want %v", s.name, src, pairs[i].dst, pairs[i].port, tries[i].To.Addr(), yes, want)
		}
	}
}

// expectExplained compares weft policy explain with the table, for some ports of every pair of pods.
func (p *policyLab) expectExplained(s situation) {
	var asked []api.ExplainRequest
	var want []bool
	for i, src := range suitePods {
		for j, dst := range suitePods {
			for k, port := range suitePorts {
				yes := s.reach(src, dst, port)
				if src == dst || yes && (i+j+k)%len(suitePorts) != 0 || (i+j+k)%3 != 0 {
					continue // ask for some ports of every pair only, to save time
				}
				number := uint16(80)
				if port[:2] == "81" {
					number = 81
				}
				asked, want = append(asked, api.ExplainRequest{Source: src, Destination: dst, Port: number, Protocol: port[3:]}), append(want, yes)
			}
		}
	}
	var answers []api.Explanation
	if err := p.pods["h1"].Call("Pod.Explain", asked, &answers); err != nil {
		p.t.Errorf("%s: policy explain returned %v, want explanations", s.name, err)
		return
	}
	for i, a := range answers {
		if len(a.Verdicts) != 2 {
			p.t.Errorf("%s: explain of %+v has %d verdicts, want one for each family", s.name, asked[i], len(a.Verdicts))
		}
		for _, v := range a.Verdicts {
			for _, d := range []api.Decision{v.Egress, v.Ingress} {
				if d.Kernel == nil || d.Kernel.Differs {
					p.t.Errorf("%s: explain of %+v: the kernel's verdict differs or is missing, want the same verdict: %+v", s.name, asked[i], d)
				}
			}
			if v.Allowed != want[i] {
				p.t.Errorf("%s: explain of %+v: allowed %v, want %v: %+v", s.name, asked[i], v.Allowed, want[i], v)
			}
		}
	}
}
