package api

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// The paths of requests about policies; Client documents each.
const (
	PathPolicies     = "/v1/policies"
	PathApplyPolicy  = "/v1/policies/apply"
	PathDeletePolicy = "/v1/policies/delete"
	PathExplain      = "/v1/policies/explain"
	PathDrops        = "/v1/policies/drops"
	PathPolicyStatus = "/v1/policies/status"
)

// Policies returns all documents: NetworkPolicies, and Namespaces with labels.
func (c *Client) Policies(ctx context.Context) (r []Policy, err error) {
	return r, c.call(ctx, PathPolicies, nil, &r)
}

// ApplyPolicy applies a manifest's documents, all or none. In a dry run it returns the effects.
func (c *Client) ApplyPolicy(ctx context.Context, req ApplyRequest) (r ApplyReply, err error) {
	return r, c.call(ctx, PathApplyPolicy, req, &r)
}

// DeletePolicy deletes documents, all or none. In a dry run it returns the effects.
func (c *Client) DeletePolicy(ctx context.Context, req DeleteRequest) (r ApplyReply, err error) {
	return r, c.call(ctx, PathDeletePolicy, req, &r)
}

// Explain returns whether policies allow a connection, and why.
func (c *Client) Explain(ctx context.Context, req ExplainRequest) (r Explanation, err error) {
	return r, c.call(ctx, PathExplain, req, &r)
}

// Drops explains the packets that policies recently dropped on this host, newest first.
func (c *Client) Drops(ctx context.Context) (r []Drop, err error) {
	return r, c.call(ctx, PathDrops, nil, &r)
}

// PolicyStatus asks all peers which policies they enforce.
func (c *Client) PolicyStatus(ctx context.Context) (r PolicyStatus, err error) {
	return r, c.call(ctx, PathPolicyStatus, nil, &r)
}

// Kinds of documents, as in their manifests.
const (
	KindPolicy    = "NetworkPolicy"
	KindNamespace = "Namespace"
)

// DocumentRef identifies a document.
type DocumentRef struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"` // the namespace of a NetworkPolicy
	Name      string `json:"name"`
}

// String returns NAMESPACE/NAME for a policy, and namespace/NAME for a Namespace.
func (r DocumentRef) String() string {
	if r.Kind == KindNamespace {
		return "namespace/" + r.Name
	}
	return r.Namespace + "/" + r.Name
}

// Policy is a document in force.
type Policy struct {
	DocumentRef
	Manifest string    `json:"manifest"` // YAML
	Writer   string    `json:"writer,omitempty"`
	Written  time.Time `json:"written,omitzero"`
	// Only of a NetworkPolicy:
	Selector  string   `json:"selector,omitempty"` // selects the endpoints that the policy isolates, in kubectl's notation
	Types     []string `json:"types,omitempty"`    // Ingress, Egress
	Audit     bool     `json:"audit,omitempty"`    // audit mode: traffic that the policy would deny is reported, and passes
	Unread    []string `json:"unread,omitempty"`   // parts that this host does not understand; they allow nothing
	Endpoints int      `json:"endpoints"`          // the number of endpoints that it selects in the whole network
}

// ApplyRequest adds or changes documents.
type ApplyRequest struct {
	Manifest string `json:"manifest"` // YAML or JSON, any number of documents
	DryRun   bool   `json:"dryRun"`
}

// DeleteRequest deletes documents: the given ones, or those of a manifest.
type DeleteRequest struct {
	Refs     []DocumentRef `json:"refs,omitempty"`
	Manifest string        `json:"manifest,omitempty"`
	DryRun   bool          `json:"dryRun"`
}

// The changes of a document.
const (
	Created    = "created"
	Configured = "configured"
	Unchanged  = "unchanged"
	Deleted    = "deleted"
)

// DocumentChange is the change of one document.
type DocumentChange struct {
	DocumentRef
	Change string `json:"change"`
}

// ApplyReply is the result of a change of documents.
type ApplyReply struct {
	Changes    []DocumentChange `json:"changes"`
	Generation string           `json:"generation"` // the generation of all documents after the change
	Effects    *Effects         `json:"effects,omitempty"`
}

// Effects are the result of a dry run.
type Effects struct {
	Flows     []FlowChange `json:"flows"` // current connections with a new verdict
	Pairs     []PairChange `json:"pairs"` // pairs of endpoints with other allowed ports
	MorePairs int          `json:"morePairs,omitempty"`
	MoreFlows int          `json:"moreFlows,omitempty"`
	// Silent lists the peers that did not report their flows.
	Silent []string `json:"silent,omitempty"`
}

// FlowChange is a connection in conntrack whose verdict would change.
type FlowChange struct {
	Peer        string         `json:"peer"` // the peer whose conntrack table has the connection
	Protocol    string         `json:"protocol"`
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	From        string         `json:"from,omitempty"` // NAMESPACE/NAME of the source endpoint
	To          string         `json:"to,omitempty"`
	Allowed     bool           `json:"allowed"` // whether the connection is allowed after the change
	Why         string         `json:"why"`
}

// PairChange is a pair of endpoints whose allowed ports would change.
type PairChange struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Before string `json:"before"` // allowed destination ports: "all", "none", or for example "80/TCP, 8000-9000/UDP"
	After  string `json:"after"`
}

// ExplainRequest asks about a connection.
type ExplainRequest struct {
	// Source and Destination are an address, NAME, NAMESPACE/NAME, HOST/NAME, a name in the DNS
	// domain, or a container's id.
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Port        uint16 `json:"port"`     // 0: any
	Protocol    string `json:"protocol"` // TCP, UDP, SCTP or ICMP; ICMP has no port and means ICMPv6 in IPv6; empty: any
}

// Explanation is the answer to an ExplainRequest.
type Explanation struct {
	Source      Party     `json:"source"`
	Destination Party     `json:"destination"`
	Port        string    `json:"port"` // 80/TCP, ICMP, or any
	Verdicts    []Verdict `json:"verdicts"`
	// Open lists the allowed ports, if the request names no port. Its format is that of
	// PairChange.Before.
	Open string `json:"open,omitempty"`
}

// Party is one end of a connection.
type Party struct {
	Asked     string            `json:"asked"`
	Endpoint  string            `json:"endpoint,omitempty"` // NAMESPACE/NAME; empty: no endpoint
	Labels    map[string]string `json:"labels,omitempty"`
	Addresses []netip.Addr      `json:"addresses"`
	Peer      string            `json:"peer,omitempty"` // id(nickname) of the host of this end
	Node      bool              `json:"node,omitempty"` // this end is a host, not an endpoint
}

// Verdict says whether a connection is allowed in one address family.
type Verdict struct {
	Source      netip.Addr `json:"source"`
	Destination netip.Addr `json:"destination"`
	Allowed     bool       `json:"allowed"`
	Exempt      string     `json:"exempt,omitempty"` // why policies do not apply
	Egress      Decision   `json:"egress"`
	Ingress     Decision   `json:"ingress"`
}

// Decision is the result of one endpoint's policies.
type Decision struct {
	Endpoint string   `json:"endpoint,omitempty"` // empty: not an endpoint, so there are no policies
	Peer     string   `json:"peer,omitempty"`     // the peer that enforces the policies
	Policies []string `json:"policies,omitempty"` // the policies that isolate the endpoint; none: everything is allowed
	Allowed  bool     `json:"allowed"`
	By       *Reason  `json:"by,omitempty"`
	Misses   []Reason `json:"misses,omitempty"` // the reason of each rule that does not allow the connection
	// Audit is the decision if policies in audit mode were enforced; nil if it is the same.
	Audit *Decision `json:"audit,omitempty"`
	// Kernel is the verdict of that host's nftables; nil if it could not be asked, see Unasked.
	Kernel  *Kernel `json:"kernel,omitempty"`
	Unasked string  `json:"unasked,omitempty"`
}

// Reason is a rule, and why it matches or not.
type Reason struct {
	Policy string `json:"policy"`
	Rule   string `json:"rule"` // such as spec.ingress[0]; empty: the policy has no rules
	Text   string `json:"text"`
}

// String describes a rule, and why the rule matches or not.
func (r Reason) String() string { return strings.TrimSpace(r.Policy+" "+r.Rule) + ": " + r.Text }

// Why returns in one sentence which rule allows a connection, or why the first rule does not. Packets
// that were dropped may be allowed by the policies of now.
func (d Decision) Why() string {
	switch {
	case d.Allowed && d.By != nil:
		return "now allowed by " + d.By.String()
	case d.Allowed:
		return "now allowed"
	case len(d.Misses) == 0:
		return "no policy allows it"
	}
	text := d.Misses[0].String()
	switch more := len(d.Misses) - 1; more {
	case 0:
	case 1:
		text += " (and 1 more rule)"
	default:
		text += fmt.Sprintf(" (and %d more rules)", more)
	}
	return text
}

// Why returns why a packet was dropped, according to the current policies.
func (d Drop) Why() string {
	if d.Audit && d.Decision.Audit != nil {
		return d.Decision.Audit.Why()
	}
	return d.Decision.Why()
}

// Kernel is the kernel's verdict for the same packet.
type Kernel struct {
	Allowed bool   `json:"allowed"`
	Chain   string `json:"chain,omitempty"` // the chain that evaluates the packet; empty: the endpoint is not isolated
	Dropped uint64 `json:"dropped"`         // packets of this endpoint in this direction, so far
	Differs bool   `json:"differs,omitempty"`
}

// Drop counts dropped packets that only differ in time.
type Drop struct {
	Last      time.Time      `json:"last"`
	Count     int            `json:"count"` // logged packets: the kernel logs only a few per second
	Direction string         `json:"direction"`
	Audit     bool           `json:"audit,omitempty"` // the packets were not dropped: only policies in audit mode deny them
	Protocol  string         `json:"protocol"`
	Source    netip.AddrPort `json:"source"`
	Dest      netip.AddrPort `json:"destination"`
	From      string         `json:"from,omitempty"`
	To        string         `json:"to,omitempty"`
	Decision  Decision       `json:"decision"` // the decision of the current policies
}

// PolicyStatus shows which peers enforce which policies.
type PolicyStatus struct {
	Source     string          `json:"source"`     // origin of policies: gossip, or the Kubernetes API
	Generation string          `json:"generation"` // the generation of all documents here: that of the last ApplyReply, or a later one
	Policies   []PolicyInForce `json:"policies"`
	Peers      []PeerPolicies  `json:"peers"`  // including this one
	Exempt     []string        `json:"exempt"` // traffic on this host that policies do not apply to
}

// PolicyInForce shows where one policy is enforced.
type PolicyInForce struct {
	Policy    string `json:"policy"` // NAMESPACE/NAME
	Audit     bool   `json:"audit,omitempty"`
	Peers     int    `json:"peers"`     // the number of peers that enforce the policy
	Endpoints int    `json:"endpoints"` // the number of endpoints that the policy isolates on those peers
	// Unread lists the parts that one of these peers does not understand. They allow nothing.
	Unread []string `json:"unread,omitempty"`
}

// PeerPolicies is what one peer reports about its policies.
type PeerPolicies struct {
	Peer       string `json:"peer"`
	Nickname   string `json:"nickname"`
	Generation string `json:"generation,omitempty"` // the generation of the policies in the peer's kernel
	Current    bool   `json:"current"`              // whether Generation equals PolicyStatus.Generation
	Isolated   int    `json:"isolated"`
	Dropped    uint64 `json:"dropped"` // packets that policies dropped since the agent started
	// Unreachable says that gossip does not reach the peer, so that commands do not wait for it.
	Unreachable bool   `json:"unreachable,omitempty"`
	Error       string `json:"error,omitempty"`
}

// PolicyReport describes the policies that this host enforces.
type PolicyReport struct {
	Source   string `json:"source"`
	Current  bool   `json:"current"` // whether the kernel has all known policies
	Policies int    `json:"policies"`
	Audit    int    `json:"audit,omitempty"`   // how many of them are in audit mode
	Partial  int    `json:"partial,omitempty"` // the number of policies that this host enforces, but does not fully understand
	Isolated int    `json:"isolated"`          // endpoints on this host
	// Dropped counts packets since the agent started, by direction of the policies that dropped them.
	Dropped map[string]uint64 `json:"dropped"`
}
