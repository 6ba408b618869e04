// Package api is the contract of the control socket: what the agent answers, what
// it can be asked to do, and a client and a server for both. It is HTTP with JSON
// on a unix socket of mode 0600, and needs the standard library only, since
// weft-cni pays for every import at every pod's start.
package api

import (
	"net/netip"
	"time"
)

// Sources of endpoints: what takes care of their end.
const (
	SourceCNI    = "cni"    // the container runtime, by DEL or GC
	SourceAttach = "attach" // `weft detach`, or the end of the namespace
)

// DefaultSocket is where the agent listens.
const DefaultSocket = "/run/weft/weft.sock"

// Report is everything that the agent says of itself: `weft status` prints parts
// of it, `weft report` all.
type Report struct {
	Version    string       `json:"version"`
	Ready      bool         `json:"ready"`
	NotReady   string       `json:"notReady,omitempty"` // why, while not ready
	Router     Router       `json:"router"`
	IPAM       IPAM         `json:"ipam"`
	DNS        DNS          `json:"dns"`
	Policy     PolicyReport `json:"policy"`
	CNI        *CNI         `json:"cni,omitempty"` // unless no configuration was written
	Endpoints  []Endpoint   `json:"endpoints"`
	Unattached []Endpoint   `json:"unattached,omitempty"` // Docker runs them again, and what was attached ended with their first run
	Warnings   []string     `json:"warnings,omitempty"`   // each with what to do
	Problems   []Problem    `json:"problems,omitempty"`   // the same, in parts
	Rejections []Rejection  `json:"rejections,omitempty"`
	Settings   []Setting    `json:"settings,omitempty"`
	Waiting    bool         `json:"waiting,omitempty"` // to be told which network it belongs to: `weft launch`
}

// Problem is what hurts the users of a host.
type Problem struct {
	Reason string `json:"reason"` // a name for those that filter, as in events and metrics
	What   string `json:"what"`
	Effect string `json:"effect,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

// Setting is a flag of the agent, and where its value came from: one of the From constants.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
}

// Origins of settings; each wins over those before it.
const (
	FromDefault     = "default"
	FromFile        = "file"
	FromEnvironment = "environment"
	FromFlag        = "flag"
)

// CNI is what the container runtime is told to call.
type CNI struct {
	Config  string   `json:"config"`  // the file
	Version string   `json:"version"` // the newest that all plugins speak
	Plugins []string `json:"plugins"` // in the order of calls
	Missing []string `json:"missing,omitempty"`
}

// Router is the mesh and the data path of this host.
type Router struct {
	Protocol    int          `json:"protocol"`
	ID          string       `json:"id"`
	Nickname    string       `json:"nickname"`
	Cluster     string       `json:"cluster,omitempty"` // empty while it is not known
	Datapath    string       `json:"datapath,omitempty"`
	Device      string       `json:"device"`
	PublicKey   string       `json:"publicKey"` // WireGuard's, base64
	Port        int          `json:"port"`
	GossipPort  int          `json:"gossipPort"`
	MTU         int          `json:"mtu"`
	IPv6        bool         `json:"ipv6"` // whether the overlay carries IPv6 on this host
	Exposed     bool         `json:"exposed"`
	Node        []netip.Addr `json:"node,omitempty"` // node address, per family
	Underlay    []netip.Addr `json:"underlay"`
	Targets     []Target     `json:"targets"`
	Connections []Connection `json:"connections"`
	Peers       []Peer       `json:"peers"`
	PID         int          `json:"pid"`
}

// Target is a host that this peer was told to join.
type Target struct {
	Host  string `json:"host"`
	State string `json:"state"` // connected, retrying
	Error string `json:"error,omitempty"`
}

// The states of a connection.
const (
	ConnEstablished = "established" // a handshake within the last three minutes
	ConnPending     = "pending"     // configured, no handshake yet
	ConnRetrying    = "retrying"    // the last handshake is too old
	ConnFailed      = "failed"      // no tunnel can be made, see Info
)

// Connection is a tunnel to one other peer.
type Connection struct {
	Outbound  bool           `json:"outbound"` // one of our targets led to the peer
	Address   netip.AddrPort `json:"address"`
	State     string         `json:"state"`
	Info      string         `json:"info"`
	Peer      string         `json:"peer"`
	Nickname  string         `json:"nickname"`
	Gossip    bool           `json:"gossip"`              // whether gossip reaches the peer
	Handshake *time.Time     `json:"handshake,omitempty"` // the last one
	MTU       int            `json:"mtu,omitempty"`       // the largest packet of the overlay that goes to the peer
	Received  int64          `json:"received"`            // bytes
	Sent      int64          `json:"sent"`                // bytes
}

// Peer is one member of the mesh, this host included.
type Peer struct {
	ID          string       `json:"id"`
	Nickname    string       `json:"nickname"`
	Self        bool         `json:"self,omitempty"`
	State       string       `json:"state"` // running, stopped, left; unreachable, if it fell silent; removed, if it was given up then
	Underlay    []netip.Addr `json:"underlay"`
	Node        []netip.Addr `json:"node,omitempty"`
	Ring        string       `json:"ring,omitempty"`
	Established int          `json:"established,omitempty"` // connections, of this host only
}

// IPAM is who owns which part of the universe.
type IPAM struct {
	Status   string         `json:"status"`
	Ring     string         `json:"ring,omitempty"`
	Range    string         `json:"range,omitempty"`
	Range6   string         `json:"range6,omitempty"`
	Size     uint64         `json:"size"` // slots
	Free     uint64         `json:"free"` // slots of our own that can be handed out
	Active   int            `json:"active"`
	Resting  int            `json:"resting"` // freed a moment ago
	Owners   []Owner        `json:"owners"`
	Excluded []netip.Prefix `json:"excluded,omitempty"` // what this host gives only to who asks for it
	Conflict string         `json:"conflict,omitempty"`

	Generation uint32  `json:"generation"`      // the highest of any address: 1, and one more for each time it was taken over from a dead peer
	Rings      []Ring  `json:"rings,omitempty"` // where peers are in more than one
	Lost       []Lost  `json:"lost,omitempty"`  // what a take-over took away from this host
	Vote       *Voting `json:"vote,omitempty"`  // while a ring is being founded
}

// Ring is who is in one of several rings.
type Ring struct {
	ID    string   `json:"id"`
	Peers []string `json:"peers"`
}

// Lost is an address in use here that is another peer's by now. It is cut off.
type Lost struct {
	Endpoint string     `json:"endpoint"`
	Address  netip.Addr `json:"address"`
	Owner    string     `json:"owner"`
}

// Voting is how far peers that start together are with founding a ring.
type Voting struct {
	Expected int      `json:"expected"`
	Quorum   int      `json:"quorum"`
	Known    []string `json:"known"`
}

// Owner is one peer's part.
type Owner struct {
	Peer      string   `json:"peer"`
	Nickname  string   `json:"nickname,omitempty"`
	Self      bool     `json:"self,omitempty"`
	Slots     uint64   `json:"slots"`
	Percent   float64  `json:"percent"`
	Reachable bool     `json:"reachable"`
	Ranges    []string `json:"ranges"`          // IPv4 CIDRs
	Usage     *Usage   `json:"usage,omitempty"` // of those that answered
}

// DNS is the name server of this host.
type DNS struct {
	Off        bool         `json:"off,omitempty"` // it was launched without one
	Domain     string       `json:"domain,omitempty"`
	TTL        float64      `json:"ttl"` // seconds
	Listening  []netip.Addr `json:"listening,omitempty"`
	Problem    string       `json:"problem,omitempty"`    // why it does not listen
	Containers []netip.Addr `json:"containers,omitempty"` // where containers reach it
	Upstreams  []Upstream   `json:"upstreams"`
	NoUpstream string       `json:"noUpstream,omitempty"` // why resolv.conf names no server
	Entries    int          `json:"entries"`              // endpoints and hosts with a name, in the whole network
	Cached     int          `json:"cached"`               // answers of upstreams
	Counts     DNSCounts    `json:"counts"`
}

// DNSCounts only grow while the agent runs.
type DNSCounts struct {
	Queries   uint64 `json:"queries"`   // everything that came
	Local     uint64 `json:"local"`     // answered from the directory
	Hits      uint64 `json:"hits"`      // answered from the cache
	Forwarded uint64 `json:"forwarded"` // put to upstreams
	Joined    uint64 `json:"joined"`    // waited for a question that was put already
	Failed    uint64 `json:"failed"`    // put to upstreams without an answer
	Limited   uint64 `json:"limited"`   // not put, or given up: too many were waiting
	Refused   uint64 `json:"refused"`   // answered with an error, because of what was asked
	Dropped   uint64 `json:"dropped"`   // not answered: not from the network
}

// Upstream is a server that other names are asked of.
type Upstream struct {
	Domain string `json:"domain,omitempty"` // of --dns-forward; empty: everything else
	Server string `json:"server"`
	Error  string `json:"error,omitempty"` // why it did not answer last
	Own    bool   `json:"own,omitempty"`   // it is this name server itself, and never asked
}

// Name is one name in the DNS domain, with what it stands for.
type Name struct {
	Name        string       `json:"name"` // as a question has it, with the domain
	Addresses   []netip.Addr `json:"addresses"`
	Endpoint    string       `json:"endpoint"` // CONTAINER/INTERFACE, node, or outside/NAME
	Peer        string       `json:"peer"`
	Nickname    string       `json:"nickname"`
	Unreachable bool         `json:"unreachable,omitempty"` // its peer cannot be reached, so it is not answered
}

// NameRequest adds or removes a name in the DNS domain.
type NameRequest struct {
	Name      string       `json:"name"`                // with or without the domain; empty for all of a container that names are taken from, its own among them
	Container string       `json:"container,omitempty"` // id, its first characters, or name, of one that is attached here
	Addresses []netip.Addr `json:"addresses,omitempty"` // of endpoints here, of this host, or outside the network
}

// LookupRequest asks what a name stands for.
type LookupRequest struct {
	Name string `json:"name"` // with or without the domain
}

// ExposeRequest lets the underlay reach containers through this host, or stops that.
type ExposeRequest struct {
	On   bool   `json:"on"`
	Name string `json:"name,omitempty"` // of this host in the DNS domain
}

// Rejection is somebody who was turned away.
type Rejection struct {
	Addr   string    `json:"addr"`
	Reason string    `json:"reason"`
	Count  int       `json:"count"`
	Last   time.Time `json:"last"`
}

// Endpoint is one attached container, pod or process.
type Endpoint struct {
	ContainerID string       `json:"containerID"`
	Interface   string       `json:"interface"`
	Source      string       `json:"source"` // cni or attach: who takes care of its end
	Network     string       `json:"network,omitempty"`
	Name        string       `json:"name,omitempty"`
	Namespace   string       `json:"namespace,omitempty"`
	HostLink    string       `json:"hostLink"`
	MAC         string       `json:"mac"`
	Addresses   []netip.Addr `json:"addresses"`

	Labels  map[string]string `json:"labels,omitempty"`
	Aliases []string          `json:"aliases,omitempty"` // further names in the DNS domain
	Ports   []Port            `json:"ports,omitempty"`

	Withdrawn bool `json:"withdrawn,omitempty"` // dns-remove took its own name away, until it is attached anew

	Lost bool `json:"lost,omitempty"` // the addresses are another peer's by now; it is cut off
}

// AttachRequest asks for the host side of an endpoint whose veth pair exists.
type AttachRequest struct {
	ContainerID string `json:"containerID"`
	Interface   string `json:"interface"` // inside the container
	Source      string `json:"source"`
	Network     string `json:"network,omitempty"`
	Name        string `json:"name,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	PodUID      string `json:"podUID,omitempty"` // Kubernetes': a pod of the same name may be another
	HostLink    string `json:"hostLink"`
	MAC         string `json:"mac"` // of the container's side
	// Addresses are what the container asks for: one of either family, or both of one slot.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Labels are what policy selects by, Ports those that have a name (SRV, policy).
	Labels map[string]string `json:"labels,omitempty"`
	Ports  []Port            `json:"ports,omitempty"`
}

// Port is a port with a name.
type Port struct {
	Name     string `json:"name"`     // at most 15 of a-z, 0-9 and - (RFC 6335)
	Protocol string `json:"protocol"` // tcp, udp or sctp
	Number   uint16 `json:"port"`
}

// AttachReply is what the container's side needs to know.
type AttachReply struct {
	Addresses []netip.Addr   `json:"addresses"` // IPv4 first; IPv6 where the host carries it
	Universe  []netip.Prefix `json:"universe"`
	MTU       int            `json:"mtu"`
	Resolver  *Resolver      `json:"resolver,omitempty"` // nil where this host has no name server
}

// Resolver is what belongs into a container's resolv.conf.
type Resolver struct {
	Servers []string `json:"servers"`
	Domain  string   `json:"domain"`
	Search  []string `json:"search"`
	Options []string `json:"options"`
}

// EndpointRef names an endpoint.
type EndpointRef struct {
	ContainerID string `json:"containerID"`
	Interface   string `json:"interface"`
}

// Key is the form in which allocations and queued releases name an endpoint. No
// interface name holds a slash, so it is unambiguous.
func (r EndpointRef) Key() string { return r.ContainerID + "/" + r.Interface }

// CollectRequest ends all endpoints of a network but those that are still in use.
type CollectRequest struct {
	Network string        `json:"network"`
	Valid   []EndpointRef `json:"valid"`
}

// RemovePeerRequest takes over the addresses of a peer that is gone for good.
type RemovePeerRequest struct {
	Peer  string `json:"peer"`  // its id, or its nickname if only one has it
	Force bool   `json:"force"` // without a majority
}

// RemovePeerReply is what came of it.
type RemovePeerReply struct {
	Peer      string `json:"peer"`
	Addresses uint64 `json:"addresses"` // slots that are this host's now
}

// StopRequest ends the agent.
type StopRequest struct {
	Leave bool `json:"leave"` // this peer leaves the mesh for good: an heir takes its addresses
	Force bool `json:"force"` // leave without an heir
}

// StopReply is what came of it.
type StopReply struct {
	Heir string `json:"heir,omitempty"`
}

// Usage is what a peer has of its addresses.
type Usage struct {
	Active  uint64 `json:"active"`  // in use, its node address among them
	Free    uint64 `json:"free"`    // that it can hand out
	Resting uint64 `json:"resting"` // freed a moment ago
}

// TargetsRequest changes whom this peer joins.
type TargetsRequest struct {
	Connect []string `json:"connect,omitempty"`
	Replace bool     `json:"replace,omitempty"`
	Forget  []string `json:"forget,omitempty"`
}

// Codes of an Error.
const (
	CodeBadRequest = "bad-request"
	CodeNotFound   = "not-found"
	CodeConflict   = "conflict"
	CodeNotReady   = "not-ready" // try again later
	CodeNoSpace    = "no-space"  // try again later
	CodeInternal   = "internal"
)

// Error is an answer that says no. Message is for people and says what to do next.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }
