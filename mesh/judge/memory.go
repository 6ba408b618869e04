package judge

import "slices"

// question is a ping that this host sent: to whom, and under which number.
type question struct {
	to  string
	seq uint32
}

// way is how a question was sent: as a ping of the run itself, as a request to ping another run, or
// both.
type way uint8

const (
	direct way = 1 << iota
	indirect
)

// asked remembers the last questions. A new one replaces the oldest, so no clock is needed.
type asked struct {
	ways map[question]way
	ring []question
	next int
}

func newAsked() asked { return asked{ways: map[question]way{}} }

func (a *asked) add(q question, w way) {
	if _, ok := a.ways[q]; !ok {
		if len(a.ring) < questions {
			a.ring = append(a.ring, q)
		} else {
			delete(a.ways, a.ring[a.next])
			a.ring[a.next] = q
			a.next = (a.next + 1) % questions
		}
	}
	a.ways[q] |= w
}

// verdict names a run that a sender declared dead.
type verdict struct{ sender, run string }

// declared remembers who declared whom dead. memberlist repeats such a message, so a verdict counts
// again only at a higher incarnation. A new verdict replaces the oldest.
type declared struct {
	at   map[verdict]uint32  // the incarnation that was declared dead
	open map[string][]string // by run: those that declared it dead and are not accused of it
	ring []verdict
	next int
}

func newDeclared() declared { return declared{at: map[verdict]uint32{}, open: map[string][]string{}} }

func (d *declared) add(v verdict, incarnation uint32) {
	last, ok := d.at[v]
	switch {
	case ok && incarnation <= last:
		return
	case ok:
	case len(d.ring) < verdicts:
		d.ring = append(d.ring, v)
	default:
		d.forget(d.ring[d.next])
		d.ring[d.next] = v
		d.next = (d.next + 1) % verdicts
	}
	d.at[v] = incarnation
	if !slices.Contains(d.open[v.run], v.sender) {
		d.open[v.run] = append(d.open[v.run], v.sender)
	}
}

func (d *declared) forget(v verdict) {
	delete(d.at, v)
	if rest := slices.DeleteFunc(d.open[v.run], func(s string) bool { return s == v.sender }); len(rest) > 0 {
		d.open[v.run] = rest
	} else {
		delete(d.open, v.run)
	}
}

// settle returns those that declared a run dead since the last call.
func (d *declared) settle(run string) []string {
	senders := d.open[run]
	delete(d.open, run)
	return senders
}
