package hops

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/api"
	"weft/router/policy"
	"weft/router/trace"
)

var (
	syn = trace.Packet{Protocol: policy.TCP, Src: netip.MustParseAddr("10.32.0.2"), Dst: netip.MustParseAddr("10.40.0.1"), Port: 80, ID: 64000}
	h1  = Place{Name: "h1", Links: map[int]string{1: "weft-a", 2: "weft", 3: "weft-b", 4: "eth0"}, From: true, Tunnel: " to h2: direct", NoRoute: "network is unreachable"}
	h2  = Place{Name: "h2", Links: h1.Links, To: true}
)

// story writes events as a test reads best: hooks that the packet passes, and verdicts of other chains.
type story struct {
	list   []trace.Event
	packet int
	answer bool
	in     int
	out    int
}

func (s *story) add(e trace.Event) *story {
	e.Packet, e.Answer, e.At = s.packet, s.answer, time.Duration(len(s.list))*time.Millisecond
	e.In, e.Out = s.in, s.out
	s.list = append(s.list, e)
	return s
}

// begins begins a hook.
func (s *story) begins(hook string, header []byte) *story {
	e := trace.Event{Table: trace.TablePrefix + "6-64000", Chain: "first-" + hook, Kind: trace.Rule, Handle: 2, Verdict: trace.Continue}
	if header != nil {
		e.Network, e.Transport = header[:20], header[20:]
	}
	return s.add(e)
}

// passes passes all chains of hooks.
func (s *story) passes(hooks ...string) *story {
	for _, h := range hooks {
		s.begins(h, nil).add(trace.Event{Table: trace.TablePrefix + "6-64000", Chain: "last-" + h, Kind: trace.End, Verdict: trace.Accept})
	}
	return s
}

func (s *story) drops(family uint8, table, chain string) *story {
	return s.add(trace.Event{Family: family, Table: table, Chain: chain, Kind: trace.Rule, Handle: 7, Verdict: trace.Drop})
}

func (s *story) from(in int) *story {
	s.in = in
	return s.begins("prerouting", syn.Bytes()).passes("prerouting")
}

func (s *story) to(out int) *story {
	s.out = out
	return s
}

// synAck begins the answer.
func (s *story) synAck(in int) *story {
	s.packet, s.answer, s.in, s.out = 1, true, in, 0
	answer := trace.Packet{Protocol: policy.TCP, Src: syn.Dst, Dst: syn.Src, Port: syn.ID, ID: syn.Port}.Bytes()
	answer[20+13] = 0x12
	return s.begins("prerouting", answer).passes("prerouting")
}

func sent() *story { return new(story).from(1) }

// Events of the kernel become hops, and where the packet ended.
func TestWhereAPacketEnded(t *testing.T) {
	crossed := sent().to(2).passes("forward", "postrouting").list
	arrived := new(story).from(2).to(3).passes("forward", "postrouting").list
	back := new(story).from(2).to(3).passes("forward", "postrouting").synAck(3).to(2).passes("forward", "postrouting").list
	for _, c := range []struct {
		name          string
		near, far     []trace.Event
		silent        string
		result, ended string
		stages        string
	}{
		{"nothing is seen", nil, nil, "", api.TraceLost, "never reached nftables", ""},
		{"answered", new(story).from(1).to(2).passes("forward", "postrouting").synAck(2).to(1).passes("forward", "postrouting").list, back, "", api.TraceAnswered, "SYN-ACK", "source route egress tunnel answer"},
		{"no route", sent().list, nil, "", api.TraceUnroutable, "network is unreachable", "source route"},
		{"guard", new(story).begins("prerouting", syn.Bytes()).drops(unix.NFPROTO_INET, "weft", "from-endpoint").list, nil, "", api.TraceDropped, "by rule 7 of chain from-endpoint of Weft's guard", "source guard"},
		{"egress", sent().to(2).begins("forward", nil).drops(unix.NFPROTO_INET, "weft", "drop-egress").list, nil, "", api.TraceDropped, "denied by policies, in chain drop-egress", "source route egress"},
		{"ingress here", sent().to(3).begins("forward", nil).drops(unix.NFPROTO_INET, "weft", "drop-ingress").list, nil, "", api.TraceDropped, "drop-ingress", "source route egress ingress"},
		{"other firewall", sent().to(2).begins("forward", nil).drops(unix.NFPROTO_IPV4, "filter", "DOCKER-USER").list, nil, "", api.TraceDropped, "chain ip filter DOCKER-USER, which is not Weft's", "source route firewall"},
		{"a table with our name in another family", sent().to(2).begins("forward", nil).drops(unix.NFPROTO_IPV4, "weft", "x").list, nil, "", api.TraceDropped, "not Weft's", "source route firewall"},
		{"lost between", crossed, []trace.Event{}, "", api.TraceLost, "lost between h1 and h2; the path is relayed via h3", "source route egress tunnel"},
		{"far firewall", crossed, new(story).from(2).to(3).begins("forward", nil).drops(unix.NFPROTO_IPV4, "filter", "FORWARD").list, "", api.TraceDropped, "h2: dropped by rule 7 of chain ip filter FORWARD", "source route egress tunnel"},
		{"nobody answers", crossed, arrived, "", api.TraceUnanswered, "arrived at 10.40.0.1", "source route egress tunnel"},
		{"answer lost", crossed, back, "", api.TraceLost, "the answer was lost between", "source route egress tunnel"},
		{"no report", crossed, nil, "timeout", api.TraceLost, "h2 does not report (timeout)", "source route egress tunnel"},
		{"left", sent().to(4).passes("forward", "postrouting").list, nil, "", api.TraceLeft, "left the network on h1", "source route egress outside"},
		{"vanished", sent().to(2).begins("forward", nil).list, nil, "", api.TraceLost, "no rule of nftables", "source route"},
	} {
		near := Assemble(h1, syn, c.near)
		var far *Remote
		if c.far != nil || c.silent != "" {
			far = &Remote{Name: "h2", Part: Assemble(h2, syn, c.far), Path: "relayed via h3", Err: c.silent}
		}
		result, ended := Conclude(syn, "h1", near, far)
		var stages []string
		for _, h := range append(near.There, near.Back...) {
			stages = append(stages, h.Stage)
		}
		if result != c.result || !strings.Contains(ended, c.ended) || strings.Join(stages, " ") != c.stages {
			t.Errorf("%s: %s, %q by %v; want %s, %q by %s", c.name, result, ended, stages, c.result, c.ended, c.stages)
		}
	}
}

// Policies that decided are named in the hop and in where the packet ended.
func TestPoliciesAreNamed(t *testing.T) {
	hops, ended := []api.TraceHop{{Stage: api.StageEgress, Verdict: "accept"}, {Stage: api.StageIngress, Verdict: "drop"}}, "h2: denied by policies"
	Explain(hops, api.Verdict{
		Egress:  api.Decision{Allowed: true, By: &api.Reason{Policy: "shop/out", Rule: "spec.egress[0]"}},
		Ingress: api.Decision{Endpoint: "shop/db", Misses: []api.Reason{{Policy: "shop/in", Rule: "spec.ingress[0]", Text: "want app=web"}}},
	}, &ended)
	if !strings.Contains(hops[0].Detail, "shop/out spec.egress[0]") || !strings.Contains(hops[1].Detail, "shop/in") || !strings.Contains(ended, "ingress of shop/db: shop/in spec.ingress[0]: want app=web") {
		t.Errorf("the hops are %+v, and it ended %q; want the policies", hops, ended)
	}
}
