package links

import (
	"testing"

	"weft/mesh/peer"
)

// A path may fail before anything is known to choose from: the view may be published between two looks at it.
func TestNoChoiceBeforeTheFirstView(t *testing.T) {
	var c choice
	if got := c.relays(peer.ID{1}, peer.ID{2}, nil); got != nil {
		t.Errorf("relays %v, want none", got)
	}
}
