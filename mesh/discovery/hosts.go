package discovery

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// MaxHosts bounds how many hosts a host takes as targets. It joins all others by gossip.
const MaxHosts = 32

// Lasts is how long a host counts as found after an announcement: at least three of them are missing
// then.
const Lasts = 40 * time.Second

// Hosts are the hosts found: one gossip port per address. The zero Hosts is empty.
type Hosts struct {
	found map[netip.Addr]host
}

type host struct {
	port uint16
	at   time.Time
}

// Add adds a host, or notes that it is still there. It does nothing if there are too many hosts: a
// host gets room when others end.
func (h *Hosts) Add(at netip.AddrPort, now time.Time) {
	if h.found == nil {
		h.found = map[netip.Addr]host{}
	}
	if _, known := h.found[at.Addr()]; known || len(h.found) < MaxHosts {
		h.found[at.Addr()] = host{at.Port(), now}
	}
}

// List forgets the hosts that ended, and returns the others, sorted.
func (h *Hosts) List(now time.Time) (out []netip.AddrPort) {
	maps.DeleteFunc(h.found, func(_ netip.Addr, f host) bool { return now.Sub(f.at) >= Lasts })
	for addr, f := range h.found {
		out = append(out, netip.AddrPortFrom(addr, f.port))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}
