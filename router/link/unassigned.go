package link

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
)

// RejectUnassigned makes this host's own slots unreachable, except for slots of endpoints, whose
// routes have longer prefixes. A connection to an unassigned address then fails at once with an
// ICMP error. Without these routes the packets would be lost after they went into the tunnel or
// came out of it.
func (o Overlay) RejectUnassigned(own []slot.Range) error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	var prefixes []netip.Prefix
	for _, r := range own {
		prefixes = append(prefixes, o.Universe.Prefixes(r)...)
	}
	if !o.IPv6 {
		prefixes = slices.DeleteFunc(prefixes, func(p netip.Prefix) bool { return p.Addr().Is6() })
	}
	want, have, err := reject(h, prefixes, unassignedMetric)
	if err != nil {
		return err
	}
	old := func(r netlink.Route) bool {
		p, ok := prefixOf(r.Dst)
		fallback := ok && r.Priority == fallbackMetric && slices.Contains(o.universes(), p) // see SetUnreachable
		return r.Protocol == Protocol && routeType(r) == unix.RTN_UNREACHABLE && !fallback &&
			!slices.ContainsFunc(want, func(w netlink.Route) bool { return sameRoute(r, w) })
	}
	if !slices.ContainsFunc(have, old) {
		return nil
	}
	return purgeRoutes(h, "unreachable routes to slots that this host no longer owns", old)
}

// unassignedMetric is the metric of an unreachable route to slots of this host. It is smaller than
// the metric of the tunnel's route, which has the same prefix if this host owns the whole universe.
// It is larger than the metric of an endpoint's route, which has the same prefix if this host owns
// one slot.
func unassignedMetric(p netip.Prefix) int {
	if p.IsSingleIP() {
		return fallbackMetric
	}
	return tunnelMetric - 1
}

// reject sets an unreachable route for each prefix. It returns these routes, and all routes from
// before.
func reject(h *netlink.Handle, prefixes []netip.Prefix, metric func(netip.Prefix) int) (set, before []netlink.Route, err error) {
	if before, err = Routes(h); err != nil {
		return nil, nil, err
	}
	for _, p := range prefixes {
		r, err := unreachable(h, p, metric(p))
		if err != nil {
			return nil, nil, err
		}
		if err := SetRoute(h, before, r); err != nil {
			return nil, nil, err
		}
		set = append(set, r)
	}
	return set, before, nil
}

// unreachable returns a route by which the kernel answers "host unreachable". In IPv6 the route
// belongs to lo.
func unreachable(h *netlink.Handle, p netip.Prefix, metric int) (netlink.Route, error) {
	r := netlink.Route{Dst: IPNet(p), Type: unix.RTN_UNREACHABLE, Priority: metric, Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	if p.Addr().Is6() {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return r, fmt.Errorf("finding lo for the unreachable route: %w", Explain(err))
		}
		r.LinkIndex = lo.Attrs().Index
	}
	return r, nil
}
