package topology

import "net/netip"

// What WireGuard adds to a packet: a header of the underlay's IP (40 bytes, or 20 of IPv4), 8
// bytes of UDP, and 32 of its own. It pads what it seals to a multiple of 16.
const (
	Overhead  = 40 + 8 + 32
	overhead4 = 20 + 8 + 32
	padding   = 16
)

// MinMTU is the least that IPv6 asks of a link (RFC 8200, section 5); leastMTU is what any
// host takes of IPv4 (RFC 791).
const (
	MinMTU   = 1280
	leastMTU = 576
)

// usualMTU is that of a link that nothing is known of.
const usualMTU = 1500

// SetMTUs sets the MTU of each tunnel, and returns that of the device, which is the largest
// that any tunnel may have: containers that are attached now keep theirs when a peer comes whose
// path carries more. link is the MTU of the link with this host's first address. given, if it is not
// 0, is what the operator wants of the device; then this host's own links and routes say nothing.
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
			path = t.Link
		}
		t.device, t.MTU = device, inside(path, device, t.Endpoint.Addr())
	}
	return device
}

// inside is the largest packet that fits into path bytes on the way to a peer, sealed.
func inside(path, device int, peer netip.Addr) int {
	if path == 0 || path-Overhead >= device {
		return device
	}
	// Userspace WireGuard bounds the padding by the device's MTU, and knows of no other.
	return max(leastMTU, min(path-Overhead, (path-outer(peer))&^(padding-1)))
}

func outer(peer netip.Addr) int {
	if peer.Is4() {
		return overhead4
	}
	return Overhead
}

// Path is the largest packet of the underlay that reaches the peer: the smaller of what this
// host's route and the peer's link carry. 0: nothing is known.
func (t Tunnel) Path() int {
	if t.Route == 0 || t.Link == 0 {
		return max(t.Route, t.Link)
	}
	return min(t.Route, t.Link)
}

// MTUFor is the largest packet of a family that goes through the tunnel.
func (t Tunnel) MTUFor(ipv6 bool) int {
	if ipv6 {
		return max(t.MTU, MinMTU) // less is not allowed: WireGuard's packets are sent in fragments
	}
	return t.MTU
}

// Sealed is the size on the underlay of a packet that goes through the tunnel.
func (t Tunnel) Sealed(size int) int {
	padded := (size + padding - 1) &^ (padding - 1)
	return max(size, min(padded, t.device)) + outer(t.Endpoint.Addr())
}
