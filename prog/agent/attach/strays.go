package attach

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"weft/ipam"
	"weft/prog/agent/view"
	"weft/router/endpoint"
	"weft/router/problem"
)

// strayPrefix begins the keys of strays.
const strayPrefix = "stray "

// strays are containers with a link on this host, but without an endpoint in the state, because the
// state was restored from an older copy. No other endpoint gets their addresses as long as their
// links exist.
type strays struct {
	found map[string]netip.Addr // strays whose address is not reserved yet, by link; only the reaper's goroutine uses it

	seen *view.View // the view whose allocations are in kept; only the reaper's goroutine uses it

	mu   sync.Mutex
	kept map[string]netip.Addr // the strays' addresses, by the host's link of each stray
}

// find returns the links of strays. Endpoints may be added and removed meanwhile: a link that
// belonged to an endpoint before or after the check is not a stray's link.
func (s *strays) find(known func() []string) error {
	before := known()
	routed, err := endpoint.Routed()
	if err != nil {
		return err
	}
	for _, link := range append(before, known()...) {
		delete(routed, link)
	}
	s.found = routed
	return nil
}

// claim reserves the addresses of strays. It unplugs a stray whose address another peer owns now.
func (s *strays) claim(ctx context.Context, cfg Config, v *view.View) error {
	if v != s.seen { // a view must not be read twice: later, a stray in it may have been freed
		s.seen = v
		for key, n := range v.Allocations {
			if name, ok := strings.CutPrefix(key, strayPrefix); ok {
				s.keep(name, v.Ring.Universe.Addr4(n))
			}
		}
	}
	for name, addr := range s.found {
		n, ok := v.Ring.Universe.Slot(addr)
		key := strayPrefix + name
		if _, kept := v.Allocations[key]; !ok || kept {
			delete(s.found, name)
			continue
		}
		if v.Behind {
			return ipam.ErrBehind
		}
		if err := cfg.IPAM.Claim(ctx, key, n, nil); err != nil {
			cfg.Log.Warn("cutting off a container that is missing in the state: its address is not free", "link", name, "address", addr, "err", err)
			if err := cfg.Router.Unplug(ctx, endpoint.Endpoint{HostLink: name, Addr4: addr, Addr6: v.Ring.Universe.Addr6(n)}); err != nil {
				return err
			}
		} else {
			s.keep(name, v.Ring.Universe.Addr4(n))
			cfg.Log.Warn("a container has a link, but is missing in the state: was the state restored from an older copy?", "link", name, "address", addr)
		}
		delete(s.found, name)
	}
	return nil
}

func (s *strays) keep(name string, addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		s.kept = map[string]netip.Addr{}
	}
	s.kept[name] = addr
}

// release releases the addresses of strays whose link is gone.
func (s *strays) release(ctx context.Context, cfg Config, present []string) error {
	s.mu.Lock()
	names := slices.Collect(maps.Keys(s.kept))
	s.mu.Unlock()
	for _, name := range names {
		if slices.Contains(present, name) {
			continue
		}
		if err := cfg.IPAM.Free(ctx, strayPrefix+name); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.kept, name)
		s.mu.Unlock()
	}
	return nil
}

// problems names the strays.
func (s *strays) problems() (out []problem.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.kept)) {
		out = append(out, problem.Problem{
			Reason: problem.Address, What: fmt.Sprintf("a container behind link %s has %v, and is missing in the state", name, s.kept[name]),
			Effect: "was the state restored from an older copy?", Fix: "start the container anew",
		})
	}
	return out
}
