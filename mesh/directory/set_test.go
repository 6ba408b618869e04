package directory

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/ipam/slot"
)

// Applied in order, deltas lead to the sets that they were made for. In another order the deltas
// are refused, and never lead to a set that the owner did not sign.
func TestDeltasLeadOnlyToSignedSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sets, deltas := history(t, 1)
		var at *Set
		for i, d := range deltas {
			decoded, err := DecodeDelta(d.Encode())
			if err != nil {
				t.Fatal(err)
			}
			if d.From == 0 { // without a base, the whole set is sent
				at = sets[i]
				continue
			}
			builds := at != nil && at.Version == d.From
			next, err := at.Apply(decoded)
			if err == nil && (next.Digest != sets[i].Digest || !bytes.Equal(next.Encode(), sets[i].Encode())) {
				t.Fatalf("delta %d leads to the set %x; want the set for which it was made", i, next.Digest)
			}
			if err != nil && (!errors.Is(err, ErrGap) || builds && next != nil) {
				t.Fatal(err)
			}
			if at = sets[i]; err == nil {
				at = next
			}
		}
		for range 10 {
			s, i := rapid.SampledFrom(sets).Draw(t, "set"), rapid.IntRange(0, len(deltas)-1).Draw(t, "delta")
			next, err := s.Apply(*deltas[i])
			switch {
			case err != nil && !errors.Is(err, ErrGap):
				t.Fatal(err)
			case err == nil && (next.Digest != sets[i].Digest || next.Version != sets[i].Version):
				t.Fatalf("delta %d applied to version %d leads to version %d, %x; want the set for which the delta was made, or an error", i, s.Version, next.Version, next.Digest)
			}
		}
	})
}

func TestDecodeReturnsEncodedSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sets, _ := history(t, 1)
		s := sets[len(sets)-1]
		back, err := Decode(s.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if back.Supersedes(s) || s.Supersedes(back) || !bytes.Equal(back.Encode(), s.Encode()) {
			t.Fatalf("decoding the encoded set returned %+v; want %+v", back, s)
		}
		for i, e := range s.Endpoints() {
			if !e.Same(back.Endpoints()[i]) {
				t.Fatalf("decoding the set returned the endpoint %+v; want %+v", back.Endpoints()[i], e)
			}
		}
		// Next gives the same result for a decoded set.
		endpoints := anyEndpoints(t)
		a, _ := next(t, s, endpoints, 0, 1)
		b, _ := next(t, back, endpoints, 0, 1)
		if !bytes.Equal(a.Encode(), b.Encode()) {
			t.Fatal("Next of the decoded set differs from Next of the original; want the same")
		}
	})
}

// newer returns an endpoint as a newer version could encode it, with an unknown field.
func newer(e Endpoint) []byte {
	var m map[int]any
	if err := decoding.Unmarshal(must(encoding.Marshal(e)), &m); err != nil {
		panic(err)
	}
	m[99] = "new"
	return must(encoding.Marshal(m))
}

// signSet returns a set signed by owner n, valid or not.
func signSet(n int, version uint64, raws ...[]byte) []byte {
	s := &Set{Owner: id(n), Version: version}
	for _, raw := range raws {
		i, err := readItem(raw)
		if err != nil {
			i = item{Endpoint: Endpoint{ID: fmt.Sprint(len(s.items))}, sum: hash(raw)}
		}
		s.items = append(s.items, i)
	}
	_ = s.complete()
	return must(encoding.Marshal(wireSet{key(n).Public().(ed25519.PublicKey), version, raws, ed25519.Sign(key(n), s.signed())}))
}

// A newer version of Weft may add fields. They are passed on unchanged, also when the set changes.
func TestUnknownFieldsArePassedOn(t *testing.T) {
	raw := newer(Endpoint{ID: "a", Name: "web", Labels: map[string]string{"app": "web"}})
	s, err := Decode(signSet(1, 3, raw))
	if err != nil {
		t.Fatal(err)
	}
	if e := s.Endpoints()[0]; e.Name != "web" || e.Labels["app"] != "web" {
		t.Errorf("the decoded endpoint is %+v; want the name and label web", e)
	}
	again, err := Decode(s.Encode())
	if err != nil || !bytes.Equal(again.items[0].encoded(), raw) {
		t.Fatalf("decoding and encoding lost the unknown field, or error %v; want it kept", err)
	}
	after, d := next(t, s, append(again.Endpoints(), Endpoint{ID: "b"}), 0, 1)
	got, err := again.Apply(*d)
	if err != nil || !bytes.Equal(got.Encode(), after.Encode()) || !bytes.Equal(got.items[0].encoded(), raw) {
		t.Fatalf("the next change lost the unknown field, or error %v; want it kept", err)
	}
	delta := Delta{Owner: id(1), From: 3, To: 4, Put: [][]byte{newer(Endpoint{ID: "b"})}}
	want, err := Decode(signSet(1, 4, raw, delta.Put[0]))
	if err != nil {
		t.Fatal(err)
	}
	delta.Signature = want.signature
	if got, err := s.Apply(delta); err != nil || !bytes.Equal(got.Encode(), want.Encode()) {
		t.Fatalf("applying a delta with unknown fields returned another set or error %v; want the sender's set", err)
	}
}

// A set or delta whose data was changed in transit is refused.
func TestFlippedBitsAreRefused(t *testing.T) {
	s, _ := next(t, nil, []Endpoint{{ID: "a", Name: "web", Slots: []slot.Slot{1}}, {ID: "b", Labels: map[string]string{"k": "v"}}}, 0, 1)
	after, d := next(t, s, []Endpoint{{ID: "a", Name: "db"}, {ID: "c"}}, 0, 1)
	data := s.Encode()
	for i := range data {
		for bit := range 8 {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << bit
			if got, err := Decode(flipped); err == nil && !bytes.Equal(got.Encode(), data) {
				t.Fatalf("with bit %d of byte %d flipped, Decode accepted %+v; want an error", bit, i, got)
			}
		}
	}
	data = d.Encode()
	for i := range data {
		for bit := range 8 {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << bit
			delta, err := DecodeDelta(flipped)
			if err != nil {
				continue
			}
			if got, err := s.Apply(delta); err == nil && !bytes.Equal(got.Encode(), after.Encode()) {
				t.Fatalf("with bit %d of byte %d flipped, the delta led to %+v; want an error", bit, i, got)
			}
		}
	}
}

func TestInvalidEndpointSetsAreRefused(t *testing.T) {
	s, _ := next(t, nil, []Endpoint{{ID: "a", Name: "web"}}, 0, 1)
	other, _ := next(t, nil, []Endpoint{{ID: "a", Name: "web"}}, 0, 2)
	good := func() wireSet {
		var w wireSet
		if err := decoding.Unmarshal(s.Encode(), &w); err != nil {
			t.Fatal(err)
		}
		return w
	}
	big := newer(Endpoint{ID: "a"})
	var m map[int]any
	if err := decoding.Unmarshal(big, &m); err != nil {
		t.Fatal(err)
	}
	m[99] = strings.Repeat("x", maxEndpoint)
	for name, data := range map[string][]byte{
		"signature of another":   must(encoding.Marshal(func() wireSet { w := good(); w.Signature = other.signature; return w }())),
		"key of another":         must(encoding.Marshal(func() wireSet { w := good(); w.Identity = other.identity; return w }())),
		"a later version":        must(encoding.Marshal(func() wireSet { w := good(); w.Version++; return w }())),
		"no signature":           must(encoding.Marshal(func() wireSet { w := good(); w.Signature = nil; return w }())),
		"half a key":             must(encoding.Marshal(func() wireSet { w := good(); w.Identity = w.Identity[:16]; return w }())),
		"one endpoint missing":   must(encoding.Marshal(func() wireSet { w := good(); w.Endpoints = nil; return w }())),
		"an endpoint twice":      signSet(1, 1, must(encoding.Marshal(Endpoint{ID: "a"})), must(encoding.Marshal(Endpoint{ID: "a"}))),
		"an endpoint without id": signSet(1, 1, must(encoding.Marshal(Endpoint{Name: "web"}))),
		"a name out of bounds":   signSet(1, 1, must(encoding.Marshal(Endpoint{ID: "a", Name: "WEB"}))),
		"an endpoint too large":  signSet(1, 1, must(encoding.Marshal(m))),
		"not an endpoint":        signSet(1, 1, []byte("x")),
		"no data":                nil,
	} {
		if got, err := Decode(data); err == nil {
			t.Errorf("%s: Decode accepted the set %+v; want an error", name, got)
		}
	}
	if _, d := next(t, other, []Endpoint{{ID: "b"}}, 0, 2); d != nil {
		if _, err := s.Apply(*d); !errors.Is(err, ErrGap) {
			t.Errorf("delta of another peer: got %v, want ErrGap", err)
		}
		d.Owner = s.Owner
		if _, err := s.Apply(*d); !errors.Is(err, ErrGap) {
			t.Errorf("delta signed by another peer: got %v, want ErrGap", err)
		}
	}
}

// Sets that are too large to be sent, or contain an id twice, cannot be published.
func TestInvalidSetsCannotBePublished(t *testing.T) {
	many := make([]Endpoint, MaxEndpoints+1)
	for i := range many {
		many[i].ID = fmt.Sprint(i)
	}
	if _, _, err := Next(nil, many, 0, key(1)); err == nil {
		t.Error("Next accepted more endpoints than the maximum; want an error")
	}
	if s, _, err := Next(nil, many[1:], 0, key(1)); err != nil || s.Len() != MaxEndpoints {
		t.Error(err)
	}
	for i := range many[:600] {
		many[i].Labels = map[string]string{}
		for j := range 50 {
			many[i].Labels[fmt.Sprintf("%0300d", j)] = strings.Repeat("x", 300)
		}
	}
	if _, _, err := Next(nil, many[:600], 0, key(1)); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("endpoints that exceed maxSet: got %v, want an error with their bytes", err)
	}
	if _, _, err := Next(nil, []Endpoint{{ID: "a"}, {ID: "a"}}, 0, key(1)); err == nil {
		t.Error("Next accepted two endpoints with one id; want an error")
	}
	s, _ := next(t, nil, []Endpoint{{ID: "a"}, {ID: "b"}}, 0, 1)
	if _, _, err := Next(s, []Endpoint{{ID: "a"}, {ID: "a"}}, 0, key(1)); err == nil {
		t.Error("Next accepted an endpoint twice in place of another; want an error")
	}
}

func TestDeltaContainsOnlyChangedEndpoints(t *testing.T) {
	a, b := Endpoint{ID: "a", Name: "web"}, Endpoint{ID: "b", Labels: map[string]string{"k": "v"}}
	s, d := next(t, nil, []Endpoint{b, a}, 0, 1)
	if s.Version != 1 || d.From != 0 || s.Endpoints()[0].Generation != 1 {
		t.Errorf("the first set is %+v with the delta %+v; want version 1 from 0", s, d)
	}
	if again, d := next(t, s, []Endpoint{a, b}, 0, 1); again != s || d != nil {
		t.Error("Next of the same endpoints in another order returned a change; want none")
	}
	b.Labels["k"] = "w" // the set must not share the caller's map
	if s.Endpoints()[1].Labels["k"] != "v" {
		t.Error("changing the caller's map changed the set; want the set unchanged")
	}
	s2, d := next(t, s, []Endpoint{a, b}, 0, 1)
	if d == nil || len(d.Put) != 1 || len(d.Gone) != 0 || d.From != 1 || d.To != 2 || s2.Endpoints()[1].Generation != 1 {
		t.Errorf("the delta of a changed label is %+v; want one changed endpoint, from version 1 to 2", d)
	}
	s3, d := next(t, s2, []Endpoint{b}, 0, 1)
	if len(d.Put) != 0 || !slices.Equal(d.Gone, []string{"a"}) {
		t.Errorf("the delta of a removed endpoint is %+v; want only its id", d)
	}
	if s4, _ := next(t, s3, []Endpoint{a, b}, 0, 1); s4.Endpoints()[0].Generation != 4 {
		t.Error("an id that is used again has its old generation; want 4")
	}
	if s9, d := next(t, s3, []Endpoint{b}, 9, 1); s9.Version != 9 || d.From != 3 || s9.Digest != s3.Digest {
		t.Errorf("Next with atLeast 9 returned the set %+v and the delta %+v; want version 9 from 3", s9, d)
	}
	if none, d := next(t, s3, nil, 0, 1); none.Len() != 0 || len(d.Gone) != 1 {
		t.Errorf("the delta to the empty set is %+v; want one removed endpoint", d)
	}
}

func TestTwoEndpointSetsWithOneVersionAreOrdered(t *testing.T) {
	s, _ := next(t, nil, []Endpoint{{ID: "a"}}, 0, 1)
	one, d := next(t, s, []Endpoint{{ID: "a"}, {ID: "b"}}, 0, 1)
	two, _ := next(t, s, []Endpoint{{ID: "a"}, {ID: "c"}}, 0, 1)
	if one.Version != two.Version || one.Supersedes(two) == two.Supersedes(one) {
		t.Errorf("neither or both of the sets %v and %v supersede the other; want exactly one", one.Held(), two.Held())
	}
	// A delta based on one of the two sets cannot be applied to the other, and the error is ErrGap.
	_, more := next(t, one, []Endpoint{{ID: "d"}, {ID: "b"}}, 0, 1)
	if _, err := two.Apply(*more); !errors.Is(err, ErrGap) {
		t.Errorf("Apply of a delta from another version returned %v; want ErrGap", err)
	}
	if got, err := s.Apply(*d); err != nil || got.Digest != one.Digest {
		t.Error(err)
	}
}

// Strings that endpoints have in common are deduplicated in memory.
func TestDeduplicatedStringsKeepTheirValues(t *testing.T) {
	e := Endpoint{ID: "a", Namespace: "shop", Labels: map[string]string{"app": "web"}}
	before := maps.Clone(e.Labels)
	if e.share(); e.Namespace != "shop" || !maps.Equal(e.Labels, before) {
		t.Errorf("share changed the endpoint to %+v; want its values unchanged", e)
	}
	s, _ := next(t, nil, []Endpoint{e}, 0, 1)
	if back, err := Decode(s.Encode()); err != nil || back.items[0].raw != nil {
		t.Errorf("our encoding equals the received bytes, but these are kept, or error %v; want them not kept, and no error", err)
	}
}
