package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"weft/mesh/peer"
	"weft/mesh/topology"
)

// linkMTUs are what the links with this host's addresses carry, in the order of its record. An
// address that no link has, as behind NAT, is reached by the link of the default route.
func (a *Agent) linkMTUs(addrs []netip.Addr) ([]uint32, error) {
	out := make([]uint32, len(addrs))
	if a.opts.MTU != 0 { // then others send no more than that either
		for i := range out {
			out[i] = uint32(a.opts.MTU + topology.Overhead)
		}
		return out, nil
	}
	mtus, err := a.host.linkMTUs()
	if err != nil {
		return nil, err
	}
	for i, addr := range addrs {
		mtu, ok := mtus.ByAddr[addr]
		if !ok {
			mtu = mtus.Default
		}
		out[i] = uint32(mtu)
	}
	return out, nil
}

// plan lists the tunnels, with their MTUs, and notes them for the report.
func (a *Agent) plan(in topology.Input, own peer.Record) []topology.Tunnel {
	tunnels := topology.Plan(in)
	link := 0
	if len(own.MTUs) > 0 {
		link = int(own.MTUs[0])
	}
	a.mtu.Store(int64(topology.SetMTUs(tunnels, link, a.opts.MTU)))
	a.tunnels.Store(&tunnels)
	return tunnels
}

// planned are the tunnels as last planned, by PeerID.
func (a *Agent) planned() []topology.Tunnel {
	if p := a.tunnels.Load(); p != nil {
		return *p
	}
	return nil
}

// tunnelMTU is that of the tunnel to a peer, 0 if there is none.
func (a *Agent) tunnelMTU(id peer.ID) int {
	all := a.planned()
	i, ok := slices.BinarySearchFunc(all, id, func(t topology.Tunnel, id peer.ID) int { return slices.Compare(t.Peer[:], id[:]) })
	if !ok {
		return 0
	}
	return all[i].MTU
}

// pathWarnings name the peers to which packets go in fragments.
func (a *Agent) pathWarnings() (list []warning) {
	for _, t := range a.planned() {
		if text := narrow(t, a.mesh.Name(t.Peer), a.ipv6, a.opts.MTU != 0); text != "" {
			list = append(list, warning{reason: reasonPath, about: t.Peer.String(), text: text})
		}
	}
	return list
}

// narrow says that the path to a peer carries less than its tunnel needs.
func narrow(t topology.Tunnel, name string, ipv6, given bool) string {
	size := t.MTUFor(ipv6)
	need, path := t.Sealed(size), t.Path()
	if path == 0 || need <= path {
		return ""
	}
	addr := t.Endpoint.Addr()
	where, look := fmt.Sprintf("this host's route to %v", addr), fmt.Sprintf(" (see `ip route get %v`)", addr)
	if t.Route == 0 || path < t.Route {
		where, look = fmt.Sprintf("the link with %v on that host", addr), ""
	}
	what, or := "the tunnel", ""
	switch {
	case given:
		what, or = "the tunnel, with its --mtu,", ", or choose a smaller --mtu"
	case size > t.MTU:
		what = "IPv6 in the tunnel"
	}
	return fmt.Sprintf("large packets to %s go in fragments, which is slow, or are lost: the MTU of %s is %d, and %s needs %d: raise it%s%s",
		name, where, path, what, need, look, or)
}
