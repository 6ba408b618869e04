package topology

import (
	"cmp"
	"net/netip"
	"slices"

	"weft/mesh/peer"
)

// Address is one at which other hosts may reach this one, as the kernel has it.
type Address struct {
	Addr netip.Addr
	Rank int // of those that are new, the smallest goes first
	// Old says that nobody is told of it who does not know it already: it is about to go
	// (deprecated, RFC 4862), or changes by itself (temporary, RFC 8981).
	Old bool
}

// maxRemembered bounds the order of addresses, those that are gone included.
const maxRemembered = 4 * peer.MaxUnderlay

// Order is the order of a host's addresses: what was there before keeps its place, as long as
// it exists, and gets it back when it returns. The first is the one that gossip advertises,
// and that peers send to: it must not follow a default route, which any VPN changes. Next is the
// order to give the next time; addrs are those of it that exist.
func Order(before []netip.Addr, now []Address) (next, addrs []netip.Addr) {
	now = slices.Clone(now)
	slices.SortStableFunc(now, func(a, b Address) int { return cmp.Compare(a.Rank, b.Rank) })
	next = slices.Clone(before)
	for _, a := range now {
		if !a.Old && !slices.Contains(next, a.Addr) {
			next = append(next, a.Addr)
		}
	}
	exists := func(a netip.Addr) bool {
		return slices.ContainsFunc(now, func(n Address) bool { return n.Addr == a })
	}
	for i := len(next) - 1; i >= 0 && len(next) > maxRemembered; i-- {
		if !exists(next[i]) {
			next = slices.Delete(next, i, i+1)
		}
	}
	next = next[:min(len(next), maxRemembered)]
	for _, a := range next {
		if exists(a) && len(addrs) < peer.MaxUnderlay {
			addrs = append(addrs, a)
		}
	}
	return next, addrs
}
