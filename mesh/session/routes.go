package session

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// routes chooses the addresses at which a run of a peer is reached. A run lasts from one start of the peer's
// agent to its end. memberlist knows only the address that the peer advertises. There are more:
//
//	the best address, as measured for the tunnel
//	the advertised address
//	the other addresses of the peer's record
//	the peer's addresses inside the tunnel, as the last resort
//
// A firewall may block TCP, UDP or both, so streams and packets each have their own address. A stream uses
// the first address whose handshake succeeds: a whole handshake, since another host may have taken over an
// address. A packet gets no answer, so a packet that is not followed by one from the peer makes the address
// doubtful; then an echo is asked for, first there and later at all addresses (echo.go). Only an address
// that answered takes the place of another one. Earlier addresses of the list are tried again from time to
// time.
type routes struct {
	best   func(run string) string   // the best address; empty: unknown
	others func(run string) []string // the addresses in the record
	inside func(run string) []string // the addresses inside the tunnel

	mu   sync.Mutex
	runs map[string]*route
}

// place is an address, as HOST:PORT.
type place struct {
	addr   string
	inside bool // it is inside the tunnel
}

// route is what is known about the addresses of one run.
type route struct {
	advertised string
	best       string    // the last address that was best
	stream     place     // where the last stream was opened; empty: none yet
	packet     place     // where packets are sent; empty: none yet
	waits      time.Time // when the first packet was sent after the last sign that packets arrive; zero: none
	heard      time.Time // the last sign that packets arrive
	asked      time.Time // when echoes were last asked for
	asks       int       // how often since the last sign
	retried    time.Time // when earlier addresses of the list were last tried
}

const (
	// headStart is the delay before the next address is tried in parallel (RFC 8305, section 5).
	headStart = 200 * time.Millisecond
	// slowStart is the longest delay after an address has taken the connection.
	slowStart = 2 * time.Second
	// silence is how long packets may go without a sign that they arrive.
	silence = 500 * time.Millisecond
	// askPause is the time between two questions for echoes. It doubles up to retryPause.
	askPause = 500 * time.Millisecond
	// retryPause is the time between two attempts at the earlier addresses of the list.
	retryPause = 10 * time.Second
	maxRoutes  = maxKept // runs; at more, any other one is dropped and found anew
)

// places lists the addresses of a run in the order of preference. Without a name only the given address is
// known to be the right one.
func (r *routes) places(a memberlist.Address) (out []place) {
	add := func(addr string, inside bool) {
		if addr != "" && !slices.ContainsFunc(out, func(p place) bool { return p.addr == addr }) {
			out = append(out, place{addr, inside})
		}
	}
	if a.Name != "" && r.best != nil {
		add(r.best(a.Name), false)
	}
	add(a.Addr, false)
	if a.Name != "" && r.others != nil {
		for _, addr := range r.others(a.Name) {
			add(addr, false)
		}
	}
	if a.Name != "" && r.inside != nil {
		for _, addr := range r.inside(a.Name) {
			add(addr, true)
		}
	}
	return out
}

// of returns the route of a run, and follows a change of the best address. The caller holds the lock.
func (r *routes) of(a memberlist.Address, best string) *route {
	w := r.runs[a.Name]
	if w == nil {
		for name := range r.runs {
			if len(r.runs) < maxRoutes {
				break
			}
			delete(r.runs, name)
		}
		if r.runs == nil {
			r.runs = map[string]*route{}
		}
		w = &route{}
		r.runs[a.Name] = w
	}
	w.advertised = a.Addr
	if best != "" && best != w.best {
		*w = route{advertised: a.Addr, best: best, stream: place{addr: best}, packet: place{addr: best}}
	}
	if w.packet.addr == "" {
		w.packet = place{addr: a.Addr}
	}
	return w
}

func (r *routes) bestOf(run string) string {
	if r.best == nil || run == "" {
		return ""
	}
	return r.best(run)
}

// send returns the address for a packet to a run. It also returns the addresses at which to ask for an echo,
// and whether to open a stream at the first address that answers.
func (r *routes) send(a memberlist.Address, now time.Time) (to string, ask []string, retry bool) {
	best := r.bestOf(a.Name)
	r.mu.Lock()
	w := r.of(a, best)
	if w.waits.IsZero() {
		w.waits = now
	}
	doubtful := w.doubtful(now) && w.mayAsk(now)
	first := a.Addr
	if best != "" {
		first = best
	}
	if retry = (w.packet.addr != first || w.stream.addr != "" && w.stream.addr != first) && now.Sub(w.retried) >= retryPause; retry {
		w.retried = now
	}
	to = w.packet.addr
	if doubtful {
		w.asked, w.asks = now, w.asks+1
	}
	every := w.asks > 1
	r.mu.Unlock()
	if !doubtful && !retry {
		return to, nil, false
	}
	list := addrs(r.places(a))
	i := slices.Index(list, to)
	if len(list) < 2 { // there is no choice
		return to, nil, retry
	}
	if doubtful && every || i < 0 {
		return to, list, retry
	}
	if retry {
		ask = slices.Clone(list[:i])
	}
	if doubtful {
		ask = append(ask, to)
	}
	return to, ask, retry
}

func addrs(list []place) (out []string) {
	for _, p := range list {
		out = append(out, p.addr)
	}
	return out
}

// doubtful reports whether packets have gone for a while without a sign that they arrive.
func (w *route) doubtful(now time.Time) bool { return !w.waits.IsZero() && now.Sub(w.waits) >= silence }

func (w *route) mayAsk(now time.Time) bool {
	return now.Sub(w.asked) >= min(askPause<<min(max(w.asks-1, 0), 8), retryPause)
}

// works notes a sign that packets arrive at the address where they are sent.
func (w *route) works(now time.Time) { w.heard, w.waits, w.asks = now, time.Time{}, 0 }

// received notes that a packet of a run came from an address.
func (r *routes) received(run, from string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.runs[run]; w != nil && w.packet.addr == from {
		w.works(now)
	}
}

// questioned handles a question for an echo that came from an address. If packets are sent to another address
// of that peer, that one is doubtful: questioned returns the addresses at which to ask now.
func (r *routes) questioned(run, from string, now time.Time) (ask []string) {
	r.mu.Lock()
	w := r.runs[run]
	if w == nil || w.packet.addr == from || now.Sub(w.heard) < askPause || !w.mayAsk(now) {
		r.mu.Unlock()
		return nil
	}
	a := memberlist.Address{Addr: w.advertised, Name: run}
	r.mu.Unlock()
	list := addrs(r.places(a))
	if !slices.Contains(list, from) { // NAT, for example
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.waits.IsZero() {
		w.waits = now
	}
	w.asked, w.asks = now, max(w.asks, 1)+1
	return list
}

// answered notes that an echo came back from an address, which a run's peer says it was sent to. It reports
// whether packets go there instead of to an address where they were not answered.
func (r *routes) answered(run, addr string, now time.Time) (moved bool) {
	r.mu.Lock()
	w := r.runs[run]
	if w == nil {
		r.mu.Unlock()
		return false
	}
	a := memberlist.Address{Addr: w.advertised, Name: run}
	r.mu.Unlock()
	list := r.places(a)
	r.mu.Lock()
	defer r.mu.Unlock()
	index := func(addr string) int { return slices.IndexFunc(list, func(p place) bool { return p.addr == addr }) }
	i, used := index(addr), index(w.packet.addr)
	if i < 0 || used >= 0 && i > used && w.asks < 2 { // packets still arrive at a better address
		return false
	}
	moved = w.packet != list[i] && w.asks > 0
	w.packet = list[i]
	w.works(now)
	return moved
}

// note stores where a stream was opened. Packets go there too, unless they have arrived elsewhere.
func (r *routes) note(a memberlist.Address, at place, now time.Time) {
	if a.Name == "" {
		return
	}
	best := r.bestOf(a.Name)
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.of(a, best)
	w.stream = at
	if w.heard.IsZero() || w.doubtful(now) {
		w.packet = at
	}
}

// met notes the address of a run's peer at the other end of a stream. If it is inside the tunnel, no other
// way worked, at least for the host that opened the stream.
func (r *routes) met(run, host string) {
	if r.inside == nil {
		return
	}
	list := r.inside(run)
	i := slices.IndexFunc(list, func(addr string) bool {
		return strings.HasPrefix(addr, host+":") || strings.HasPrefix(addr, "["+host+"]:")
	})
	if i < 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.runs[run]; w != nil && !w.heard.IsZero() {
		return
	}
	w := r.of(memberlist.Address{Addr: list[i], Name: run}, "")
	w.packet, w.stream = place{list[i], true}, place{list[i], true}
}

// forget drops the addresses of a run that has ended.
func (r *routes) forget(run string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, run)
}

// at returns where packets and streams to a run go.
func (r *routes) at(run string) (packet, stream place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.runs[run]; w != nil {
		return w.packet, w.stream
	}
	return place{}, place{}
}

// all returns the addresses to try for a stream, in order: where the last one was opened, and the others in
// the order of preference.
func (r *routes) all(a memberlist.Address) []place {
	list := r.places(a)
	if a.Name == "" {
		return list
	}
	best := r.bestOf(a.Name)
	r.mu.Lock()
	last := r.of(a, best).stream
	r.mu.Unlock()
	if last.addr == "" {
		return list
	}
	list = slices.DeleteFunc(list, func(p place) bool { return p.addr == last.addr })
	return append([]place{last}, list...)
}
