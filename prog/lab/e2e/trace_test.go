package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
)

// trace runs weft trace on a host. The exit code must fit the result.
func (p *policyLab) trace(host string, args ...string) (r api.TraceReply) {
	p.t.Helper()
	var out string
	var err error
	eventually.True(p.t, 30*time.Second, "a trace is allowed", func() bool { // each host limits how many
		out, err = p.weft(host, "", append([]string{"trace", "--json"}, args...)...)
		return !strings.Contains(fmt.Sprint(out, err), "try again in a")
	})
	if jerr := json.Unmarshal([]byte(out), &r); jerr != nil {
		p.t.Fatalf("weft trace %v: %v, %v: %s", args, err, jerr, out)
	}
	if (err == nil) != r.Passed() {
		p.t.Errorf("weft trace %v ends with %v although the result is %s", args, err, r.Result)
	}
	return r
}

// traced expects a result, and words in where the packet ended. The trace shows stages in this order, if any are given.
func (p *policyLab) traced(r api.TraceReply, result, ended string, stages ...string) {
	p.t.Helper()
	var got []string
	for _, h := range r.Hops {
		got = append(got, h.Stage)
	}
	if r.Result != result || !strings.Contains(r.Ended, ended) || len(r.Incomplete) > 0 || stages != nil && !slices.Equal(got, stages) {
		p.t.Errorf("the trace is %+v, want the result %s with %q, by %v", r, result, ended, stages)
	}
}

// leftNothing fails if a host has a table or link of a trace.
func (p *policyLab) leftNothing(hosts ...string) {
	p.t.Helper()
	for _, h := range hosts {
		left := ""
		eventually.True(p.t, 10*time.Second, h+" has nothing of a trace", func() bool {
			left = run(p.t, p.Lab, h, "sh", "-c", "nft list tables; ip -o link")
			return !strings.Contains(left, "weft-trace") && !strings.Contains(left, "wft-trace")
		})
	}
}

// The stages of packets that pass.
var (
	nearby = []string{api.StageSource, api.StageRoute, api.StageEgress, api.StageIngress, api.StageDestination, api.StageAnswer}
	across = []string{
		api.StageSource, api.StageRoute, api.StageEgress, api.StageTunnel,
		api.StageTunnel, api.StageRoute, api.StageIngress, api.StageDestination, api.StageAnswer, api.StageAnswer,
	}
)

// A packet is followed to containers on the same and on another host, in both families and with each protocol: to a
// listener, to a closed port and by ping. Any host can ask for it, and nothing is left.
func TestTraceFollowsPackets(t *testing.T) {
	p := flowsLab(t)
	for _, family := range []string{"4", "6"} {
		for dst, stages := range map[string][]string{"shop/near": nearby, "shop/db": across} {
			for _, host := range []string{"h1", "h2"} {
				p.traced(p.trace(host, "shop/web", dst, "80", "--family", family), api.TraceAnswered, "SYN-ACK", stages...)
			}
			p.traced(p.trace("h1", "shop/web", dst, "99", "--family", family), api.TraceRefused, "RST", stages...)
			p.traced(p.trace("h1", "shop/web", dst, "99/udp", "--family", family), api.TraceRefused, "port unreachable", stages...)
			p.traced(p.trace("h1", "shop/web", dst, "icmp", "--family", family), api.TraceAnswered, "echo reply", stages...)
		}
		p.traced(p.trace("h1", "h1", "shop/near", "--family", family), api.TraceAnswered, "echo reply")
		p.traced(p.trace("h1", "shop/web", "h1", fmt.Sprint(hostPort), "--family", family), api.TraceAnswered, "SYN-ACK")
	}
	r := p.trace("h1", "shop/web", "shop/db", "80")
	if r.RoundTrip == nil || *r.RoundTrip <= 0 || *r.RoundTrip > 5 {
		t.Errorf("the round trip is %v, want a time", r.RoundTrip)
	}
	if !slices.ContainsFunc(r.Hops, func(h api.TraceHop) bool {
		return h.Stage == api.StageTunnel && strings.Contains(h.What, "direct, mtu=")
	}) {
		t.Errorf("the hops are %+v, want the state of the tunnel", r.Hops)
	}
	says(t, run(t, p.Lab, "h1", "weft", "trace", "shop/web", "shop/db", "80"), "direct, mtu=", "ANSWERED: ")
	p.leftNothing("h1", "h2")
	p.tracedByPolicies()
	p.tracedThroughFirewalls()
	p.tracedWithoutAnswer()
	p.tracedAfterAKill()
}

// A policy that drops the packet is named, at the source and at the destination.
func (p *policyLab) tracedByPolicies() {
	p.t.Helper()
	p.apply("h1", manifest(`shop: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]}`))
	p.traced(p.trace("h1", "shop/web", "shop/db", "80"), api.TraceDropped, "shop/p0 spec.ingress[0]",
		api.StageSource, api.StageRoute, api.StageEgress, api.StageTunnel, api.StageTunnel, api.StageRoute, api.StageIngress)
	p.traced(p.trace("h1", "shop/near", "shop/db", "80"), api.TraceAnswered, "SYN-ACK", across...)
	p.remove("h1", "shop/p0")
	p.apply("h1", manifest(`shop: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}`))
	for _, dst := range []string{"shop/db", "shop/near"} {
		p.traced(p.trace("h1", "shop/web", dst, "80"), api.TraceDropped, "shop/p0 spec.egress[0]", api.StageSource, api.StageRoute, api.StageEgress)
	}
	p.remove("h1", "shop/p0")
	p.traced(p.trace("h1", "shop/web", "shop/db", "80"), api.TraceAnswered, "SYN-ACK", across...)
}

// A rule of another program that drops the packet, or its answer, is named with its table.
func (p *policyLab) tracedThroughFirewalls() {
	p.t.Helper()
	for _, host := range []string{"h1", "h2"} {
		run(p.t, p.Lab, host, "nft", "add table ip fence; add chain ip fence FORWARD { type filter hook forward priority 5; }; add rule ip fence FORWARD tcp dport 80 drop")
		p.traced(p.trace("h1", "shop/web", "shop/db", "80"), api.TraceDropped, host+"): dropped by rule 2 of chain ip fence FORWARD")
		run(p.t, p.Lab, host, "nft", "flush table ip fence; add rule ip fence FORWARD tcp sport 80 drop")
		p.traced(p.trace("h1", "shop/web", "shop/db", "80"), api.TraceDropped, "the answer was dropped on")
		run(p.t, p.Lab, host, "nft", "delete table ip fence")
	}
}

// Packets that nobody answers: an address without container, a container whose firewall drops, a host that is cut off
// or whose agent is stopped, and an address outside the network.
func (p *policyLab) tracedWithoutAnswer() {
	p.t.Helper()
	near, db := p.addrs["h1/near"][0], p.addrs["h2/db"][0]
	p.traced(p.trace("h1", "shop/web", "192.0.2.2", "icmp"), api.TraceAnswered, "echo reply") // h2's address
	free := near
	for range 20 {
		free = free.Next()
	}
	if r := p.trace("h1", "shop/web", free.String(), "80"); r.Result != api.TraceUnroutable {
		p.t.Errorf("a trace to an address without container is %+v, want that it has no route", r)
	}
	run(p.t, p.Lab, "h2/db", "nft", "add table ip own; add chain ip own i { type filter hook input priority 0; policy drop; }")
	p.traced(p.trace("h1", "shop/web", "shop/db", "80"), api.TraceUnanswered, "own firewall")
	run(p.t, p.Lab, "h2/db", "nft", "delete table ip own")
	run(p.t, p.Lab, "h2", "weft", "stop")
	r := p.trace("h1", "shop/web", db.String(), "80")
	if r.Result != api.TraceAnswered || len(r.Incomplete) != 1 {
		p.t.Errorf("with h2's agent stopped the trace is %+v, want an answer, and that h2 does not report", r)
	}
	run(p.t, p.Lab, "h2", "weft", "launch")
	p.settled("h1")
}

// An agent that is killed during a trace leaves nothing once it has started again.
func (p *policyLab) tracedAfterAKill() {
	p.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = p.weft("h1", "", "trace", "shop/web", "203.0.113.9", "80") // it is killed
	}()
	eventually.True(p.t, 5*time.Second, "a trace runs", func() bool {
		return strings.Contains(run(p.t, p.Lab, "h1", "ip", "-o", "link"), "wft-trace")
	})
	run(p.t, p.Lab, "h1", "pkill", "-9", "-f", "weft agent")
	<-done
	run(p.t, p.Lab, "h1", "weft", "launch")
	p.leftNothing("h1")
	p.traced(p.trace("h1", "shop/web", "shop/near", "80"), api.TraceAnswered, "SYN-ACK", nearby...)
}

// Over a cut link the trace goes by the relay and names it. Without a relay it says that the packet was lost between
// the hosts.
func TestTraceNamesTheRelay(t *testing.T) {
	p := newPolicyLab(t, lab.Options{Hosts: 3})
	p.add("h1/web", lab.Identity{Namespace: "shop", Name: "web"})
	p.add("h2/db", lab.Identity{Namespace: "shop", Name: "db"}, 80)
	p.settled("h1")
	between(t, p.Lab, pattern{cut: []string{"h1-h2"}}.rules()...)
	var r api.TraceReply
	eventually.True(t, 60*time.Second, "the packet goes by the relay", func() bool {
		r = p.trace("h1", "shop/web", "shop/db", "80")
		return r.Result == api.TraceAnswered && slices.ContainsFunc(r.Hops, func(h api.TraceHop) bool {
			return strings.Contains(h.What, "relayed via ") && strings.Contains(h.What, "(h3)")
		})
	})
	between(t, p.Lab, pattern{cut: []string{"h1-h2", "h1-h3"}}.rules()...)
	eventually.True(t, 60*time.Second, "the packet is lost between the hosts", func() bool {
		r = p.trace("h1", "shop/web", "shop/db", "80")
		return r.Result == api.TraceLost && strings.Contains(r.Ended, "the path is")
	})
}
