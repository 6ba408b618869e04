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
	var want []netlink.Route
	for _, r := range own {
		for _, p := range o.Universe.Prefixes(r) {
			if p.Addr().Is6() && !o.IPv6 {
				continue
			}
			r, err := unreachable(h, p, vacant(p))
			if err != nil {
				return err
			}
			want = append(want, r)
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

// vacant is the metric of a route to slots of ours. It beats the tunnel's, which is as long where
// the whole universe is ours, but not that of an endpoint, which is as long where one slot is.
func vacant(p netip.Prefix) int {
	if p.IsSingleIP() {
		return lastResort
	}
	return tunnelMetric - 1
}

// unreachable is a route by which the kernel answers that nobody is there. IPv6's hangs on lo.
func unreachable(h *netlink.Handle, p netip.Prefix, metric int) (netlink.Route, error) {
	r := netlink.Route{Dst: IPNet(p), Type: unix.RTN_UNREACHABLE, Priority: metric, Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	if p.Addr().Is6() {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return r, fmt.Errorf("unreachable route: %w", Explain(err))
		}
		r.LinkIndex = lo.Attrs().Index
	}
	return r, nil
}
