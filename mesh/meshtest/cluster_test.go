package meshtest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

// words is a replica whose state is the set of all words received.
type words struct {
	mu   sync.Mutex
	said map[string]bool
}

func (*words) Name() string { return "words" }

func (w *words) Full() []byte { return []byte(w.String()) }

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []byte
	for _, word := range slices.Sorted(maps.Keys(w.said)) {
		out = append(out, word...)
	}
	return string(out)
}

func (w *words) Merge(data []byte) (news []byte, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for word := range bytes.SplitSeq(data, nil) { // each letter is a word
		if !w.said[string(word)] {
			w.said[string(word)] = true
			news = append(news, word...)
		}
	}
	return news, nil
}

func cluster(g *Gossip, n int, twin func()) (nodes []*Node, states []*words) {
	echo := func(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
		if len(payload) == 0 {
			return nil, errors.New("nothing to say")
		}
		return append(payload, from[0]), nil
	}
	for i := range n {
		nodes = append(nodes, g.Node(peer.ID{byte(i + 1)}, nil))
		states = append(states, &words{said: map[string]bool{}})
		nodes[i].Start(0, NodeConfig{Replicas: []Replica{states[i]}, Handlers: map[string]Handler{"echo": echo}, Twin: twin})
	}
	time.Sleep(joinLag)
	return nodes, states
}

// Deltas spread in spite of loss, and across a partition after it has healed.
func TestGossipSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossip(1)
		defer g.Close()
		g.SetConditions(Conditions{Loss: 0.3, Duplicate: 0.3, Delay: time.Second})
		nodes, states := cluster(g, 8, nil)
		heard := func(want string) (n int) {
			for _, s := range states {
				if s.String() == want {
					n++
				}
			}
			return n
		}
		say := func(i int, word string) {
			_, _ = states[i].Merge([]byte(word))
			nodes[i].Broadcast("words", []byte(word))
		}
		say(0, "a")
		time.Sleep(time.Minute)
		if n := heard("a"); n != 8 {
			t.Errorf("%d of 8 nodes received the broadcast; want all", n)
		}
		g.Partition(func(n *Node) int { return int(n.id[0]) % 2 })
		say(0, "b")
		time.Sleep(time.Minute)
		if n := heard("ab"); n != 4 {
			t.Errorf("%d nodes have the word during the partition, want 4", n)
		}
		if nodes[0].Reachable(nodes[1].id) || !nodes[0].Reachable(nodes[2].id) || len(nodes[0].Others()) != 7 {
			t.Error("reachability ignores the partition, or peers are missing")
		}
		g.Heal()
		time.Sleep(time.Minute)
		if n := heard("ab"); n != 8 {
			t.Errorf("after the partition %d of 8 nodes have the word; want all", n)
		}
	})
}

// Requests are answered, refused or time out. A stopped peer counts as unreachable after a while,
// and its announced state is kept.
func TestGossipRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossip(1)
		defer g.Close()
		nodes, _ := cluster(g, 2, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if got, err := nodes[0].Request(ctx, nodes[1].id, "echo", []byte{7}); err != nil || !bytes.Equal(got, []byte{7, 1}) {
			t.Errorf("the echo returned %v, error %v; want [7 1]", got, err)
		}
		if _, err := nodes[0].Request(ctx, nodes[1].id, "echo", nil); !errors.Is(err, refused("nothing to say")) {
			t.Errorf("a refused request returned %v; want its refusal", err)
		}
		nodes[1].Announce(Stopped)
		nodes[1].Stop()
		if !nodes[0].Reachable(nodes[1].id) {
			t.Error("a stopped node counts as unreachable at once")
		}
		if _, err := nodes[0].Request(ctx, nodes[1].id, "echo", []byte{7}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before the stop is noticed: got %v, want DeadlineExceeded", err)
		}
		if _, err := nodes[0].Request(t.Context(), nodes[1].id, "echo", []byte{7}); !errors.Is(err, ErrUnreachable) || !nodes[0].Stopped(nodes[1].id) {
			t.Errorf("after the stop is noticed: got %v, want ErrUnreachable", err)
		}
	})
}

// If two runs of one peer reach each other, Twin of the later one is called.
func TestGossipTwins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossip(1)
		defer g.Close()
		told := 0
		nodes, _ := cluster(g, 1, func() { t.Error("the earlier run of the node was called; want only the later one") })
		twin := g.Node(nodes[0].id, nodes[0].Known())
		twin.Start(1, NodeConfig{Twin: func() { told++; twin.Stop() }})
		time.Sleep(time.Minute)
		synctest.Wait()
		if told != 0 {
			t.Error("Twin was called although the two runs do not reach each other")
		}
		g.Heal()
		time.Sleep(TwinLag)
		synctest.Wait()
		if told != 1 {
			t.Errorf("the later run was told %d times, want once", told)
		}
	})
}
