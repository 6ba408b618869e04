package mesh

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
)

// The suspicions of a liar follow the ceiling of a peer's incarnations. The ceiling rises slowly, the peer
// promises it before it uses it, and no honest host is accused.
func TestSuspicionsRaiseCeilingSlowly(t *testing.T) {
	const suspect, duration = 3, 10 * time.Second
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(64)}
		hosts := []*host{s.start(1, nil, nil), s.start(2, nil, []string{"192.0.2.1"}), s.start(3, nil, []string{"192.0.2.1"})}
		eventually.True(t, 20*time.Second, "all hosts are connected", allReach(hosts))
		l := s.liar()
		time.Sleep(2 * time.Second)
		b := hosts[1]
		for end := time.Now().Add(duration); time.Now().Before(end); time.Sleep(time.Millisecond) {
			highest, _ := rules{b.Mesh}.Ceiling(b.name)
			for range 4 {
				l.forge(packed(suspect, fields{"Incarnation": highest, "Node": b.name, "From": l.list.LocalNode().Name}), b)
				highest += ceilingStep - refutable
			}
		}
		b.mu.Lock()
		ceiling := b.hello.Ceiling
		b.mu.Unlock()
		if most := uint32(duration/renewPause+4) * ceilingStep; ceiling > most {
			t.Errorf("within %v the ceiling rose to %d, want at most %d", duration, ceiling, most)
		}
		time.Sleep(4 * renewPause)
		b.mu.Lock()
		ceiling = b.hello.Ceiling // the last suspicions may have raised it once more
		b.mu.Unlock()
		for _, h := range hosts {
			if r := h.Rejections(); len(r) > 0 {
				t.Errorf("a host is accused: %+v, want none: nobody can tell who lies", r)
			}
			if known, _ := (rules{h.Mesh}).Ceiling(b.name); known != ceiling-refutable {
				t.Errorf("a host knows the ceiling %d, want %d as the peer promised", known+refutable, ceiling)
			}
		}
		eventually.True(t, 5*time.Second, "all hosts are connected", allReach(hosts))
		_ = l.list.Shutdown()
		s.end(hosts...)
	})
}
