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

// days lets so much time go by on the clocks of all hosts, and what is forgotten be forgotten.
func (c *council) days(n int64) {
	for _, m := range c.here {
		m.ahead.Add(n)
	}
	time.Sleep(2 * flushEvery)
}

// A host was away for longer than a tombstone lives. What was deleted meanwhile stays deleted,
// everywhere, and what was written meanwhile is there, on whichever side.
func TestWhatIsDeletedDoesNotReturn(t *testing.T) {
	for name, change := range map[string]func(c *council, m *[5]*member){
		"all run on": func(*council, *[5]*member) {},
		"those that deleted it start anew": func(c *council, m *[5]*member) {
			for n := 1; n <= 3; n++ {
				c.kill(m[n])
				m[n] = c.start(n, 0, m[n].disk)
				m[n].ahead.Store(40)
			}
		},
		"who was away starts anew": func(c *council, m *[5]*member) {
			c.kill(m[4])
			m[4] = c.start(4, 1, m[4].disk)
			m[4].ahead.Store(40)
		},
		"one that joined later is all that is left": func(c *council, m *[5]*member) {
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
		"the clock of who was away is wrong":  func(_ *council, m *[5]*member) { m[4].ahead.Store(-20_000) },
		"the clock of another one is wrong":   func(_ *council, m *[5]*member) { m[2].ahead.Store(20_000) },
		"who wrote it is gone":                func(c *council, m *[5]*member) { c.kill(m[1]) },
		"who deleted it is gone":              func(c *council, m *[5]*member) { c.kill(m[2]) },
		"only one is left of those that knew": func(c *council, m *[5]*member) { c.kill(m[1]); c.kill(m[2]) },
		"it is away for as long once more":    func(c *council, _ *[5]*member) { c.days(100) },
		"the same name was written and deleted": func(c *council, m *[5]*member) {
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
				c.eventually(time.Second, "kept=x old=x theirs=x")
				time.Sleep(time.Minute)
				c.net.Partition(func(n *meshtest.Node) int {
					if n == m[4].Node {
						return 1
					}
					return 0
				})
				time.Sleep(10 * time.Second)
				c.write(m[2], noPolicy("old"), noPolicy("theirs"), policy("here", "x"))
				c.write(m[4], policy("there", "x"))
				time.Sleep(time.Minute)
				c.days(40)
				if _, kept := m[3].disk.copy().docs[document.Key("policy", "old")]; kept {
					t.Fatal("the tombstone is not forgotten: the test shows nothing")
				}
				change(c, &m)
				c.net.Heal()
				time.Sleep(3 * time.Minute)
				for _, m := range c.here {
					if got := reads(m.Documents); got != "here=x kept=x there=x" {
						t.Errorf("host %d has %s", m.n, got)
					}
				}
				if strings.Contains(name, "clock") { // which of two hosts has a tombstone to show then differs
					c.end()
					return
				}
				c.eventually(0, "*")
				before := c.asked()
				time.Sleep(time.Minute)
				if n := c.asked() - before; n > 0 {
					t.Errorf("%d questions without end", n)
				}
				c.end()
			})
		})
	}
}

// Who could not read all that is on its disk does not take for deleted what it lacks.
func TestAnUnreadableDiskDeletesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		c.write(m[1], policy("web", "1"), policy("db", "1"))
		c.write(m[2], policy("dns", "1"))
		time.Sleep(time.Minute)
		disk := m[1].disk
		c.kill(m[1])
		disk.docs[document.Key("policy", "web")] = []byte("of a newer version")
		m[1] = c.start(1, 1, disk)
		c.write(m[1], policy("new", "1"))
		joiner := c.start(5, 1, nil)
		time.Sleep(time.Minute)
		if got := reads(joiner.Documents); got != "db=1 dns=1 new=1" {
			t.Fatalf("the joiner has %s", got)
		}
		c.net.Heal()
		c.eventually(2*time.Minute, "db=1 dns=1 new=1 web=1")
		c.end()
	})
}

// Whatever somebody signs without being a peer does not count, whoever is said to have sent
// it. A peer's counts, also if it is here before its writer's record.
func TestOnlyPeersWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		stranger := written(t, 77, nil, "stranger", "x")
		for from := range 5 {
			n := encode(documentNews{From: idOf(from), Documents: [][]byte{stranger.Encode()}})
			for _, h := range c.here {
				if news, _ := h.Merge(n); news != nil {
					t.Errorf("host %d passes it on", h.n)
				}
			}
		}
		time.Sleep(time.Minute)
		c.eventually(0, "")
		if n := c.asked(); n > 60 {
			t.Errorf("%d questions", n)
		}
		late := c.start(5, 0, nil) // nobody has met it yet
		time.Sleep(time.Millisecond)
		if slices.Contains(m[1].Others(), idOf(5)) {
			t.Skip("they have met already")
		}
		c.write(late, policy("late", "x"))
		c.eventually(time.Minute, "late=x")
		c.end()
	})
}

// A peer that has left is no peer any more, and what it wrote is in force: who joins hears it
// of those that have it.
func TestWhatAPeerWroteThatIsGoneCounts(t *testing.T) {
	doc := written(t, 77, nil, "web", "x")
	from := documents(t, 1, &stub{}, &shelf{docs: map[string][]byte{}})
	if _, err := from.set.Put(doc, time.Now().Unix()); err != nil {
		t.Fatal(err)
	}
	asked := 0
	d := documents(t, 2, &asking{stub: stub{others: []peer.ID{idOf(1)}}, ask: func(payload []byte) ([]byte, error) {
		asked++
		return from.serveMissing(t.Context(), idOf(2), payload)
	}}, &shelf{docs: map[string][]byte{}})
	if news, err := d.Merge(encode(documentNews{From: idOf(1), Documents: [][]byte{doc.Encode()}})); news != nil || err != nil || reads(d) != "" {
		t.Errorf("gossip alone brought it: %s, %v", reads(d), err)
	}
	if askAll(t, d); reads(d) != "web=x" || asked != 1 {
		t.Errorf("it has %q after %d questions", reads(d), asked)
	}
}

// A member writes a document with the last number of all: another one can delete it, and the
// numbers of what others write do not follow.
func TestTheLastNumberCanBeDeleted(t *testing.T) {
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
		c.eventually(time.Minute, "lie=x web=x")
		c.write(m[1], noPolicy("lie"))
		c.eventually(time.Minute, "web=x")
		if _, err := m[4].Merge(encode(documentNews{From: idOf(3), Documents: [][]byte{doc.Encode()}})); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		c.eventually(0, "web=x")
		c.write(m[3], policy("web", "y"), policy("db", "z"))
		c.eventually(time.Minute, "db=z web=y")
		if v := m[1].version("db"); v > 10 {
			t.Errorf("version %d", v)
		}
		c.end()
	})
}

// Marks that somebody forges count nowhere, and end no new document.
func TestForgedMarksDoNotCount(t *testing.T) {
	d := documents(t, 1, &stub{others: []peer.ID{idOf(2)}}, &shelf{docs: map[string][]byte{}})
	digest := d.set.Digest(d.now())
	forged := document.NewMark(1<<40, identity(3))
	forged.Writer = written(t, 2, nil, "web", "x").Writer
	for _, marks := range [][]document.Mark{{forged}, {document.NewMark(1<<62, identity(2))}, slices.Repeat([]document.Mark{forged}, document.MaxWriters+1)} {
		_, _ = d.Merge(encode(documentNews{From: idOf(2), Digest: digest[:], Marks: marks}))
	}
	if got := d.set.Marks(); len(got) > 0 {
		t.Errorf("it has %v", got)
	}
	if _, err := d.Merge(encode(documentNews{From: idOf(2), Documents: [][]byte{written(t, 2, nil, "web", "x").Encode()}})); err != nil || reads(d) != "web=x" {
		t.Errorf("it has %s, %v", reads(d), err)
	}
}

// lastNumber is the document with the last number that there is, signed by its writer.
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

// Two hosts hold tombstones of one whose clock is wrong. The other one lacks them, and is not to be
// given them: they do not ask each other for them without end.
func TestTombstonesOutOfTimeAreNotAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 1)
		a, b := c.start(1, 0, nil), c.start(2, 1, nil)
		for side, m := range []*member{a, b} {
			gone, err := document.Next(nil, "policy", []string{"left", "right"}[side], nil, true, time.Now().AddDate(50, 0, 0).Unix(), identity(3))
			if err != nil {
				t.Fatal(err)
			}
			m.Documents.mu.Lock()
			_, _ = m.set.Put(gone, m.now())
			m.Documents.mu.Unlock()
		}
		c.net.Heal()
		time.Sleep(time.Minute)
		c.write(a, policy("web", strings.Repeat("x", 2000))) // a reason to ask
		time.Sleep(time.Minute)
		before := c.asked()
		time.Sleep(time.Minute)
		if n := c.asked() - before; n > 0 || reads(b.Documents) != reads(a.Documents) {
			t.Errorf("%d questions without end: %s, %s", n, reads(a.Documents), reads(b.Documents))
		}
		c.end()
	})
}
