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
