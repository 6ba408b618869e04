package attach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/ipam"
	"weft/prog/agent/view"
	"weft/router/endpoint"
	"weft/router/problem"
)

// strayPrefix begins the keys of strays.
const strayPrefix = "stray "

// strays are containers that are plugged in here, and that the state does not know, because it was
// restored from an older copy. No other endpoint gets their addresses as long as their links
// exist. They belong to the reaper's goroutine.
type strays struct {
	found map[string]netip.Addr // by link, until the address is kept
}

// find lists the links of strays. Endpoints come and go meanwhile: a link that belonged to one
// before the look or after it is no stray's.
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

// claim keeps the addresses of strays. A stray whose address another peer has by now is cut off.
func (s *strays) claim(ctx context.Context, cfg Config, v *view.View) error {
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
			cfg.Log.Warn("a container that this agent does not know is cut off: its address is not free", "link", name, "address", addr, "err", err)
			if err := cfg.Router.Unplug(ctx, endpoint.Endpoint{HostLink: name, Addr4: addr, Addr6: v.Ring.Universe.Addr6(n)}); err != nil {
				return err
			}
		} else {
			cfg.Log.Warn("a container is plugged in that this agent does not know: was its state restored from an older copy?", "link", name, "address", addr)
		}
		delete(s.found, name)
	}
	return nil
}

// release frees the addresses of strays whose link is gone.
func release(ctx context.Context, cfg Config, present []string) error {
	v := cfg.View.Get()
	if v == nil {
		return nil
	}
	for key := range v.Allocations {
		if name, ok := strings.CutPrefix(key, strayPrefix); ok && !slices.Contains(present, name) {
			if err := cfg.IPAM.Free(ctx, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// strayProblems name the strays.
func strayProblems(v *view.View) (out []problem.Problem) {
	for key, s := range v.Allocations {
		if name, ok := strings.CutPrefix(key, strayPrefix); ok {
			out = append(out, problem.Problem{
				Reason: problem.Address, What: fmt.Sprintf("a container behind link %s has %v, and this agent does not know it", name, v.Ring.Universe.Addr4(s)),
				Effect: "was its state restored from an older copy?", Fix: "start the container anew",
			})
		}
	}
	slices.SortFunc(out, func(x, y problem.Problem) int { return strings.Compare(x.What, y.What) })
	return out
}
