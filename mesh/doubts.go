package mesh

import (
	"maps"
	"sync"
	"time"
)

// doubts remembers which runs left suspicions unanswered. In a network that was cut, honest peers declare
// dead what lives, and their verdicts still arrive after the cut. A run that others only lie about refutes
// each suspicion at once. It is safe for concurrent use.
type doubts struct {
	mu sync.Mutex
	of map[string]doubt
}

// doubt is the first suspicion of a run that it has not answered, and when it last ended a long doubt.
type doubt struct {
	open        bool
	since       time.Time
	incarnation uint32
	ended       time.Time
}

const (
	longDoubt  = 2 * time.Second  // an honest peer suspects a run for 4 s or more before it declares it dead
	afterDoubt = 15 * time.Second // for how long verdicts of the time of the doubt may arrive
)

func (d *doubts) suspected(run string, incarnation uint32, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	have, known := d.of[run]
	if have.open {
		return
	}
	if d.of == nil {
		d.of = map[string]doubt{}
	}
	if !known && len(d.of) >= maxPeers {
		maps.DeleteFunc(d.of, func(_ string, o doubt) bool { return !o.open || now.Sub(o.since) > forgetAfter })
	}
	if known || len(d.of) < maxPeers {
		d.of[run] = doubt{open: true, since: now, incarnation: incarnation, ended: have.ended}
	}
}

func (d *doubts) refuted(run string, incarnation uint32, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if have := d.of[run]; have.open && incarnation > have.incarnation {
		d.end(run, have, now)
	}
}

// answered notes that a run was heard.
func (d *doubts) answered(run string, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if have := d.of[run]; have.open {
		d.end(run, have, now)
	}
}

// end ends a doubt. The caller holds the lock.
func (d *doubts) end(run string, have doubt, now time.Time) {
	if now.Sub(have.since) >= longDoubt {
		have.ended = now
	}
	if have.open = false; now.Sub(have.ended) > afterDoubt {
		delete(d.of, run)
		return
	}
	d.of[run] = have
}

// excuse reports whether a run left suspicions unanswered for long.
func (d *doubts) excuse(run string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.of[run].long(now)
}

// excuseAny reports whether any run did.
func (d *doubts) excuseAny(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.of {
		if o.long(now) {
			return true
		}
	}
	return false
}

func (o doubt) long(now time.Time) bool {
	return o.open && now.Sub(o.since) >= longDoubt || !o.ended.IsZero() && now.Sub(o.ended) <= afterDoubt
}
