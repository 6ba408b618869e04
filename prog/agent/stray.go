package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"weft/ipam"
	"weft/router/endpoint"
)

// strayPrefix begins the keys of strays: containers that are plugged in here, and of which
// the state knows nothing, because it was restored from an older copy. Nobody else is given
// their addresses as long as their links exist.
const strayPrefix = "stray "

// findStrays lists the links of strays, at the start. Endpoints come and go meanwhile: who
// was known before the look or is after it is none.
func (a *Agent) findStrays() error {
	known := a.hostLinks()
	routed, err := endpoint.Routed()
	if err != nil {
		return err
	}
	for _, link := range append(known, a.hostLinks()...) {
		delete(routed, link)
	}
	a.strays = routed
	return nil
}

// hostLinks are the links of all endpoints.
func (a *Agent) hostLinks() (links []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.endpoints {
		links = append(links, e.HostLink)
	}
	return links
}

// claimStrays keeps the addresses of strays, once the ring is known. What another peer has
// by now is cut off.
func (a *Agent) claimStrays(ctx context.Context, snap ipam.Snapshot) error {
	for name, addr := range a.strays {
		s, ok := snap.Ring.Universe.Slot(addr)
		key := strayPrefix + name
		if _, kept := snap.Allocations[key]; !ok || kept {
			delete(a.strays, name)
			continue
		}
		if snap.Behind {
			return ipam.ErrBehind
		}
		if err := a.ipam.Claim(ctx, key, s, nil); err != nil {
			a.log.Warn("a container that this agent does not know is cut off: its address is not free", "link", name, "address", addr, "err", err)
			if err := a.router.Unplug(ctx, endpoint.Endpoint{HostLink: name, Addr4: addr, Addr6: snap.Ring.Universe.Addr6(s)}); err != nil {
				return err
			}
		} else {
			a.log.Warn("a container is plugged in that this agent does not know: was its state restored from an older copy?", "link", name, "address", addr)
		}
		delete(a.strays, name)
	}
	return nil
}

// releaseStrays frees the addresses of strays whose link is gone.
func (a *Agent) releaseStrays(ctx context.Context, snap ipam.Snapshot, present []string) error {
	for key := range snap.Allocations {
		if name, ok := strings.CutPrefix(key, strayPrefix); ok && !slices.Contains(present, name) {
			if err := a.ipam.Free(ctx, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// strayWarnings names the strays.
func strayWarnings(snap ipam.Snapshot) (out []string) {
	for key, s := range snap.Allocations {
		if name, ok := strings.CutPrefix(key, strayPrefix); ok {
			out = append(out, fmt.Sprintf("a container behind link %s has %v, and this agent does not know it: was its state restored from an older copy? Start the container anew",
				name, snap.Ring.Universe.Addr4(s)))
		}
	}
	slices.Sort(out)
	return out
}
