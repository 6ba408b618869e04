package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
	"weft/prog/api"
	"weft/prog/state"
)

// These items are state files: their buckets, keys and values. bbolt guarantees the compatibility of
// its file format.

var diskItems = map[string]item{
	"disk/state": {what: "the state file of alpha: bucket → key → value", read: readState},
	"disk/empty": {what: "the state file as it is made: no keys yet, no documents", read: readState},
}

// contents maps bucket and key to the values in a state file.
type contents map[string]map[string][]byte

func produceDisk(t *testing.T) map[string][]byte {
	t.Helper()
	states, sets, docs := produceStates(t), produceDirectory(t), produceDocuments(t)
	return map[string][]byte{
		"disk/empty": dump(t, func(*state.Store) error { return nil }),
		"disk/state": dump(t, func(s *state.Store) error {
			_, err := s.Keys(bytes.NewReader(append(bytes.Repeat([]byte{alpha}, 32), bytes.Repeat([]byte{0x55}, 32)...)))
			return errors.Join(
				err,
				s.SavePeers(map[peer.ID][]byte{id(alpha): states["peer/running"]}),
				s.SavePeers(map[peer.ID][]byte{id(bravo): states["peer/stopped"]}),
				s.Update(ipam.Change{Ring: states["ring/whole"], Vote: states["votes/decided"], Key: "node", Slot: slotNode}),
				s.Update(ipam.Change{Key: "c0ffee/eth0", Slot: slotWeb, Note: must(json.Marshal(attached))}),
				s.Update(ipam.Change{Quarantined: []space.Quarantined{{Slot: 9, Until: now.Unix() + 60}}}),
				s.SaveSets(map[peer.ID][]byte{id(alpha): sets["disk/endpoints-own"]}),
				s.SaveDocuments(map[string][]byte{"networkpolicy\x00default/web": docs["disk/document"]}),
				s.SaveSynced(),
				s.SaveTargets([]string{"192.0.2.1", "host.example:6783"}),
				s.SaveSettings(map[string]any{"exclude": []string{"10.32.1.0/24"}}),
				s.SaveKubernetes([]byte(`{"note":"the agent's own"}`)),
			)
		}),
	}
}

// attached is the note that the agent stores with an endpoint's slot.
var attached = api.AttachRequest{
	ContainerID: "c0ffee", Interface: "eth0", Source: "cni", Network: "weft", Name: "web", Namespace: "default", PodUID: "9b1d",
	HostLink: "weft0", MAC: "02:00:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.2")},
	Labels: map[string]string{"app": "web"}, Ports: []api.Port{{Name: "http", Protocol: "tcp", Number: 8080}},
}

// dump returns the contents of a state file after a change.
func dump(t *testing.T, change func(*state.Store) error) []byte {
	t.Helper()
	dir := t.TempDir()
	s, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(change(s), s.Close()); err != nil {
		t.Fatal(err)
	}
	all := contents{}
	db := must(bolt.Open(filepath.Join(dir, state.File), 0o600, nil))
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			all[string(name)] = map[string][]byte{}
			return b.ForEach(func(k, v []byte) error {
				all[string(name)][string(k)] = bytes.Clone(v)
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.encode()
}

// encode encodes keys as byte strings, because peer ids are not text.
func (c contents) encode() []byte {
	type pair struct {
		_          struct{} `cbor:",toarray"`
		Key, Value []byte
	}
	out := map[string][]pair{}
	for bucket, values := range c {
		out[bucket] = []pair{}
		for _, k := range sorted(values) {
			out[bucket] = append(out[bucket], pair{Key: []byte(k), Value: values[k]})
		}
	}
	return encode(out)
}

// readState writes the contents to a file, and reads it as the agent does.
func readState(t *testing.T, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	db := must(bolt.Open(filepath.Join(dir, state.File), 0o600, nil))
	err := db.Update(func(tx *bolt.Tx) error {
		for bucket, pairs := range must(decode[map[string][][2][]byte](data)) {
			b, err := tx.CreateBucket([]byte(bucket))
			if err != nil {
				return err
			}
			for _, p := range pairs {
				if err := b.Put(p[0], p[1]); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s, err := state.Open(dir)
	if err != nil {
		return show(err)
	}
	defer s.Close()
	return tell(readKept(t, s), readShelf(t, s))
}

// readKept returns the identity, keys, targets and settings.
func readKept(t *testing.T, s *state.Store) string {
	t.Helper()
	targets, known, err1 := s.Targets()
	settings := map[string]any{}
	synced, err2 := s.Synced()
	kubernetes, err3 := s.Kubernetes()
	keys, err4 := s.Keys(bytes.NewReader(bytes.Repeat([]byte{echo}, 64))) // generated from echo's seed if the file has no keys
	if err := errors.Join(err1, err2, err3, err4, s.Settings(&settings)); err != nil {
		return show(err)
	}
	own := peer.IDOf([]byte(keys.Identity[32:]))
	return show(map[string]any{
		"identity": own, "WireGuard's key": keys.WireGuard, "targets": targets, "targets are known": known, "settings": settings,
		"synced": synced, "Kubernetes": []byte(kubernetes),
	})
}

// readShelf returns what the mesh and the allocator stored.
func readShelf(t *testing.T, s *state.Store) (out string) {
	t.Helper()
	st, err1 := s.Load()
	peers, err2 := s.Peers()
	sets, err3 := s.Sets()
	docs, err4 := s.Documents()
	notes := map[string]api.AttachRequest{}
	err5 := s.Notes(func(key string, _ slot.Slot, note []byte) error {
		var a api.AttachRequest
		err := json.Unmarshal(note, &a)
		notes[key] = a
		return err
	})
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return show(err)
	}
	for _, p := range peers {
		out += readRecord(t, p)
	}
	if len(st.Ring) > 0 {
		out += readRing(t, st.Ring) + readVotes(t, st.Vote)
	}
	for _, set := range sets {
		out += readOwnSet(t, set)
	}
	for _, doc := range docs {
		out += readKeptDocument(t, doc)
	}
	return tell(out, show(map[string]any{"allocations": st.Allocations, "notes": notes, "resting": st.Quarantined}))
}
