package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"weft/ipam/slot"
)

// within reports whether name is zone or below it. rel is the part of name before zone, without the
// dot. Both are fully qualified and in lower case.
func within(name, zone string) (rel string, ok bool) {
	head, ok := strings.CutSuffix(name, zone)
	switch {
	case !ok || strings.Contains(head, `\`) && !dns.IsSubDomain(zone, name): // an escaped dot belongs to a label
		return "", false
	case head == "" || zone == ".":
		return strings.TrimSuffix(head, "."), true
	}
	return strings.CutSuffix(head, ".")
}

// spelled parses a name below in-addr.arpa or ip6.arpa (RFC 1035 3.5, RFC 3596 2.5). It returns the
// prefix that the labels spell backwards, and the rest of the name in front of it. Labels with
// leading zeros do not count.
func spelled(name string) (p netip.Prefix, rest string, ok bool) {
	if head, is4 := within(name, "in-addr.arpa."); is4 {
		var a [4]byte
		n := 0
		for ; head != "" && n < len(a); n++ {
			before, label := cutLast(head)
			octet, err := strconv.ParseUint(label, 10, 8)
			if err != nil || strconv.FormatUint(octet, 10) != label {
				break
			}
			a[n], head = byte(octet), before
		}
		return netip.PrefixFrom(netip.AddrFrom4(a), 8*n), head, true
	}
	if head, is6 := within(name, "ip6.arpa."); is6 {
		var a [16]byte
		n := 0
		for ; head != "" && n < 2*len(a); n++ {
			before, label := cutLast(head)
			i := strings.Index("0123456789abcdef", label)
			if len(label) != 1 || i < 0 {
				break
			}
			a[n/2] |= byte(i) << (4 * (1 - n%2))
			head = before
		}
		return netip.PrefixFrom(netip.AddrFrom16(a), 4*n), head, true
	}
	return netip.Prefix{}, "", false
}

// cutLast splits the last label off a name without a final dot.
func cutLast(name string) (before, label string) {
	i := strings.LastIndexByte(name, '.')
	return name[:max(0, i)], name[i+1:]
}

// reverseZone returns the apex of the reverse zone of u that contains a name which spells p. Zones
// end at labels. If the universe ends within a label, there is a zone for each value of that label.
// So the zones contain exactly the universe's addresses.
func reverseZone(u slot.Universe, name string, p netip.Prefix) (apex string, ok bool) {
	whole, unit := u.V4, 8
	if p.Addr().Is6() {
		whole, unit = u.V6, 4
	}
	labels := (whole.Bits() + unit - 1) / unit
	if u.IsZero() || p.Bits() < labels*unit || !whole.Contains(p.Addr()) {
		return "", false
	}
	i, _ := dns.PrevLabel(name, labels+2)
	return name[i:], true
}

// special holds the names that never leave a host (RFC 6761 6.3 and 6.4, RFC 7686), with their
// addresses, if any.
//
// Names below local. are forwarded: networks without multicast DNS use them, and the host itself
// would query its servers for them (RFC 6762 appendix G). The same holds for test., home.arpa. and
// the reverse zones of private addresses.
var special = map[string][]netip.Addr{
	"localhost.": {netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()},
	"invalid.":   nil,
	"onion.":     nil,
}

// isSpecial returns the special zone that contains a name, if any.
func isSpecial(name string) (zone string, ok bool) {
	i, _ := dns.PrevLabel(name, 1)
	zone = name[i:]
	_, ok = special[zone]
	return zone, ok
}
