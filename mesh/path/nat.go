package path

import (
	"net/netip"
	"time"
)

// Answers say from where a question came. So a host behind NAT learns its outer address, and tells it to the peers that
// it reaches over relays only. Both then ask each other there. That opens both NATs, unless a NAT uses another port for
// each destination: then the relay stays.

// outerFor is how long an outer address counts after it was last seen.
const outerFor = 3 * time.Minute

// seenAt notes from where a peer has seen a question of this host. own is where its answer arrived.
func (p *Prober) seenAt(now time.Time, seen, own netip.AddrPort) {
	if seen.IsValid() && seen != own {
		p.outerAddr, p.outerAt = seen, now
	}
}

// outer returns this host's outer address; invalid: it has none.
func (p *Prober) outer(now time.Time) netip.AddrPort {
	if now.Sub(p.outerAt) > outerFor {
		return netip.AddrPort{}
	}
	return p.outerAddr
}

// behindNAT takes a peer's outer address. It counts only while no direct address works: a peer must not make this host
// send to many others. A peer without addresses is one to which this host must not connect.
func (r *remote) behindNAT(now time.Time, seen netip.AddrPort) {
	if !seen.IsValid() || len(r.Addrs) == 0 || !seen.Addr().IsGlobalUnicast() || r.current != nil && r.current.detour == nil && r.alarm.IsZero() {
		return
	}
	r.learn(now, seen)
}
