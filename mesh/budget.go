package mesh

import (
	"errors"
	"sync"

	"weft/mesh/peer"
	"weft/mesh/session"
)

// held reads a stream within the budget of its peer.
type held struct {
	*session.Stream
	budget *budget
	free   int // bytes that do not count
	bytes  int // that count, until give
}

func (h *held) Read(p []byte) (int, error) {
	n, err := h.Stream.Read(p)
	free := min(h.free, n)
	h.free -= free
	if e := h.budget.take(h.Peer.ID, n-free); e != nil {
		return 0, e
	}
	h.bytes += n - free
	return n, err
}

func (h *held) give() {
	h.budget.give(h.Peer.ID, h.bytes)
	h.bytes = 0
}

// budget bounds the bytes of all messages that are being read from streams, in total and per peer. A
// member is proven, but may still send without end. It is safe for concurrent use.
type budget struct {
	mu    sync.Mutex
	total int
	of    map[peer.ID]int
}

const (
	maxHeld     = 24 << 20
	maxHeldPeer = 10 << 20
)

var errBudget = errors.New("too many bytes at once from this peer")

func (b *budget) take(id peer.ID, n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n == 0 {
		return nil
	}
	if b.total+n > maxHeld || b.of[id]+n > maxHeldPeer {
		return errBudget
	}
	if b.of == nil {
		b.of = map[peer.ID]int{}
	}
	b.total, b.of[id] = b.total+n, b.of[id]+n
	return nil
}

func (b *budget) give(id peer.ID, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n == 0 { // a stream from which nothing was read, perhaps the first one of all
		return
	}
	b.total -= n
	if b.of[id] -= n; b.of[id] <= 0 {
		delete(b.of, id)
	}
}
