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

// members are the runs of other peers that memberlist tells of: copies, since it changes its
// own, which Members hands out, while others read them. A run's address does not change without
// another NotifyJoin. It is safe for concurrent use; what it hands out never changes.
type members struct {
	mu    sync.Mutex
	nodes map[string]*memberlist.Node
}

// join keeps a copy. memberlist holds its lock meanwhile.
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

// named is the one of a name; nil if there is none.
func (l *members) named(name string) *memberlist.Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

// room reports whether a run is here, or one more can be.
func (l *members) room(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name] != nil || len(l.nodes) < maxPeers
}

// of are the runs of one peer.
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

// shuffled are all, in random order.
func (l *members) shuffled() []*memberlist.Node {
	l.mu.Lock()
	nodes := slices.Collect(maps.Values(l.nodes))
	l.mu.Unlock()
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	return nodes
}
