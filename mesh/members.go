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
	runs  map[string]int // by peer: the number of its runs in nodes
}

// join stores a copy of n. memberlist holds its lock meanwhile.
func (l *members) join(n *memberlist.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes == nil {
		l.nodes, l.runs = map[string]*memberlist.Node{}, map[string]int{}
	}
	if id, _, _ := strings.Cut(n.Name, "-"); l.nodes[n.Name] == nil {
		l.runs[id]++
	}
	kept := *n
	l.nodes[n.Name] = &kept
}

func (l *members) leave(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes[name] == nil {
		return
	}
	delete(l.nodes, name)
	id, _, _ := strings.Cut(name, "-")
	if l.runs[id]--; l.runs[id] == 0 {
		delete(l.runs, id)
	}
}

// named returns the run with a name, or nil.
func (l *members) named(name string) *memberlist.Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

// maxRunsOf bounds the runs of one peer. A peer can announce any number of them at once; one that crashes
// again and again has some that others do not know to have ended.
const maxRunsOf = 32

// room reports whether a run is known already, or whether there is room for it.
func (l *members) room(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes[name] != nil {
		return true
	}
	id, _, _ := strings.Cut(name, "-")
	return len(l.nodes) < maxPeers && l.runs[id] < maxRunsOf
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
