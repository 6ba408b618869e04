package mesh

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"weft/mesh/peer"
)

// A stream may end before anything was read from it, even the first one since the start.
func TestStreamWithoutBytesGivesNothingBack(t *testing.T) {
	var b budget
	b.give(peer.ID{1}, 0)
	if err := b.take(peer.ID{1}, maxHeldPeer); err != nil {
		t.Errorf("a peer that holds nothing may not hold maxHeldPeer bytes: %v", err)
	}
	b.give(peer.ID{1}, maxHeldPeer)
	if b.total != 0 || len(b.of) != 0 {
		t.Errorf("%d bytes of %d peers are held after all were given back; want none", b.total, len(b.of))
	}
}

// Messages arrive faster than they are handled. Few large ones wait, and they keep out no small ones.
func TestFewLargeMessagesWait(t *testing.T) {
	m, err := New(Config{Identity: identity(1), Record: peer.Record{Underlay: []netip.Addr{address(1).Addr()}}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	large := make([]byte, maxStream)
	for range 50 {
		delegate{m}.NotifyMsg(large)
	}
	if n := len(m.inbox); n != maxQueued/maxStream {
		t.Errorf("%d large messages wait, want %d", n, maxQueued/maxStream)
	}
	delegate{m}.NotifyMsg([]byte("small"))
	if n := len(m.inbox); n != maxQueued/maxStream+1 {
		t.Errorf("a small message does not wait behind large ones, want it to")
	}
	ctx, end := context.WithCancel(t.Context())
	var consumer sync.WaitGroup
	consumer.Go(func() { _ = m.consume(ctx) })
	for len(m.inbox) > 0 {
		time.Sleep(time.Millisecond)
	}
	end()
	consumer.Wait()
	if n := m.queued.Load(); n != 0 {
		t.Errorf("%d bytes count as queued in an empty inbox, want none", n)
	}
}
