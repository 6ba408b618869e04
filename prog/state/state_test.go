package state

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStateIsTheSameAfterARestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	keys, err := s.Keys(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	steps := []error{
		s.SaveTargets([]string{"h1"}),
		s.SavePeers(map[peer.ID][]byte{{1}: []byte("record")}),
		s.Update(ipam.Change{Ring: []byte("ring"), Key: "a", Slot: 7, Note: []byte("eth0")}),
		s.Update(ipam.Change{Key: "b", Slot: 8}),
		s.Update(ipam.Change{Key: "b", Delete: true}),
		s.Update(ipam.Change{Key: "node", Slot: 9}),
		s.Update(ipam.Change{Key: "c", Slot: 10, Delete: true, QuarantineUntil: 100, Now: 40}),
		s.Update(ipam.Change{Key: "c", Slot: 11, Delete: true, QuarantineUntil: 170, Now: 110}), // the quarantine of slot 10 has ended
		s.Update(ipam.Change{Key: "c", Slot: 12, Delete: true, QuarantineUntil: 171, Now: 111}),
		s.Update(ipam.Change{Key: "a", Slot: 12, Vote: []byte("vote")}), // the quarantined slot 12 is allocated again
		s.Update(ipam.Change{Key: "a", Slot: 7, Note: []byte("eth0")}),
		s.Close(),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(filepath.Join(dir, File)); info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, want 0600", info.Mode())
	}

	s = open(t, dir)
	defer s.Close()
	again, _ := s.Keys(rand.Reader)
	if !again.Identity.Equal(keys.Identity) || again.WireGuard != keys.WireGuard {
		t.Error("the keys changed after a restart, want the same")
	}
	targets, known, _ := s.Targets()
	peers, _ := s.Peers()
	st, err := s.Load()
	if err != nil || !known || len(targets) != 1 || len(peers) != 1 || string(st.Ring) != "ring" || len(st.Allocations) != 2 || st.Allocations["a"] != 7 {
		t.Errorf("after a restart: targets %v (known %v), peers %v, state %+v, error %v; want the stored values", targets, known, peers, st, err)
	}
	if string(st.Vote) != "vote" || len(st.Quarantined) != 1 || st.Quarantined[0] != (space.Quarantined{Slot: 11, Until: 170}) {
		t.Errorf("after a restart: vote %q, quarantine %v; want the stored vote, and slot 11 until 170", st.Vote, st.Quarantined)
	}
	notes := map[string]string{}
	err = s.Notes(func(key string, _ slot.Slot, note []byte) error { notes[key] = string(note); return nil })
	if err != nil || len(notes) != 1 || notes["a"] != "eth0" {
		t.Errorf("after a restart the notes are %v, error %v; want eth0 for a", notes, err)
	}
}

func TestCrashDuringCreateLeavesNoTornFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, File+".new"), []byte("half a fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir).Close()
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("after Open the state folder contains %v, want only state.db", files)
	}
}

func TestStateInUseCannotBeOpenedAgain(t *testing.T) {
	dir := t.TempDir()
	defer open(t, dir).Close()
	if _, err := Open(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("the second Open returned %v, want ErrLocked", err)
	}
}

// Invariant 8: a torn or foreign file is refused with a clear error and never overwritten.
func TestInvariant8UnusableFilesAreRefusedAndKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 200 {
		if err := s.SavePeers(map[peer.ID][]byte{{byte(i)}: bytes.Repeat([]byte{byte(i)}, 500)}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	good, err := os.ReadFile(filepath.Join(dir, File))
	if err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(t.TempDir(), "foreign.db")
	db, err := bolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	other, _ := os.ReadFile(foreign)

	page := os.Getpagesize()
	used := int(binary.NativeEndian.Uint64(good[16+40:])) * page // bbolt allocates more of the file than it uses
	zeroed := bytes.Clone(good)
	clear(zeroed[4*page:])
	scribbled := bytes.Clone(good)
	for i := 2 * page; i < len(scribbled); i += 97 {
		scribbled[i] ^= 0xff
	}
	for name, content := range map[string][]byte{
		"empty": {}, "text": []byte("hello, I am a text file of another program, and longer than a bbolt header is"),
		"one page": good[:page], "half": good[:len(good)/2], "no end": good[:used-page],
		"zeroed": zeroed, "scribbled": scribbled, "foreign": other,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), File)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(filepath.Dir(path))
			if _, ok := errors.AsType[*UnusableError](err); !ok {
				if s != nil {
					s.Close()
				}
				t.Fatalf("Open returned %v, want an *UnusableError", err)
			}
			t.Log(err)
			if after, _ := os.ReadFile(path); !bytes.Equal(after, content) {
				t.Error("Open changed the unusable file, want it unchanged")
			}
		})
	}
}

func TestSaveDocumentsIsAtomic(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if synced, err := s.Synced(); synced || err != nil {
		t.Errorf("a new state has synced %v, error %v; want false", synced, err)
	}
	steps := []error{
		s.SaveDocuments(map[string][]byte{"policy\x00a": []byte("a1"), "policy\x00b": []byte("b1"), "policy\x00c": nil}),
		s.SaveDocuments(map[string][]byte{"policy\x00a": nil, "policy\x00b": []byte("b2"), "policy\x00d": []byte("d1")}),
		s.SaveSynced(),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveDocuments(map[string][]byte{"e": []byte("e1"), "": []byte("no key"), "policy\x00b": nil}); err == nil {
		t.Error("a document without a key was stored, want an error")
	}
	s.Close()
	s = open(t, dir)
	defer s.Close()
	documents, err := s.Documents()
	if err != nil || len(documents) != 2 || string(documents[0]) != "b2" || string(documents[1]) != "d1" {
		t.Errorf("after a restart the documents are %q, error %v; want b2 and d1", documents, err)
	}
	if synced, err := s.Synced(); !synced || err != nil {
		t.Errorf("after a restart synced is %v, error %v; want true", synced, err)
	}
}

// A state file of a version of Weft without documents is used unchanged, and that version can still read
// the file, since the format is the same.
func TestOlderStateFilesGetABucketForDocuments(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	has := func() (there bool) {
		_ = s.view(func(tx *bolt.Tx) error { there = tx.Bucket(bucketDocuments) != nil; return nil })
		return there
	}
	if documents, err := s.Documents(); err != nil || len(documents) > 0 || has() {
		t.Errorf("a new file: documents %q, error %v, has the bucket: %v; want none, nil, false", documents, err, has())
	}
	if err := s.SaveDocuments(map[string][]byte{"k": []byte("v")}); err != nil || !has() {
		t.Error(err)
	}
	if documents, err := s.Documents(); err != nil || len(documents) != 1 {
		t.Errorf("the documents are %q, error %v; want one", documents, err)
	}
	if format != "weft state 3" {
		t.Errorf("the format is %q, want weft state 3: decide whether older files are refused or converted, then change this test", format)
	}
}
