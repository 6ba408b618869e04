package api

import (
	"context"
	"net/netip"
	"time"
)

// What can be asked of policies; Client says what each is for.
const (
	PathPolicies     = "/v1/policies"
	PathApplyPolicy  = "/v1/policies/apply"
	PathDeletePolicy = "/v1/policies/delete"
	PathExplain      = "/v1/policies/explain"
	PathDrops        = "/v1/policies/drops"
	PathPolicyStatus = "/v1/policies/status"
)

// Policies lists all documents: NetworkPolicies, and the namespaces that were given labels.
func (c *Client) Policies(ctx context.Context) (r []Policy, err error) {
	return r, c.call(ctx, PathPolicies, nil, &r)
}

// ApplyPolicy takes a manifest's documents into the network, all or none, or says what they
// would do.
func (c *Client) ApplyPolicy(ctx context.Context, req ApplyRequest) (r ApplyReply, err error) {
	return r, c.call(ctx, PathApplyPolicy, req, &r)
}

// DeletePolicy deletes documents, all or none, or says what that would do.
func (c *Client) DeletePolicy(ctx context.Context, req DeleteRequest) (r ApplyReply, err error) {
	return r, c.call(ctx, PathDeletePolicy, req, &r)
}

// Explain says what policies make of a connection, and why.
func (c *Client) Explain(ctx context.Context, req ExplainRequest) (r Explanation, err error) {
	return r, c.call(ctx, PathExplain, req, &r)
}

// Drops explains the packets that policies dropped last on this host, newest first.
func (c *Client) Drops(ctx context.Context) (r []Drop, err error) {
	return r, c.call(ctx, PathDrops, nil, &r)
}

// PolicyStatus asks all peers which policies they enforce.
func (c *Client) PolicyStatus(ctx context.Context) (r PolicyStatus, err error) {
	return r, c.call(ctx, PathPolicyStatus, nil, &r)
}

// Kinds of documents, as their manifests say.
const (
	KindPolicy    = "NetworkPolicy"
	KindNamespace = "Namespace"
)

// DocumentRef names a document.
type DocumentRef struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"` // of a NetworkPolicy
	Name      string `json:"name"`
}

// String is a reference as people write it: NAMESPACE/NAME, and namespace/NAME for one itself.
func (r DocumentRef) String() string {
	if r.Kind == KindNamespace {
		return "namespace/" + r.Name
	}
	return r.Namespace + "/" + r.Name
}

// Policy is a document as it is in force.
type Policy struct {
	DocumentRef
	Manifest string    `json:"manifest"` // YAML
	Writer   string    `json:"writer,omitempty"`
	Written  time.Time `json:"written,omitzero"`
	// Of a NetworkPolicy:
	Selector  string   `json:"selector,omitempty"` // of the endpoints it isolates, as kubectl prints it
	Types     []string `json:"types,omitempty"`    // Ingress, Egress
	Audit     bool     `json:"audit,omitempty"`    // only tried: what it would deny is told, and passes
	Unread    []string `json:"unread,omitempty"`   // what of it is not understood on this host, and allows nothing
	Endpoints int      `json:"endpoints"`          // that it selects, in the whole network
}

// ApplyRequest takes documents in.
type ApplyRequest struct {
	Manifest string `json:"manifest"` // YAML or JSON, any number of documents
	DryRun   bool   `json:"dryRun"`
}

// DeleteRequest deletes documents: those that are named, or those of a manifest.
type DeleteRequest struct {
	Refs     []DocumentRef `json:"refs,omitempty"`
	Manifest string        `json:"manifest,omitempty"`
	DryRun   bool          `json:"dryRun"`
}

// What became of a document.
const (
	Created    = "created"
	Configured = "configured"
	Unchanged  = "unchanged"
	Deleted    = "deleted"
)

// DocumentChange is what became of a document.
type DocumentChange struct {
	DocumentRef
	Change string `json:"change"`
}

// ApplyReply is what came of it.
type ApplyReply struct {
	Changes    []DocumentChange `json:"changes"`
	Generation string           `json:"generation"` // of all documents, afterwards
	Effects    *Effects         `json:"effects,omitempty"`
}

// Effects are what a dry run found.
type Effects struct {
	Flows     []FlowChange `json:"flows"` // connections of now
	Pairs     []PairChange `json:"pairs"` // of endpoints
	MorePairs int          `json:"morePairs,omitempty"`
	MoreFlows int          `json:"moreFlows,omitempty"`
	// Silent are the peers that did not say which flows they have.
	Silent []string `json:"silent,omitempty"`
}

// FlowChange is a connection that conntrack knows, and whose verdict would change.
type FlowChange struct {
	Peer        string         `json:"peer"` // where it was found
	Protocol    string         `json:"protocol"`
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	From        string         `json:"from,omitempty"` // NAMESPACE/NAME of the endpoint there
	To          string         `json:"to,omitempty"`
	Allowed     bool           `json:"allowed"` // afterwards
	Why         string         `json:"why"`
}

// PairChange is a pair of endpoints between which something else would be allowed.
type PairChange struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Before string `json:"before"` // the ports that may be reached: "all", "none", or as "80/TCP, 8000-9000/UDP"
	After  string `json:"after"`
}

// ExplainRequest asks about a connection.
type ExplainRequest struct {
	// Source and Destination are an address, NAME, NAMESPACE/NAME, HOST/NAME, a name in the DNS
	// domain, or a container's id.
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Port        uint16 `json:"port"`     // 0: any
	Protocol    string `json:"protocol"` // TCP, UDP, SCTP; ICMP, without a port, which is ICMPv6 in IPv6; empty: any
}

// Explanation says what becomes of a connection.
type Explanation struct {
	Source      Party     `json:"source"`
	Destination Party     `json:"destination"`
	Port        string    `json:"port"` // 80/TCP, ICMP, or any
	Verdicts    []Verdict `json:"verdicts"`
	// Open are the ports that can be reached, where none was asked for: as PairChange says them.
	Open string `json:"open,omitempty"`
}

// Party is one side of a connection.
type Party struct {
	Asked     string            `json:"asked"`
	Endpoint  string            `json:"endpoint,omitempty"` // NAMESPACE/NAME; empty: no endpoint
	Labels    map[string]string `json:"labels,omitempty"`
	Addresses []netip.Addr      `json:"addresses"`
	Peer      string            `json:"peer,omitempty"` // id(nickname) of the host it is on
	Node      bool              `json:"node,omitempty"` // it is that host itself
}

// Verdict is what becomes of a connection in one family.
type Verdict struct {
	Source      netip.Addr `json:"source"`
	Destination netip.Addr `json:"destination"`
	Allowed     bool       `json:"allowed"`
	Exempt      string     `json:"exempt,omitempty"` // why policies have no say
	Egress      Decision   `json:"egress"`
	Ingress     Decision   `json:"ingress"`
}

// Decision is what the policies of one endpoint say.
type Decision struct {
	Endpoint string   `json:"endpoint,omitempty"` // empty: not an endpoint, nobody to ask
	Peer     string   `json:"peer,omitempty"`     // whose decision it is
	Policies []string `json:"policies,omitempty"` // those that isolate it; none: everything is allowed
	Allowed  bool     `json:"allowed"`
	By       *Reason  `json:"by,omitempty"`
	Misses   []Reason `json:"misses,omitempty"` // of each rule that could have allowed it, what does not fit
	// Audit is what would become of it with the policies that are only tried, if that is something else.
	Audit *Decision `json:"audit,omitempty"`
	// Kernel is what that host's nftables say; nil where it could not be asked, Unasked says why.
	Kernel  *Kernel `json:"kernel,omitempty"`
	Unasked string  `json:"unasked,omitempty"`
}

// Reason is a rule, and what of it fits or does not.
type Reason struct {
	Policy string `json:"policy"`
	Rule   string `json:"rule"` // as spec.ingress[0]; empty: it has none
	Text   string `json:"text"`
}

// Kernel is what the kernel makes of the same packet.
type Kernel struct {
	Allowed bool   `json:"allowed"`
	Chain   string `json:"chain,omitempty"` // that judges it; empty: not isolated
	Dropped uint64 `json:"dropped"`         // packets of this endpoint in this direction, so far
	Differs bool   `json:"differs,omitempty"`
}

// Drop is packets that were dropped, alike but for the time.
type Drop struct {
	Last      time.Time      `json:"last"`
	Count     int            `json:"count"` // that were logged: the kernel logs a few in a second
	Direction string         `json:"direction"`
	Audit     bool           `json:"audit,omitempty"` // it would have been dropped, and was not
	Protocol  string         `json:"protocol"`
	Source    netip.AddrPort `json:"source"`
	Dest      netip.AddrPort `json:"destination"`
	From      string         `json:"from,omitempty"`
	To        string         `json:"to,omitempty"`
	Decision  Decision       `json:"decision"` // as policies are now
}

// PolicyStatus says which policies are in force where.
type PolicyStatus struct {
	Source     string          `json:"source"`     // where policies come from: gossip, or the Kubernetes API
	Generation string          `json:"generation"` // of all documents here: at once that of an ApplyReply, or a later one
	Policies   []PolicyInForce `json:"policies"`
	Peers      []PeerPolicies  `json:"peers"`  // this one too
	Exempt     []string        `json:"exempt"` // what policies do not apply to on this host
}

// PolicyInForce says how far one policy has come.
type PolicyInForce struct {
	Policy    string `json:"policy"` // NAMESPACE/NAME
	Audit     bool   `json:"audit,omitempty"`
	Peers     int    `json:"peers"`     // that have it in their kernel
	Endpoints int    `json:"endpoints"` // that it isolates there
	// Unread is what of it is not understood on one of these peers or more, and allows nothing.
	Unread []string `json:"unread,omitempty"`
}

// PeerPolicies is what one peer says that it enforces.
type PeerPolicies struct {
	Peer       string `json:"peer"`
	Nickname   string `json:"nickname"`
	Generation string `json:"generation,omitempty"` // that its kernel has
	Current    bool   `json:"current"`              // it is PolicyStatus.Generation
	Isolated   int    `json:"isolated"`
	Dropped    uint64 `json:"dropped"` // packets, since its agent started
	// Unreachable says that the mesh does not reach it now, so that nobody waits for it.
	Unreachable bool   `json:"unreachable,omitempty"`
	Error       string `json:"error,omitempty"`
}

// PolicyReport is what this host itself enforces.
type PolicyReport struct {
	Source   string `json:"source"`
	Current  bool   `json:"current"` // the kernel has all that is known here
	Policies int    `json:"policies"`
	Audit    int    `json:"audit,omitempty"`   // of these, only tried
	Partial  int    `json:"partial,omitempty"` // of the others, not understood completely on this host
	Isolated int    `json:"isolated"`          // endpoints here
	// Dropped are packets, by the direction whose policies dropped them, since the agent started.
	Dropped map[string]uint64 `json:"dropped"`
}
