// Package plan decides what the data path of this host should be. Desired is pure: it only uses its
// arguments. prog/arch tests that.
package plan

import (
	"net/netip"
	"slices"

	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/attach"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
	"weft/router"
	"weft/router/endpoint"
)

// Inputs determine the data path.
type Inputs struct {
	View      *view.View // must have a ring
	Node      slot.Slot  // the slot of the node address; 0: none yet
	LinkMTU   int        // the MTU of the link with this host's first address; 0: unknown
	Endpoints []attach.Endpoint
	Settings  settings.Values
	// Route returns the MTU of this host's route to an address; 0: no route.
	Route        func(netip.Addr) int
	PresharedKey func(peer.ID) [32]byte
	// Targets are the hosts to which this host may connect; nil: it may connect to all.
	Targets []mesh.Target
	Paths   map[peer.ID]path.Path // as measured
	Ways    []path.Way            // over relays
	Pairs   []path.Pair           // for which this host is the relay
	Fixed
}

// Fixed has the inputs that do not change while an agent runs.
type Fixed struct {
	PrivateKey [32]byte
	Port       int // WireGuard's UDP port
	GossipPort int
	MTU        int // the MTU that the operator gave; 0: none
	IPv6       bool
	Resolver   bool   // a name server listens on the node addresses
	StatusPort uint16 // the TCP port of the status for other machines; 0: it is not served to them
}

// Plan is the data path as it should be.
type Plan struct {
	router.Config
	// Lost lists endpoints whose addresses another peer owns now. Their routes are removed. They stay
	// attached, so that users see them.
	Lost []endpoint.Endpoint
}

// Desired returns the data path that follows from the inputs. It is pure.
func Desired(in Inputs) Plan {
	v, self := in.View, in.View.Self
	p := Plan{Config: router.Config{
		Universe: v.Ring.Universe, Node: in.Node, PrivateKey: in.PrivateKey, Port: uint16(in.Port), Own: v.Owners[self],
		Tunnels: tunnels(in), Gossip: uint16(in.GossipPort), Unconfirmed: !v.Confirmed, Hosts: guarded(v, in.StatusPort),
		Exposed: in.Settings.Exposed, Resolver: in.Resolver, IPv6: in.IPv6,
	}}
	p.Relays = relays(in, p.Tunnels)
	p.MTU = topology.SetMTUs(p.Tunnels, in.LinkMTU, in.MTU)
	if s, lost := v.Lost[settings.NodeKey]; lost && s == in.Node {
		p.Node = 0
	}
	for _, e := range in.Endpoints {
		plug := e.Plug(v.Ring.Universe, in.IPv6)
		if _, lost := v.Lost[e.Key()]; lost {
			p.Lost = append(p.Lost, plug)
		} else {
			p.Endpoints = append(p.Endpoints, plug)
		}
	}
	slices.SortFunc(p.Endpoints, func(x, y endpoint.Endpoint) int { return x.Addr4.Compare(y.Addr4) })
	return p
}

// tunnels lists the tunnels to other peers.
func tunnels(in Inputs) []topology.Tunnel {
	v := in.View
	t := topology.Input{
		Self: v.Self, Ring: v.Ring.ID[:], Universe: v.Ring.Universe, IPv6: in.IPv6, Owned: v.Owners,
		Preferred: map[peer.ID]netip.Addr{}, Planned: map[peer.ID]bool{}, Reach: v.Reach, Route: in.Route, PresharedKey: in.PresharedKey, Paths: in.Paths,
	}
	for _, p := range v.Peers {
		// A member can make up as many records as it likes: a peer counts once it proved to be
		// alive, or owns a part of the ring.
		id := p.Record.ID()
		if p.Record.Identity == nil || len(v.Owners[id]) == 0 && !p.Met {
			continue
		}
		t.Peers = append(t.Peers, p.Record)
		if in.Targets != nil && !slices.ContainsFunc(in.Targets, func(target mesh.Target) bool { return target.Names(p.Record) }) {
			t.Planned[id] = true
		}
		if p.Addr.IsValid() {
			t.Preferred[id] = p.Addr
		}
	}
	for _, addr := range v.Own.Underlay {
		t.Underlay4 = t.Underlay4 || addr.Is4()
		t.Underlay6 = t.Underlay6 || addr.Is6()
	}
	return topology.Plan(t)
}
