package topology

import (
	"cmp"
	"net/netip"
)

// WireGuard adds these sizes to a packet: an IP header of the underlay (40 bytes for IPv6, 20 for
// IPv4), 8 bytes of UDP, and 32 bytes of its own. It pads the inner packet to a multiple of 16.
const (
	Overhead  = 40 + 8 + 32
	overhead4 = 20 + 8 + 32
	padding   = 16
)

// MinMTU is the smallest MTU of an IPv6 link (RFC 8200, section 5). leastMTU is the packet size
// that every IPv4 host must accept (RFC 791).
const (
	MinMTU   = 1280
	leastMTU = 576
)

// usualMTU is assumed for links of unknown MTU.
const usualMTU = 1500

// SetMTUs sets the MTU of each tunnel, and returns the MTU of the device, which is the largest that
// any tunnel may have. So containers keep their MTU when a peer with a larger path MTU joins. link
// is the MTU of the link with this host's first address. given, if not 0, is the device MTU that
// the operator configured, which replaces the MTUs of this host's links and routes.
func SetMTUs(tunnels []Tunnel, link, given int) int {
	largest := link
	for _, t := range tunnels {
		largest = max(largest, t.Route)
	}
	if largest == 0 {
		largest = usualMTU
	}
	device := max(largest-Overhead, MinMTU)
	if given != 0 {
		device = given
	}
	for i := range tunnels {
		t := &tunnels[i]
		path := t.Path()
		if given != 0 {
			path = cmp.Or(t.Measured, t.Link)
		}
		t.device, t.MTU = device, inside(path, device, t.Endpoint.Addr())
	}
	return device
}

// inside returns the largest inner packet for a path MTU to a peer.
func inside(path, device int, peer netip.Addr) int {
	if path == 0 || path-Overhead >= device {
		return device
	}
	// Userspace WireGuard limits the padding by the device's MTU, since it does not know the path's
	// MTU.
	return max(leastMTU, min(path-Overhead, (path-outer(peer))&^(padding-1)))
}

func outer(peer netip.Addr) int {
	if peer.Is4() {
		return overhead4
	}
	return Overhead
}

// Path returns the path MTU of the underlay to the peer: the measured one, but at most that of this
// host's route, which the kernel may just have lowered. Before the first measurement it is the smaller
// MTU of this host's route and the peer's link. 0 means unknown.
func (t Tunnel) Path() int {
	far := cmp.Or(t.Measured, t.Link)
	if t.Route == 0 || far == 0 {
		return max(t.Route, far)
	}
	return min(t.Route, far)
}

// Ends returns the MTU of this host's route to the peer, but at most that of the peer's link, which receives
// nothing larger. 0: unknown.
func (t Tunnel) Ends() int {
	if t.Route == 0 || t.Link == 0 {
		return t.Route
	}
	return min(t.Route, t.Link)
}

// MTUFor returns the largest inner packet of an address family in the tunnel.
func (t Tunnel) MTUFor(ipv6 bool) int {
	if ipv6 {
		return max(t.MTU, MinMTU) // IPv6 allows no smaller MTU, so WireGuard's packets get fragmented
	}
	return t.MTU
}

// Sealed returns the size that an inner packet of size bytes has on the underlay.
func (t Tunnel) Sealed(size int) int {
	padded := (size + padding - 1) &^ (padding - 1)
	return max(size, min(padded, t.device)) + outer(t.Endpoint.Addr())
}
