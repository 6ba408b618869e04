package session

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// Streams that a host passes on end when it expels the member that asked for them, or ends itself.
func TestPassedStreamsEndWithTheirMemberAndHost(t *testing.T) {
	for what, end := range map[string]func(a, b *end){
		"the member is expelled": func(_, b *end) { b.Expel(meshtest.ID(1)) },
		"the host ends":          func(_, b *end) { _ = b.Shutdown() },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, ends := passing(t, 3)
				a, b, c := ends[0], ends[1], ends[2]
				s, err := a.AskOver([]memberlist.Address{b.at()}, c.at(), Request, time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				begun := time.Now()
				end(a, b)
				if _, err := s.Read(make([]byte, 1)); err == nil || time.Since(begun) > time.Second {
					t.Errorf("the stream ended after %v with %v, want an error at once", time.Since(begun), err)
				}
				stop(t, ends...)
			})
		})
	}
}
