package api

import "net/netip"

// Peer is one member of the mesh, this host included.
type Peer struct {
	ID       string       `json:"id"`
	Nickname string       `json:"nickname"`
	Self     bool         `json:"self,omitempty"`
	State    string       `json:"state"` // running, stopped, left, unreachable, or removed (after being unreachable)
	Underlay []netip.Addr `json:"underlay"`
	Node     []netip.Addr `json:"node,omitempty"`
	Ring     string       `json:"ring,omitempty"`
	Liveness string       `json:"liveness,omitempty"` // alive, silent, dead, or unsure; empty for this host
	Reasons  []string     `json:"reasons,omitempty"`  // what Liveness was decided by
	Cut      []string     `json:"cut,omitempty"`      // the ids of the peers that it tells it does not reach
	NoRelay  bool         `json:"noRelay,omitempty"`  // it tells that it forwards no tunnels of others
}
