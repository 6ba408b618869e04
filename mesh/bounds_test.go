package mesh

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/document"
	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// The largest states of all kinds together fit into one push/pull message.
func TestAllStatesFitOnePushPull(t *testing.T) {
	const message, kibi = 8 << 20, 1 << 10
	for name, c := range map[string]struct{ has, budget int }{
		"ring": {ring.MaxEncoded, 2048 * kibi}, "votes": {paxos.MaxEncoded, 256 * kibi}, "directory": {maxDirectoryFull, 1024 * kibi},
		"documents": {maxDocumentsFull, 1024 * kibi}, "peers": {maxPeerBytes, 3 * 1024 * kibi},
	} {
		if c.has > c.budget {
			t.Errorf("%s: the largest state has %d bytes; want at most %d", name, c.has, c.budget)
		}
	}
	if sum := ring.MaxEncoded + paxos.MaxEncoded + maxDirectoryFull + maxDocumentsFull + maxPeerBytes; sum > message-message/16 {
		t.Errorf("all states together have %d bytes; want no more than fit into one message", sum)
	}

	held := news{From: peer.ID{255}}
	for i := range directory.MaxOwners {
		var id peer.ID
		binary.BigEndian.PutUint64(id[:], 1<<63|uint64(i))
		held.Held = append(held.Held, directory.Held{Owner: id, Version: 1<<64 - 1, Digest: bytes.Repeat([]byte{255}, 8)})
	}
	if n := len(encode(held)); n > maxDirectoryFull {
		t.Errorf("directory: %d bytes, want at most maxDirectoryFull = %d", n, maxDirectoryFull)
	}
	full := documentNews{From: peer.ID{255}, Digest: make([]byte, len(document.Digest{})), Synced: true}
	full.Marks = make([]document.Mark, document.MaxWriters)
	for i := range full.Marks {
		full.Marks[i] = document.Mark{Writer: make([]byte, ed25519.PublicKeySize), Version: 1<<64 - 1, Signature: make([]byte, ed25519.SignatureSize)}
	}
	if n := len(encode(full)); n > maxDocumentsFull {
		t.Errorf("documents: %d bytes, want at most maxDocumentsFull = %d", n, maxDocumentsFull)
	}
	// Requests and replies are separate messages.
	question := make([]document.Held, document.MaxHeld)
	for i := range question {
		question[i] = document.Held{
			Kind: strings.Repeat("k", document.MaxKind), Name: strings.Repeat("n", document.MaxName),
			Version: 1<<64 - 1, Digest: [8]byte(bytes.Repeat([]byte{255}, 8)), Ended: true,
		}
	}
	if n := len(encode(question)); n > message/4 {
		t.Errorf("the largest request for documents has %d bytes; want at most a quarter of a message", n)
	}
}

// keys is a state of size random bytes, as incompressible as keys and signatures.
type keys struct {
	size int
	got  atomic.Int64
}

func (*keys) Name() string { return "keys" }

func (k *keys) Full() []byte {
	data := make([]byte, k.size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	return data
}

func (k *keys) Merge(data []byte) ([]byte, error) {
	k.got.Store(int64(len(data)))
	return nil, nil
}

// A push/pull message of the largest size is exchanged.
func TestLargestStateIsExchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = maxStream - maxStream/16
		s := &cluster{t, meshtest.New(35)}
		news := &keys{}
		a := s.startWith([]Replica{&keys{size: size}}, 1, nil, nil)
		b := s.startWith([]Replica{news}, 2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "the large state arrives", func() bool { return news.got.Load() == size })
		s.end(a, b)
	})
}

// A malicious member invents any number of peers, and a set of endpoints for each. Sets that are
// already stored stay, and the number of stored sets is bounded in memory and on disk.
func TestNumberOfStoredEndpointSetsIsBounded(t *testing.T) {
	d := quiet(t, 1, &meshtest.Solo{})
	if err := d.Publish(many(3)); err != nil {
		t.Fatal(err)
	}
	s, _ := set(t, 2, nil, at("a", 1))
	var sets [][]byte
	for i := range directory.MaxOwners + 5 {
		var seed [ed25519.SeedSize]byte
		binary.BigEndian.PutUint32(seed[:], uint32(i))
		s, _, err := directory.Next(nil, nil, 0, ed25519.NewKeyFromSeed(seed[:]))
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, s.Encode())
	}
	if err := d.takeIn(decodeAll(t, sets)); err != nil {
		t.Fatal(err)
	}
	if err := d.takeIn([]*directory.Set{s}); err != nil || len(d.Held()) != directory.MaxOwners || d.set(idOf(1)).Len() != 3 {
		t.Errorf("the directory holds %d sets, error %v; want MaxOwners, with that of the known owner", len(d.Held()), err)
	}
	d.mu.Lock()
	d.want(idOf(3), directory.Held{Owner: peer.ID{9, 9}, Version: 1})
	if len(d.wanted) > 0 {
		t.Error("the directory requests a set for which there is no room; want no request")
	}
	d.mu.Unlock()
	if err := d.Publish(many(4)); err != nil || d.set(idOf(1)).Len() != 4 {
		t.Errorf("publishing own endpoints in a full directory returned %v; want no error", err)
	}
	if _, err := d.Merge(encode(news{From: idOf(3), Held: make([]directory.Held, directory.MaxOwners+1)})); err == nil {
		t.Error("Merge accepted a message with too many owners; want an error")
	}

	// This is the disk of an earlier release, which did not bound the number of owners.
	store := &meshtest.Disk{}
	for i, data := range sets {
		if err := store.SaveSets(map[peer.ID][]byte{{byte(i >> 8), byte(i)}: data}); err != nil {
			t.Fatal(err)
		}
	}
	again, err := NewDirectory(DirectoryConfig{
		Identity: identity(1), Mesh: &meshtest.Solo{}, Store: store, Sets: append(sets, encode(kept{d.set(idOf(1)).Encode(), make([]slot.Slot, 200_000)})),
		Wanted: func(peer.ID) bool { return true }, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
	if err != nil || len(again.Held()) != directory.MaxOwners+1 || again.set(idOf(1)).Len() != 4 || !again.Taken(0) {
		t.Errorf("loaded from the disk, the directory holds %d sets, error %v; want MaxOwners and its own", len(again.Held()), err)
	}
}

func decodeAll(t *testing.T, sets [][]byte) (out []*directory.Set) {
	t.Helper()
	for _, data := range sets {
		s, err := directory.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// Labels that exceed the bound are dropped; names of all endpoints stay.
func TestOversizedLabelsAreDroppedButNamesStay(t *testing.T) {
	d := quiet(t, 1, &meshtest.Solo{})
	endpoints := many(100)
	for i := range 250 {
		labels := map[string]string{}
		for n := range 100 {
			labels[fmt.Sprintf("%0300d", n)] = fmt.Sprint(i)
		}
		endpoints = append(endpoints, directory.Endpoint{ID: fmt.Sprint("large-", i), Slots: []slot.Slot{slot.Slot(1000 + i)}, Labels: labels})
	}
	err := d.Publish(endpoints)
	if !errors.Is(err, directory.ErrTooLarge) {
		t.Errorf("Publish of too many endpoints returned %v; want ErrTooLarge", err)
	}
	own := d.set(idOf(1))
	if n := len(own.Encode()); own.Len() != 350 || n > 6<<20+64<<10 || n < 5<<20 {
		t.Fatalf("published %d endpoints in %d bytes; want 350 in about 6 MiB", own.Len(), n)
	}
	for _, e := range own.Endpoints() {
		if strings.HasPrefix(e.ID, "many") && e.Name == "" || len(e.Slots) != 1 {
			t.Errorf("this endpoint lost its name or slot: %+v; want both kept", e)
		}
	}
}
