package document

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// today is the current time of the tests, in Unix seconds.
const today = int64(1_800_000_000)

var identities = func() (out [4]ed25519.PrivateKey) {
	for n := range out {
		out[n] = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(n)}, ed25519.SeedSize))
	}
	return out
}()

func next(t rapid.TB, old *Document, name, body string, deleted bool, written int64, n int) *Document {
	t.Helper()
	d, err := Next(old, "policy", name, []byte(body), deleted, written, identities[n])
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// signed returns content signed by writer n, valid or not.
func signed(n int, content []byte) []byte {
	return must(encoding.Marshal(wire{content, ed25519.Sign(identities[n], append([]byte(context), content...))}))
}

func TestDecodeReturnsEncodedDocument(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		deleted := rapid.Bool().Draw(t, "deleted")
		body := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "body")
		if deleted {
			body = nil
		}
		d := next(t, nil, rapid.StringMatching(`[a-zä/ ]{1,20}`).Draw(t, "name"), string(body), deleted, rapid.Int64Range(-5, maxWritten).Draw(t, "written"), 1)
		back, err := Decode(d.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if back.Supersedes(d) || d.Supersedes(back) || back.Digest != d.Digest || !bytes.Equal(back.Encode(), d.Encode()) || !back.Same(d.Body, d.Deleted) {
			t.Fatalf("decoding the encoded document returned %+v; want %+v", back, d)
		}
		if back.raw != nil {
			t.Fatal("our encoding is the same, but the received bytes are kept; want them dropped")
		}
	})
}

func TestNextRaisesVersionWhateverTheClock(t *testing.T) {
	a := next(t, nil, "web", "1", false, today, 1)
	b := next(t, a, "web", "2", false, today-1000, 2) // the clock of its writer is behind
	c := next(t, b, "web", "", true, 0, 1)
	if a.Version != 1 || b.Version != 2 || c.Version != 3 || !b.Supersedes(a) || !c.Supersedes(b) || a.Supersedes(b) {
		t.Errorf("the versions are %d, %d, %d; want 1, 2, 3, each superseding the one before", a.Version, b.Version, c.Version)
	}
	if _, err := Next(a, "policy", "db", nil, false, today, identities[1]); err == nil {
		t.Error("Next accepted a document with another name; want an error")
	}
	body := []byte("mine")
	d, _ := Next(nil, "policy", "web", body, false, today, identities[1])
	if body[0] = 'M'; string(d.Body) != "mine" {
		t.Error("the document shares its body with the caller; want a copy")
	}
}

// A newer version of Weft may add fields, which are passed on unchanged.
func TestUnknownFieldsArePassedOn(t *testing.T) {
	d := next(t, nil, "web", "body", false, today, 1)
	var m map[int]any
	if err := decoding.Unmarshal(d.content(), &m); err != nil {
		t.Fatal(err)
	}
	m[99] = "new"
	data := signed(1, must(encoding.Marshal(m)))
	got, err := Decode(data)
	if err != nil || string(got.Body) != "body" || !bytes.Equal(got.Encode(), data) || got.Digest == d.Digest {
		t.Errorf("decoding a document with an unknown field returned %+v, error %v; want the same encoding", got, err)
	}
}

func TestInvalidDocumentsAreRefused(t *testing.T) {
	d := next(t, nil, "web", "body", false, today, 1)
	change := func(f func(m map[int]any)) []byte {
		var m map[int]any
		if err := decoding.Unmarshal(d.content(), &m); err != nil {
			t.Fatal(err)
		}
		f(m)
		return must(encoding.Marshal(m))
	}
	with := func(field int, v any) []byte { return signed(1, change(func(m map[int]any) { m[field] = v })) }
	for name, data := range map[string][]byte{
		"signature of another": signed(2, d.content()),
		"no signature":         must(encoding.Marshal(wire{Content: d.content()})),
		"another context":      must(encoding.Marshal(wire{d.content(), ed25519.Sign(identities[1], d.content())})),
		"another writer":       with(4, []byte(identities[2].Public().(ed25519.PublicKey))),
		"half a key":           with(4, []byte{1, 2}),
		"no kind":              with(1, ""),
		"a long kind":          with(1, strings.Repeat("k", MaxKind+1)),
		"a kind with a NUL":    with(1, "policy\x00"),
		"an unprintable name":  with(2, "a\x1b[2J"),
		"no name":              with(2, ""),
		"a long name":          with(2, strings.Repeat("n", MaxName+1)),
		"name is not UTF-8":    signed(1, bytes.Replace(d.content(), []byte("web"), []byte("w\xffb"), 1)),
		"version 0":            with(3, 0),
		"version too high":     with(3, uint64(1<<64-1)),
		"negative time":        with(5, -1),
		"time too large":       with(5, int64(1<<62)),
		"deleted with a body":  with(6, true),
		"a large body":         with(7, make([]byte, MaxBody+1)),
		"too many new fields":  with(99, make([]byte, maxEncoded)),
		"trailing data":        append(d.Encode(), 0),
		"no data":              nil,
	} {
		if got, err := Decode(data); err == nil {
			t.Errorf("%s: Decode accepted the document %+v; want an error", name, got)
		}
	}
	data := d.Encode()
	for i := range data {
		for bit := range 8 {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << bit
			if got, err := Decode(flipped); err == nil && !bytes.Equal(got.Encode(), data) {
				t.Fatalf("with bit %d of byte %d flipped, Decode accepted %+v; want an error", bit, i, got)
			}
		}
	}
}

// Documents that cannot be sent cannot be written either.
func TestInvalidDocumentsCannotBeWritten(t *testing.T) {
	for name, f := range map[string]func() (*Document, error){
		"a large body": func() (*Document, error) {
			return Next(nil, "policy", "a", make([]byte, MaxBody+1), false, today, identities[1])
		},
		"no name": func() (*Document, error) { return Next(nil, "policy", "", nil, false, today, identities[1]) },
		"a kind in capitals": func() (*Document, error) {
			return Next(nil, "Policy", "a", nil, false, today, identities[1])
		},
		"deleted with a body": func() (*Document, error) {
			return Next(nil, "policy", "a", []byte("x"), true, today, identities[1])
		},
		"after the largest version": func() (*Document, error) {
			return Next(&Document{Kind: "policy", Name: "a", Version: maxVersion}, "policy", "a", nil, false, today, identities[1])
		},
	} {
		if d, err := f(); err == nil {
			t.Errorf("%s: Next returned the document %+v; want an error", name, d)
		}
	}
	d, err := Next(nil, strings.Repeat("k", MaxKind), strings.Repeat("ä", MaxName/2), make([]byte, MaxBody), false, maxWritten, identities[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(d.Encode()); err != nil {
		t.Errorf("decoding the largest document: error %v, want none", err)
	}
}

// Supersedes is a total order, and Held.Compare is the same order. So peers that compare only
// versions choose the same documents.
func TestSupersedesIsTotalOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := make([]*Document, 3)
		for i := range docs {
			var old *Document
			for range rapid.IntRange(1, 2).Draw(t, "version") {
				deleted := rapid.Bool().Draw(t, "deleted")
				body := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "body")
				if deleted {
					body = ""
				}
				old = next(t, old, "web", body, deleted, today, rapid.IntRange(1, 2).Draw(t, "writer"))
			}
			docs[i] = old
		}
		a, b, c := docs[0], docs[1], docs[2]
		if a.Supersedes(a) || a.Digest != b.Digest && a.Supersedes(b) == b.Supersedes(a) || a.Supersedes(b) && b.Supersedes(c) && !a.Supersedes(c) {
			t.Fatalf("Supersedes does not order these documents strictly and totally; want that:\n%+v\n%+v\n%+v", a, b, c)
		}
		if (a.Held().Compare(b.Held()) > 0) != a.Supersedes(b) {
			t.Fatal("Held.Compare differs from Supersedes; want the same order")
		}
	})
}

func samples(t testing.TB) []*Document {
	a := next(t, nil, "web", "allow", false, today, 1)
	return []*Document{a, next(t, a, "web", "", true, today, 2), next(t, nil, "größer", "", false, 0, 3)}
}

// Random data has no valid signature, so the fuzzer also signs its data as content.
func FuzzDecode(f *testing.F) {
	for _, d := range samples(f) {
		f.Add(d.Encode())
		f.Add(d.content())
	}
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, data := range [][]byte{data, signed(1, data)} {
			d, err := Decode(data)
			if err != nil {
				continue
			}
			again, err := Decode(d.Encode())
			if err != nil || again.Digest != d.Digest || !bytes.Equal(again.Encode(), d.Encode()) {
				t.Fatalf("encoding and decoding again returned another document or error %v; want the same document", err)
			}
			s := NewSet()
			if news, err := s.Put(d, today); !news || err != nil {
				t.Fatalf("Put into an empty set reported news: %v, error %v; want news, and no error", news, err)
			}
			if news, _ := s.Put(again, today); news || s.Lacks(again.Held()) || len(s.Missing(s.Held(today), today)) > 0 {
				t.Fatal("after Put the same document is news, or missing; want neither")
			}
			if (s.Get(d.Kind, d.Name) == nil) != d.Deleted || len(s.List(d.Kind)) > 1 {
				t.Fatal("Get or List returned a deleted document or none; want only documents that are not deleted")
			}
			s.Expire(today + 2*keepFor)
			after, err := Next(d, d.Kind, d.Name, nil, true, today, identities[2])
			if err != nil || !d.ended() && !after.Supersedes(d) {
				t.Fatalf("deleting the document returned error %v, or a document that is not newer; want a newer one", err)
			}
			if h := after.Held(); after.Supersedes(d) != (h.Compare(d.Held()) > 0) {
				t.Fatal("Held.Compare differs from Supersedes; want the same order")
			}
		}
	})
}

func describe(s *Set) string {
	out := map[string]string{}
	for key, h := range s.held {
		out[key] = fmt.Sprintf("%d %x", h.Version, h.Digest[:4])
	}
	var b strings.Builder
	for _, key := range s.keys() {
		fmt.Fprintf(&b, "%q %s\n", key, out[key])
	}
	return b.String()
}

func copyOf(s *Set) *Set {
	return &Set{held: maps.Clone(s.held), marks: maps.Clone(s.marks), top: s.top}
}
