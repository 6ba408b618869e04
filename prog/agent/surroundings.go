package agent

import (
	"net/netip"

	"weft/ipam/slot"
	"weft/router/endpoint"
	"weft/router/link"
)

// surroundings are what is read of this host's links and routes: again only when something
// about those has changed. One goroutine uses them at a time.
type surroundings struct {
	watch   *link.Watch // nil: they are read each time
	under   reading[[]link.HostAddr]
	mtus    reading[link.MTUs]
	ways    reading[map[netip.Addr]int]
	foreign reading[struct{}]
	ends    reading[[]string]
}

// reading is what was read, and of which version of the links and routes.
type reading[T any] struct {
	version uint64
	value   T
}

func (r *reading[T]) get(w *link.Watch, read func() (T, error)) (T, error) {
	version := w.Version()
	if version != 0 && version == r.version {
		return r.value, nil
	}
	value, err := read()
	if err != nil {
		r.version = 0
		return value, err
	}
	r.version, r.value = version, value
	return value, nil
}

// underlay is where other hosts reach this one.
func (s *surroundings) underlay(universe slot.Universe) ([]link.HostAddr, error) {
	return s.under.get(s.watch, func() ([]link.HostAddr, error) { return link.Underlay(universe) })
}

// linkMTUs are those of this host's links.
func (s *surroundings) linkMTUs() (link.MTUs, error) { return s.mtus.get(s.watch, link.ReadMTUs) }

// routes looks up what this host's routes to addresses carry: 0 where there is no route. Each
// address is asked for once until something changes; what ICMP errors taught the kernel changes
// nothing, and is seen when the watch doubts what it knows.
func (s *surroundings) routes() (carry func(netip.Addr) int, done func(), err error) {
	known, err := s.ways.get(s.watch, func() (map[netip.Addr]int, error) { return map[netip.Addr]int{}, nil })
	if err != nil {
		return nil, nil, err
	}
	h, err := link.Handle()
	if err != nil {
		return nil, nil, err
	}
	return func(to netip.Addr) int {
		if mtu, ok := known[to]; ok {
			return mtu
		}
		way, err := link.WayTo(h, to, netip.Addr{})
		if err != nil {
			way.MTU = 0
		}
		known[to] = way.MTU
		return way.MTU
	}, h.Close, nil
}

// overlap says what else is routed in the universe.
func (s *surroundings) overlap(universe slot.Universe) error {
	_, err := s.foreign.get(s.watch, func() (struct{}, error) { return struct{}{}, link.Overlap(universe) })
	return err
}

// links are the host sides of endpoints that exist.
func (s *surroundings) links() ([]string, error) { return s.ends.get(s.watch, endpoint.List) }
