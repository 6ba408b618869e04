package meshtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Known is the last Status of each peer that a peer knows, as stored on its disk.
type Known map[peer.ID]Status

// Status is the state that a peer announced. A later run replaces an earlier one; within one run, a
// later state replaces an earlier one.
type Status struct {
	Run   int
	State State
}

// State is the state of a run, in the order in which it can change.
type State int

// These are the states of a run.
const (
	Running State = iota
	Stopped       // the agent was stopped, and may start again
	Left          // the peer left the mesh for good
)

func (k Known) hear(id peer.ID, w Status) {
	if old, ok := k[id]; !ok || w.Run > old.Run || w.Run == old.Run && w.State > old.State {
		k[id] = w
	}
}

func (k Known) union(o Known) {
	for id, w := range o {
		k.hear(id, w)
	}
}

func (k Known) clone() Known { return maps.Clone(k) }

// Host is one run of one peer of a Cluster, from its start to its crash. A peer that starts again
// is another Host with the same id. The code that runs on a Host uses it as its mesh.
type Host struct {
	c     *Cluster
	id    peer.ID
	run   int // the number of this run; before the start, the constant down
	side  int
	up    bool
	known Known
	cfg   HostConfig
	slow  time.Duration
	asked map[string]int // the number of requests of each kind
	end   context.CancelFunc
	ended chan error
}

// HostConfig configures a Host. Each field may be zero.
type HostConfig struct {
	Replicas []Replica
	Handlers map[string]Handler
	// Run is called in a goroutine of its own. Its context ends when the host stops.
	Run func(ctx context.Context) error
	// Twin is called when an earlier run of the same peer is noticed. Then this run must stop.
	Twin func()
}

// Handlers converts the handlers of a replica.
func Handlers[H ~func(context.Context, peer.ID, []byte) ([]byte, error)](of map[string]H) map[string]Handler {
	out := map[string]Handler{}
	for kind, handler := range of {
		out[kind] = Handler(handler)
	}
	return out
}

// Host returns a host that is not on the network yet.
func (c *Cluster) Host(id peer.ID, known Known) *Host {
	h := &Host{c: c, id: id, run: down, known: Known{}, asked: map[string]int{}}
	h.known.union(known)
	return h
}

// Start puts the host on the network, on one side of a partition, and runs it.
func (h *Host) Start(side int, cfg HostConfig) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	ctx, end := context.WithCancel(context.Background())
	h.end, h.ended = end, make(chan error, 1)
	if cfg.Run == nil {
		cfg.Run = func(context.Context) error { return nil }
	}
	h.cfg, h.side, h.up, h.run = cfg, side, true, len(h.c.hosts)
	h.known.hear(h.id, Status{h.run, Running})
	h.c.hosts = append(h.c.hosts, h)
	h.c.peers[h.id] = append(h.c.peers[h.id], h)
	h.c.changed()
	h.pull()
	go func() { h.ended <- cfg.Run(ctx) }()
}

// Stop removes the host from the network without an announcement, as a crash does. Then it ends the
// host's Run, waits for it and returns its error.
func (h *Host) Stop() error {
	h.c.mu.Lock()
	was := h.up
	if h.up = false; was {
		h.c.changed()
	}
	h.c.mu.Unlock()
	if !was {
		return nil
	}
	h.end()
	return <-h.ended
}

// Slow delays each of the host's replies from now on.
func (h *Host) Slow(d time.Duration) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.slow = d
}

// Requests counts the requests that the host made: the requests of one kind, or all if kind is "".
func (h *Host) Requests(kind string) (n int) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	for k, made := range h.asked {
		if kind == "" || k == kind {
			n += made
		}
	}
	return n
}

// Announce sends the final state of this run to the other hosts. Call Stop next.
func (h *Host) Announce(last State) {
	word := Status{h.run, last}
	h.c.mu.Lock()
	h.known.hear(h.id, word)
	around := h.c.around(h)
	h.c.mu.Unlock()
	for _, o := range around {
		h.c.send(kindDelta, h, o, func() {
			h.c.mu.Lock()
			defer h.c.mu.Unlock()
			o.known.hear(h.id, word)
		})
	}
}

// Known returns the last Status that the host received from each peer.
func (h *Host) Known() Known {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.known.clone()
}

// pull exchanges full states with a random host from time to time. The caller holds the lock.
func (h *Host) pull() {
	r := h.c.dice("pull", h, h)
	h.c.after(r, pullEvery, func() {
		h.c.mu.Lock()
		around := h.c.around(h)
		up := h.up
		if up {
			h.pull()
		}
		h.c.mu.Unlock()
		if up && len(around) > 0 {
			h.c.exchange(h, around[r.IntN(len(around))])
		}
	})
}

// Broadcast sends a delta to all reachable hosts.
func (h *Host) Broadcast(replica string, delta []byte) { h.tell(replica, delta, false) }

func (h *Host) tell(replica string, delta []byte, some bool) {
	h.c.mu.Lock()
	if !h.up {
		h.c.mu.Unlock()
		return
	}
	around := h.c.around(h)
	if some && len(around) > someHosts {
		h.c.dice("some", h, h).Shuffle(len(around), func(i, j int) { around[i], around[j] = around[j], around[i] })
		around = around[:someHosts]
	}
	h.c.mu.Unlock()
	for _, o := range around {
		h.c.send(kindDelta, h, o, func() { o.merge(replica, delta) })
	}
}

// merge passes a state to its replica, and sends the news to other hosts.
func (h *Host) merge(replica string, data []byte) {
	for _, r := range h.cfg.Replicas {
		if r.Name() != replica {
			continue
		}
		if news, _ := r.Merge(data); news != nil {
			h.tell(replica, news, true)
		}
	}
}

type state struct {
	replica string
	data    []byte
}

func (h *Host) full() (out []state) {
	for _, r := range h.cfg.Replicas {
		if data := r.Full(); data != nil {
			out = append(out, state{r.Name(), data})
		}
	}
	return out
}

// Request sends a request to one peer and waits for its reply. If the request or the reply is lost,
// Request waits until ctx ends.
func (h *Host) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	h.c.mu.Lock()
	h.asked[kind]++
	h.c.mu.Unlock()
	o := h.c.find(h, to)
	if o == nil {
		return nil, ErrUnreachable
	}
	type reply struct {
		data []byte
		err  error
	}
	answer := make(chan reply, 1)
	h.c.send(kindRequest, h, o, func() {
		ctx, cancel := context.WithTimeout(context.Background(), serveFor)
		defer cancel()
		data, err := o.serve(ctx, h.id, kind, payload)
		o.c.send(kindReply, o, h, func() { answer <- reply{data, err} })
	})
	select {
	case r := <-answer:
		return r.data, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("ask %s for %s: %w", h.Name(to), kind, ctx.Err())
	}
}

func (h *Host) serve(ctx context.Context, from peer.ID, kind string, payload []byte) ([]byte, error) {
	handler := h.cfg.Handlers[kind]
	if handler == nil {
		return nil, errors.New("unknown request")
	}
	h.c.mu.Lock()
	slow := h.slow
	h.c.mu.Unlock()
	// Do not wait for duration zero: Go 1.26's race detector crashes on it in a synctest bubble.
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return nil, refused(ctx.Err().Error())
		}
	}
	data, err := handler(ctx, from, payload)
	if err != nil { // a reply carries only the text of an error
		err = refused(err.Error())
	}
	return data, err
}

// refused is the error of a peer that refused a request.
type refused string

func (r refused) Error() string   { return "the peer refused: " + string(r) }
func (r refused) Refused() string { return string(r) }

// Reachable reports whether a peer counts as reachable for the host.
func (h *Host) Reachable(id peer.ID) bool { return h.c.find(h, id) != nil }

// Others lists all other peers that the host knows and that have not left.
func (h *Host) Others() []peer.ID {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	for _, o := range h.c.hosts {
		if h.c.sees(h, o) {
			h.known.hear(o.id, Status{o.run, Running})
		}
	}
	var out []peer.ID
	for id, w := range h.known {
		if w.State != Left && id != h.id {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
	return out
}

// Stopped reports whether a peer announced that its agent was stopped.
func (h *Host) Stopped(id peer.ID) bool {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.known[id].State == Stopped
}

// Name returns the start of a peer's id, which is enough to tell peers apart.
func (h *Host) Name(id peer.ID) string { return id.String()[:4] }

// TwinLag is how long two runs of one peer that reach each other both continue.
const TwinLag = twinLag + time.Millisecond
