package session

import (
	"context"
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
				ends := passing(t, 3)
				a, b, c := ends[0], ends[1], ends[2]
				s, err := a.askOver([]memberlist.Address{b.at()}, c.at(), Request, time.Second)
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

// A host that ends does not wait for a member that is slow to pass its stream on.
func TestAskOverEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := passing(t, 3)
		a, b, c := ends[0], ends[1], ends[2]
		b.cfg.Find = func(string) (memberlist.Address, bool) {
			time.Sleep(proofTimeout) // as if the other end were silent
			return c.at(), true
		}
		ctx, end := context.WithTimeout(t.Context(), time.Minute)
		time.AfterFunc(time.Second, end)
		begun := time.Now()
		if s, err := a.AskOver(ctx, []memberlist.Address{b.at()}, c.at(), Request); err == nil || time.Since(begun) != time.Second {
			t.Errorf("after %v the stream is %v, error %v; want an error as soon as the context ends", time.Since(begun), s, err)
		}
		stop(t, ends...)
	})
}
