package link

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
)

// Vacant makes this host's own slots unreachable but for what endpoints have, whose routes
// are longer: who calls an address that nobody has hears of that at once, by ICMP. Without
// these routes such a packet would go into the tunnel, or come out of it, and end there.
func (o Overlay) Vacant(own []slot.Range) error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	have, err := Routes(h)
	if err != nil {
		return err
	}
	lo, err := h.LinkByName("lo") // IPv6 hangs them on lo
	if err != nil {
		return fmt.Errorf("unreachable routes: %w", err)
	}
	var want []netlink.Route
	for _, r := range own {
		for _, p := range o.Universe.Prefixes(r) {
			if p.Addr().Is4() || o.IPv6 {
				want = append(want, vacant(p, lo.Attrs().Index))
			}
		}
	}
	for _, r := range want {
		if err := SetRoute(h, have, r); err != nil {
			return err
		}
	}
	old := func(r netlink.Route) bool {
		p, ok := prefixOf(r.Dst)
		closes := ok && r.Priority == lastResort && slices.Contains(o.universes(), p) // see Close
		return r.Protocol == Protocol && routeType(r) == unix.RTN_UNREACHABLE && !closes &&
			!slices.ContainsFunc(want, func(w netlink.Route) bool { return sameRoute(r, w) })
	}
	if !slices.ContainsFunc(have, old) {
		return nil
	}
	return purgeRoutes(h, "routes to slots of others", old)
}

// vacant is the route to slots of ours. It beats the tunnel's, which is as long where the whole
// universe is ours, but not that of an endpoint, which is as long where one slot is.
func vacant(p netip.Prefix, lo int) netlink.Route {
	r := netlink.Route{Dst: IPNet(p), Type: unix.RTN_UNREACHABLE, Priority: tunnelMetric - 1, Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	if p.IsSingleIP() {
		r.Priority = lastResort
	}
	if p.Addr().Is6() {
		r.LinkIndex = lo
	}
	return r
}
