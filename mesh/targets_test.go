package mesh

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
)

// Hosts found on the LAN are joined like the operator's targets, but are not stored.
func TestFoundTargetsAreJoinedAndNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t, meshtest.New(2)}
		a, b := c.start(1, nil, nil), c.start(2, nil, nil)
		first := address(1).String()
		stored := func(want ...string) {
			t.Helper()
			if got := b.disk.Targets(); !slices.Equal(got, want) {
				t.Errorf("the disk has the targets %v, want %v", got, want)
			}
		}
		if err := b.Connect([]string{"192.0.2.99"}, false); err != nil {
			t.Fatal(err)
		}
		b.SetFound([]string{first, "192.0.2.99"})
		eventually.True(t, time.Minute, "the host that was found is joined", func() bool { return len(b.Peers()) == 2 && len(a.Peers()) == 2 })
		if got := b.Targets(); len(got) != 2 || !got[0].Found || got[1].Found {
			t.Errorf("targets %+v, want that only the one that no operator named counts as found", got)
		}
		if err := b.Connect([]string{"192.0.2.98"}, true); err != nil {
			t.Fatal(err)
		}
		stored("192.0.2.98")
		if err := b.Connect([]string{first}, false); err != nil {
			t.Fatal(err)
		}
		stored(first, "192.0.2.98")
		b.SetFound(nil)
		if got := b.Targets(); len(got) != 2 {
			t.Errorf("targets %+v, want that those that the operator named stay", got)
		}
		c.end(a, b)
	})
}
