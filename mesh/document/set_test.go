package document

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

const day = 24 * 3600

// history draws the documents of several writers. Each writer knows some documents of the other
// writers, may restart from an older copy, and may have a clock that is wrong by years.
func history(t *rapid.T) (docs []*Document) {
	sets := [3]*Set{NewSet(), NewSet(), NewSet()}
	var copies []*Set
	for range rapid.IntRange(1, 15).Draw(t, "steps") {
		n := rapid.IntRange(0, 2).Draw(t, "writer")
		switch rapid.IntRange(0, 7).Draw(t, "what") {
		case 0:
			copies = append(copies, copyOf(sets[n]))
		case 1:
			if len(copies) > 0 {
				sets[n] = copyOf(rapid.SampledFrom(copies).Draw(t, "copy"))
			}
		case 2, 3:
			if len(docs) > 0 {
				_, _ = sets[n].Put(rapid.SampledFrom(docs).Draw(t, "heard"), today)
			}
		default:
			name := rapid.SampledFrom([]string{"web", "db", "dns"}).Draw(t, "name")
			body := rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "body")
			clock := rapid.SampledFrom([]int64{0, today - 31*day, today, today + 12*3600, today + 3650*day}).Draw(t, "clock")
			old, _ := sets[n].Last(Key("policy", name))
			d, err := sets[n].Next("policy", name, []byte(body), body == "", clock, identities[n+1])
			if rapid.IntRange(0, 9).Draw(t, "malicious version") == 0 {
				old = &Document{Kind: "policy", Name: name, Version: rapid.SampledFrom([]uint64{maxCounted - 1, maxVersion - 1}).Draw(t, "number")}
				d, err = Next(old, "policy", name, []byte(body), body == "", clock, identities[n+1])
			}
			if err != nil && (body == "" || old == nil || old.Version < maxVersion) {
				t.Fatal(err)
			}
			if err != nil {
				continue
			}
			_, _ = sets[n].Put(d, today)
			docs = append(docs, d)
		}
	}
	return docs
}

func put(t rapid.TB, docs []*Document) *Set {
	s := NewSet()
	for _, d := range docs {
		lacked := s.Lacks(d.Held())
		if news, err := s.Put(d, today); news != lacked || err != nil {
			t.Fatalf("Lacks is %v, but Put reports %v, error %v; want the same, and no error", lacked, news, err)
		}
		if news, _ := s.Put(d, today); news || s.Lacks(d.Held()) {
			t.Fatal("after Put the same document is news, or lacking; want neither")
		}
	}
	return s
}

func all(s *Set) (out []*Document) {
	for _, key := range s.keys() {
		d, _ := s.Last(key)
		out = append(out, d)
	}
	return out
}

// Sets do not depend on the order and grouping of Put, nor on a restart in between.
func TestPutIsCommutativeAndIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := history(t)
		want := put(t, docs)
		commuted := put(t, rapid.Permutation(docs).Draw(t, "order"))
		cut := rapid.IntRange(0, len(docs)).Draw(t, "cut")
		left, right := put(t, docs[:cut]), put(t, docs[cut:])
		restarted := NewSet()
		for _, d := range all(left) {
			back, err := Decode(d.Encode())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = restarted.Put(back, today)
		}
		for _, d := range all(right) {
			_, _ = restarted.Put(d, today)
		}
		for name, got := range map[string]*Set{"commuted": commuted, "associated": restarted} {
			if describe(got) != describe(want) || got.Digest(today) != want.Digest(today) || got.Generation("policy") != want.Generation("policy") {
				t.Fatalf("%s: set is %s, want %s", name, describe(got), describe(want))
			}
		}
	})
}

// Two peers that send each other exactly the missing documents have the same digest.
func TestExchangeOfMissingDocumentsMakesSetsEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := history(t)
		cut := rapid.IntRange(0, len(docs)).Draw(t, "cut")
		a, b := put(t, docs[:cut]), put(t, docs[cut:])
		heldA, heldB := a.Held(today), b.Held(today)
		forA, forB := b.Missing(heldA, today), a.Missing(heldB, today)
		for _, d := range forA {
			if news, err := a.Put(d, today); !news || err != nil {
				t.Fatalf("Missing returned a document that is not news, or error %v; want news", err)
			}
		}
		for _, d := range forB {
			_, _ = b.Put(d, today)
		}
		if a.Digest(today) != b.Digest(today) || a.Generation("policy") != b.Generation("policy") {
			t.Fatalf("after the exchange the sets differ; want the same:\n%s\n%s", describe(a), describe(b))
		}
		if len(a.Missing(b.Held(today), today))+len(b.Missing(a.Held(today), today)) > 0 {
			t.Fatal("after the exchange documents are still missing; want none")
		}
	})
}

func TestDeletedDocumentsAreNotListed(t *testing.T) {
	s := NewSet()
	empty := s.Digest(today)
	a := next(t, nil, "web", "x", false, today, 1)
	b := next(t, nil, "db", "x", false, today, 1)
	for _, d := range []*Document{a, b} {
		if _, err := s.Put(d, today); err != nil {
			t.Fatal(err)
		}
	}
	before := s.Generation("policy")
	if l := s.List("policy"); len(l) != 2 || l[0] != b || s.Get("policy", "web") != a || s.Get("other", "web") != nil || len(s.List("other")) > 0 {
		t.Errorf("after two writes List returned %v, or Get another document; want the two written", l)
	}
	gone := next(t, a, "web", "", true, today, 2)
	_, _ = s.Put(gone, today)
	if l := s.List("policy"); len(l) != 1 || l[0] != b || s.Get("policy", "web") != nil || s.Generation("policy") == before {
		t.Errorf("after a deletion List returned %v, or Get the deleted document; want only the other one", l)
	}
	if news, _ := s.Put(a, today); news {
		t.Error("an older version replaced the tombstone; want the tombstone kept")
	}
	again := next(t, gone, "web", "x", false, today, 1)
	if news, _ := s.Put(again, today); !news || s.Get("policy", "web") != again {
		t.Error("a new version of the deleted document was not stored; want it stored")
	}
	if s.Digest(today) == empty || len(s.Generation("policy")) != 16 {
		t.Error("the digest is that of the empty set, or the generation is too short; want neither")
	}
}

// A tombstone is held for 30 days; then it is dropped and not requested.
func TestTombstonesExpire(t *testing.T) {
	a := next(t, nil, "web", "x", false, today-100*day, 1) // a document that is not deleted never expires
	gone := next(t, a, "web", "", true, today, 1)
	s, empty := put(t, []*Document{a, gone}), NewSet()
	if keys := s.Expire(today + 30*day - 1); len(keys) > 0 || s.Digest(today+30*day-1) == empty.Digest(0) {
		t.Error("before 30 days the tombstone was dropped, or is left out of the digest; want neither")
	}
	if s.Digest(today+30*day) != empty.Digest(0) {
		t.Error("after 30 days the digest still covers the tombstone; want the digest of the empty set")
	}
	if keys := s.Expire(today + 30*day); len(keys) != 1 || keys[0] != a.Key() || s.Len() != 0 {
		t.Errorf("expired keys are %q, want the tombstone's", keys)
	}
	if keys := put(t, []*Document{a}).Expire(today + 1000*day); len(keys) > 0 {
		t.Errorf("a document that is not deleted expired: %q; want it kept", keys)
	}
}

// A wrong clock of the deleting peer does no harm: the document is deleted, and its tombstone
// expires.
func TestWrongClocksStillDeleteAndExpire(t *testing.T) {
	for name, clock := range map[string]int64{"1970": 0, "the past": today - 31*day, "the future": today + 3650*day, "the end of time": maxWritten} {
		t.Run(name, func(t *testing.T) {
			a := next(t, nil, "web", "x", false, clock, 1)
			gone := next(t, a, "web", "", true, clock, 1)
			s, other, empty := put(t, []*Document{a}), put(t, []*Document{a}), NewSet()
			if s.Expire(today); s.Get("policy", "web") == nil {
				t.Fatal("the document expired because of its writer's clock; want it kept")
			}
			_, _ = s.Put(gone, today)
			if keys := s.Expire(today + 29*day); len(keys) > 0 || s.Get("policy", "web") != nil {
				t.Error("the document is not deleted, or its tombstone expired before 30 days; want neither")
			}
			if s.Digest(today) != empty.Digest(today) || len(s.Missing(nil, today)) > 0 {
				t.Error("the digest covers the tombstone, or a peer without the document gets it; want neither")
			}
			if m := s.Missing(other.Held(today), today); len(m) != 1 || m[0] != gone {
				t.Errorf("a peer with the document gets %v, want the tombstone", m)
			}
			if keys := s.Expire(today + 30*day); len(keys) != 1 {
				t.Error("after 30 days the tombstone is still held; want it dropped")
			}
			// The next document supersedes the tombstone whatever the clock of the tombstone's
			// writer said.
			if back := next(t, gone, "web", "y", false, today, 2); !back.Supersedes(gone) {
				t.Error("the document written after the tombstone does not supersede it; want it to, whatever the clocks said")
			}
		})
	}
	// The receiving peer's clock was wrong when the tombstone arrived.
	gone := next(t, nil, "web", "", true, today, 1)
	for _, wrong := range []int64{0, today + 3650*day} {
		s := NewSet()
		_, _ = s.Put(gone, wrong)
		if s.Expire(wrong); s.Len() != 1 || s.Digest(today) != put(t, []*Document{gone}).Digest(today) {
			t.Error("with the right clock the tombstone is gone, or left out of the digest; want neither")
		}
		if keys := s.Expire(today + 29*day); len(keys) > 0 {
			t.Error("before 30 days the tombstone expired; want it kept")
		}
		if keys := s.Expire(today + 30*day); len(keys) != 1 {
			t.Error("after 30 days the tombstone is still held; want it dropped")
		}
	}
}

// At the bound, new documents are refused, but existing documents can be changed and deleted.
func TestNumberOfDocumentsIsBounded(t *testing.T) {
	s := NewSet()
	for i := range MaxHeld {
		s.held[fmt.Sprint(i)] = held{&Document{Kind: "k", Name: fmt.Sprint(i)}, today}
	}
	first := next(t, nil, "web", "x", false, today, 1)
	delete(s.held, "0")
	if news, err := s.Put(first, today); !news || err != nil {
		t.Fatal(err)
	}
	more := next(t, nil, "db", "x", false, today, 1)
	var full *FullError
	if _, err := s.Put(more, today); !errors.As(err, &full) || s.Len() != MaxHeld || s.Lacks(more.Held()) {
		t.Errorf("Put beyond MaxHeld: got %v, want a FullError", err)
	}
	second := next(t, first, "web", "", true, today, 2)
	if !s.Lacks(second.Held()) {
		t.Error("Lacks is false for a change of a held document; want true")
	}
	if news, err := s.Put(second, today); !news || err != nil {
		t.Errorf("Put of a change to a full set reported no news, or error %v; want news", err)
	}
}

// A name is reused after its tombstone expired here; other peers may still have the tombstone.
func TestReusedNameSupersedesExpiredTombstone(t *testing.T) {
	a := next(t, nil, "web", "x", false, today, 1)
	b := next(t, a, "web", "y", false, today, 1)
	gone := next(t, b, "web", "", true, today, 1)
	s := put(t, []*Document{a, b, gone})
	s.Expire(today + 40*day)
	again, err := s.Next("policy", "web", []byte("z"), false, today+40*day, identities[2])
	if err != nil || !again.Supersedes(gone) {
		t.Errorf("Next of an expired tombstone returned %+v, error %v; want a document that supersedes it", again, err)
	}
	// The largest version does not affect the versions of other documents.
	_, _ = s.Put(&Document{Kind: "policy", Name: "lie", Version: maxVersion}, today)
	if d, err := s.Next("policy", "db", nil, false, today, identities[2]); err != nil || d.Version != gone.Version+1 {
		t.Errorf("Next beside a document with the largest version returned %+v, error %v; want the next version", d, err)
	}
	if _, err := s.Next("policy", "lie", nil, false, today, identities[2]); err == nil {
		t.Error("Next returned a version after the largest one; want an error")
	}
}
