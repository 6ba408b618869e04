package agent

import (
	"weft/ipam/slot"
	"weft/router/endpoint"
	"weft/router/link"
)

// surroundings are what is read of this host's links and routes: again only when something
// about those has changed. One goroutine uses them at a time.
type surroundings struct {
	watch   *link.Watch // nil: they are read each time
	under   reading[underlay]
	foreign reading[struct{}]
	ends    reading[[]string]
}

// underlay is how other hosts reach this one.
type underlay struct {
	addrs []link.HostAddr
	mtu   int
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

func (s *surroundings) underlay(universe slot.Universe) (underlay, error) {
	return s.under.get(s.watch, func() (u underlay, err error) {
		u.addrs, u.mtu, err = link.Underlay(universe)
		return u, err
	})
}

// overlap says what else is routed in the universe.
func (s *surroundings) overlap(universe slot.Universe) error {
	_, err := s.foreign.get(s.watch, func() (struct{}, error) { return struct{}{}, link.Overlap(universe) })
	return err
}

// links are the host sides of endpoints that exist.
func (s *surroundings) links() ([]string, error) { return s.ends.get(s.watch, endpoint.List) }
