package links

import (
	"errors"
	"math"
	"time"

	"weft/mesh/document"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/measure"
)

var errFull = errors.New("the mesh holds too many documents about links: repair the network between the hosts first")

const (
	// tellAfter is how long a link to a peer that is alive must be cut before that is told, and endAfter how long it must
	// work before its end is told.
	tellAfter, endAfter = time.Second, 10 * time.Second
	// Gossip notices that a host is dead after gossipLooks and gossipDoubts, which grows with the logarithm of the
	// number of hosts.
	gossipLooks, gossipDoubts = 3 * time.Second, 4 * time.Second
)

// busy reports whether a relay should get no more pairs. One that said so has much room before it takes others.
func busy(pairs int, said bool) bool {
	return pairs >= path.ManyPairs || said && pairs > path.ManyPairs*4/5
}

// cut is a link that does not work.
type cut struct {
	since time.Time // when it failed
	up    time.Time // when it worked again; zero: it does not
	tell  time.Time // when it is to be told
}

// own is what this host knows of its own links.
type own struct {
	told   topology.Links // what its document says
	loaded bool           // whether its document was read once
	cuts   map[peer.ID]*cut
	paths  measure.Paths // as of the last observation
	// refuses means that this host relays for nobody, or for no more than it does.
	refuses bool
}

// read reads this host's document. What an earlier run told stays cut until it is measured.
func (o *own) read(doc *document.Document, self peer.ID) {
	o.told = topology.Links{}
	if doc != nil && doc.WriterID() == self {
		o.told, _ = topology.DecodeLinks(doc.Body) // one of a newer version that ran here is written anew
	}
	if !o.loaded {
		o.loaded, o.cuts = true, map[peer.ID]*cut{}
		for id := range o.told.Cut {
			o.cuts[id] = &cut{}
		}
	}
}

// down reports whether packets do not travel both ways on the direct path.
func down(p path.Path) bool { return p.State != path.Unknown && !direct(p) }

func direct(p path.Path) bool { return p.State == path.Direct && p.Via.IsZero() }

// observe notes which links fail and work. It returns when to call it again.
func (o *own) observe(s standings, paths measure.Paths, others map[peer.ID]read) (next time.Time) {
	next, o.paths = s.now.Add(time.Hour), paths
	patience := gossipLooks + time.Duration(float64(gossipDoubts)*math.Max(1, math.Log10(float64(len(s.Peers)))))
	for id, p := range paths {
		c := o.cuts[id]
		e := s.Evidence[id]
		e.Path.State = p.State // it may be newer than the view
		switch alive := s.running(id) && path.Judge(s.now, e) == path.Alive; {
		case down(p) && alive && c == nil:
			c = &cut{since: s.now}
			o.cuts[id] = c
		case down(p) && !alive && c != nil && !o.told.Cut[id]: // perhaps its host is dead
			delete(o.cuts, id)
			continue
		case direct(p) && c != nil && c.up.IsZero():
			c.up = s.now
		}
		if c == nil {
			continue
		}
		if down(p) {
			c.up, c.tell = time.Time{}, c.since.Add(patience)
			if p.State == path.Unheard || others[id].links.Cut[s.Self] {
				c.tell = c.since.Add(tellAfter)
			}
			if c.tell.After(s.now) {
				next = earliest(next, c.tell)
			}
		}
	}
	for id, c := range o.cuts {
		end := c.up.Add(endAfter)
		switch {
		case s.of(id) == gone, !c.up.IsZero() && (!o.told.Cut[id] || !end.After(s.now)):
			delete(o.cuts, id)
		case !c.up.IsZero():
			next = earliest(next, end)
		}
	}
	return next
}

// wanted returns what this host's document should say now.
func (o *own) wanted(now time.Time) topology.Links {
	out := topology.Links{Refuses: o.refuses, Cut: map[peer.ID]bool{}}
	for id, c := range o.cuts {
		if o.told.Cut[id] || c.up.IsZero() && !c.tell.After(now) {
			out.Cut[id] = true
		}
	}
	if len(out.Cut) > 0 { // only then somebody needs round trips: those between the ends and their relays
		out.Usual, out.RTT = o.roundTrips()
	}
	return out
}

// links returns this host's links for its own choice: new cuts count at once.
func (o *own) links() topology.Links {
	out := o.told
	if len(out.Cut) == 0 {
		out.Usual, out.RTT = o.roundTrips()
	}
	out.Refuses, out.Cut = o.refuses, make(map[peer.ID]bool, len(o.cuts))
	for id := range o.cuts {
		out.Cut[id] = true
	}
	return out
}

// roundTrips returns the round trips in the form of topology.Links. The order that was told stays while the round trip is
// near its bounds, so that documents do not follow small changes.
func (o *own) roundTrips() (usual time.Duration, rtt map[peer.ID]time.Duration) {
	orders, count := make(map[peer.ID]int, len(o.paths)), map[int]int{}
	for id, p := range o.paths {
		if o.cuts[id] != nil || !direct(p) || p.RTT <= 0 {
			continue
		}
		order := topology.Order(p.RTT)
		told := o.told.RTT[id]
		if told == 0 {
			told = o.told.Usual
		}
		if told != 0 && p.RTT > told*3/4 && p.RTT < told*3 || told != 0 && topology.Order(told) == 0 && p.RTT < 3*time.Millisecond/2 {
			order = topology.Order(told)
		}
		orders[id] = order
		count[order] += 4
	}
	if len(orders) == 0 {
		return 0, nil
	}
	if o.told.Usual != 0 {
		before := topology.Order(o.told.Usual)
		count[before] += count[before] / 4
	}
	most := -1
	for order, n := range count {
		if most < 0 || n > count[most] || n == count[most] && order < most {
			most = order
		}
	}
	rtt = map[peer.ID]time.Duration{}
	for id, order := range orders {
		if order != most {
			rtt[id] = topology.OfOrder(order)
		}
	}
	return topology.OfOrder(most), rtt
}
