package mesh

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/document"
	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// stored returns the number of documents on a disk.
func stored(d *meshtest.Disk) int {
	docs := d.Documents()
	delete(docs, keyMarks)
	return len(docs)
}

// docCluster is a cluster of hosts with documents.
type docCluster struct {
	*meshtest.Cluster
	t    *testing.T
	here map[int]*docHost
}

// docHost is one run of a host.
type docHost struct {
	*Documents
	*meshtest.Host
	n     int
	disk  *meshtest.Disk
	ahead atomic.Int64 // how far its clock is ahead, in days
}

func newDocCluster(t *testing.T, seed uint64) *docCluster {
	return &docCluster{t: t, Cluster: meshtest.NewCluster(seed), here: map[int]*docHost{}}
}

func (m *docHost) digest() document.Digest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.set.Digest(m.now())
}

func (m *docHost) version(name string) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, _ := m.set.Last(document.Key("policy", name)); d != nil {
		return d.Version
	}
	return 0
}

func documents(t testing.TB, n int, mesh Messenger, disk *meshtest.Disk) *Documents {
	t.Helper()
	d, err := NewDocuments(DocumentsConfig{
		Identity: identity(n), Mesh: mesh, Store: disk, Documents: slices.Collect(maps.Values(disk.Documents())), Synced: disk.Synced(),
		Now: time.Now, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// start runs host n in a partition of the network, from its disk.
func (c *docCluster) start(n, side int, disk *meshtest.Disk) *docHost {
	c.t.Helper()
	if disk == nil {
		disk = &meshtest.Disk{}
	}
	m := &docHost{n: n, Host: c.Host(idOf(n), nil), disk: disk}
	m.Documents = documents(c.t, n, m.Host, disk)
	m.cfg.Now = func() time.Time { return time.Now().AddDate(0, 0, int(m.ahead.Load())) }
	m.Start(side, meshtest.HostConfig{
		Replicas: []meshtest.Replica{m.Documents}, Handlers: meshtest.Handlers(m.Handlers()), Run: m.Run,
	})
	c.here[n] = m
	return m
}

// kill ends a host's run without an announcement.
func (c *docCluster) kill(m *docHost) {
	if err := m.Stop(); err != nil {
		c.t.Error(err)
	}
	delete(c.here, m.n)
}

func (c *docCluster) end() {
	if err := c.Stop(); err != nil {
		c.t.Error(err)
	}
}

// four returns hosts 1 to 4, which know each other; host 1 founded the mesh.
func four(t *testing.T) (*docCluster, [5]*docHost) {
	c := newDocCluster(t, 1)
	var m [5]*docHost
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

func (c *docCluster) write(m *docHost, changes ...Change) {
	c.t.Helper()
	if err := m.Write(changes); err != nil {
		c.t.Fatal(err)
	}
}

// reads returns a host's documents as NAME=BODY.
func reads(d *Documents) string {
	var out []string
	for _, doc := range d.List("policy") {
		out = append(out, fmt.Sprintf("%s=%.20s", doc.Name, doc.Body))
	}
	return strings.Join(out, " ")
}

// agree waits until all hosts have the same documents: want, or any documents if want is "*".
func (c *docCluster) agree(within time.Duration, want string) {
	c.t.Helper()
	eventually.Nil(c.t, within, "all hosts have the same documents", func() error {
		first := c.here[slices.Min(slices.Collect(maps.Keys(c.here)))]
		for _, m := range c.here {
			got := reads(m.Documents)
			if m.digest() != first.digest() || m.Generation("policy") != first.Generation("policy") || want != "*" && got != want {
				return fmt.Errorf("host %d has %s, host %d %s, want %s", m.n, got, first.n, reads(first.Documents), want)
			}
		}
		return nil
	})
}

// A small change arrives by gossip alone; large or many documents are requested once by each peer.
func TestDocumentReachesAllPeersSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		before := c.Requests("")
		c.write(m[1], policy("web", "a"), policy("db", "b"))
		c.agree(200*time.Millisecond, "db=b web=a")
		c.write(m[2], noPolicy("db"), policy("web", "c"))
		c.agree(200*time.Millisecond, "web=c")
		time.Sleep(time.Minute)
		if n := c.Requests("") - before; n != 0 {
			t.Errorf("%d requests for small changes, want none", n)
		}
		before = c.Requests("")
		c.write(m[3], policy("web", strings.Repeat("x", document.MaxBody)))
		c.agree(300*time.Millisecond, "web="+strings.Repeat("x", 20))
		time.Sleep(time.Minute)
		if n := c.Requests("") - before; n != 3 {
			t.Errorf("%d requests for a large document by three peers, want 3", n)
		}
		var many []Change
		for i := range 100 {
			many = append(many, policy(fmt.Sprint("many-", i), strings.Repeat("y", 30_000)))
		}
		before = c.Requests("")
		c.write(m[4], many...) // these documents have 3 MB, and come in several replies
		c.agree(5*time.Second, "*")
		if n := c.Requests("") - before; n < 9 || n > 40 {
			t.Errorf("fetching 100 documents took %d requests; want 9 to 40", n)
		}
		if m[4].Get("policy", "many-7") == nil || m[4].Get("policy", "db") != nil || len(m[1].List("policy")) != 101 {
			t.Error("a written document is missing, or the deleted one is still there; want all 101 others")
		}
		c.end()
	})
}

// All changes of a request are stored before any is announced, or none takes effect.
func TestWritesAreAtomic(t *testing.T) {
	said := 0
	disk := &meshtest.Disk{}
	d := documents(t, 1, &meshtest.Solo{OnDelta: func([]byte) { said++ }}, disk)
	if err := d.Write([]Change{policy("web", "a"), policy("db", "b")}); err != nil || said != 1 || disk.Writes() != 1 || len(disk.Documents()) != 2 {
		t.Fatalf("writing two documents caused %d broadcasts and %d disk writes, error %v; want one each", said, disk.Writes(), err)
	}
	for name, changes := range map[string][]Change{
		"one is too large": {policy("web", "new"), policy("db", strings.Repeat("x", document.MaxBody+1))},
		"one has no name":  {policy("web", "new"), policy("", "")},
		"one occurs twice": {policy("web", "new"), noPolicy("web")},
	} {
		if err := d.Write(changes); err == nil || said != 1 || disk.Writes() != 1 || reads(d) != "db=b web=a" {
			t.Errorf("%s: an invalid write left %d broadcasts and %d disk writes, error %v; want an error, and one each as before", name, said, disk.Writes(), err)
		}
	}
	errFull := errors.New("the disk is full")
	disk.Fail(errFull)
	if err := d.Write([]Change{policy("web", "new")}); !errors.Is(err, errFull) || said != 1 || reads(d) != "db=b web=a" {
		t.Errorf("writing to a full disk left %d broadcasts, error %v; want the disk's error, and one as before", said, err)
	}
	disk.Fail(nil)
	d.met = true
	if err := d.Write([]Change{policy("web", "a"), noPolicy("none")}); err != nil || said != 1 || disk.Writes() != 1 {
		t.Errorf("writing unchanged documents left %d broadcasts and %d disk writes, error %v; want one each as before", said, disk.Writes(), err)
	}
	again := documents(t, 1, &meshtest.Solo{}, disk)
	if reads(again) != "db=b web=a" || again.Generation("policy") != d.Generation("policy") {
		t.Errorf("after a restart the documents are %s; want db=b web=a", reads(again))
	}
	// With the largest number of documents, new documents are refused, but existing ones can be
	// changed.
	for i := range document.MaxDocuments - 3 {
		_, _ = d.set.Put(&document.Document{Kind: "policy", Name: fmt.Sprint(i)}, 0)
	}
	var full *document.FullError
	if err := d.Write([]Change{policy("last", ""), policy("more", "")}); !errors.As(err, &full) || d.Get("policy", "last") != nil {
		t.Errorf("two documents where one fits: got %v, want a FullError", err)
	}
	if err := errors.Join(d.Write([]Change{policy("last", "")}), d.Write([]Change{policy("web", "x"), noPolicy("db")})); err != nil {
		t.Error(err)
	}
	if err := d.Write([]Change{policy("more", "")}); !errors.As(err, &full) || !strings.Contains(err.Error(), "instead") {
		t.Errorf("one document too many: got %v, want a FullError", err)
	}
}

// Both sides of a partition change the same documents: afterwards all hosts have the same winner.
func TestConcurrentWritersConverge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		c.write(m[1], policy("web", "0"), policy("db", "0"), policy("dns", "0"))
		c.agree(time.Second, "db=0 dns=0 web=0")
		c.Isolate(m[1].Host, m[2].Host)
		time.Sleep(10 * time.Second)
		c.write(m[1], policy("web", "1"), noPolicy("db"), policy("left", "1"))
		c.write(m[3], policy("web", "3"), policy("db", "3"), policy("right", "3"))
		c.write(m[4], policy("dns", "4"))
		c.write(m[4], policy("dns", "5")) // the second write wins over the single one on the other side
		c.write(m[2], policy("dns", "2"))
		time.Sleep(10 * time.Second)
		c.Heal()
		c.agree(time.Minute, "*")
		got := reads(m[2].Documents)
		if !strings.Contains(got, "dns=5 left=1 right=3 web=") {
			t.Errorf("after the partition the documents are %s; want the last write of each", got)
		}
		time.Sleep(time.Minute)
		before := c.Requests("")
		time.Sleep(time.Minute)
		if n := c.Requests("") - before; n > 0 || reads(m[1].Documents) != got {
			t.Errorf("%d more requests within a minute, want none; documents are %s", n, reads(m[1].Documents))
		}
		c.end()
	})
}

// A host writes after it was restored from an older disk. Its new documents win over higher
// versions in the mesh; its other documents are updated, whichever host wrote the newer versions.
func TestDocumentsWrittenAfterRestoredDiskWin(t *testing.T) {
	for _, other := range []int{1, 2} {
		for _, alone := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				c, m := four(t)
				c.write(m[1], policy("web", "0"), policy("db", "0"))
				time.Sleep(5 * time.Second)
				old := m[1].disk.Copy()
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
					t.Fatalf("from its older disk the host starts with the documents %s; want db=0 web=0", reads(m[1].Documents))
				}
				c.write(m[1], policy("web", "now"))
				version := m[2].version("web")
				time.Sleep(20 * time.Second)
				c.Heal()
				c.agree(time.Minute, "db=later-4 web=now")
				if got := m[2].version("web"); got <= version || got > version+3 {
					t.Errorf("the new document has version %d; want 1 to 3 more than that of the mesh, %d", got, version)
				}
				c.end()
			})
		}
	}
}

// A late document of an earlier run is refuted, but only once. Otherwise two hosts with the same
// identity would refute each other without end. Later documents of other peers win.
func TestOwnDocumentOfAnEarlierRunIsRefutedOnlyOnce(t *testing.T) {
	d := documents(t, 1, &meshtest.Solo{Peers: []peer.ID{idOf(2)}}, &meshtest.Disk{})
	d.met = true
	merge := func(doc *document.Document, want string) {
		t.Helper()
		if _, err := d.Merge(encode(documentNews{From: idOf(3), Documents: [][]byte{doc.Encode()}})); err != nil || reads(d) != want {
			t.Errorf("the documents are %s; want %s; error %v", reads(d), want, err)
		}
	}
	if err := d.Write([]Change{policy("web", "now"), policy("db", "now")}); err != nil {
		t.Fatal(err)
	}
	past := written(t, 1, nil, "web", "past")
	past = written(t, 1, past, "web", "the past")
	merge(past, "db=now web=now")
	if doc, _ := d.set.Last(past.Key()); doc.Version != past.Version+1 {
		t.Errorf("the refutation has version %d, want one above the older document", doc.Version)
	}
	for range 3 {
		past = written(t, 1, past, "web", "a twin")
	}
	merge(past, "db=now web=a twin")
	theirs := written(t, 2, d.Get("policy", "db"), "db", "theirs")
	merge(theirs, "db=theirs web=a twin")
}

// Two hosts that are not synced refute each other's documents, but not without end.
func TestConcurrentRefutationsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDocCluster(t, 3)
		a, b := c.start(1, 0, nil), c.start(2, 1, nil)
		c.write(a, policy("web", "a"))
		c.write(b, policy("web", "b"))
		c.Heal()
		c.agree(20*time.Second, "*")
		time.Sleep(time.Minute)
		if v := a.version("web"); v > 4 || reads(a.Documents) != reads(b.Documents) {
			t.Errorf("the document has version %d, want a small one; documents are %s and %s", v, reads(a.Documents), reads(b.Documents))
		}
		c.end()
	})
}

// A joining peer becomes synced soon, but not through a peer that is not synced itself.
func TestJoiningPeerBecomesSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDocCluster(t, 1)
		founder := c.start(1, 0, nil)
		c.write(founder, policy("web", strings.Repeat("x", 2000)))
		if founder.Synced() {
			t.Error("a founder without peers is synced; want it not synced")
		}
		if err := founder.MarkSynced(); err != nil || !founder.Synced() || !founder.disk.Synced() {
			t.Error(err)
		}
		joiner := c.start(2, 0, nil)
		eventually.True(t, 3*time.Second, "the joining peer is synced", joiner.Synced) // most of this time passes until the simulated network connects the hosts
		if reads(joiner.Documents) != reads(founder.Documents) {
			t.Error("the joining host is synced, but its documents differ from the founder's; want the same")
		}
		time.Sleep(2 * flushEvery)
		if !joiner.disk.Synced() || stored(joiner.disk) != 1 {
			t.Error("the disk lacks the synced flag or the document; want both")
		}
		c.kill(joiner)
		if joiner = c.start(2, 1, joiner.disk); !joiner.Synced() {
			t.Error("after a restart the host is not synced; want it synced from its disk")
		}
		c.end()
	})
}

// Two peers that are not synced have equal digests. They are not synced while another reachable
// peer may have more documents, and synced once all reachable peers have the same digest.
func TestUnsyncedPeersDoNotMakeEachOtherSynced(t *testing.T) {
	m := &meshtest.Solo{Peers: []peer.ID{idOf(2), idOf(3)}}
	d := documents(t, 1, m, &meshtest.Disk{})
	full := func(n int, synced bool) []byte {
		digest := document.NewSet().Digest(time.Now().Unix())
		return encode(documentNews{From: idOf(n), Digest: digest[:], Synced: synced})
	}
	merge := func(data []byte) {
		t.Helper()
		if news, err := d.Merge(data); err != nil || news != nil {
			t.Errorf("Merge returned %x, %v; want nothing to pass on, and no error", news, err)
		}
	}
	merge(full(1, true)) // the host receives its own message
	merge(full(2, false))
	if d.Synced() {
		t.Error("the host is synced, but host 3 may have more documents; want it not synced")
	}
	merge(full(3, false))
	if !d.Synced() {
		t.Error("all reachable peers have the same digest, but the host is not synced; want it synced")
	}
	d = documents(t, 1, m, &meshtest.Disk{})
	if merge(full(3, true)); !d.Synced() {
		t.Error("host 3 is synced and has the same digest, but the host is not synced; want it synced")
	}
}
