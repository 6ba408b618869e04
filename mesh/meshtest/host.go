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

// Known is what a peer knows of all peers, as stored on its disk: the last Status of each.
type Known map[peer.ID]Status

// Status is the state that a peer announced. A later run replaces an earlier one; within one run, a
// later state replaces an earlier one.
type Status struct {
	Run   int
	State State
}

// State is the state of a run, in the order in which it can change.
type State int

// States of a run.
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

// Node is one run of one peer on a Gossip network.
type Node struct {
	g     *Gossip
	id    peer.ID
	run   int // its number; down before it has started
	side  int
	up    bool
	known Known
	cfg   NodeConfig
}

// NodeConfig configures a Node.
type NodeConfig struct {
	Replicas []Replica
	Handlers map[string]Handler
	// Twin is called when an earlier run of the same peer is noticed: this run must stop.
	Twin func()
}

// Node returns a node that is not on the network yet.
func (g *Gossip) Node(id peer.ID, known Known) *Node {
	n := &Node{g: g, id: id, run: down, known: Known{}}
	n.known.union(known)
	return n
}

// Start puts the node on the network, on one side of a partition.
func (n *Node) Start(side int, cfg NodeConfig) {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	n.cfg, n.side, n.up, n.run = cfg, side, true, len(n.g.nodes)
	n.known.hear(n.id, Status{n.run, Running})
	n.g.nodes = append(n.g.nodes, n)
	n.g.peers[n.id] = append(n.g.peers[n.id], n)
	n.g.changed()
	n.pull()
}

// Stop removes the node from the network without an announcement.
func (n *Node) Stop() {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	if n.up {
		n.up = false
		n.g.changed()
	}
}

// Announce sends the final state of this run to the others. Call Stop next.
func (n *Node) Announce(last State) {
	word := Status{n.run, last}
	n.g.mu.Lock()
	n.known.hear(n.id, word)
	around := n.g.around(n)
	n.g.mu.Unlock()
	for _, o := range around {
		n.g.send(kindDelta, n, o, func() {
			n.g.mu.Lock()
			defer n.g.mu.Unlock()
			o.known.hear(n.id, word)
		})
	}
}

// Known returns what the node knows of all peers.
func (n *Node) Known() Known {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	return n.known.clone()
}

// pull exchanges full states with a random node from time to time. The caller holds the lock.
func (n *Node) pull() {
	r := n.g.dice("pull", n, n)
	n.g.after(r, pullEvery, func() {
		n.g.mu.Lock()
		around := n.g.around(n)
		up := n.up
		if up {
			n.pull()
		}
		n.g.mu.Unlock()
		if up && len(around) > 0 {
			n.g.exchange(n, around[r.IntN(len(around))])
		}
	})
}

// Broadcast sends a delta to all reachable nodes.
func (n *Node) Broadcast(replica string, delta []byte) { n.tell(replica, delta, false) }

func (n *Node) tell(replica string, delta []byte, some bool) {
	n.g.mu.Lock()
	if !n.up {
		n.g.mu.Unlock()
		return
	}
	around := n.g.around(n)
	if some && len(around) > someNodes {
		n.g.dice("some", n, n).Shuffle(len(around), func(i, j int) { around[i], around[j] = around[j], around[i] })
		around = around[:someNodes]
	}
	n.g.mu.Unlock()
	for _, o := range around {
		n.g.send(kindDelta, n, o, func() { o.merge(replica, delta) })
	}
}

// merge passes a state to its replica, and sends the news to other nodes.
func (n *Node) merge(replica string, data []byte) {
	for _, r := range n.cfg.Replicas {
		if r.Name() != replica {
			continue
		}
		if news, _ := r.Merge(data); news != nil {
			n.tell(replica, news, true)
		}
	}
}

type state struct {
	replica string
	data    []byte
}

func (n *Node) full() (out []state) {
	for _, r := range n.cfg.Replicas {
		if data := r.Full(); data != nil {
			out = append(out, state{r.Name(), data})
		}
	}
	return out
}

// Request sends a request to one peer and waits for its reply. If either is lost, it waits until
// ctx ends.
func (n *Node) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	o := n.g.find(n, to)
	if o == nil {
		return nil, ErrUnreachable
	}
	type reply struct {
		data []byte
		err  error
	}
	answer := make(chan reply, 1)
	n.g.send(kindRequest, n, o, func() {
		ctx, cancel := context.WithTimeout(context.Background(), serveFor)
		defer cancel()
		data, err := o.serve(ctx, n.id, kind, payload)
		o.g.send(kindReply, o, n, func() { answer <- reply{data, err} })
	})
	select {
	case r := <-answer:
		return r.data, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("ask %s for %s: %w", n.Name(to), kind, ctx.Err())
	}
}

func (n *Node) serve(ctx context.Context, from peer.ID, kind string, payload []byte) ([]byte, error) {
	h := n.cfg.Handlers[kind]
	if h == nil {
		return nil, errors.New("unknown request")
	}
	data, err := h(ctx, from, payload)
	if err != nil { // only the text is sent
		err = refused(err.Error())
	}
	return data, err
}

// refused is the error of a peer that refused a request.
type refused string

func (r refused) Error() string   { return "the peer refused: " + string(r) }
func (r refused) Refused() string { return string(r) }

// Reachable reports whether a peer counts as reachable for the node.
func (n *Node) Reachable(id peer.ID) bool { return n.g.find(n, id) != nil }

// Others lists all other peers that the node knows and that have not left.
func (n *Node) Others() []peer.ID {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	for _, o := range n.g.nodes {
		if n.g.sees(n, o) {
			n.known.hear(o.id, Status{o.run, Running})
		}
	}
	var out []peer.ID
	for id, w := range n.known {
		if w.State != Left && id != n.id {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
	return out
}

// Stopped reports whether a peer announced that its agent was stopped.
func (n *Node) Stopped(id peer.ID) bool {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	return n.known[id].State == Stopped
}

// Name returns the start of a peer's id, which is enough to tell peers apart.
func (n *Node) Name(id peer.ID) string { return id.String()[:4] }

// TwinLag is how long two runs of one peer that reach each other both continue.
const TwinLag = twinLag + time.Millisecond
