// Package flows remembers the connections that a host has seen: a bounded table of what the kernel
// tells about each, and of the facts that others add, such as names and the verdict of policies.
//
// A Table owns the remembered flows. It reads no clock and no kernel: callers pass what was seen, and
// when. It never holds more flows, nor more bytes of names, than its limits. It is not safe for
// concurrent use. No part of a packet's payload ever enters it.
package flows

import (
	"net/netip"
	"time"

	"weft/router/policy"
)

// Tuple is the identity of a connection in one direction, as conntrack has it.
type Tuple struct {
	Src, Dst   netip.AddrPort // the ports are 0 for protocols without ports
	Protocol   policy.Protocol
	Type, Code uint8  // of ICMP
	ID         uint16 // of ICMP
	Zone       uint16 // of conntrack; 0 in all but special setups
}

// Count counts packets and bytes in one direction.
type Count struct{ Packets, Bytes uint64 }

// Entry is what the kernel tells about a connection.
type Entry struct {
	Original Tuple
	// ReplySrc and ReplyDst are the ends of packets that answer: the destination after the NAT of
	// destinations, and the source after the NAT of sources.
	ReplySrc, ReplyDst netip.AddrPort
	ID                 uint32 // differs from that of another connection with the same tuple
	Sent, Received     Count
	Closed             bool // TCP has closed the connection, though the kernel still remembers it
}

// Packet returns the first packet of a connection as policies see it: after the NAT of its destination.
func (e Entry) Packet() policy.Packet {
	return policy.Packet{
		Src: e.Original.Src.Addr(), Dst: e.ReplySrc.Addr(), Protocol: e.Original.Protocol,
		SrcPort: e.Original.Src.Port(), DstPort: e.ReplySrc.Port(),
	}
}

// Denial is a packet that policies dropped, or would have dropped, with the ends of its connection.
type Denial struct {
	Direction policy.Direction
	Audit     bool
	Src, Dst  netip.AddrPort
	Protocol  policy.Protocol
}

// The verdicts of a flow.
const (
	Unknown Verdict = iota // no facts yet
	Allowed
	Denied
	Audit // it passes, but policies in audit mode would deny it
)

// Verdict is the result of the policies for a flow.
type Verdict uint8

// End says whose one end of a flow is. Flows share it, so it must not be changed.
type End struct {
	Namespace, Name string
	Labels          map[string]string
	Peer            string
	Node            bool
}

// size estimates the memory of an end.
func (e *End) size() int {
	n := 160 + len(e.Namespace) + len(e.Name) + len(e.Peer)
	for k, v := range e.Labels {
		n += 64 + len(k) + len(v)
	}
	return n
}

// Facts are what policies and names say about a flow. Flows share them, so they must not be changed.
type Facts struct {
	From, To                     *End
	Verdict                      Verdict
	Direction, Policy, Rule, Why string
}

// size estimates the memory of facts, without their ends.
func (f *Facts) size() int {
	return 192 + len(f.Direction) + len(f.Policy) + len(f.Rule) + len(f.Why)
}

// Flow is one connection, or the packets of one kind that policies dropped.
type Flow struct {
	ID      uint64 // the same as long as the flow is remembered
	Changed uint64 // grows with each change of any flow of the table
	Entry   Entry
	Facts   *Facts // nil: not known yet
	Ended   bool
	Denial  bool // packets that were dropped; Entry then has their ends

	forgotten bool
	kind      kind          // the list that holds it
	drop      dropDirection // of a denial
	still     uint8         // how often reading its counters found no change, up to idleAfter
	// Times are kept in nanoseconds since 1970: there are many flows.
	start, last, read int64
	prev, next        *Flow // in its list
}

// Start returns when the flow began, or was first seen.
func (f *Flow) Start() time.Time { return time.Unix(0, f.start) }

// Last returns when a packet was last seen, or a change of the counters.
func (f *Flow) Last() time.Time { return time.Unix(0, f.last) }

// key returns the identity of a flow that goes on.
func (f *Flow) key() key {
	k := key{f.Entry.Original, f.drop}
	if f.Denial { // all client ports are counted together
		k.Src = netip.AddrPortFrom(k.Src.Addr(), 0)
	}
	return k
}

// dropDirection distinguishes denials of the same packets.
type dropDirection uint8

// key identifies a flow that goes on.
type key struct {
	Tuple
	drop dropDirection
}

// kind is the class of a flow. When the table is full, flows of an earlier kind are forgotten first.
type kind uint8

const (
	ended   kind = iota // connections that ended
	fresh               // open connections whose counters have not grown since the first look
	long                // open connections whose counters grew: a flood of short ones must not hide them
	denials             // dropped packets, which have a limit of their own
	kinds
)
