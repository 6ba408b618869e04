package path

import (
	"net/netip"
	"testing"
	"time"
)

// states counts how often the state of a path between the first two hosts changes.
func (w *world) states() (changes *[2]int) {
	changes = new([2]int)
	was := [2]State{w.path(0, 1).State, w.path(1, 0).State}
	w.each = func() {
		for i := range was {
			if now := w.path(i, 1-i).State; now != was[i] {
				was[i], changes[i] = now, changes[i]+1
			}
		}
	}
	return changes
}

// A path that stays cut, in one direction or both, has one state. It is as steady if gossip has lost the peer.
func TestACutPathHasASteadyState(t *testing.T) {
	for _, busy := range []bool{true, false} {
		for _, quiet := range []bool{true, false} {
			for _, oneWay := range []bool{true, false} {
				w := newWorld(t, 2, 2)
				cut := false
				w.link = func(from, _ netip.Addr, _ int) (bool, time.Duration) {
					return !cut || oneWay && w.byAddr[from] == w.hosts[0], 5 * time.Millisecond
				}
				w.configure(false)
				for i, h := range w.hosts {
					h.busy[w.hosts[1-i].id] = busy
				}
				w.run(time.Minute)
				cut = true
				w.run(30 * time.Second)
				if quiet {
					for _, h := range w.hosts {
						remotes := w.remotes(h)
						for i := range remotes {
							remotes[i].Quiet = true
						}
						h.Configure(w.now, remotes, false)
					}
				}
				w.run(30 * time.Second)
				changes := w.states()
				w.run(30 * time.Minute)
				if *changes != [2]int{} {
					t.Errorf("busy %v, quiet %v, one way %v: within 30 minutes the states of the cut path changed %v times, want never", busy, quiet, oneWay, *changes)
				}
			}
		}
	}
}

// Loss is no cut: under traffic and at rest the path stays direct and hardly moves to an address that is no
// better, and the loss is measured. If the address in use fails then, the tunnel still leaves it in time.
func TestLossMovesNoTunnel(t *testing.T) {
	for _, busy := range []bool{true, false} {
		for _, loss := range []float64{0.02, 0.1, 0.3} {
			w := newWorld(t, 2, 2)
			var lost float64
			var dead byte = 99
			w.link = func(from, _ netip.Addr, _ int) (bool, time.Duration) {
				return w.random.Float64() >= lost && netOf(from) != dead, 5 * time.Millisecond
			}
			w.configure(false)
			for i, h := range w.hosts {
				h.busy[w.hosts[1-i].id] = busy
			}
			w.run(time.Minute)
			lost = loss
			changes := w.states()
			steady, moves, at := w.each, 0, w.path(0, 1).Endpoint
			w.each = func() {
				steady()
				if p := w.path(0, 1); p.Endpoint != at {
					at, moves = p.Endpoint, moves+1
				}
			}
			var average float64
			for range 60 {
				w.run(time.Minute)
				average += w.path(0, 1).Loss / 60
			}
			if *changes != [2]int{} || moves > 5 {
				t.Errorf("busy %v, loss %v: within an hour the states changed %v times, and the address %d times; want no change of state, and at most 5 of the address", busy, loss, *changes, moves)
			}
			both := 1 - (1-loss)*(1-loss) // a question or its answer
			if average < both/2 || average > both*1.5 {
				t.Errorf("busy %v, loss %v: a loss of %v was measured, want about %v", busy, loss, average, both)
			}
			if p, o := w.path(0, 1), w.path(1, 0); p.Loss-o.Loss > 0.1 || o.Loss-p.Loss > 0.1 {
				t.Errorf("busy %v, loss %v: the hosts know of losses of %v and %v, want the same", busy, loss, p.Loss, o.Loss)
			}
			dead, lost = netOf(at.Addr()), 0
			limit := 20 * time.Second
			if busy {
				limit = 3 * time.Second
			}
			w.run(limit)
			for i := range 2 {
				if p := w.path(i, 1-i); p.State != Direct || netOf(p.Endpoint.Addr()) == dead {
					t.Errorf("busy %v, loss %v: %v after the network in use failed host %d has %+v; want the other network", busy, loss, limit, i, p)
				}
			}
		}
	}
}

// At rest a cut shows within 20 s on both hosts, whenever it comes between two questions. Half a second is left for
// the machine.
func TestACutAtRestShowsWheneverItComes(t *testing.T) {
	for after := time.Duration(0); after < 20*time.Second; after += 100 * time.Millisecond {
		w := newWorld(t, 2, 1)
		cut := false
		w.link = func(netip.Addr, netip.Addr, int) (bool, time.Duration) { return !cut, 5 * time.Millisecond }
		w.configure(false)
		w.run(time.Minute + after)
		cut = true
		w.run(19500 * time.Millisecond)
		for i := range 2 {
			if p := w.path(i, 1-i); p.State != Deaf {
				t.Errorf("19.5 s after a cut, which came %v after the first minute, host %d has %+v; want that it hears nothing", after, i, p)
			}
		}
	}
}
