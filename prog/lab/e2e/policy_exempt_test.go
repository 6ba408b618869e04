package e2e

import (
	"net/netip"
	"testing"
	"time"

	"weft/prog/api"
	"weft/prog/lab"
)

// A container whose policy denies everything can still reach the parts of its own host that
// --policy-exempt allows. Its host always reaches the container, and the container always reaches
// itself.
func TestPolicyExemptAllowsTheOwnHost(t *testing.T) {
	p := newPolicyLab(t, lab.Options{Hosts: 3})
	flags := map[string][]string{"h1": nil, "h2": {"--policy-exempt", "none"}, "h3": {"--policy-exempt", "dns"}}
	for host, f := range flags {
		if err := p.Stop(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		if _, err := p.weft(host, "", append([]string{"launch"}, f...)...); err != nil {
			t.Fatal(err)
		}
		p.addrs[host] = report(t, p.Lab, host).Router.Node
	}
	established(t, p.Lab)
	for _, host := range p.Hosts() {
		p.add(host+"/isolated", lab.Identity{Namespace: "cell", Name: host}, 80)
		p.add(host+"/open", lab.Identity{Namespace: "yard", Name: host}, 80)
	}
	p.settled("h1")
	exempt(p, map[string][2]bool{"h1": {true, true}, "h2": {true, true}, "h3": {true, true}})
	// The exemption is only for connections that endpoints open. A host's own packets to its endpoints
	// always pass, so they need none.
	p.apply("h2", manifest(`cell: {podSelector: {}, policyTypes: [Ingress, Egress]}`))
	exempt(p, map[string][2]bool{"h1": {true, true}, "h2": {false, false}, "h3": {false, true}})
	for i, host := range p.Hosts() {
		other := p.Hosts()[(i+1)%3]
		p.reaches(other, host+"/isolated", false, 80)
		p.reaches(host+"/isolated", other, false, hostPort)
		p.reaches(host+"/isolated", other+"/open", false, 80)
		p.reaches(host+"/isolated", host+"/open", false, 80)
		p.reaches(other+"/open", host+"/open", true, 80)
		p.reaches(host+"/open", host, true, hostPort)
	}
	p.apply("h1", manifest(`cell: {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [{ipBlock: {cidr: 10.32.0.0/12}}], ports: [{port: 8088}, {port: 8088, protocol: UDP}]}]}`))
	for _, host := range p.Hosts() { // if a host is not exempt, policies may allow it
		p.oneFamily(host+"/isolated", host, 0, true)
	}
	p.oneFamily("h2/isolated", "h2", 1, false)
}

// exempt asserts, for every host, whether an isolated container reaches its own host and the host's name server.
func exempt(p *policyLab, want map[string][2]bool) {
	p.t.Helper()
	for host, w := range want {
		isolated := host + "/isolated"
		p.reaches(isolated, host, w[0], hostPort)
		for _, server := range []string{"169.254.1.1", p.addrs[host][0].String(), p.addrs[host][1].String()} {
			for i, yes := range ask[[]bool](p, isolated, "Answered", server) {
				if yes != w[1] {
					p.t.Errorf("%s: the name server %s answers over %s: %v, want %v", isolated, server, []string{"UDP", "TCP"}[i], yes, w[1])
				}
			}
		}
		p.reaches(host, isolated, true, 80)     // the host may reach the container, like a kubelet's probe
		p.reaches(isolated, isolated, true, 80) // the container may reach itself
		node := p.addrs[host][0].String()
		asked := []api.ExplainRequest{
			{Source: "cell/" + host, Destination: node, Port: hostPort, Protocol: "TCP"},
			{Source: node, Destination: "cell/" + host, Port: 80, Protocol: "TCP"},
			{Source: "cell/" + host, Destination: node, Port: 53, Protocol: "UDP"},
			{Source: "cell/" + host, Destination: "169.254.1.1", Port: 53, Protocol: "TCP"},
		}
		for i, e := range ask[[]api.Explanation](p, host, "Explain", asked) {
			if yes := []bool{w[0], true, w[1], w[1]}[i]; e.Verdicts[0].Allowed != yes {
				p.t.Errorf("%s: explain of %+v gives %+v, want allowed: %v", host, asked[i], e.Verdicts, yes)
			}
		}
	}
}

// oneFamily is like reaches, in one address family only.
func (p *policyLab) oneFamily(src, dst string, family int, want bool) {
	p.t.Helper()
	patience := map[bool]time.Duration{true: patient, false: impatient}[want]
	to := netip.AddrPortFrom(p.addrs[dst][family], hostPort)
	for i, got := range ask[[]bool](p, src, "Reach", []Try{{"tcp", to, patience}, {"udp", to, patience}}) {
		if got != want {
			p.t.Errorf("%s to %v over %s: reached %v, want %v", src, to, []string{"TCP", "UDP"}[i], got, want)
		}
	}
}
