package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/document"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// shelf is what a host keeps of the documents.
type shelf struct {
	mu     sync.Mutex
	docs   map[string][]byte
	synced bool
	writes int
	fail   error
}

func (s *shelf) SaveDocuments(docs map[string][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.writes++
	maps.Copy(s.docs, docs)
	maps.DeleteFunc(s.docs, func(_ string, data []byte) bool { return data == nil })
	return nil
}

func (s *shelf) SaveSynced() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = true
	return s.fail
}

// len is how many documents are on it.
func (s *shelf) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.docs)
	if s.docs[keyMarks] != nil {
		n--
	}
	return n
}

func (s *shelf) copy() *shelf {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &shelf{docs: maps.Clone(s.docs), synced: s.synced}
}

// council is hosts with documents, on a network of which the weather can be chosen.
type council struct {
	t    *testing.T
	net  *meshtest.Gossip
	here map[int]*member
	runs map[int]meshtest.Known
}

// member is one run of a host.
type member struct {
	*Documents
	*meshtest.Node
	n     int
	disk  *shelf
	stop  context.CancelFunc
	done  chan error
	mu    sync.Mutex
	asked int
	ahead atomic.Int64 // how much its clock is, in days
}

// Name is a peer's, and not the replica's.
func (m *member) Name(id peer.ID) string { return m.Node.Name(id) }

func newCouncil(t *testing.T, seed uint64) *council {
	return &council{t: t, net: meshtest.NewGossip(seed), here: map[int]*member{}, runs: map[int]meshtest.Known{}}
}

// Request counts what is asked.
func (m *member) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	m.mu.Lock()
	m.asked++
	m.mu.Unlock()
	return m.Node.Request(ctx, to, kind, payload)
}

func (c *council) asked() (n int) {
	for _, m := range c.here {
		m.mu.Lock()
		n += m.asked
		m.mu.Unlock()
	}
	return n
}

func (m *member) digest() document.Digest {
	m.Documents.mu.Lock()
	defer m.Documents.mu.Unlock()
	return m.set.Digest(m.now())
}

func (m *member) version(name string) uint64 {
	m.Documents.mu.Lock()
	defer m.Documents.mu.Unlock()
	if d, _ := m.set.Last(document.Key("policy", name)); d != nil {
		return d.Version
	}
	return 0
}

func documents(t testing.TB, n int, mesh Messenger, disk *shelf) *Documents {
	t.Helper()
	d, err := NewDocuments(DocumentsConfig{
		Identity: identity(n), Mesh: mesh, Store: disk, Documents: slices.Collect(maps.Values(disk.copy().docs)), Synced: disk.copy().synced,
		Now: time.Now, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// start runs host n on a side of the network, with what is on its disk.
func (c *council) start(n, side int, disk *shelf) *member {
	c.t.Helper()
	if disk == nil {
		disk = &shelf{docs: map[string][]byte{}}
	}
	m := &member{n: n, Node: c.net.Node(idOf(n), c.runs[n]), disk: disk, done: make(chan error, 1)}
	m.Documents = documents(c.t, n, m, disk)
	m.cfg.Now = func() time.Time { return time.Now().AddDate(0, 0, int(m.ahead.Load())) }
	handlers := map[string]meshtest.Handler{}
	for kind, h := range m.Handlers() {
		handlers[kind] = h
	}
	m.Start(side, meshtest.NodeConfig{Replicas: []meshtest.Replica{m.Documents}, Handlers: handlers, Twin: func() {}})
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	go func() { m.done <- m.Run(ctx) }()
	c.here[n] = m
	return m
}

// kill ends a host's run without a word.
func (c *council) kill(m *member) {
	m.Stop()
	m.stop()
	if err := <-m.done; err != nil {
		c.t.Error(err)
	}
	delete(c.here, m.n)
}

func (c *council) end() {
	for _, m := range c.here {
		c.kill(m)
	}
	c.net.Close()
	time.Sleep(time.Minute)
	synctest.Wait()
}

// four is hosts 1 to 4 that know each other; host 1 founded the mesh.
func four(t *testing.T) (*council, [5]*member) {
	c := newCouncil(t, 1)
	var m [5]*member
	for n := 1; n <= 4; n++ {
		m[n] = c.start(n, 0, nil)
	}
	if err := m[1].MarkSynced(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
	return c, m
}

func policy(name, body string) Change { return Change{Kind: "policy", Name: name, Body: []byte(body)} }

func noPolicy(name string) Change { return Change{Kind: "policy", Name: name, Deleted: true} }

func (c *council) write(m *member, changes ...Change) {
	c.t.Helper()
	if err := m.Write(changes); err != nil {
		c.t.Fatal(err)
	}
}

// reads is what a host has, as NAME=BODY.
func reads(d *Documents) string {
	var out []string
	for _, doc := range d.List("policy") {
		out = append(out, fmt.Sprintf("%s=%.20s", doc.Name, doc.Body))
	}
	return strings.Join(out, " ")
}

// eventually waits until all hosts have the same documents; those, unless it is "*".
func (c *council) eventually(within time.Duration, want string) {
	c.t.Helper()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		diff, first := "", c.here[slices.Min(slices.Collect(maps.Keys(c.here)))]
		for _, m := range c.here {
			got := reads(m.Documents)
			if m.digest() != first.digest() || m.Generation("policy") != first.Generation("policy") || want != "*" && got != want {
				diff = fmt.Sprintf("host %d has %s, host %d %s, want %s", m.n, got, first.n, reads(first.Documents), want)
			}
		}
		if diff == "" {
			return
		}
		if time.Since(start) > within {
			c.t.Fatalf("not within %v: %s", within, diff)
		}
	}
}

// A small change travels by itself; a large one, and many, are asked for, once by each.
func TestADocumentIsSoonEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		before := c.asked()
		c.write(m[1], policy("web", "a"), policy("db", "b"))
		c.eventually(200*time.Millisecond, "db=b web=a")
		c.write(m[2], noPolicy("db"), policy("web", "c"))
		c.eventually(200*time.Millisecond, "web=c")
		time.Sleep(time.Minute)
		if n := c.asked() - before; n != 0 {
			t.Errorf("%d questions for small changes", n)
		}
		before = c.asked()
		c.write(m[3], policy("web", strings.Repeat("x", document.MaxBody)))
		c.eventually(300*time.Millisecond, "web="+strings.Repeat("x", 20))
		time.Sleep(time.Minute)
		if n := c.asked() - before; n != 3 {
			t.Errorf("%d questions for a large document", n)
		}
		var many []Change
		for i := range 100 {
			many = append(many, policy(fmt.Sprint("many-", i), strings.Repeat("y", 30_000)))
		}
		before = c.asked()
		c.write(m[4], many...) // 3 MB, in several answers
		c.eventually(5*time.Second, "*")
		if n := c.asked() - before; n < 9 || n > 40 {
			t.Errorf("%d questions for many", n)
		}
		if m[4].Get("policy", "many-7") == nil || m[4].Get("policy", "db") != nil || len(m[1].List("policy")) != 101 {
			t.Error("it is not what was written")
		}
		c.end()
	})
}

// All of a change is kept before anybody hears of it, or nothing of it happens.
func TestWritesAreAllOrNone(t *testing.T) {
	said := 0
	disk := &shelf{docs: map[string][]byte{}}
	d := documents(t, 1, &stub{broadcast: func([]byte) { said++ }}, disk)
	if err := d.Write([]Change{policy("web", "a"), policy("db", "b")}); err != nil || said != 1 || disk.writes != 1 || len(disk.docs) != 2 {
		t.Fatalf("said %d, %d writes, %v", said, disk.writes, err)
	}
	for name, changes := range map[string][]Change{
		"one is too large":   {policy("web", "new"), policy("db", strings.Repeat("x", document.MaxBody+1))},
		"one has no name":    {policy("web", "new"), policy("", "")},
		"one is there twice": {policy("web", "new"), noPolicy("web")},
	} {
		if err := d.Write(changes); err == nil || said != 1 || disk.writes != 1 || reads(d) != "db=b web=a" {
			t.Errorf("%s: said %d, %d writes, %v", name, said, disk.writes, err)
		}
	}
	disk.fail = errors.New("the disk is full")
	if err := d.Write([]Change{policy("web", "new")}); !errors.Is(err, disk.fail) || said != 1 || reads(d) != "db=b web=a" {
		t.Errorf("said %d, %v", said, err)
	}
	disk.fail = nil
	d.met = true
	if err := d.Write([]Change{policy("web", "a"), noPolicy("none")}); err != nil || said != 1 || disk.writes != 1 {
		t.Errorf("nothing new: said %d, %d writes, %v", said, disk.writes, err)
	}
	again := documents(t, 1, &stub{}, disk)
	if reads(again) != "db=b web=a" || again.Generation("policy") != d.Generation("policy") {
		t.Errorf("after a restart: %s", reads(again))
	}
	// A writer that has as many as there may be makes no more, but can change them.
	for i := range document.MaxDocuments - 3 {
		_, _ = d.set.Put(&document.Document{Kind: "policy", Name: fmt.Sprint(i)}, 0)
	}
	var full *document.FullError
	if err := d.Write([]Change{policy("last", ""), policy("more", "")}); !errors.As(err, &full) || d.Get("policy", "last") != nil {
		t.Errorf("too many: %v", err)
	}
	if err := errors.Join(d.Write([]Change{policy("last", "")}), d.Write([]Change{policy("web", "x"), noPolicy("db")})); err != nil {
		t.Error(err)
	}
	if err := d.Write([]Change{policy("more", "")}); !errors.As(err, &full) || !strings.Contains(err.Error(), "instead") {
		t.Errorf("one more: %v", err)
	}
}

// Both sides of a partition change the same documents: one wins, the same everywhere.
func TestConcurrentWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		c.write(m[1], policy("web", "0"), policy("db", "0"), policy("dns", "0"))
		c.eventually(time.Second, "db=0 dns=0 web=0")
		c.net.Partition(func(n *meshtest.Node) int {
			if n == m[1].Node || n == m[2].Node {
				return 1
			}
			return 0
		})
		time.Sleep(10 * time.Second)
		c.write(m[1], policy("web", "1"), noPolicy("db"), policy("left", "1"))
		c.write(m[3], policy("web", "3"), policy("db", "3"), policy("right", "3"))
		c.write(m[4], policy("dns", "4"))
		c.write(m[4], policy("dns", "5")) // the later of two beats the one of the other side
		c.write(m[2], policy("dns", "2"))
		time.Sleep(10 * time.Second)
		c.net.Heal()
		c.eventually(time.Minute, "*")
		got := reads(m[2].Documents)
		if !strings.Contains(got, "dns=5 left=1 right=3 web=") {
			t.Errorf("it ends with %s", got)
		}
		time.Sleep(time.Minute)
		before := c.asked()
		time.Sleep(time.Minute)
		if n := c.asked() - before; n > 0 || reads(m[1].Documents) != got {
			t.Errorf("%d questions without end, %s", n, reads(m[1].Documents))
		}
		c.end()
	})
}

// A host whose disk is an older copy writes: what it writes now counts, though the mesh has
// higher numbers; what it does not write, it learns. Whoever wrote what it had forgotten.
func TestAnOlderCopyWrites(t *testing.T) {
	for _, other := range []int{1, 2} {
		for _, alone := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				c, m := four(t)
				c.write(m[1], policy("web", "0"), policy("db", "0"))
				time.Sleep(5 * time.Second)
				old := m[1].disk.copy()
				for i := range 5 {
					c.write(m[other], policy("web", fmt.Sprint("lost-", i)), policy("db", fmt.Sprint("later-", i)))
					time.Sleep(time.Second)
				}
				c.kill(m[1])
				time.Sleep(10 * time.Second)
				side := 0
				if alone {
					side = 1
				}
				m[1] = c.start(1, side, old)
				if reads(m[1].Documents) != "db=0 web=0" {
					t.Fatalf("it starts with %s", reads(m[1].Documents))
				}
				c.write(m[1], policy("web", "now"))
				version := m[2].version("web")
				time.Sleep(20 * time.Second)
				c.net.Heal()
				c.eventually(time.Minute, "db=later-4 web=now")
				if got := m[2].version("web"); got <= version || got > version+3 {
					t.Errorf("version %d after %d", got, version)
				}
				c.end()
			})
		}
	}
}

// What we said in a life that our disk does not remember comes late: what this run wrote counts,
// once, so that a twin of ours and we do not go on for ever. The word of others is a later one.
func TestOwnPastDocumentsAreAnswered(t *testing.T) {
	d := documents(t, 1, &stub{others: []peer.ID{idOf(2)}}, &shelf{docs: map[string][]byte{}})
	d.met = true
	merge := func(doc *document.Document, want string) {
		t.Helper()
		if _, err := d.Merge(encode(documentNews{From: idOf(3), Documents: [][]byte{doc.Encode()}})); err != nil || reads(d) != want {
			t.Errorf("it has %s, want %s, %v", reads(d), want, err)
		}
	}
	if err := d.Write([]Change{policy("web", "now"), policy("db", "now")}); err != nil {
		t.Fatal(err)
	}
	past := written(t, 1, nil, "web", "past")
	past = written(t, 1, past, "web", "the past")
	merge(past, "db=now web=now")
	if doc, _ := d.set.Last(past.Key()); doc.Version != past.Version+1 {
		t.Errorf("version %d", doc.Version)
	}
	for range 3 {
		past = written(t, 1, past, "web", "a twin")
	}
	merge(past, "db=now web=a twin")
	theirs := written(t, 2, d.Get("policy", "db"), "db", "theirs")
	merge(theirs, "db=theirs web=a twin")
}

// Two that both do not know the mesh yet insist on what they wrote: not for ever.
func TestTwoThatInsist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 3)
		a, b := c.start(1, 0, nil), c.start(2, 1, nil)
		c.write(a, policy("web", "a"))
		c.write(b, policy("web", "b"))
		c.net.Heal()
		c.eventually(20*time.Second, "*")
		time.Sleep(time.Minute)
		if v := a.version("web"); v > 4 || reads(a.Documents) != reads(b.Documents) {
			t.Errorf("version %d: %s, %s", v, reads(a.Documents), reads(b.Documents))
		}
		c.end()
	})
}

// Who joins knows soon that it knows all; from who does not know, it does not learn that.
func TestSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 1)
		founder := c.start(1, 0, nil)
		c.write(founder, policy("web", strings.Repeat("x", 2000)))
		if founder.Synced() {
			t.Error("synced with nobody")
		}
		if err := founder.MarkSynced(); err != nil || !founder.Synced() || !founder.disk.synced {
			t.Error(err)
		}
		joiner := c.start(2, 0, nil)
		for start := time.Now(); !joiner.Synced(); time.Sleep(10 * time.Millisecond) {
			if time.Since(start) > 3*time.Second { // most of it is the simulated network's, until they meet
				t.Fatal("not synced")
			}
		}
		if reads(joiner.Documents) != reads(founder.Documents) {
			t.Error("synced without the documents")
		}
		time.Sleep(2 * flushEvery)
		if !joiner.disk.copy().synced || joiner.disk.len() != 1 {
			t.Error("that is not kept")
		}
		c.kill(joiner)
		if joiner = c.start(2, 1, joiner.disk); !joiner.Synced() {
			t.Error("a restart forgets it")
		}
		c.end()
	})
}

// Two that know nothing tell each other that they agree. That is not enough while somebody
// can be reached who may know more; alone, it is.
func TestSyncedNeedsOneThatKnows(t *testing.T) {
	m := &stub{others: []peer.ID{idOf(2), idOf(3)}}
	d := documents(t, 1, m, &shelf{docs: map[string][]byte{}})
	full := func(n int, synced bool) []byte {
		digest := document.NewSet().Digest(time.Now().Unix())
		return encode(documentNews{From: idOf(n), Digest: digest[:], Synced: synced})
	}
	merge := func(data []byte) {
		t.Helper()
		if news, err := d.Merge(data); err != nil || news != nil {
			t.Errorf("%x, %v", news, err)
		}
	}
	merge(full(1, true)) // its own word, come back
	merge(full(2, false))
	if d.Synced() {
		t.Error("host 3 may know more")
	}
	merge(full(3, false))
	if !d.Synced() {
		t.Error("nobody knows more")
	}
	d = documents(t, 1, m, &shelf{docs: map[string][]byte{}})
	if merge(full(3, true)); !d.Synced() {
		t.Error("host 3 knows")
	}
}
