package mesh

import (
	"testing"

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
