package document

import (
	"testing"

	"pgregory.net/rapid"
)

// Hosts write, receive single documents, compare all documents, expire tombstones and restart, in
// random order. Marks remove only deleted documents. A deleted document does not return to a
// host that had compared its documents with the deleting host.
func TestHighWaterMarksRemoveOnlyDeletedDocuments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const hosts = 4
		var sets [hosts]*Set
		for n := range sets {
			sets[n] = NewSet()
		}
		now, deleted := today, map[string]bool{}
		take := func(to *Set, d *Document) {
			if to.Ended(d) {
				if !deleted[d.Key()] {
					t.Fatalf("%s was never deleted, but counts as ended; want it stored", d)
				}
				return
			}
			_, _ = to.Put(d, now)
		}
		var said []*Document
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := rapid.IntRange(0, hosts-1).Draw(t, "host")
			switch s := sets[n]; rapid.IntRange(0, 6).Draw(t, "what") {
			case 0, 1:
				name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(t, "name")
				gone := rapid.IntRange(0, 2).Draw(t, "deletes") == 0
				d, err := s.Next("policy", name, nil, gone, now, identities[n])
				if err != nil {
					t.Fatal(err)
				}
				deleted[d.Key()] = deleted[d.Key()] || gone
				_, _ = s.Put(d, now)
				_, _ = s.See([]Mark{NewMark(d.Version, identities[n])})
				said = append(said, d)
			case 2:
				if len(said) > 0 {
					take(s, rapid.SampledFrom(said).Draw(t, "heard"))
				}
			case 3, 4:
				from := sets[rapid.IntRange(0, hosts-1).Draw(t, "from")]
				for _, d := range from.Missing(s.Held(now), now) {
					take(s, d)
				}
				if _, err := s.See(from.Marks()); err != nil {
					t.Fatal(err)
				}
				for _, d := range all(from) {
					if ours, _ := s.Last(d.Key()); !d.Deleted && ours == nil && !deleted[d.Key()] {
						t.Fatalf("%s was never deleted, but is missing after a comparison; want it kept", d)
					}
				}
			case 5:
				now += rapid.Int64Range(0, 40*day).Draw(t, "later")
				s.Expire(now)
			default:
				again := NewSet()
				for _, d := range all(s) {
					_, since := s.Last(d.Key())
					_, _ = again.Put(d, since)
				}
				if _, err := again.See(s.Marks()); err != nil {
					t.Fatal(err)
				}
				sets[n] = again
			}
		}
	})
}

// After its tombstone has expired, a deleted document still counts as ended; a later document of
// the same name does not.
func TestHighWaterMarkPreservesExpiredDeletion(t *testing.T) {
	a := next(t, nil, "web", "x", false, today, 1)
	s := put(t, []*Document{a, next(t, a, "web", "", true, today, 2)})
	_, _ = s.See([]Mark{NewMark(a.Version, identities[1])})
	if s.Ended(a) {
		t.Error("Ended is true while the set holds the tombstone; want false")
	}
	s.Expire(today + 40*day)
	if later := next(t, a, "web", "y", false, today, 1); !s.Ended(a) || s.Ended(later) || s.Ended(next(t, nil, "web", "x", false, today, 3)) {
		t.Error("Ended is wrong; want true for the deleted document, and false for later ones")
	}
}

// The number of marks is bounded, and only the writer can sign its mark.
func TestHighWaterMarksAreBoundedAndSigned(t *testing.T) {
	s := NewSet()
	for i := range MaxWriters - 1 {
		s.marks[[8]byte{1, byte(i >> 8), byte(i)}] = Mark{}
	}
	forged := NewMark(5, identities[1])
	forged.Version = 6
	for name, m := range map[string]Mark{"forged": forged, "too high": NewMark(maxCounted+1, identities[1]), "without writer": {Version: 1}} {
		if news, err := s.See([]Mark{m, NewMark(1, identities[2])}); news && err == nil || len(s.marks) > MaxWriters {
			t.Errorf("a %s mark was accepted, error %v; want it refused", name, err)
		}
	}
	_, _ = s.See([]Mark{NewMark(9, identities[1]), NewMark(9, identities[2]), NewMark(9, identities[3])})
	if len(s.marks) != MaxWriters {
		t.Errorf("%d marks are kept; want MaxWriters", len(s.marks))
	}
}
