package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
)

// oneFlow is a flow of a client, with the server to which it goes.
type oneFlow struct {
	Flow
	server string
}

// flows starts flows of a client to each server, in both families, and returns them: a TCP connection,
// datagrams with answers, and a request that the server answers with many datagrams.
func (p *policyLab) flows(client string, servers ...string) (out []oneFlow) {
	p.t.Helper()
	for _, server := range servers {
		for _, addr := range p.addrs[server] {
			to := netip.AddrPortFrom(addr, 80)
			for _, f := range []Flow{{Network: "tcp", To: to}, {Network: "udp", To: to}, {Network: "udp", To: netip.AddrPortFrom(addr, streamPort), Once: true}} {
				f.Name = fmt.Sprintf("%s %v once=%v", f.Network, f.To, f.Once)
				ask[Nothing](p, client, "Start", f)
				out = append(out, oneFlow{f, server})
			}
		}
	}
	return out
}

// flowing waits until every flow has received five more answers.
func (p *policyLab) flowing(client string, flows []oneFlow) {
	p.t.Helper()
	for _, f := range flows {
		before := ask[Count](p, client, "Count", f.Name).Received
		eventually.True(p.t, time.Minute, "answers on "+f.Name, func() bool {
			return ask[Count](p, client, "Count", f.Name).Received >= before+5
		})
	}
}

// moment returns how many messages of the flows have arrived at both ends so far.
func (p *policyLab) moment(client string, flows []oneFlow) map[string]int {
	p.t.Helper()
	out := map[string]int{}
	for _, f := range flows {
		out["answers on "+f.Name] = ask[Count](p, client, "Count", f.Name).Received
		for h, n := range ask[map[Heard]int](p, f.server, "Heard", Nothing{}) {
			out[fmt.Sprintf("%s received on %s port %d from %v", f.server, h.Network, h.Port, h.From)] = n
		}
	}
	return out
}

// silent asserts that no message of the flows arrives at either end any more.
func (p *policyLab) silent(client string, flows []oneFlow) {
	p.t.Helper()
	time.Sleep(200 * time.Millisecond) // let packets in flight arrive
	before := p.moment(client, flows)
	time.Sleep(800 * time.Millisecond) // wait longer than the time until a retransmission
	for what, n := range p.moment(client, flows) {
		if n != before[what] {
			p.t.Errorf("%s: received %d before the pause, %d after it; want no difference", what, before[what], n)
		}
	}
}

// tracked asserts that conntrack still has the flows.
func (p *policyLab) tracked(client string, flows []oneFlow) {
	p.t.Helper()
	for _, f := range flows {
		local := ask[Count](p, client, "Count", f.Name).Local
		if !ask[bool](p, client[:2], "Tracked", [2]uint16{local, f.To.Port()}) {
			p.t.Errorf("conntrack has no entry for the flow %s from port %d, want one", f.Name, local)
		}
	}
}

// An established flow stops in both directions as soon as a policy of either side no longer allows
// it. It continues when it is allowed again. conntrack entries are not deleted for that.
func TestPolicyEndsEstablishedFlows(t *testing.T) {
	p := newPolicyLab(t, lab.Options{Hosts: 2})
	role := func(r string) lab.Identity {
		return lab.Identity{Namespace: "shop", Name: r, Labels: map[string]string{"role": r}}
	}
	server := role("server")
	p.add("h1/near", server, 80, streamPort)
	server.Name = "far"
	p.add("h2/far", server, 80, streamPort)
	p.add("h1/client", role("client"))
	flows := p.flows("h1/client", "h1/near", "h2/far")
	p.flowing("h1/client", flows)
	for side, spec := range map[string]string{
		"ingress at the server": `shop: {podSelector: {matchLabels: {role: server}}, ingress: [{from: [{podSelector: {matchLabels: {role: %s}}}], ports: [{port: 80}, {protocol: UDP}]}]}`,
		"egress at the client":  `shop: {podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: %s}}}], ports: [{port: 80}, {protocol: UDP}]}]}`,
	} {
		other := map[string]string{"ingress at the server": "client", "egress at the client": "server"}[side]
		allow, deny := manifest(fmt.Sprintf(spec, other)), manifest(fmt.Sprintf(spec, "nobody"))
		t.Log(side + ": isolated, and the flows are allowed")
		p.apply("h2", allow)
		p.flowing("h1/client", flows)
		t.Log(side + ": no longer allowed")
		p.apply("h1", deny)
		p.silent("h1/client", flows)
		p.tracked("h1/client", flows)
		t.Log(side + ": allowed again")
		p.apply("h1", allow)
		p.flowing("h1/client", flows)
		p.remove("h1", "shop/p0")
		p.flowing("h1/client", flows)
		t.Log(side + ": denied, after no policy was in force")
		p.apply("h1", deny)
		p.silent("h1/client", flows)
		p.remove("h2", "shop/p0")
		p.flowing("h1/client", flows)
	}
	for _, f := range flows {
		if c := ask[Count](p, "h1/client", "Count", f.Name); c.Err != "" {
			t.Errorf("the flow %s ended with an error, want it to go on: %+v", f.Name, c)
		}
	}
}
