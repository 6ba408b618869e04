package session

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// A peer is expelled while it delays the end of its handshake. Its stream is refused, though it was welcome
// before.
func TestAPeerIsExpelledDuringItsHandshake(t *testing.T) {
	t.Run("with packets", func(t *testing.T) { expelledTest(t, 7) })
	t.Run("without packets", func(t *testing.T) { expelledTest(t, 0) })
}

func expelledTest(t *testing.T, index uint32) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, net2 := start(t, n, 1, 1), n.Join(meshtest.Address(2))
		s, _ := greet(t, net2, a, greeting{Run: runName(2, 1), Use: Request, Index: index})
		a.Expel(meshtest.ID(2))
		_ = greeting{}.send(s)
		time.Sleep(time.Second)
		a.locked(func() {
			if len(a.served) > 0 {
				t.Error("the stream of an expelled peer is served, want it refused")
			}
		})
		s.Close()
		stop(t, a)
	})
}
