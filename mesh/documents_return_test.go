package mesh

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/document"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// days advances the clocks of all hosts, and waits until expired entries are dropped.
func (c *docCluster) days(n int64) {
	for _, m := range c.here {
		m.ahead.Add(n)
	}
	time.Sleep(2 * flushEvery)
}

// A host was away for longer than a tombstone lives. Documents deleted meanwhile stay deleted on
// all hosts, and documents written meanwhile on either side exist on all hosts.
func TestDeletedDocumentsDoNotReturn(t *testing.T) {
	for name, change := range map[string]func(c *docCluster, m *[5]*docHost){
		"no restart": func(*docCluster, *[5]*docHost) {},
		"the hosts that know of the deletion restart": func(c *docCluster, m *[5]*docHost) {
			for n := 1; n <= 3; n++ {
				c.kill(m[n])
				m[n] = c.start(n, 0, m[n].disk)
				m[n].ahead.Store(40)
			}
		},
		"the returning host restarts": func(c *docCluster, m *[5]*docHost) {
			c.kill(m[4])
			m[4] = c.start(4, 1, m[4].disk)
			m[4].ahead.Store(40)
		},
		"only a host that joined later remains": func(c *docCluster, m *[5]*docHost) {
			joiner := c.start(5, 0, nil)
			joiner.ahead.Store(40)
			time.Sleep(time.Minute)
			for n := 1; n <= 3; n++ {
				c.kill(m[n])
			}
			c.kill(joiner)
			joiner = c.start(5, 0, joiner.disk)
			joiner.ahead.Store(40)
		},
		"wrong clock on the returning host":           func(_ *docCluster, m *[5]*docHost) { m[4].ahead.Store(-20_000) },
		"wrong clock on another host":                 func(_ *docCluster, m *[5]*docHost) { m[2].ahead.Store(20_000) },
		"the writer is gone":                          func(c *docCluster, m *[5]*docHost) { c.kill(m[1]) },
		"the deleting host is gone":                   func(c *docCluster, m *[5]*docHost) { c.kill(m[2]) },
		"one host remains that knows of the deletion": func(c *docCluster, m *[5]*docHost) { c.kill(m[1]); c.kill(m[2]) },
		"the host stays away for much longer":         func(c *docCluster, _ *[5]*docHost) { c.days(100) },
		"the name was written and deleted again": func(c *docCluster, m *[5]*docHost) {
			c.write(m[3], policy("old", "again"))
			time.Sleep(time.Second)
			c.write(m[3], noPolicy("old"))
			c.days(40)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, m := four(t)
				c.write(m[1], policy("old", "x"), policy("kept", "x"))
				c.write(m[4], policy("theirs", "x"))
				c.agree(time.Second, "kept=x old=x theirs=x")
				time.Sleep(time.Minute)
				c.Isolate(m[4].Host)
				time.Sleep(10 * time.Second)
				c.write(m[2], noPolicy("old"), noPolicy("theirs"), policy("here", "x"))
				c.write(m[4], policy("there", "x"))
				time.Sleep(time.Minute)
				c.days(40)
				if _, kept := m[3].disk.Documents()[document.Key("policy", "old")]; kept {
					t.Fatal("the tombstone is still held; want it expired, else the test proves nothing")
				}
				change(c, &m)
				c.Heal()
				time.Sleep(3 * time.Minute)
				for _, m := range c.here {
					if got := reads(m.Documents); got != "here=x kept=x there=x" {
						t.Errorf("after the partition, host %d has the documents %s; want those of both sides", m.n, got)
					}
				}
				if strings.Contains(name, "clock") { // with a wrong clock hosts may differ in their tombstones
					c.end()
					return
				}
				c.agree(0, "*")
				before := c.Requests("")
				time.Sleep(time.Minute)
				if n := c.Requests("") - before; n > 0 {
					t.Errorf("%d more requests within a minute, want none", n)
				}
				c.end()
			})
		})
	}
}

// A host that could not read its whole disk does not treat missing documents as deleted.
func TestUnreadableDiskDeletesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		c.write(m[1], policy("web", "1"), policy("db", "1"))
		c.write(m[2], policy("dns", "1"))
		time.Sleep(time.Minute)
		disk := m[1].disk
		c.kill(m[1])
		if err := disk.SaveDocuments(map[string][]byte{document.Key("policy", "web"): []byte("of a newer version")}); err != nil {
			t.Fatal(err)
		}
		m[1] = c.start(1, 1, disk)
		c.write(m[1], policy("new", "1"))
		joiner := c.start(5, 1, nil)
		time.Sleep(time.Minute)
		if got := reads(joiner.Documents); got != "db=1 dns=1 new=1" {
			t.Fatalf("the joining host has the documents %s; want db=1 dns=1 new=1", got)
		}
		c.Heal()
		c.agree(2*time.Minute, "db=1 dns=1 new=1 web=1")
		c.end()
	})
}

// Documents signed by an identity that is no peer are refused, whichever peer sends them. A peer's
// document is accepted, even if it arrives before its writer's record.
func TestOnlyPeersCanWriteDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		stranger := written(t, 77, nil, "stranger", "x")
		for from := range 5 {
			n := encode(documentNews{From: idOf(from), Documents: [][]byte{stranger.Encode()}})
			for _, h := range c.here {
				if news, _ := h.Merge(n); news != nil {
					t.Errorf("host %d passed on the document of an unknown writer; want it only requested", h.n)
				}
			}
		}
		time.Sleep(time.Minute)
		c.agree(0, "")
		if n := c.Requests(""); n > 60 {
			t.Errorf("the document of an unknown writer caused %d requests; want at most 60", n)
		}
		late := c.start(5, 0, nil) // the other hosts do not know host 5 yet
		time.Sleep(time.Millisecond)
		if slices.Contains(m[1].Others(), idOf(5)) {
			t.Skip("the new host is already known to the others")
		}
		c.write(late, policy("late", "x"))
		c.agree(time.Minute, "late=x")
		c.end()
	})
}

// Documents of a peer that has left stay in force: a joining peer fetches them from other peers.
func TestDocumentsOfDepartedPeersStayInForce(t *testing.T) {
	doc := written(t, 77, nil, "web", "x")
	from := documents(t, 1, &meshtest.Solo{}, &meshtest.Disk{})
	if _, err := from.set.Put(doc, time.Now().Unix()); err != nil {
		t.Fatal(err)
	}
	asked := 0
	d := documents(t, 2, &meshtest.Solo{Peers: []peer.ID{idOf(1)}, Reply: func(q meshtest.Asked) ([]byte, error) {
		asked++
		return from.serveMissing(t.Context(), idOf(2), q.Payload)
	}}, &meshtest.Disk{})
	if news, err := d.Merge(encode(documentNews{From: idOf(1), Documents: [][]byte{doc.Encode()}})); news != nil || err != nil || reads(d) != "" {
		t.Errorf("before a request, the host has the documents %s, error %v; want none", reads(d), err)
	}
	if askAll(t, d); reads(d) != "web=x" || asked != 1 {
		t.Errorf("the documents are %q after %d requests; want web=x after 1", reads(d), asked)
	}
}

// A malicious member writes a document with the largest version. Another peer can delete it, and
// versions of other documents stay small.
func TestDocumentWithLargestVersionCanBeDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		doc := written(t, 4, nil, "lie", "x")
		for doc.Version < 1<<62 {
			doc = lastNumber(t, doc)
		}
		if _, err := m[4].Merge(encode(documentNews{From: idOf(3), Documents: [][]byte{doc.Encode()}})); err != nil {
			t.Fatal(err)
		}
		c.write(m[2], policy("web", "x"))
		c.agree(time.Minute, "lie=x web=x")
		c.write(m[1], noPolicy("lie"))
		c.agree(time.Minute, "web=x")
		if _, err := m[4].Merge(encode(documentNews{From: idOf(3), Documents: [][]byte{doc.Encode()}})); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		c.agree(0, "web=x")
		c.write(m[3], policy("web", "y"), policy("db", "z"))
		c.agree(time.Minute, "db=z web=y")
		if v := m[1].version("db"); v > 10 {
			t.Errorf("another document has version %d, want a small one", v)
		}
		c.end()
	})
}

// Forged high-water marks are refused, and do not affect new documents.
func TestForgedHighWaterMarksAreRefused(t *testing.T) {
	d := documents(t, 1, &meshtest.Solo{Peers: []peer.ID{idOf(2)}}, &meshtest.Disk{})
	digest := d.set.Digest(d.now())
	forged := document.NewMark(1<<40, identity(3))
	forged.Writer = written(t, 2, nil, "web", "x").Writer
	for _, marks := range [][]document.Mark{{forged}, {document.NewMark(1<<62, identity(2))}, slices.Repeat([]document.Mark{forged}, document.MaxWriters+1)} {
		_, _ = d.Merge(encode(documentNews{From: idOf(2), Digest: digest[:], Marks: marks}))
	}
	if got := d.set.Marks(); len(got) > 0 {
		t.Errorf("the forged marks %v were accepted; want none", got)
	}
	if _, err := d.Merge(encode(documentNews{From: idOf(2), Documents: [][]byte{written(t, 2, nil, "web", "x").Encode()}})); err != nil || reads(d) != "web=x" {
		t.Errorf("after the valid document, the documents are %s, error %v; want web=x", reads(d), err)
	}
}

// lastNumber returns the document with the largest version, signed by its writer.
func lastNumber(t *testing.T, old *document.Document) *document.Document {
	t.Helper()
	top := *old
	top.Version = 1<<62 - 1
	d, err := document.Next(&top, old.Kind, old.Name, old.Body, false, 0, identity(4))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Two hosts hold different tombstones dated in the future, which must not be given to other hosts.
// The two hosts do not request these tombstones from each other without end.
func TestTombstonesFromFutureAreNotRequestedEndlessly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDocCluster(t, 1)
		a, b := c.start(1, 0, nil), c.start(2, 1, nil)
		for side, m := range []*docHost{a, b} {
			gone, err := document.Next(nil, "policy", []string{"left", "right"}[side], nil, true, time.Now().AddDate(50, 0, 0).Unix(), identity(3))
			if err != nil {
				t.Fatal(err)
			}
			m.Documents.mu.Lock()
			_, _ = m.set.Put(gone, m.now())
			m.Documents.mu.Unlock()
		}
		c.Heal()
		time.Sleep(time.Minute)
		c.write(a, policy("web", strings.Repeat("x", 2000))) // this write makes other hosts request the document
		time.Sleep(time.Minute)
		before := c.Requests("")
		time.Sleep(time.Minute)
		if n := c.Requests("") - before; n > 0 || reads(b.Documents) != reads(a.Documents) {
			t.Errorf("%d more requests within a minute, want none; documents are %s and %s", n, reads(a.Documents), reads(b.Documents))
		}
		c.end()
	})
}
