// Package api is the contract of the control socket: the requests to the agent, its answers, and a
// client. It is HTTP with JSON on a unix socket of mode 0600. The package owns no state and decides
// nothing. It only imports the standard library, and not net/http, since weft-cni loads every
// import at every pod's start.
package api

import (
	"net/netip"
	"time"
)

// Sources of endpoints: which component detaches them.
const (
	SourceCNI    = "cni"    // the container runtime, with DEL or GC
	SourceAttach = "attach" // `weft detach`, or the agent when the namespace ends
)

// DefaultSocket is the path of the agent's socket.
const DefaultSocket = "/run/weft/weft.sock"

// Report is the agent's whole state. `weft status` prints parts of it, `weft report` all.
type Report struct {
	Version    string       `json:"version"`
	Ready      bool         `json:"ready"`
	NotReady   string       `json:"notReady,omitempty"` // why the agent is not ready; empty if it is ready
	Router     Router       `json:"router"`
	IPAM       IPAM         `json:"ipam"`
	DNS        DNS          `json:"dns"`
	Policy     PolicyReport `json:"policy"`
	CNI        *CNI         `json:"cni,omitempty"` // nil if no configuration is written
	Endpoints  []Endpoint   `json:"endpoints"`
	Unattached []Endpoint   `json:"unattached,omitempty"` // containers that Docker restarted; their attachment ended with the first run
	Warnings   []string     `json:"warnings,omitempty"`   // sentences, each of which says what to do
	Problems   []Problem    `json:"problems,omitempty"`   // the same warnings as fields
	Rejections []Rejection  `json:"rejections,omitempty"`
	Settings   []Setting    `json:"settings,omitempty"`
	Waiting    bool         `json:"waiting,omitempty"` // the agent belongs to no network: it waits for `weft launch`
}

// Problem is a fault of this host that affects its users.
type Problem struct {
	Area   string `json:"area,omitempty"` // one of the Area constants
	Reason string `json:"reason"`         // identifier for filters, the same in events and metrics
	What   string `json:"what"`
	Effect string `json:"effect,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

// Setting is a setting of the agent with the origin of its value: one of the From constants.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
}

// Origins of settings. A later one overrides those before it.
const (
	FromDefault     = "default"
	FromFile        = "file"
	FromEnvironment = "environment"
	FromFlag        = "flag"
)

// CNI is Weft's CNI configuration, which the container runtime reads.
type CNI struct {
	Config  string   `json:"config"`  // path of the file
	Version string   `json:"version"` // the newest version that all plugins support
	Plugins []string `json:"plugins"` // the plugins in the order in which the runtime calls them
	Missing []string `json:"missing,omitempty"`
}

// Router describes the mesh and the data path of this host.
type Router struct {
	Protocol    int          `json:"protocol"`
	ID          string       `json:"id"`
	Nickname    string       `json:"nickname"`
	Cluster     string       `json:"cluster,omitempty"` // the cluster's id; empty until it is known
	Datapath    string       `json:"datapath,omitempty"`
	Device      string       `json:"device"`
	PublicKey   string       `json:"publicKey"` // WireGuard's, base64
	Port        int          `json:"port"`
	GossipPort  int          `json:"gossipPort"`
	MTU         int          `json:"mtu"`
	IPv6        bool         `json:"ipv6"` // whether the overlay carries IPv6 on this host
	Exposed     bool         `json:"exposed"`
	Node        []netip.Addr `json:"node,omitempty"` // node address of each family
	Underlay    []netip.Addr `json:"underlay"`
	Targets     []Target     `json:"targets"`
	Connections []Connection `json:"connections"`
	Relays      []Relay      `json:"relays,omitempty"` // for whom this host is a relay
	Peers       []Peer       `json:"peers"`
	PID         int          `json:"pid"`
}

// Target is a host that this peer joins.
type Target struct {
	Host  string `json:"host"`
	State string `json:"state"` // connected, retrying
	Error string `json:"error,omitempty"`
	// Discovered is set if it was found on the LAN. Then it is not stored, and disappears when it is gone.
	Discovered bool `json:"discovered,omitempty"`
}

// The states of a connection.
const (
	ConnDirect  = "direct"  // packets travel both ways
	ConnRelayed = "relayed" // packets travel both ways over another host, see Via
	ConnPending = "pending" // not measured yet
	ConnBlocked = "blocked" // the tunnel's UDP port does not answer, though gossip does
	ConnOneWay  = "one-way" // packets travel in one direction only, see Info
	ConnSilent  = "silent"  // nothing comes from the peer, neither through the tunnel nor by gossip
	ConnFailed  = "failed"  // no tunnel is possible, see Info
)

// Connection is a tunnel to another peer.
type Connection struct {
	Outbound  bool           `json:"outbound"` // whether one of this host's targets led to the peer
	Address   netip.AddrPort `json:"address"`
	State     string         `json:"state"`
	Info      string         `json:"info"`
	Via       []string       `json:"via,omitempty"` // the relays, in the order from this host
	Peer      string         `json:"peer"`
	Nickname  string         `json:"nickname"`
	Gossip    bool           `json:"gossip"`              // whether gossip reaches the peer
	Handshake *time.Time     `json:"handshake,omitempty"` // time of the last handshake
	MTU       int            `json:"mtu,omitempty"`       // largest overlay packet to the peer
	Received  int64          `json:"received"`            // received bytes
	Sent      int64          `json:"sent"`                // bytes

	RoundTrip    *float64 `json:"roundTrip,omitempty"` // seconds, from probes of the underlay; absent: not measured
	Loss         *float64 `json:"loss,omitempty"`      // the part of the last probes without an answer: 0 to 1; absent: not measured
	PathMTU      int      `json:"pathMTU,omitempty"`   // largest packet of the underlay to the peer, as measured; 0: not measured
	ReceivedRate float64  `json:"receivedRate"`        // bytes per second
	SentRate     float64  `json:"sentRate"`            // bytes per second
}

// Relay is what this host forwards from one host to another, which do not reach each other directly.
type Relay struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Bytes   uint64 `json:"bytes"`   // forwarded since the two began
	Dropped uint64 `json:"dropped"` // bytes that were too much
}

// IPAM describes the address ring: which peer owns which of the overlay's addresses.
type IPAM struct {
	Status   string         `json:"status"`
	Ring     string         `json:"ring,omitempty"`
	Range    string         `json:"range,omitempty"`
	Range6   string         `json:"range6,omitempty"`
	Size     uint64         `json:"size"` // slots
	Free     uint64         `json:"free"` // slots that this host can allocate
	Active   int            `json:"active"`
	Resting  int            `json:"resting"` // released slots in quarantine
	Owners   []Owner        `json:"owners"`
	Excluded []netip.Prefix `json:"excluded,omitempty"` // addresses that this host allocates only on request
	Conflict string         `json:"conflict,omitempty"`

	Generation uint32  `json:"generation"`      // the highest of any address: 1, plus 1 for each take-over from a dead peer
	Rings      []Ring  `json:"rings,omitempty"` // only if peers have different rings
	Lost       []Lost  `json:"lost,omitempty"`  // addresses of this host that other peers took over
	Vote       *Voting `json:"vote,omitempty"`  // only while a ring is being founded
}

// Ring lists the peers that have the same ring, if peers have different rings.
type Ring struct {
	ID    string   `json:"id"`
	Peers []string `json:"peers"`
}

// Lost is an address in use here that another peer owns now. Its endpoint is cut off.
type Lost struct {
	Endpoint string     `json:"endpoint"`
	Address  netip.Addr `json:"address"`
	Owner    string     `json:"owner"`
}

// Voting is the progress of hosts that found a ring together.
type Voting struct {
	Expected int      `json:"expected"`
	Quorum   int      `json:"quorum"`
	Known    []string `json:"known"`
}

// Owner is a peer's part of the address ring.
type Owner struct {
	Peer      string   `json:"peer"`
	Nickname  string   `json:"nickname,omitempty"`
	Self      bool     `json:"self,omitempty"`
	Slots     uint64   `json:"slots"`
	Percent   float64  `json:"percent"`
	Reachable bool     `json:"reachable"`
	Ranges    []string `json:"ranges"`          // the IPv4 CIDRs that the peer owns
	Usage     *Usage   `json:"usage,omitempty"` // how the peer uses its addresses; only for peers that answered
}

// DNS is the name server of this host.
type DNS struct {
	Off        bool         `json:"off,omitempty"` // the agent was launched with --no-dns
	Domain     string       `json:"domain,omitempty"`
	TTL        float64      `json:"ttl"` // seconds
	Listening  []netip.Addr `json:"listening,omitempty"`
	Problem    string       `json:"problem,omitempty"`    // why the name server does not listen
	Containers []netip.Addr `json:"containers,omitempty"` // addresses at which containers reach it
	Upstreams  []Upstream   `json:"upstreams"`
	NoUpstream string       `json:"noUpstream,omitempty"` // why there is no server from resolv.conf
	Entries    int          `json:"entries"`              // endpoints and hosts with a name, in the whole network
	Cached     int          `json:"cached"`               // cached answers of upstreams
	Counts     DNSCounts    `json:"counts"`
}

// DNSCounts are counters since the agent started.
type DNSCounts struct {
	Queries   uint64 `json:"queries"`   // all received queries
	Local     uint64 `json:"local"`     // answered from the directory
	Hits      uint64 `json:"hits"`      // answered from the cache
	Forwarded uint64 `json:"forwarded"` // sent to upstreams
	Joined    uint64 `json:"joined"`    // waited for the answer to an identical forwarded query
	Failed    uint64 `json:"failed"`    // no upstream answered
	Limited   uint64 `json:"limited"`   // not forwarded, or aborted: too many queries were waiting
	Refused   uint64 `json:"refused"`   // answered with an error because of the question
	Dropped   uint64 `json:"dropped"`   // not answered: the source is not in the network
}

// Upstream is a server for names outside the network.
type Upstream struct {
	Domain string `json:"domain,omitempty"` // the domain of --dns-forward; empty: for all other names
	Server string `json:"server"`
	Error  string `json:"error,omitempty"` // why its last query failed
	Own    bool   `json:"own,omitempty"`   // the server is this name server itself, so it is never used
}

// Name is one name in the DNS domain, with its addresses.
type Name struct {
	Name        string       `json:"name"` // the full name with the domain, as in a query
	Addresses   []netip.Addr `json:"addresses"`
	Endpoint    string       `json:"endpoint"` // CONTAINER/INTERFACE, node, or outside/NAME
	Peer        string       `json:"peer"`
	Nickname    string       `json:"nickname"`
	Unreachable bool         `json:"unreachable,omitempty"` // the peer of the name is unreachable, so queries get no data
}

// NameRequest adds or removes a name in the DNS domain.
type NameRequest struct {
	Name      string       `json:"name"`                // with or without the domain; empty: remove all names of the container, including its own
	Container string       `json:"container,omitempty"` // id, beginning of an id, or name of a container attached here
	Addresses []netip.Addr `json:"addresses,omitempty"` // each is that of a container on this host, of this host itself, or one outside the overlay
}

// LookupRequest asks for the addresses of a name.
type LookupRequest struct {
	Name string `json:"name"` // with or without the domain
}

// ExposeRequest lets the underlay reach containers through this host, or stops that.
type ExposeRequest struct {
	On   bool   `json:"on"`
	Name string `json:"name,omitempty"` // this host's name in the DNS domain
}

// Rejection is a peer whose connections were refused.
type Rejection struct {
	Addr   string    `json:"addr"`
	Reason string    `json:"reason"`
	Count  int       `json:"count"`
	Last   time.Time `json:"last"`
}

// Endpoint is an attached container, pod or process.
type Endpoint struct {
	ContainerID string       `json:"containerID"`
	Interface   string       `json:"interface"`
	Source      string       `json:"source"` // cni or attach: which component detaches it
	Network     string       `json:"network,omitempty"`
	Name        string       `json:"name,omitempty"`
	Namespace   string       `json:"namespace,omitempty"`
	HostLink    string       `json:"hostLink"`
	MAC         string       `json:"mac"`
	Addresses   []netip.Addr `json:"addresses"`

	Labels  map[string]string `json:"labels,omitempty"`
	Aliases []string          `json:"aliases,omitempty"` // additional names in the DNS domain
	Ports   []Port            `json:"ports,omitempty"`

	Withdrawn bool `json:"withdrawn,omitempty"` // dns-remove removed the endpoint's own name, until the endpoint is attached again

	Lost bool `json:"lost,omitempty"` // another peer owns the addresses now; the endpoint is cut off
}

// AttachRequest requests an endpoint's addresses and its link on the host.
type AttachRequest struct {
	ContainerID string `json:"containerID"`
	Interface   string `json:"interface"` // inside the container
	Source      string `json:"source"`
	Network     string `json:"network,omitempty"`
	Name        string `json:"name,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	PodUID      string `json:"podUID,omitempty"` // Kubernetes' UID: another pod may have the same name later
	HostLink    string `json:"hostLink"`
	MAC         string `json:"mac"` // the MAC address of the container's interface
	// Addresses are the requested ones: one of either family, or both of one slot.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Policies select by Labels. Ports are named ports, for SRV records and policies.
	Labels map[string]string `json:"labels,omitempty"`
	Ports  []Port            `json:"ports,omitempty"`
}

// Port is a named port.
type Port struct {
	Name     string `json:"name"`     // at most 15 of a-z, 0-9 and - (RFC 6335)
	Protocol string `json:"protocol"` // tcp, udp or sctp
	Number   uint16 `json:"port"`
}

// AttachReply holds the settings of the container's interface and resolver.
type AttachReply struct {
	Addresses []netip.Addr   `json:"addresses"` // IPv4 first; IPv6 only if the overlay carries IPv6 on this host
	Universe  []netip.Prefix `json:"universe"`
	MTU       int            `json:"mtu"`
	Resolver  *Resolver      `json:"resolver,omitempty"` // nil if this host has no name server
}

// Resolver is the content of a container's resolv.conf.
type Resolver struct {
	Servers []string `json:"servers"`
	Domain  string   `json:"domain"`
	Search  []string `json:"search"`
	Options []string `json:"options"`
}

// EndpointRef identifies an endpoint.
type EndpointRef struct {
	ContainerID string `json:"containerID"`
	Interface   string `json:"interface"`
}

// Key returns the key of an endpoint's allocation and queued release. Interface names have no slash,
// so it is unambiguous.
func (r EndpointRef) Key() string { return r.ContainerID + "/" + r.Interface }

// CollectRequest detaches all endpoints of a network except those in Valid.
type CollectRequest struct {
	Network string        `json:"network"`
	Valid   []EndpointRef `json:"valid"`
}

// RemovePeerRequest takes over the addresses of a peer that is gone for good.
type RemovePeerRequest struct {
	Peer  string `json:"peer"`  // the peer's id, or its nickname if no other peer has the same
	Force bool   `json:"force"` // take over even without a majority of peers
	// Ban also bans the peer: all other hosts refuse it from now on. Reason is shown to operators.
	Ban    bool   `json:"ban,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// RemovePeerReply is the result of a removal.
type RemovePeerReply struct {
	Peer      string `json:"peer"`
	Addresses uint64 `json:"addresses"` // number of slots that this host took over
}

// StopRequest stops the agent.
type StopRequest struct {
	Leave bool `json:"leave"` // leave the mesh for good: another peer, the heir, takes over the addresses
	Force bool `json:"force"` // leave without an heir
}

// StopReply is the result of a stop.
type StopReply struct {
	Heir string `json:"heir,omitempty"`
}

// Usage is how a peer uses its addresses.
type Usage struct {
	Active  uint64 `json:"active"`  // the number of addresses in use, including the node address
	Free    uint64 `json:"free"`    // the number of addresses that the peer can allocate
	Resting uint64 `json:"resting"` // the number of released addresses in quarantine
}

// TargetsRequest changes the hosts that this peer joins.
type TargetsRequest struct {
	Connect []string `json:"connect,omitempty"`
	Replace bool     `json:"replace,omitempty"`
	Forget  []string `json:"forget,omitempty"`
}

// Codes of an Error, by which clients distinguish kinds.
const (
	CodeBadRequest = "bad-request"
	CodeNotFound   = "not-found"
	CodeConflict   = "conflict"
	CodeNotReady   = "not-ready" // try again later
	CodeNoSpace    = "no-space"  // try again later
	CodeInternal   = "internal"
)

// Error is a refusal or failure of the agent. Message is for users, and says what to do next.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }
