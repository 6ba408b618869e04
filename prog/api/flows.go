package api

import (
	"context"
	"net/netip"
	"time"
)

// PathFlows is the path of requests for flows; Client documents it.
const PathFlows = "/v1/flows"

// Flows returns connections of endpoints that hosts have seen, oldest first.
func (c *Client) Flows(ctx context.Context, req FlowsRequest) (r FlowsReply, err error) {
	return r, c.call(ctx, PathFlows, req, &r)
}

// The verdicts of a flow.
const (
	FlowAllowed = "allowed"
	FlowDenied  = "denied"
	FlowAudit   = "audit" // it passes, but policies in audit mode would deny it
)

// Flow is a connection of an endpoint, or packets that policies dropped. A flow that goes on is reported
// again each time that its counters change.
type Flow struct {
	ID       uint64    `json:"id"`   // the same for each report of one flow of one host
	Peer     string    `json:"peer"` // id of the host that saw it
	Nickname string    `json:"nickname"`
	Start    time.Time `json:"start"`
	Last     time.Time `json:"last"` // of the last packet, or of the last change of the counters
	Ended    bool      `json:"ended,omitempty"`
	Verdict  string    `json:"verdict"`
	Protocol string    `json:"protocol"`
	// Source and Destination are the ends of the connection, after the NAT of its destination.
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Service     netip.AddrPort `json:"service,omitzero"` // the destination before NAT, if it differs
	From        FlowEnd        `json:"from"`
	To          FlowEnd        `json:"to"`

	SentPackets     uint64 `json:"sentPackets"` // from source to destination; of a denied flow: the logged packets
	SentBytes       uint64 `json:"sentBytes"`
	ReceivedPackets uint64 `json:"receivedPackets"`
	ReceivedBytes   uint64 `json:"receivedBytes"`

	Direction string `json:"direction,omitempty"` // of a denied flow: the policies that denied it, ingress or egress
	Policy    string `json:"policy,omitempty"`    // NAMESPACE/NAME of the policy that decided; empty: none selects the ends
	Rule      string `json:"rule,omitempty"`      // such as spec.ingress[0]
	Why       string `json:"why,omitempty"`       // the sentence of weft policy explain
}

// FlowEnd is one end of a flow.
type FlowEnd struct {
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name,omitempty"` // empty: no endpoint of the network
	Labels    map[string]string `json:"labels,omitempty"`
	Peer      string            `json:"peer,omitempty"` // id(nickname) of the host of this end; empty: outside the network
	Node      bool              `json:"node,omitempty"` // this end is a host
}

// FlowsRequest selects flows. All given conditions must hold.
type FlowsRequest struct {
	From     string `json:"from,omitempty"` // NAMESPACE/NAME, NAME, NAMESPACE/, an address or a CIDR
	To       string `json:"to,omitempty"`
	Port     uint16 `json:"port,omitempty"`     // of the destination
	Protocol string `json:"protocol,omitempty"` // TCP, UDP, SCTP, ICMP
	Verdict  string `json:"verdict,omitempty"`
	// Since selects flows with a packet or a change in this time: seconds before now; 0: all remembered flows.
	Since    float64 `json:"since,omitempty"`
	AllHosts bool    `json:"allHosts,omitempty"`
	// After continues an earlier reply: by peer id, FlowsHost.Next. Flows that changed since then are returned.
	After map[string]uint64 `json:"after,omitempty"`
	Most  int               `json:"most,omitempty"` // flows of each host, the newest ones; 0: the agent's own bound
}

// FlowsReply has the flows of one or all hosts.
type FlowsReply struct {
	Flows []Flow      `json:"flows"`
	Hosts []FlowsHost `json:"hosts"`
}

// FlowsHost is how one host answered.
type FlowsHost struct {
	Peer     string `json:"peer"`
	Nickname string `json:"nickname"`
	Error    string `json:"error,omitempty"`
	Off      bool   `json:"off,omitempty"` // its agent was launched with --no-flows
	Next     uint64 `json:"next"`          // for FlowsRequest.After
	Lost     uint64 `json:"lost"`          // events that the host did not see, since its agent started
	More     int    `json:"more,omitempty"`
}
