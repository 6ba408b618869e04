package path

import (
	"net/netip"
	"testing"
	"time"
)

// If the address in use answers once and then fails again, another one that answers is used.
func TestOneAnswerDoesNotHoldATunnel(t *testing.T) {
	w := newWorld(t, 2, 2)
	works := [2]bool{true, true}
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		return works[netOf(from)] && works[netOf(to)], 2 * time.Millisecond
	}
	w.configure(false)
	w.run(30 * time.Second)
	old := netOf(w.path(0, 1).Endpoint.Addr())
	works = [2]bool{}
	w.run(40 * time.Second)
	h := w.hosts[0]
	before := h.peers[w.hosts[1].id].current.answered
	works[old] = true
	for range 10_000 {
		w.run(time.Millisecond)
		if h.peers[w.hosts[1].id].current.answered != before {
			break
		}
	}
	works = [2]bool{old != 0, old != 1}
	w.run(20 * time.Second)
	for i := range 2 {
		if p := w.path(i, 1-i); p.State != Direct || netOf(p.Endpoint.Addr()) == old {
			t.Errorf("20 s after the other network works host %d has %+v; want that network", i, p)
		}
	}
}

// The times of the next questions do not follow the wall clock: an operator may set it back.
func TestQuestionsDoNotWaitForTheWallClock(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.now = time.Now()
	w.configure(false)
	for _, h := range w.hosts {
		for _, r := range h.peers {
			r.current = r.addrs[0]
			r.path.Answered = w.now
			r.calm(w.now)
			if at := r.nextAt(); at == at.Round(0) {
				t.Errorf("first %v: the next question is due at %v; want a time with a monotonic reading", r.first, at)
			}
			if r.first && r.calmAt == r.calmAt.Round(0) {
				t.Errorf("calm questions are due at %v; want a time with a monotonic reading", r.calmAt)
			}
		}
	}
}
