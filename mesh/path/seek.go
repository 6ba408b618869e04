package path

import (
	"slices"
	"time"

	"weft/mesh/peer"
)

const (
	// minSoughtGap and maxSoughtGap bound the time between two searches for relays to a peer that gossip does not reach.
	// It may just join, like the relays: then the first one tried does not reach it yet.
	minSoughtGap = quietGap * 3 / 4
	maxSoughtGap = 15 * time.Minute
	secondAfter  = time.Second
	avoidFor     = 20 * time.Second // a relay that did not help
	betterEvery  = 30 * time.Minute // between two looks for better relays than those in use, the first after hold
	swallowFor   = 24 * time.Hour   // no better ones are looked for so long after a relay has swallowed data
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
	gap := r.soughtGap
	if r.soughtAt = now; r.Quiet { // it is dead, or behind NAT
		r.soughtGap = min(max(2*gap, minSoughtGap), maxSoughtGap)
	}
	for _, a := range r.detours() { // a relay may have started anew
		a.detour.hurry(now)
	}
	// A second relay is tried a moment later: in a large outage the relays have no room for twice as many ways.
	young := func(d *detour) bool { return now.Sub(d.made) < secondAfter }
	for r.count(func(d *detour) bool { return !d.invited }) < maxDetours && r.count(young) == 0 {
		over, ok := r.untried(now)
		if !ok { // this host may just start
			r.soughtGap = max(gap, secondAfter)
			return
		}
		if !r.over(now, over, false) {
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

// seekBetter tries the relays that would be chosen now, while a calm tunnel uses others: those may not have been there when
// the tunnel began.
func (r *remote) seekBetter(now time.Time) {
	if !r.seeksBetter() || now.Before(r.betterAt) {
		return
	}
	if r.betterAt = now.Add(betterEvery); now.Sub(r.swallowedAt) < swallowFor {
		return
	}
	over, ok := relaysOf(r.prober.cfg.Relays(r.ID, nil))
	if inUse := r.current.detour.relays; r.prober.hidden(inUse.first()) {
		over, ok = r.notSince(now, avoidFor, r.prober.open)
	} else if over == inUse {
		return
	}
	if ok && r.count(func(d *detour) bool { return !d.invited }) < maxDetours {
		r.over(now, over, false)
	}
}

func (r *remote) seeksBetter() bool {
	return r.first && r.detoured() && r.alarm.IsZero() && r.prober.cfg.Relays != nil
}

// better reports whether the tunnel should go from one way over relays to another one: it is nearer, or only the other one
// is behind NAT.
func (r *remote) better(now time.Time, a *address) bool {
	if now.Sub(r.swallowedAt) < swallowFor {
		return false
	}
	if a.samples < 3 {
		a.check = true
		return false
	}
	was, is := r.prober.hidden(r.current.detour.relays.first()), r.prober.hidden(a.detour.relays.first())
	if was != is {
		return was
	}
	return r.nearer(now, a)
}

// open reports whether a peer may be a relay, and is not behind NAT.
func (p *Prober) open(id peer.ID) bool { return p.relays(id) && !p.hidden(id) }

// hidden reports whether this host reaches a peer only at an address that is not in its record: it is behind NAT, which may
// drop what comes from another port of this host.
func (p *Prober) hidden(id peer.ID) bool {
	r := p.peers[id]
	return r != nil && r.current != nil && r.current.detour == nil && !r.current.learned.IsZero()
}

// relays reports whether this host reaches a peer directly, so that it may be a relay.
func (p *Prober) relays(id peer.ID) bool {
	r := p.peers[id]
	return r != nil && r.path.State == Direct && r.capable && r.current != nil && r.current.detour == nil
}
