package mesh

import (
	"maps"
	"sync"
	"time"
)

// doubts remembers who suspected others lately. In a network that was cut, honest peers declare dead what
// lives, and some of their verdicts arrive after the cut. Such verdicts follow suspicions, by their author
// or by others: those of a liar in a quiet network do not. It is safe for concurrent use.
type doubts struct {
	mu sync.Mutex
	of map[string]doubt // by the run that suspects
}

// doubt is the time in which a run suspected others.
type doubt struct{ first, last time.Time }

const (
	// honestWait is less than the time between a suspicion of memberlist and the verdict, which is 4 s or more.
	honestWait = 2 * time.Second
	// doubtLife is how long after a suspicion verdicts are excused, and after how long it is forgotten.
	doubtLife = 30 * time.Second
	maxDoubts = 256
)

// suspected notes a suspicion by a run.
func (d *doubts) suspected(by string, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	have, known := d.of[by]
	if !known || now.Sub(have.last) > doubtLife {
		have.first = now
	}
	have.last = now
	if d.of == nil {
		d.of = map[string]doubt{}
	}
	if !known && len(d.of) >= maxDoubts {
		maps.DeleteFunc(d.of, func(_ string, o doubt) bool { return now.Sub(o.last) > doubtLife })
	}
	if known || len(d.of) < maxDoubts {
		d.of[by] = have
	}
}

// excuse reports whether a run may honestly declare another one dead that lives: it has suspected somebody for
// a while, or others suspect somebody too.
func (d *doubts) excuse(sender string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for by, o := range d.of {
		if now.Sub(o.last) <= doubtLife && (by != sender || now.Sub(o.first) >= honestWait) {
			return true
		}
	}
	return false
}
