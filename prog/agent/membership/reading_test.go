package membership

import (
	"sync"
	"testing"
	"time"

	"weft/mesh/document"
	"weft/mesh/member"
	"weft/mesh/meshtest"
	"weft/prog/api"
)

// slow are documents whose first listing of the bans ends only when on is closed.
type slow struct {
	*papers
	first      *sync.Once
	listed, on chan struct{}
}

func (s slow) List(kind string) []*document.Document {
	out := s.papers.List(kind)
	if kind == member.KindBan {
		wait := false
		s.first.Do(func() { wait = true })
		if wait {
			close(s.listed)
			<-s.on
		}
	}
	return out
}

// A ban arrives while an earlier reading of the documents is not complete. It is in force afterwards.
func TestASlowReadingLosesNoBan(t *testing.T) {
	holder, other := newHost(t, 1, member.Holder), newHost(t, 2, member.Admits)
	create(t, other, api.TokenRequest{TTL: 60, Uses: 1})
	if err := holder.Ban(meshtest.ID(4), true, ""); err != nil {
		t.Fatal(err)
	}
	docs := slow{other.papers, &sync.Once{}, make(chan struct{}), make(chan struct{})}
	other.Documents = docs
	create(t, holder, api.TokenRequest{TTL: 60, Uses: 1})
	for _, d := range holder.papers.List(member.KindToken) {
		other.papers.put(t, d)
	}
	var readers sync.WaitGroup
	readers.Go(other.read)
	<-docs.listed
	for _, d := range holder.papers.List(member.KindBan) {
		other.papers.put(t, d)
	}
	readers.Go(other.read)
	time.Sleep(50 * time.Millisecond) // the second reading may overtake the first
	close(docs.on)
	readers.Wait()
	if _, banned := other.Ledger().Banned(meshtest.ID(4)); !banned {
		t.Error("the older reading replaced the newer one, want the ban in force")
	}
}
