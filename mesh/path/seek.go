package path

import (
	"slices"
	"time"

	"weft/mesh/peer"
)

const (
	secondAfter = time.Second
	// minSoughtGap and maxSoughtGap bound the time between two searches for relays to a peer that gossip does not reach.
	// It may just join, like the relays: then the first one tried does not reach it yet.
	minSoughtGap = quietGap * 3 / 4
	maxSoughtGap = 15 * time.Minute
	avoidFor     = 20 * time.Second // a relay that did not help
)

// seek finds relays for a path in doubt.
func (r *remote) seek(now time.Time) {
	doubt := 2
	if r.current != nil {
		doubt = r.current.doubtful()
	}
	if r.underLoad && r.needsAnswer {
		doubt-- // a question was lost, and so is traffic
	}
	if r.prober.cfg.Relays == nil || r.rounds < doubt || r.Quiet && now.Sub(r.soughtAt) < r.soughtGap {
		return
	}
	if r.soughtAt = now; r.Quiet { // it is dead, or behind NAT
		r.soughtGap = min(max(2*r.soughtGap, minSoughtGap), maxSoughtGap)
	}
	for _, a := range r.detours() { // a relay may have started anew
		a.detour.hurry(now)
	}
	// A second relay is tried a moment later: in a large outage the relays have no room for twice as many ways.
	young := func(d *detour) bool { return now.Sub(d.made) < secondAfter }
	for r.count(func(d *detour) bool { return !d.invited }) < maxDetours && r.count(young) == 0 {
		over, ok := r.untried(now)
		if !ok || !r.over(now, over, false) {
			return
		}
	}
}

// untried returns relays that were not tried lately, and that are not behind NAT, if there are any. If it has tried all, a
// quiet peer's are tried again.
func (r *remote) untried(now time.Time) (Relays, bool) {
	spans := []time.Duration{r.avoids()}
	if r.Quiet {
		spans = append(spans, avoidFor)
	}
	for _, span := range spans {
		for _, which := range []func(peer.ID) bool{r.prober.open, r.prober.relays} {
			if over, ok := r.notSince(now, span, which); ok {
				return over, true
			}
		}
	}
	return Relays{}, false
}

// avoids returns for how long a relay that did not help is avoided: for a quiet peer, until others were tried as well.
func (r *remote) avoids() time.Duration {
	if r.Quiet {
		return max(avoidFor, 3*r.soughtGap)
	}
	return avoidFor
}

// notSince returns relays that have not failed within a time: those that are chosen, or else others. This host reaches the
// first one as it should.
func (r *remote) notSince(now time.Time, span time.Duration, first func(peer.ID) bool) (Relays, bool) {
	fresh := func(over Relays) bool {
		tried := slices.ContainsFunc(r.detours(), func(a *address) bool { return a.detour.relays == over })
		return !tried && now.Sub(r.avoided[over]) >= span
	}
	over, ok := relaysOf(r.prober.cfg.Relays(r.ID, nil))
	if ok && fresh(over) && first(over.first()) {
		return over, true
	}
	over, ok = relaysOf(r.prober.cfg.Relays(r.ID, func(id peer.ID) bool { return !fresh(Relays{id}) || !first(id) }))
	return over, ok && fresh(over)
}

// open reports whether this host reaches a peer at an address of its record. Otherwise the peer is behind NAT, which may
// drop what comes from another port of this host.
func (p *Prober) open(id peer.ID) bool { return p.relays(id) && p.peers[id].current.learned.IsZero() }

// relays reports whether this host reaches a peer directly, so that it may be a relay.
func (p *Prober) relays(id peer.ID) bool {
	r := p.peers[id]
	return r != nil && r.path.State == Direct && r.capable && r.current != nil && r.current.detour == nil
}
