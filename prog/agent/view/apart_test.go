package view

import (
	"testing"

	"weft/prog/api"
)

func TestTheFixForSeveralRingsConcernsTheSmallestRing(t *testing.T) {
	rings := []api.Ring{{ID: "a", Peers: []string{"n1", "n2"}}, {ID: "b", Peers: []string{"n3"}}}
	const want = "several networks were founded, which run on apart: ring a of n1, n2; ring b of n3. To merge the networks, do this on n3"
	if text := apart(rings, "do this").String(); text != want {
		t.Errorf("%q, want %q", text, want)
	}
}
