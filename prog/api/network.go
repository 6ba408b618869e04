package api

import (
	"context"
	"net/netip"
	"time"
)

// The paths of requests about the whole network; Client documents each.
const (
	PathNetwork   = "/v1/network"
	PathEndpoints = "/v1/network/endpoints"
	PathHost      = "/v1/network/host"
	PathMatrix    = "/v1/network/matrix"
)

// Network asks all hosts for a summary.
func (c *Client) Network(ctx context.Context) (r Network, err error) {
	return r, c.call(ctx, PathNetwork, nil, &r)
}

// NetworkEndpoints returns the endpoints of the whole network, as this host knows them.
func (c *Client) NetworkEndpoints(ctx context.Context) (r NetworkEndpoints, err error) {
	return r, c.call(ctx, PathEndpoints, nil, &r)
}

// HostReport asks one host for its report.
func (c *Client) HostReport(ctx context.Context, req HostRequest) (r Report, err error) {
	return r, c.call(ctx, PathHost, req, &r)
}

// Matrix returns which endpoints may connect to which, by policies.
func (c *Client) Matrix(ctx context.Context, req MatrixRequest) (r Matrix, err error) {
	return r, c.call(ctx, PathMatrix, req, &r)
}

// Network is a picture of the whole network at one moment.
type Network struct {
	Taken   time.Time `json:"taken"`
	Cluster string    `json:"cluster,omitempty"`
	Hosts   []Host    `json:"hosts"`
	Ring    IPAM      `json:"ring"` // as this host knows it
	// Endpoints changes when NetworkEndpoints may have changed.
	Endpoints string `json:"endpoints"`
}

// Host is one host's summary of itself. If it does not answer, the summary has what other hosts know.
type Host struct {
	Peer     string       `json:"peer"`
	Nickname string       `json:"nickname"`
	Self     bool         `json:"self,omitempty"`
	State    string       `json:"state"`           // as Peer.State
	Error    string       `json:"error,omitempty"` // why it did not answer
	Underlay []netip.Addr `json:"underlay"`
	Node     []netip.Addr `json:"node,omitempty"`

	Version   string    `json:"version,omitempty"`
	Ready     bool      `json:"ready"`
	NotReady  string    `json:"notReady,omitempty"`
	Datapath  string    `json:"datapath,omitempty"` // kernel or userspace
	Endpoints int       `json:"endpoints"`
	Isolated  int       `json:"isolated"`
	Dropped   uint64    `json:"dropped"` // packets that policies dropped since the agent started
	Active    int       `json:"active"`  // addresses in use
	Free      uint64    `json:"free"`    // addresses that it can allocate
	Problems  []Problem `json:"problems,omitempty"`

	Direct int    `json:"direct"`         // tunnels with packets both ways, without a relay
	Links  []Link `json:"links"`          // tunnels in another state, and the busiest ones
	More   int    `json:"more,omitempty"` // direct tunnels that Links does not have
}

// Link is a tunnel of a host, as that host measures it.
type Link struct {
	Peer         string   `json:"peer"`  // the other end
	State        string   `json:"state"` // one of the Conn constants
	Info         string   `json:"info,omitempty"`
	Via          []string `json:"via,omitempty"`       // the relays, in the order from this host
	RoundTrip    *float64 `json:"roundTrip,omitempty"` // seconds; absent: not measured
	Loss         *float64 `json:"loss,omitempty"`      // 0 to 1; absent: not measured
	ReceivedRate float64  `json:"receivedRate"`        // bytes per second
	SentRate     float64  `json:"sentRate"`            // bytes per second
}

// NetworkEndpoints are the endpoints of the whole network.
type NetworkEndpoints struct {
	Version   string            `json:"version"` // compare with Network.Endpoints
	Endpoints []NetworkEndpoint `json:"endpoints"`
}

// NetworkEndpoint is an endpoint as all hosts know it.
type NetworkEndpoint struct {
	ID        string            `json:"id"` // HOST/CONTAINER/INTERFACE
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Addresses []netip.Addr      `json:"addresses"`
	Peer      string            `json:"peer"`
}

// HostRequest names one host.
type HostRequest struct {
	Peer string `json:"peer"` // the peer's id, or its nickname if no other peer has the same
}

// MatrixRequest selects a part of the matrix.
type MatrixRequest struct {
	// From and To are namespaces; empty: the matrix has one row and one column for each namespace.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Matrix says who may connect to whom. Rows are sources, columns destinations. Endpoints that policies treat
// alike are one group.
type Matrix struct {
	Rows    []Group    `json:"rows"`
	Columns []Group    `json:"columns"`
	Cells   [][]Access `json:"cells"`          // Cells[row][column]
	More    int        `json:"more,omitempty"` // groups that were left out
}

// Group is endpoints with the same row or column.
type Group struct {
	Name      string   `json:"name"`      // namespace, or NAMESPACE/NAME of one endpoint
	Endpoints int      `json:"endpoints"` // how many there are
	Examples  []string `json:"examples"`  // NAMESPACE/NAME of some of them
}

// The kinds of access.
const (
	AccessAll  = "all"  // every port
	AccessSome = "some" // some ports, or only between some of the endpoints
	AccessNone = "none"
)

// Access is what a group may open to another.
type Access struct {
	Kind  string `json:"kind"`
	Ports string `json:"ports,omitempty"` // of the kind some: as PairChange.Before, if the same holds between all endpoints
}
