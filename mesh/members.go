package mesh

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// members holds copies of the runs of other peers that memberlist reports. The reason is that
// memberlist changes its own nodes while callers of its method Members read them. A run's address
// only changes with another NotifyJoin. members is safe for concurrent use, and never changes a run
// that it returned.
type members struct {
	mu    sync.Mutex
	nodes map[string]*memberlist.Node
}

// join stores a copy of n. memberlist holds its lock meanwhile.
func (l *members) join(n *memberlist.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes == nil {
		l.nodes = map[string]*memberlist.Node{}
	}
	kept := *n
	l.nodes[n.Name] = &kept
}

func (l *members) leave(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.nodes, name)
}

// named returns the run with a name, or nil.
func (l *members) named(name string) *memberlist.Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

// room reports whether a run is known already, or whether there is room for it.
func (l *members) room(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name] != nil || len(l.nodes) < maxPeers
}

// of returns the runs of one peer.
func (l *members) of(id peer.ID) (nodes []*memberlist.Node) {
	prefix := id.String() + "-"
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, n := range l.nodes {
		if strings.HasPrefix(name, prefix) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// shuffled returns all runs in random order.
func (l *members) shuffled() []*memberlist.Node {
	l.mu.Lock()
	nodes := slices.Collect(maps.Values(l.nodes))
	l.mu.Unlock()
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	return nodes
}
