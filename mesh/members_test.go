package mesh

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// Who is spoken to is who memberlist tells of, also once one has ended or started anew; but what
// memberlist changes, while it hears of others, is read by nobody else.
func TestMembersAreCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(41)}
		a := s.start(1, nil, nil)
		b, c := s.start(2, nil, []string{"192.0.2.1"}), s.start(3, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "all are here", allReach([]*host{a, b, c}))
		same := func() bool {
			var told, kept []string
			for _, n := range a.list.Members() {
				if n.Name != a.name {
					told = append(told, n.Name+" "+n.Address())
				}
			}
			for _, n := range a.members.shuffled() {
				kept = append(kept, n.Name+" "+n.Address())
				if slices.Contains(a.list.Members(), n) || slices.Contains(a.list.Members(), a.nodeFor(kindRequest, message{To: b.Self()})) {
					t.Errorf("%s is memberlist's own", n.Name)
				}
			}
			slices.Sort(told)
			slices.Sort(kept)
			return slices.Equal(told, kept)
		}
		if len(a.members.shuffled()) != 2 || !same() {
			t.Errorf("%v", a.members.shuffled())
		}
		s.end(c)
		s.eventually(30*time.Second, "it has left", func() bool { return len(a.members.shuffled()) == 1 && same() })
		again := s.start(3, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "it is back", func() bool { return len(a.members.shuffled()) == 2 && same() })
		s.end(a, b, again)
	})
}
