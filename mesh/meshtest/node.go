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

// Known is whom a peer heard of in its life, and their last word, as its disk keeps it.
type Known map[peer.ID]Word

// Word is what a peer says of itself. That of a later run counts, and in one run, the later word.
type Word struct {
	Run   int
	State State
}

// State is a peer's own, in the order in which one run says it.
type State int

// States.
const (
	Running State = iota
	Stopped       // its agent ended in order, and comes back
	Left          // for ever
)

func (k Known) hear(id peer.ID, w Word) {
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

// Node is one run of one peer on a Gossip.
type Node struct {
	g     *Gossip
	id    peer.ID
	run   int // its number; down before its start
	side  int
	up    bool
	known Known
	cfg   NodeConfig
}

// NodeConfig is what a node carries.
type NodeConfig struct {
	Replicas []Replica
	Handlers map[string]Handler
	// Twin is called once a run of the same peer that started earlier is noticed: this one has to stop.
	Twin func()
}

// Node makes a node that is not on the network yet.
func (g *Gossip) Node(id peer.ID, known Known) *Node {
	n := &Node{g: g, id: id, run: down, known: Known{}}
	n.known.union(known)
	return n
}

// Start puts the node on the network, on a side of its partition.
func (n *Node) Start(side int, cfg NodeConfig) {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	n.cfg, n.side, n.up, n.run = cfg, side, true, len(n.g.nodes)
	n.known.hear(n.id, Word{n.run, Running})
	n.g.nodes = append(n.g.nodes, n)
	n.g.peers[n.id] = append(n.g.peers[n.id], n)
	n.g.changed()
	n.pull()
}

// Stop takes the node off the network, without a word.
func (n *Node) Stop() {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	if n.up {
		n.up = false
		n.g.changed()
	}
}

// Say tells the others how this run ends. Stop comes next.
func (n *Node) Say(last State) {
	word := Word{n.run, last}
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

// Known is whom the node heard of.
func (n *Node) Known() Known {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	return n.known.clone()
}

// pull exchanges states with a random node, now and then. The caller holds the lock.
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

// Broadcast passes a delta on to all nodes that can be reached.
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

// merge gives a state to its replica, and passes on what was news.
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

// Request asks one peer and waits for its answer. What is lost is waited for until ctx ends.
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
	if err != nil { // only its text travels
		err = refused(err.Error())
	}
	return data, err
}

// refused is the answer of a peer that does not do what was asked.
type refused string

func (r refused) Error() string   { return "the peer refused: " + string(r) }
func (r refused) Refused() string { return string(r) }

// Reachable reports whether the node believes that it reaches a peer.
func (n *Node) Reachable(id peer.ID) bool { return n.g.find(n, id) != nil }

// Others lists all other peers that the node heard of and that did not leave.
func (n *Node) Others() []peer.ID {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	for _, o := range n.g.nodes {
		if n.g.sees(n, o) {
			n.known.hear(o.id, Word{o.run, Running})
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

// Stopped reports whether the last word of a peer was that its agent was stopped.
func (n *Node) Stopped(id peer.ID) bool {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	return n.known[id].State == Stopped
}

// Name is what people call a peer: as much of its id as tells them apart.
func (n *Node) Name(id peer.ID) string { return id.String()[:4] }

// TwinLag is how long two runs of one peer that meet go on both.
const TwinLag = twinLag + time.Millisecond
