package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Host is a host of the network, by the addresses that people know it by. What it sends itself
// comes with its addresses in the overlay, which nobody writes into a policy: what a block
// says of the host holds for those.
type Host struct {
	Addrs   []netip.Addr // such as a Node's InternalIPs
	Overlay []netip.Addr
}

// knownBy are the addresses that a block has to speak of for one of the overlay: those of its
// family, or of the other one where the host has none of that.
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

// speaksOf reports whether a block names a host, by whatever of its addresses lies in the
// block's CIDR, and whether it then means it, or excepts it.
func (b Block) speaksOf(known []netip.Addr) (names, means bool) {
	for _, a := range known {
		if b.CIDR.Contains(a) {
			names, means = true, means || b.Contains(a)
		}
	}
	return names, means
}

// inBlock reports whether an address is in a block: that of a host, if the block names the
// host, as far as it means it.
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

// called is an address for people: with those that a host is known by.
func (w World) called(a netip.Addr) string {
	for _, h := range w.Hosts {
		if slices.Contains(h.Overlay, a) {
			return fmt.Sprintf("%v (the host %v)", a, h.Addrs)
		}
	}
	return a.String()
}

// intervalsWith are the addresses of a block, with those of hosts that it means and without
// those of hosts that it excepts.
func (b Block) intervalsWith(hosts []Host) []Interval {
	out := b.intervals()
	for _, h := range hosts {
		for _, a := range h.Overlay {
			switch names, means := b.speaksOf(h.knownBy(a)); {
			case means:
				out = with(out, a)
			case names:
				out = without(out, a)
			}
		}
	}
	return out
}

func (i Interval) contains(a netip.Addr) bool {
	return a.BitLen() == i.First.BitLen() && !a.Less(i.First) && !i.Last.Less(a)
}

// with puts an address into intervals that are sorted and apart.
func with(list []Interval, a netip.Addr) []Interval {
	at, _ := slices.BinarySearchFunc(list, a, func(i Interval, a netip.Addr) int { return i.Last.Compare(a) })
	if at < len(list) && list[at].contains(a) {
		return list
	}
	return slices.Insert(list, at, Interval{a, a})
}

// without takes an address out of them.
func without(list []Interval, a netip.Addr) []Interval {
	at := slices.IndexFunc(list, func(i Interval) bool { return i.contains(a) })
	if at < 0 {
		return list
	}
	var rest []Interval
	if i := list[at]; i.First != a {
		rest = append(rest, Interval{i.First, a.Prev()})
	}
	if i := list[at]; i.Last != a {
		rest = append(rest, Interval{a.Next(), i.Last})
	}
	return slices.Replace(list, at, at+1, rest...)
}

// SetHosts replaces all hosts, and reports whether that is new.
func (c *Compiler) SetHosts(hosts []Host) (changed bool) {
	if slices.EqualFunc(c.hosts, hosts, Host.equal) {
		return false
	}
	c.hosts = hosts
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

// names reports whether a policy has a block.
func (p Policy) names() bool {
	for _, r := range slices.Concat(p.Ingress, p.Egress) {
		if slices.ContainsFunc(r.Peers, func(peer Peer) bool { return peer.Block != nil }) {
			return true
		}
	}
	return false
}
