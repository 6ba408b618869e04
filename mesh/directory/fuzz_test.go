package directory

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"weft/ipam/slot"
)

func hash(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

func samples(t testing.TB) (*Set, *Set, *Delta) {
	s, _ := next(t, nil, []Endpoint{
		{ID: "a/eth0", Slots: []slot.Slot{1}, Name: "web", Namespace: "shop", Labels: map[string]string{"app": "web"}, Aliases: []string{"www"}},
		{ID: "node", Slots: []slot.Slot{2}, Ports: []Port{{"http", "tcp", 80}}},
	}, 0, 1)
	after, d := next(t, s, []Endpoint{{ID: "a/eth0", Name: "db"}, {ID: "c", IPv4Only: true}}, 0, 1)
	return s, after, d
}

// Random data has no valid signature, so the fuzzer also signs a set whose only endpoint is its
// data.
func FuzzDecode(f *testing.F) {
	s, _, _ := samples(f)
	f.Add(s.Encode())
	f.Add(signSet(1, 1<<64-1))
	f.Add(s.items[0].encoded())
	f.Add(newer(Endpoint{ID: "a"}))
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, data := range [][]byte{data, signSet(1, 7, data)} {
			s, err := Decode(data)
			if err != nil {
				continue
			}
			again, err := Decode(s.Encode())
			if err != nil || again.Digest != s.Digest || !bytes.Equal(again.Encode(), s.Encode()) {
				t.Fatalf("encoding and decoding again returned another set or error %v; want the same set", err)
			}
			d := New()
			if !d.Put(s) || d.Put(again) {
				t.Fatal("the first Put of a set reported no news, or the second did; want news once")
			}
			d.Forget(s.Owner)
			if len(d.names)+len(d.below) > 0 {
				t.Fatalf("Forget of the only owner left the index entries %v, %v; want none", d.names, d.below)
			}
			if s.Owner != id(1) {
				continue
			}
			if after, delta, err := Next(s, s.Endpoints(), 0, key(1)); err != nil || after != s || delta != nil {
				t.Fatalf("Next with the same endpoints returned a change or error %v; want neither", err)
			}
		}
	})
}

func FuzzDelta(f *testing.F) {
	s, _, d := samples(f)
	f.Add(d.Encode())
	f.Add(Delta{Owner: s.Owner, From: 1, To: 2}.Encode())
	f.Add(Delta{Owner: s.Owner, From: 1, To: 2, Put: [][]byte{{0xa0}}, Gone: []string{"node", "node", ""}}.Encode())
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, after, _ := samples(t)
		d, err := DecodeDelta(data)
		if err != nil {
			return
		}
		if got, err := s.Apply(d); err == nil && got.Digest != after.Digest {
			t.Fatalf("Apply accepted a delta that leads to %+v; want the set that Next returned, or an error", got)
		}
		if _, err := (*Set)(nil).Apply(d); err == nil {
			t.Fatal("Apply of a delta to a nil set returned no error, want one")
		}
		if again, err := DecodeDelta(d.Encode()); err != nil || !bytes.Equal(again.Encode(), d.Encode()) {
			t.Fatalf("encoding and decoding again returned another delta or error %v; want the same delta", err)
		}
	})
}
