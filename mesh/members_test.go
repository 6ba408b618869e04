package mesh

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
)

// members lists the runs that memberlist reports, also after a run has ended or restarted. It holds
// copies, since memberlist changes its own nodes concurrently.
func TestMembersAreCopiesOfMemberlistNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(41)}
		a := s.start(1, nil, nil)
		b, c := s.start(2, nil, []string{"192.0.2.1"}), s.start(3, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "all hosts are connected", allReach([]*host{a, b, c}))
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
					t.Errorf("%s is memberlist's own node, want a copy", n.Name)
				}
			}
			slices.Sort(told)
			slices.Sort(kept)
			return slices.Equal(told, kept)
		}
		if len(a.members.shuffled()) != 2 || !same() {
			t.Errorf("the members are %v; want those of memberlist", a.members.shuffled())
		}
		s.end(c)
		eventually.True(t, 30*time.Second, "the third host has left", func() bool { return len(a.members.shuffled()) == 1 && same() })
		again := s.start(3, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "the third host is connected again", func() bool { return len(a.members.shuffled()) == 2 && same() })
		s.end(a, b, again)
	})
}

// A peer announces many runs of its agent at once. There is still room for other peers, and for new runs of
// the peer once earlier ones have ended.
func TestRunsOfOnePeerLeaveRoomForOthers(t *testing.T) {
	m := still(t, 1)
	announce := func(i int) (name string, accepted bool) {
		name = nodeName(idOf(i), time.Now())
		n := &memberlist.Node{Name: name, Addr: address(i).Addr().AsSlice(), Port: Port, Meta: greeting(identity(i), name, address(i))}
		if accepted = (gate{m}).NotifyAlive(n) == nil; accepted {
			events{m}.NotifyJoin(n)
		}
		return name, accepted
	}
	first, _ := announce(9)
	accepted := 1
	for range 2 * maxRunsOf {
		if _, ok := announce(9); ok {
			accepted++
		}
	}
	if accepted != maxRunsOf {
		t.Errorf("%d runs of one peer were accepted, want maxRunsOf", accepted)
	}
	if _, ok := announce(2); !ok {
		t.Error("another peer was refused, want it accepted")
	}
	events{m}.NotifyLeave(&memberlist.Node{Name: first})
	if _, ok := announce(9); !ok {
		t.Error("after one of its runs has ended, a new run of the peer was refused; want it accepted")
	}
}
