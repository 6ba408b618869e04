package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Host is a host with its known addresses. Packets that it sends itself arrive with its overlay
// addresses, which administrators do not write into policies. So an ipBlock that contains a known
// address of the host also applies to its overlay addresses.
type Host struct {
	Addrs   []netip.Addr // for example a Node's InternalIPs
	Overlay []netip.Addr
}

// knownBy returns the known addresses to compare with a block in place of an overlay address. These
// are the addresses of the same family, or all known addresses if none is of that family.
func (h Host) knownBy(overlay netip.Addr) []netip.Addr {
	var same []netip.Addr
	for _, a := range h.Addrs {
		if a.Is4() == overlay.Is4() {
			same = append(same, a)
		}
	}
	if len(same) == 0 {
		return h.Addrs
	}
	return same
}

func (h Host) equal(o Host) bool {
	return slices.Equal(h.Addrs, o.Addrs) && slices.Equal(h.Overlay, o.Overlay)
}

// speaksOf reports whether a block's CIDR contains any known address of a host (names), and
// whether the block then includes the host (means).
func (b Block) speaksOf(known []netip.Addr) (names, means bool) {
	for _, a := range known {
		if b.CIDR.Contains(a) {
			names, means = true, means || b.Contains(a)
		}
	}
	return names, means
}

// inBlock reports whether a block contains an address. For an overlay address of a host, the host's
// known addresses decide, if the block's CIDR contains any of them.
func (w World) inBlock(b Block, a netip.Addr) bool {
	for _, h := range w.Hosts {
		if slices.Contains(h.Overlay, a) {
			if names, means := b.speaksOf(h.knownBy(a)); names {
				return means
			}
		}
	}
	return b.Contains(a)
}

// called returns an address for messages, with the known addresses of its host.
func (w World) called(a netip.Addr) string {
	for _, h := range w.Hosts {
		if slices.Contains(h.Overlay, a) {
			return fmt.Sprintf("%v (the host %v)", a, h.Addrs)
		}
	}
	return a.String()
}

// alias is an overlay address of a host, and the known addresses to compare with blocks in its
// place.
type alias struct {
	addr  netip.Addr
	known []netip.Addr
}

func aliases(hosts []Host) (out []alias) {
	for _, h := range hosts {
		for _, a := range h.Overlay {
			out = append(out, alias{a, h.knownBy(a)})
		}
	}
	return out
}

// intervalsWith returns the addresses of a block, with the overlay addresses of hosts that the
// block includes. It removes the overlay addresses of hosts that the block excludes.
func (b Block) intervalsWith(hosts []alias) []Interval {
	var with []Interval
	var without []netip.Addr
	for _, h := range hosts {
		switch names, means := b.speaksOf(h.known); {
		case means && !b.Contains(h.addr):
			with = append(with, Interval{h.addr, h.addr})
		case names && !means && b.Contains(h.addr):
			without = append(without, h.addr)
		}
	}
	slices.SortFunc(without, netip.Addr.Compare)
	out := append(cut(b.intervals(), slices.Compact(without)), with...)
	slices.SortFunc(out, func(x, y Interval) int { return x.First.Compare(y.First) })
	return slices.Compact(out)
}

// cut removes addresses from intervals that contain them. Both lists are sorted.
func cut(list []Interval, addrs []netip.Addr) []Interval {
	if len(addrs) == 0 {
		return list
	}
	var out []Interval
	for _, i := range list {
		for len(addrs) > 0 && !i.Last.Less(addrs[0]) {
			if a := addrs[0]; i.First.Less(a) {
				out = append(out, Interval{i.First, a.Prev()})
			}
			i.First, addrs = addrs[0].Next(), addrs[1:]
		}
		if i.First.IsValid() && !i.Last.Less(i.First) {
			out = append(out, i)
		}
	}
	return out
}

// SetHosts replaces all hosts, and reports whether that changes the program.
func (c *Compiler) SetHosts(hosts []Host) (changed bool) {
	if slices.EqualFunc(c.hosts, hosts, Host.equal) {
		return false
	}
	c.hosts, c.aliases = hosts, aliases(hosts)
	if !slices.ContainsFunc(c.policies, func(p compiled) bool { return p.names() }) {
		return false
	}
	policies := make([]Policy, len(c.policies))
	for i, p := range c.policies {
		policies[i] = p.Policy
	}
	c.SetPolicies(policies, c.namespaces)
	return true
}

// names reports whether a policy has any block.
func (p Policy) names() bool {
	for _, r := range slices.Concat(p.Ingress, p.Egress) {
		if slices.ContainsFunc(r.Peers, func(peer Peer) bool { return peer.Block != nil }) {
			return true
		}
	}
	return false
}
