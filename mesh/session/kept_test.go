package session

import (
	"encoding/binary"
	"testing"
)

// Sessions with ever new peers take bounded memory, and the newest one stands.
func TestKeysOfAllPeersAreBounded(t *testing.T) {
	s := table{byIndex: map[uint32]*keys{}, byRun: map[string][]*keys{}}
	for i := range uint32(maxKept + 100) {
		p := Peer{}
		binary.BigEndian.PutUint32(p.ID[:], i)
		p.Run = p.ID.String() + "-1"
		k := &keys{peer: p.ID}
		s.reserve(k)
		s.welcome(k, p, 1)
		s.install(k)
		if s.to(p.Run) != k {
			t.Fatalf("after %d sessions, the newest one does not stand", i+1)
		}
	}
	if len(s.byIndex) > maxKept || len(s.byRun) != len(s.byIndex) {
		t.Errorf("there are %d keys of %d runs, want at most %d", len(s.byIndex), len(s.byRun), maxKept)
	}
}
