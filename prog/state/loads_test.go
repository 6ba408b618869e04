package state

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// written holds what was stored, by bucket.
type written struct {
	peers, sets, docs map[string][]byte
	ipam              ipam.State
	notes             map[string][]byte
	settings          map[string]string
}

// Every write, in any order, is either refused or can be read after a restart. No stored value
// prevents opening the file.
func TestStoredStateLoadsAfterRestart(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := &written{
			peers: map[string][]byte{}, sets: map[string][]byte{}, docs: map[string][]byte{},
			notes: map[string][]byte{}, settings: map[string]string{},
		}
		for range rapid.IntRange(1, 3).Draw(t, "runs") {
			s, err := Open(dir)
			if err != nil {
				t.Fatalf("an agent cannot read the state: %v; want no error", err)
			}
			w.compare(t, s)
			for range rapid.IntRange(0, 15).Draw(t, "steps") {
				w.step(t, s)
			}
			w.compare(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// step writes a random value, which may be refused.
func (w *written) step(t *rapid.T, s *Store) {
	key := rapid.SampledFrom([]string{"a", "b", "", "\x00", "\xff\xfe", string(make([]byte, 40_000))}).Draw(t, "key")
	value := rapid.SampledFrom([][]byte{nil, {0}, []byte("text"), {0xff, 0xfe}, make([]byte, 100_000)}).Draw(t, "value")
	id, n := peer.ID{byte(rapid.IntRange(0, 3).Draw(t, "peer"))}, slot.Slot(rapid.Uint32().Draw(t, "slot"))
	put := func(err error, bucket map[string][]byte, key string) {
		if err != nil {
			return
		}
		if bucket[key] = value; value == nil {
			delete(bucket, key)
		}
	}
	switch rapid.IntRange(0, 7).Draw(t, "what") {
	case 0:
		put(s.SavePeers(map[peer.ID][]byte{id: value}), w.peers, string(id[:]))
	case 1:
		put(s.SaveSets(map[peer.ID][]byte{id: value}), w.sets, string(id[:]))
	case 2:
		put(s.SaveDocuments(map[string][]byte{key: value}), w.docs, key)
	case 3:
		c := ipam.Change{Key: key, Slot: n, Note: value}
		if err := s.Update(c); err == nil && key != "" {
			w.ipam.Apply(c)
			w.notes[key] = value
		}
	case 4:
		c := ipam.Change{Key: key, Slot: n % 4, Delete: true, Quarantined: []space.Quarantined{{Slot: n, Until: -5}}}
		c.Now = int64(rapid.IntRange(-6, 10).Draw(t, "now"))
		c.QuarantineUntil = c.Now + int64(rapid.IntRange(0, 10).Draw(t, "for"))
		if err := s.Update(c); err == nil {
			w.ipam.Apply(c)
			delete(w.notes, key)
		}
	case 5:
		c := ipam.Change{Ring: value, Vote: value}
		if err := s.Update(c); err == nil {
			w.ipam.Apply(c)
		}
	case 6:
		if err := s.SaveSettings(map[string]string{"set": key}); err == nil {
			w.settings["set"] = string([]rune(key)) // JSON replaces invalid UTF-8 in the stored value
		}
	default:
		if err := s.SaveKubernetes(value); err == nil && value != nil {
			t.Fatalf("the store accepted %q, want an error: it is not JSON", value)
		}
	}
}

// compare reads everything that an agent reads at its start, and compares it with what was written.
func (w *written) compare(t *rapid.T, s *Store) {
	values := func(name string, got [][]byte, err error, want map[string][]byte) {
		sorted := slices.SortedFunc(maps.Values(want), bytes.Compare)
		if slices.SortFunc(got, bytes.Compare); err != nil || !slices.EqualFunc(got, sorted, bytes.Equal) {
			t.Fatalf("%s: after a restart there are %d values, want %d; error %v", name, len(got), len(want), err)
		}
	}
	peers, err := s.Peers()
	values("peers", peers, err, w.peers)
	sets, err := s.Sets()
	values("sets", sets, err, w.sets)
	docs, err := s.Documents()
	values("documents", docs, err, w.docs)
	st, err := s.Load()
	if err != nil || !maps.Equal(st.Allocations, w.ipam.Allocations) || !bytes.Equal(st.Ring, w.ipam.Ring) || !bytes.Equal(st.Vote, w.ipam.Vote) {
		t.Fatalf("after a restart the state of IPAM is %+v, error %v; want %+v", st, err, w.ipam)
	}
	if got, want := sortedBySlot(st.Quarantined), sortedBySlot(w.ipam.Quarantined); !slices.Equal(got, want) {
		t.Fatalf("after a restart the quarantined slots are %v, want %v", got, want)
	}
	notes := map[string][]byte{}
	if err := s.Notes(func(key string, n slot.Slot, note []byte) error { notes[key] = bytes.Clone(note); return nil }); err != nil {
		t.Fatal(err)
	}
	for key, note := range w.notes {
		if !bytes.Equal(notes[key], note) {
			t.Fatalf("after a restart the note of %q is %q, want %q", key, notes[key], note)
		}
	}
	settings := map[string]string{}
	if err := s.Settings(&settings); err != nil || !maps.Equal(settings, w.settings) {
		t.Fatalf("after a restart the settings are %v, want %v; error %v", settings, w.settings, err)
	}
	var kept json.RawMessage
	if kept, err = s.Kubernetes(); err != nil || len(kept) > 0 && !json.Valid(kept) {
		t.Fatalf("after a restart the stored answers of the API server are %q, error %v; want valid JSON", kept, err)
	}
}

func sortedBySlot(q []space.Quarantined) []space.Quarantined {
	return slices.SortedFunc(slices.Values(q), func(a, b space.Quarantined) int { return cmp.Compare(a.Slot, b.Slot) })
}
