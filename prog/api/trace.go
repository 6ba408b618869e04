package api

import (
	"context"
	"net/netip"
)

// PathTrace is the path of requests for traces; Client documents it.
const PathTrace = "/v1/trace"

// Trace sends one packet from a container or host of the network, and follows it and its answer.
func (c *Client) Trace(ctx context.Context, req TraceRequest) (r TraceReply, err error) {
	return r, c.call(ctx, PathTrace, req, &r)
}

// TraceRequest says which packet to send.
type TraceRequest struct {
	Source      string `json:"source"` // as in ExplainRequest
	Destination string `json:"destination"`
	Port        uint16 `json:"port,omitempty"`
	Protocol    string `json:"protocol,omitempty"` // TCP (the default), UDP, SCTP or ICMP; without a port, ICMP
	Family      int    `json:"family,omitempty"`   // 4 or 6; 0: the first one that both ends have
}

// The results of a trace.
const (
	TraceAnswered   = "answered"   // the destination answered
	TraceRefused    = "refused"    // the destination answered that it does not accept the packet
	TraceLeft       = "left"       // the packet left the network, and no answer came back
	TraceUnanswered = "unanswered" // the packet arrived, and no answer came back
	TraceDropped    = "dropped"    // a rule dropped the packet or its answer
	TraceUnroutable = "unroutable" // a host could not deliver the packet
	TraceLost       = "lost"       // the packet or its answer was lost between two points, without a rule that dropped it
)

// TraceReply is what happened to the packet.
type TraceReply struct {
	Source      Party      `json:"source"`
	Destination Party      `json:"destination"`
	From        netip.Addr `json:"from"`
	To          netip.Addr `json:"to"`
	Protocol    string     `json:"protocol"`
	Port        uint16     `json:"port,omitempty"`
	Hops        []TraceHop `json:"hops"`
	Result      string     `json:"result"`
	Ended       string     `json:"ended"`               // where it ended, and why
	RoundTrip   *float64   `json:"roundTrip,omitempty"` // seconds from the source's link back to it
	Incomplete  []string   `json:"incomplete,omitempty"`
}

// Passed reports whether an answer came back, or the packet left the network.
func (r TraceReply) Passed() bool {
	return r.Result == TraceAnswered || r.Result == TraceRefused || r.Result == TraceLeft
}

// The stages of a trace.
const (
	StageSource      = "source"      // the source's link, or the source host
	StageGuard       = "guard"       // Weft's rules that are no policies
	StageNAT         = "nat"         // an address was translated
	StageRoute       = "route"       // the kernel's routing decision
	StageFirewall    = "firewall"    // rules of other programs
	StageEgress      = "egress"      // policies of the source
	StageIngress     = "ingress"     // policies of the destination
	StageTunnel      = "tunnel"      // into the tunnel, or out of it
	StageDestination = "destination" // the destination's link, or the destination host
	StageOutside     = "outside"     // the packet left the network
	StageAnswer      = "answer"
)

// TraceHop is one step of the packet, or of its answer, at one host.
type TraceHop struct {
	Host    string  `json:"host"`
	At      float64 `json:"at"` // seconds since the packet was first seen on that host: clocks of hosts are not compared
	Stage   string  `json:"stage"`
	What    string  `json:"what"`
	Verdict string  `json:"verdict"` // of the kernel: accept, drop, or empty
	Detail  string  `json:"detail,omitempty"`
}
