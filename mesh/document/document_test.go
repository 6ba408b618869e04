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

// today is when the tests are, in Unix seconds.
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

// signed is what a writer can put on the network, whatever it does.
func signed(n int, content []byte) []byte {
	return must(encoding.Marshal(wire{content, ed25519.Sign(identities[n], append([]byte(context), content...))}))
}

func TestEncodingIsExact(t *testing.T) {
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
			t.Fatalf("%+v, want %+v", back, d)
		}
		if back.raw != nil {
			t.Fatal("the bytes are kept as well")
		}
	})
}

func TestNextNumbersFromTheNewest(t *testing.T) {
	a := next(t, nil, "web", "1", false, today, 1)
	b := next(t, a, "web", "2", false, today-1000, 2) // whatever its clock says
	c := next(t, b, "web", "", true, 0, 1)
	if a.Version != 1 || b.Version != 2 || c.Version != 3 || !b.Supersedes(a) || !c.Supersedes(b) || a.Supersedes(b) {
		t.Errorf("versions %d, %d, %d", a.Version, b.Version, c.Version)
	}
	if _, err := Next(a, "policy", "db", nil, false, today, identities[1]); err == nil {
		t.Error("it follows a document of another name")
	}
	body := []byte("mine")
	d, _ := Next(nil, "policy", "web", body, false, today, identities[1])
	if body[0] = 'M'; string(d.Body) != "mine" {
		t.Error("the caller's bytes are the document's")
	}
}

// A newer version may say more than we understand; we pass it on as it came.
func TestUnknownFieldsSurvive(t *testing.T) {
	d := next(t, nil, "web", "body", false, today, 1)
	var m map[int]any
	if err := decoding.Unmarshal(d.content(), &m); err != nil {
		t.Fatal(err)
	}
	m[99] = "new"
	data := signed(1, must(encoding.Marshal(m)))
	got, err := Decode(data)
	if err != nil || string(got.Body) != "body" || !bytes.Equal(got.Encode(), data) || got.Digest == d.Digest {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestForgeriesAreRefused(t *testing.T) {
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
		"another's signature":   signed(2, d.content()),
		"no signature":          must(encoding.Marshal(wire{Content: d.content()})),
		"another context":       must(encoding.Marshal(wire{d.content(), ed25519.Sign(identities[1], d.content())})),
		"another writer":        with(4, []byte(identities[2].Public().(ed25519.PublicKey))),
		"half a key":            with(4, []byte{1, 2}),
		"no kind":               with(1, ""),
		"a long kind":           with(1, strings.Repeat("k", MaxKind+1)),
		"a kind with a NUL":     with(1, "policy\x00"),
		"an unprintable name":   with(2, "a\x1b[2J"),
		"no name":               with(2, ""),
		"a long name":           with(2, strings.Repeat("n", MaxName+1)),
		"a name not of UTF-8":   signed(1, bytes.Replace(d.content(), []byte("web"), []byte("w\xffb"), 1)),
		"version 0":             with(3, 0),
		"the last version":      with(3, uint64(1<<64-1)),
		"before all time":       with(5, -1),
		"after all time":        with(5, int64(1<<62)),
		"a body of the deleted": with(6, true),
		"a large body":          with(7, make([]byte, MaxBody+1)),
		"much of what is new":   with(99, make([]byte, maxEncoded)),
		"more behind it":        append(d.Encode(), 0),
		"nothing":               nil,
	} {
		if got, err := Decode(data); err == nil {
			t.Errorf("%s: accepted %+v", name, got)
		}
	}
	data := d.Encode()
	for i := range data {
		for bit := range 8 {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << bit
			if got, err := Decode(flipped); err == nil && !bytes.Equal(got.Encode(), data) {
				t.Fatalf("bit %d of byte %d: accepted %+v", bit, i, got)
			}
		}
	}
}

// What cannot be sent cannot be written either.
func TestWritersAreBounded(t *testing.T) {
	for name, f := range map[string]func() (*Document, error){
		"a large body": func() (*Document, error) {
			return Next(nil, "policy", "a", make([]byte, MaxBody+1), false, today, identities[1])
		},
		"no name": func() (*Document, error) { return Next(nil, "policy", "", nil, false, today, identities[1]) },
		"a kind in capitals": func() (*Document, error) {
			return Next(nil, "Policy", "a", nil, false, today, identities[1])
		},
		"a deleted body": func() (*Document, error) {
			return Next(nil, "policy", "a", []byte("x"), true, today, identities[1])
		},
		"the last version": func() (*Document, error) {
			return Next(&Document{Kind: "policy", Name: "a", Version: maxVersion}, "policy", "a", nil, false, today, identities[1])
		},
	} {
		if d, err := f(); err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
	d, err := Next(nil, strings.Repeat("k", MaxKind), strings.Repeat("ä", MaxName/2), make([]byte, MaxBody), false, maxWritten, identities[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(d.Encode()); err != nil {
		t.Errorf("the largest one: %v", err)
	}
}

// The order is total, and that of Held: two peers that compare only what they hold choose as
// those do that have the documents.
func TestTheOrderIsTotal(t *testing.T) {
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
			t.Fatalf("%+v\n%+v\n%+v", a, b, c)
		}
		if (a.Held().Compare(b.Held()) > 0) != a.Supersedes(b) {
			t.Fatal("what is held has another order")
		}
	})
}

func samples(t testing.TB) []*Document {
	a := next(t, nil, "web", "allow", false, today, 1)
	return []*Document{a, next(t, a, "web", "", true, today, 2), next(t, nil, "größer", "", false, 0, 3)}
}

// The signature keeps the fuzzer out; so it also fuzzes what is signed.
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
				t.Fatalf("what was read cannot be written: %v", err)
			}
			s := NewSet()
			if news, err := s.Put(d, today); !news || err != nil {
				t.Fatalf("a document is no news: %v", err)
			}
			if news, _ := s.Put(again, today); news || s.Lacks(again.Held()) || len(s.Missing(s.Held(today), today)) > 0 {
				t.Fatal("its own document is news")
			}
			if (s.Get(d.Kind, d.Name) == nil) != d.Deleted || len(s.List(d.Kind)) > 1 {
				t.Fatal("what is deleted is there")
			}
			s.Expire(today + 2*keepFor)
			after, err := Next(d, d.Kind, d.Name, nil, true, today, identities[2])
			if err != nil || !d.ended() && !after.Supersedes(d) {
				t.Fatalf("it cannot be deleted: %v", err)
			}
			if h := after.Held(); after.Supersedes(d) != (h.Compare(d.Held()) > 0) {
				t.Fatal("what one holds tells another order than the documents")
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
