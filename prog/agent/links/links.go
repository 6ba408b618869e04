// Package links tells the other hosts which peers this host does not reach, and chooses relays by what all hosts
// tell.
//
// A Links owns this host's document of the kind "links", and the list of its cut links. Its goroutine keeps the
// document equal to what is measured. A host that reaches all others, and relays, has no document. One with
// little room for more pairs says that it refuses: those that use it stay, and others choose another one. A document
// counts only if the peer that it is about wrote it. It can only cut links of that peer itself. So a lie harms no
// other host. The choice is a pure function (topology.Relays). A Links changes no route and no tunnel.
//
// A link is cut while its path is down and the peer is alive. The end of a cut is told after 10 s, so that a
// flapping link stays cut. A new cut is told after 1 s if the peer is proved to be alive: its packets arrive, or it
// tells of the cut itself. Otherwise it is told only after gossip had the time to notice a dead host, 7 to 15 s. A
// host without power so makes no documents. This host's own choice does not wait for that.
//
// These are the costs if a broken switch cuts 1,000 hosts into halves that gossip still joins. Each document names 500
// peers and has 4 KB, so all have 4 MB together. The first ones are spread over 5 s. Then each host writes every 15 s
// at most: 0.3 MB/s arrive at each host until the cuts have settled, and nothing afterwards. If instead one host loses
// all its links, there are 999 documents of 0.2 KB, and one of 8 KB. A deleted document costs 0.2 KB for 30 days. At
// most 2,048 documents are made, so that half of the documents of the mesh stay for policies.
package links

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/live"
	"weft/prog/agent/measure"
	"weft/prog/agent/view"
)

// Kind is the kind of the documents. The name of each is the id of the peer that it is about.
const Kind = "links"

const (
	// A host with n cut links writes again after writeEvery + n*perCut, and its first document waits for up to
	// n*firstPerCut.
	writeEvery  = 5 * time.Second
	perCut      = 20 * time.Millisecond
	firstPerCut = 10 * time.Millisecond
	// A host with n cut links, which may have to choose as many relays anew, reads changed documents once per
	// n*readPerCut.
	readPerCut = 2 * time.Millisecond
	// rttEvery is how often a document is written of which only round trips have changed.
	rttEvery = time.Minute
	// mostDocuments is how many documents of this kind there may be before a host makes another one.
	mostDocuments = document.MaxDocuments / 2
)

// Documents are the replicated documents.
type Documents interface {
	Get(kind, name string) *document.Document
	List(kind string) []*document.Document
	Write([]mesh.Change) error
}

// Config configures Links.
type Config struct {
	Self peer.ID
	// Refuses means that this host relays for nobody.
	Refuses   bool
	Documents Documents
	Paths     live.Reader[measure.Paths]
	Relayed   live.Reader[measure.Relayed]
	View      live.Reader[*view.View]
	Banned    func(peer.ID) bool
	// Capable reports whether this version can use a peer as a relay; nil: it can use all.
	Capable func(peer.ID) bool
	Log     *slog.Logger
}

// Links tells about this host's links, and chooses relays. It is safe for concurrent use. Its version grows when
// Relays may return others.
type Links struct {
	live.Value[struct{}]

	cfg       Config
	documents atomic.Uint64 // how often the documents have changed
	wake      chan struct{}

	mu     sync.Mutex
	seen   versions
	again  time.Time // when the inputs mean something else although they are the same
	read   time.Time // when the documents were read
	own    own
	others others
	choice choice

	// Only Run uses these.
	wrote, wanting time.Time // the last write; since when the document is to be written
	gone           map[string]time.Time
	failed         string // the error that was logged last
}

// versions are those of the inputs.
type versions struct{ paths, relayed, view, documents uint64 }

// New makes Links; Run starts them. Relays works before that.
func New(cfg Config) *Links {
	if cfg.Capable == nil {
		cfg.Capable = func(peer.ID) bool { return true }
	}
	l := &Links{cfg: cfg, wake: make(chan struct{}, 1), gone: map[string]time.Time{}}
	l.documents.Store(1)
	return l
}

// Wake tells that a document may have changed. It does not block.
func (l *Links) Wake() {
	l.documents.Add(1)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run publishes this host's document until ctx ends.
func (l *Links) Run(ctx context.Context) error {
	for {
		now := time.Now()
		inputs, next := l.publish(now)
		l.sweep(now)
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-l.wake:
		case <-l.cfg.Paths.Changed(inputs.paths):
		case <-l.cfg.Relayed.Changed(inputs.relayed):
		case <-l.cfg.View.Changed(inputs.view):
		}
		timer.Stop()
	}
}

// refresh reads the inputs that have changed. The caller holds the lock.
func (l *Links) refresh(now time.Time) {
	last, documents := l.seen, l.documents.Load() // before they are read
	again := now.Add(time.Hour)
	if at := l.read.Add(time.Duration(len(l.own.cuts)) * readPerCut); documents != last.documents && now.Before(at) {
		documents, again = last.documents, at
	}
	paths, pathsVersion := l.cfg.Paths.Read()
	v, viewVersion := l.cfg.View.Read()
	relayed, relayedVersion := l.cfg.Relayed.Read()
	next := versions{pathsVersion, relayedVersion, viewVersion, documents}
	if next == last && now.Before(l.again) {
		l.again = earliest(l.again, again)
		return
	}
	l.seen, l.again = next, again
	told := documents != last.documents
	if told {
		l.read = now
		l.others.read(l.cfg.Documents.List(Kind), l.cfg.Self)
		l.own.read(l.cfg.Documents.Get(Kind, l.cfg.Self.String()), l.cfg.Self)
	}
	l.own.refuses = l.cfg.Refuses || busy(len(relayed.Pairs), l.own.told.Refuses)
	if v == nil {
		return
	}
	s := standings{View: v, banned: l.cfg.Banned, now: now}
	l.again = earliest(again, l.own.observe(s, paths, l.others.links))
	links := l.others.counting(s)
	links[l.cfg.Self] = l.own.links()
	if l.choice.set(l.cfg.Self, s.candidates(l.cfg.Self, l.cfg.Capable), links, told) {
		l.Set(struct{}{})
	}
}

// Relays returns the relays to another peer, the nearest to this host first, as if the link to that peer were cut. Peers
// to avoid are left out; nil: none. It returns none if no relay reaches the peer. Silence is no reason for that: of two
// hosts behind NAT each seems dead to the other one until they find a relay. The caller must not change the list.
func (l *Links) Relays(other peer.ID, avoid func(peer.ID) bool) []peer.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.refresh(now)
	if v := l.cfg.View.Get(); v == nil || !(standings{View: v, banned: l.cfg.Banned, now: now}).known(other) {
		return nil
	}
	return l.choice.relays(l.cfg.Self, other, avoid)
}

// Told returns what a peer tells of its links; that may be this host.
func (l *Links) Told(id peer.ID) topology.Links {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refresh(time.Now())
	if id == l.cfg.Self {
		return l.own.told
	}
	return l.others.links[id].links
}

// publish writes or deletes this host's document if it is time for that, and returns when to look again.
func (l *Links) publish(now time.Time) (versions, time.Time) {
	l.mu.Lock()
	l.refresh(now)
	seen, next, want, have := l.seen, l.again, l.own.wanted(now), l.own.told
	l.mu.Unlock()
	change := mesh.Change{Kind: Kind, Name: l.cfg.Self.String(), Deleted: want.IsZero()}
	doc := l.cfg.Documents.Get(Kind, change.Name)
	needed := doc != nil
	if !change.Deleted {
		var err error
		if change.Body, err = want.Encode(); err != nil {
			l.fail(err)
			return seen, next
		}
		needed = doc == nil || doc.WriterID() != l.cfg.Self || !bytes.Equal(doc.Body, change.Body)
	}
	if !needed {
		l.wanting = time.Time{}
		return seen, next
	}
	if l.wanting.IsZero() {
		l.wanting = now
	}
	at := l.due(want, doc != nil && doc.WriterID() == l.cfg.Self && want.SameCuts(have))
	switch {
	case at.After(now):
		return seen, earliest(next, at)
	case doc == nil && len(l.cfg.Documents.List(Kind)) >= mostDocuments:
		l.fail(errFull)
		l.wrote = now
		return seen, earliest(next, l.due(want, false))
	}
	err := l.cfg.Documents.Write([]mesh.Change{change})
	l.wrote, l.wanting = now, time.Time{}
	l.fail(err)
	l.Wake()
	return seen, next
}

// due returns when a document may be written.
func (l *Links) due(want topology.Links, onlyRTT bool) time.Time {
	switch n := time.Duration(len(want.Cut)); {
	case onlyRTT && l.wrote.IsZero(): // after a restart, nothing is measured yet
		return l.wanting.Add(rttEvery)
	case onlyRTT:
		return l.wrote.Add(rttEvery)
	case l.wrote.IsZero():
		spread := firstPerCut * n                                         //nolint:durationcheck // n is a number
		return l.wanting.Add(spread * time.Duration(l.cfg.Self[0]) / 255) // ids are random
	default:
		return l.wrote.Add(writeEvery + perCut*n) //nolint:durationcheck // n is a number
	}
}

// fail logs an error once.
func (l *Links) fail(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != l.failed && text != "" {
		l.cfg.Log.Warn("cannot tell the other peers which links of this host are cut", "err", err)
	}
	l.failed = text
}

// earliest returns the earlier time.
func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

const (
	// goneFor is how long a peer must be gone before its document is deleted, and mostSwept how many are deleted at
	// once.
	goneFor   = 10 * time.Minute
	mostSwept = 64
)

// sweep deletes the documents of peers that have left, or that were removed. Of all hosts, the running one with the
// lowest id does that.
func (l *Links) sweep(now time.Time) {
	v := l.cfg.View.Get()
	if v == nil {
		return
	}
	s := standings{View: v, banned: l.cfg.Banned, now: now}
	var deleted []mesh.Change
	still := map[string]time.Time{}
	for _, d := range l.cfg.Documents.List(Kind) {
		if id, err := peer.ParseID(d.Name); id == l.cfg.Self || err == nil && s.member(id) {
			continue
		}
		since, known := l.gone[d.Name]
		if !known {
			since = now
		}
		still[d.Name] = since
		if now.Sub(since) >= goneFor && len(deleted) < mostSwept {
			deleted = append(deleted, mesh.Change{Kind: Kind, Name: d.Name, Deleted: true})
		}
	}
	l.gone = still
	if len(deleted) == 0 || slices.ContainsFunc(s.candidates(l.cfg.Self, nil), func(id peer.ID) bool { return bytes.Compare(id[:], l.cfg.Self[:]) < 0 }) {
		return
	}
	l.fail(l.cfg.Documents.Write(deleted))
}
