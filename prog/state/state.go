// Package state owns this host's persistent state: one bbolt file of mode 0600. Every change is one
// transaction. A Store is safe for concurrent use.
//
// A torn, corrupt or foreign file is refused with an error that says what to do. It is never
// changed, since it may be the only record of which peer owns which address.
package state

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// File is the name of the state file in the state folder.
const File = "state.db"

// format is written into every file. A change that older versions cannot read raises its number.
const format = "weft state 3"

var (
	bucketMeta        = []byte("meta")
	bucketPeers       = []byte("peers")
	bucketRing        = []byte("ring")
	bucketAllocations = []byte("allocations")
	bucketResting     = []byte("resting") // for each slot in quarantine: the end of the quarantine in Unix seconds
	bucketDirectory   = []byte("directory")
	buckets           = [][]byte{bucketMeta, bucketPeers, bucketRing, bucketAllocations, bucketResting, bucketDirectory}
	// bucketDocuments is created when it is first needed. Files of this format may lack it, and
	// versions of Weft without documents ignore it.
	bucketDocuments = []byte("documents")

	keyFormat     = []byte("format")
	keyIdentity   = []byte("identity")
	keyWireGuard  = []byte("wireguard")
	keyTargets    = []byte("targets")
	keySettings   = []byte("settings")
	keySynced     = []byte("synced")
	keyPairs      = []byte("pairs")
	keyKubernetes = []byte("kubernetes")
	keyRelays     = []byte("relays")
	keyRing       = []byte("ring")
	keyVote       = []byte("vote")
)

// Store is the open state file. It is safe for concurrent use.
type Store struct{ db *bolt.DB }

// UnusableError means that the file at Path is no usable state. The file is not changed.
type UnusableError struct {
	Path string
	Why  error
}

func (e *UnusableError) Error() string {
	return fmt.Sprintf("state file %s cannot be used: %v. It was not changed. Restore it from a backup; or, if this host may lose its identity and addresses, run `weft reset`, which renames the file, and launch again",
		e.Path, e.Why)
}

func (e *UnusableError) Unwrap() error { return e.Why }

// ErrLocked means that another process has the state open.
var ErrLocked = errors.New("the state is in use")

// Open opens the state in folder dir, and creates it if there is none.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, Explained(fmt.Errorf("state: %w", err))
	}
	path := filepath.Join(dir, File)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, Explained(err)
		}
	} else if err := examine(path); surroundings(err) {
		return nil, Explained(fmt.Errorf("state: %w", err))
	} else if err != nil {
		return nil, &UnusableError{path, err}
	}
	db, err := openFile(path)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, lockedError(path)
	case surroundings(err):
		return nil, Explained(fmt.Errorf("state: %w", err))
	case err != nil:
		return nil, &UnusableError{path, err}
	}
	s := &Store{db}
	if err := s.check(); err != nil {
		db.Close()
		return nil, &UnusableError{path, err}
	}
	return s, nil
}

// create makes a new file under another name and then renames it, so that a crash leaves no torn
// file.
func create(path string) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state: %w", err)
	}
	db, err := openFile(fresh)
	if err != nil {
		return fmt.Errorf("state: making %s: %w", fresh, err)
	}
	s := &Store{db}
	if err := errors.Join(s.initialise(), db.Close()); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// openFile opens the file. Damage can make bbolt panic or fault; openFile returns that as an error.
func openFile(path string) (db *bolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the file is corrupt: %v", p)
		}
	}()
	return bolt.Open(path, 0o600, &bolt.Options{Timeout: 2 * time.Second})
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// examine reads the head of a file without changing it. bbolt would write pages into an empty file,
// and mapping a file that is shorter than its header says would kill the process.
func examine(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// The file begins with a page header of 16 bytes and the fields of the meta page (bbolt's file
	// format).
	var head [16 + 64]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return fmt.Errorf("the file is torn: it has only %d bytes", info.Size())
	}
	meta := head[16:]
	if magic := binary.NativeEndian.Uint32(meta); magic != 0xED0CDAED {
		return errors.New("the file is no Weft state: it belongs to another program, or was overwritten")
	}
	pageSize := int64(binary.NativeEndian.Uint32(meta[8:]))
	pages := int64(binary.NativeEndian.Uint64(meta[40:]))
	if pageSize < 512 || pageSize > 1<<16 || pages > info.Size()/pageSize {
		return fmt.Errorf("the file is torn: it has %d bytes, but needs %d pages of %d bytes", info.Size(), pages, pageSize)
	}
	return nil
}

// initialise creates the buckets of a new file.
func (s *Store) initialise() error {
	return s.update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keyFormat, []byte(format))
	})
}

// check reads the whole file before anything is written. Damage can make bbolt panic or fault; check
// returns that as an error.
func (s *Store) check() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the file is corrupt: %v", p)
		}
	}()
	return s.db.View(func(tx *bolt.Tx) error {
		if err := walk(tx); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			return errors.New("the file is no Weft state, but a database of another program")
		}
		if got := string(meta.Get(keyFormat)); got != format {
			return fmt.Errorf("the file's format is %q, but this version of Weft reads %q", got, format)
		}
		for _, name := range buckets {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("the file is incomplete: %s is missing", name)
			}
		}
		var first error
		for e := range tx.Check() { // the channel must be read to its end, or bbolt's goroutine leaks
			if first == nil {
				first = fmt.Errorf("the file is corrupt: %w", e)
			}
		}
		return first
	})
}

// walk reads every page with data. It runs before bbolt's own check, which runs on its own goroutine,
// where a panic cannot be caught.
func walk(tx *bolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
		var last []byte
		return b.ForEach(func(k, v []byte) error {
			if last != nil && bytes.Compare(last, k) >= 0 {
				return fmt.Errorf("the file is corrupt: the keys of %q are out of order", name)
			}
			last = append(last[:0], k...)
			if len(v) > 0 {
				_ = v[len(v)-1]
			}
			return nil
		})
	})
}

func (s *Store) update(f func(*bolt.Tx) error) error {
	if err := s.db.Update(f); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

func (s *Store) view(f func(*bolt.Tx) error) error {
	if err := s.db.View(f); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// Keys are this host's keys. They are made once and never change.
type Keys struct {
	Identity  ed25519.PrivateKey
	WireGuard [32]byte // Curve25519 private key
}

// ID returns the peer id of a host with these keys.
func (k Keys) ID() peer.ID { return peer.IDOf(k.Identity.Public().(ed25519.PublicKey)) }

// Keys returns this host's keys. The first call makes them from a source of randomness.
func (s *Store) Keys(random io.Reader) (k Keys, err error) {
	err = s.update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		seed, wg := meta.Get(keyIdentity), meta.Get(keyWireGuard)
		if seed == nil {
			fresh := make([]byte, ed25519.SeedSize+len(k.WireGuard))
			if _, err := io.ReadFull(random, fresh); err != nil {
				return err
			}
			seed, wg = fresh[:ed25519.SeedSize], fresh[ed25519.SeedSize:]
			if err := errors.Join(meta.Put(keyIdentity, seed), meta.Put(keyWireGuard, wg)); err != nil {
				return err
			}
		}
		if len(seed) != ed25519.SeedSize || len(wg) != len(k.WireGuard) {
			return errors.New("the stored keys have the wrong size")
		}
		k = Keys{ed25519.NewKeyFromSeed(seed), [32]byte(wg)}
		return nil
	})
	return k, err
}

// Peers returns the records that SavePeers stored.
func (s *Store) Peers() ([][]byte, error) { return s.values(bucketPeers) }

func (s *Store) values(bucket []byte) (out [][]byte, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucket) // nil if it was not created yet
		if b == nil {
			return nil
		}
		return b.ForEach(func(_, v []byte) error {
			out = append(out, bytes.Clone(v))
			return nil
		})
	})
	return out, err
}

// SavePeers stores the records of peers; nil deletes a peer's record.
func (s *Store) SavePeers(records map[peer.ID][]byte) error {
	return s.saveValues(bucketPeers, byKey(records))
}

// Targets returns the hosts that SaveTargets stored; known is false if it was never called.
func (s *Store) Targets() (targets []string, known bool, err error) {
	known, err = s.load(keyTargets, &targets)
	return targets, known, err
}

// SaveTargets stores the hosts to join.
func (s *Store) SaveTargets(targets []string) error { return s.save(keyTargets, targets) }

// Settings reads into v what SaveSettings stored. If nothing is stored, v stays unchanged.
func (s *Store) Settings(v any) error {
	_, err := s.load(keySettings, v)
	return err
}

// SaveSettings stores what the operator changed at run time.
func (s *Store) SaveSettings(v any) error { return s.save(keySettings, v) }

func (s *Store) load(key []byte, v any) (known bool, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		data := tx.Bucket(bucketMeta).Get(key)
		if known = data != nil; !known {
			return nil
		}
		return json.Unmarshal(data, v)
	})
	return known, err
}

func (s *Store) save(key []byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return s.update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(key, data) })
}

// Load returns the stored ring and allocations. Load and Update make Store an ipam.Store.
func (s *Store) Load() (st ipam.State, err error) {
	st.Allocations = map[string]slot.Slot{}
	err = s.view(func(tx *bolt.Tx) error {
		st.Ring = bytes.Clone(tx.Bucket(bucketRing).Get(keyRing))
		st.Vote = bytes.Clone(tx.Bucket(bucketRing).Get(keyVote))
		if err := eachResting(tx, func(r space.Quarantined) error { st.Quarantined = append(st.Quarantined, r); return nil }); err != nil {
			return err
		}
		return tx.Bucket(bucketAllocations).ForEach(func(k, v []byte) error {
			s, _, err := allocation(k, v)
			st.Allocations[string(k)] = s
			return err
		})
	})
	return st, err
}

// Update stores one change of ring or allocations as one transaction.
func (s *Store) Update(c ipam.Change) error {
	return s.update(func(tx *bolt.Tx) error {
		if c.Ring != nil {
			if err := tx.Bucket(bucketRing).Put(keyRing, c.Ring); err != nil {
				return err
			}
		}
		if c.Vote != nil {
			if err := tx.Bucket(bucketRing).Put(keyVote, c.Vote); err != nil {
				return err
			}
		}
		for _, r := range c.Quarantined {
			if err := putResting(tx, r.Slot, r.Until); err != nil {
				return err
			}
		}
		allocations := tx.Bucket(bucketAllocations)
		switch {
		case c.Key == "":
			return nil
		case c.Delete:
			return errors.Join(allocations.Delete([]byte(c.Key)), rest(tx, c))
		}
		if err := tx.Bucket(bucketResting).Delete(slotKey(c.Slot)); err != nil {
			return err
		}
		return allocations.Put([]byte(c.Key), append(binary.BigEndian.AppendUint32(nil, uint32(c.Slot)), c.Note...))
	})
}

func slotKey(s slot.Slot) []byte { return binary.BigEndian.AppendUint32(nil, uint32(s)) }

// rest stores the quarantine of a released slot, and deletes quarantines that have ended.
func rest(tx *bolt.Tx, c ipam.Change) error {
	if c.QuarantineUntil == 0 {
		return nil
	}
	b := tx.Bucket(bucketResting)
	var over []slot.Slot
	if err := eachResting(tx, func(r space.Quarantined) error {
		if r.Until <= c.Now {
			over = append(over, r.Slot)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, s := range over {
		if err := b.Delete(slotKey(s)); err != nil {
			return err
		}
	}
	return putResting(tx, c.Slot, c.QuarantineUntil)
}

func putResting(tx *bolt.Tx, s slot.Slot, until int64) error {
	return tx.Bucket(bucketResting).Put(slotKey(s), binary.BigEndian.AppendUint64(nil, uint64(until)))
}

func eachResting(tx *bolt.Tx, f func(space.Quarantined) error) error {
	return tx.Bucket(bucketResting).ForEach(func(k, v []byte) error {
		if len(k) != 4 || len(v) != 8 {
			return fmt.Errorf("slot %x in quarantine: the key has %d bytes and the value %d, want 4 and 8", k, len(k), len(v))
		}
		return f(space.Quarantined{Slot: slot.Slot(binary.BigEndian.Uint32(k)), Until: int64(binary.BigEndian.Uint64(v))})
	})
}

// allocation splits a stored allocation into the slot, 4 bytes, and the note.
func allocation(key, value []byte) (slot.Slot, []byte, error) {
	if len(value) < 4 {
		return 0, nil, fmt.Errorf("the allocation of %q has %d bytes, want at least 4", key, len(value))
	}
	return slot.Slot(binary.BigEndian.Uint32(value)), value[4:], nil
}

// Notes calls add with every allocation that has a note.
func (s *Store) Notes(add func(key string, s slot.Slot, note []byte) error) error {
	return s.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketAllocations).ForEach(func(k, v []byte) error {
			s, note, err := allocation(k, v)
			if err != nil || len(note) == 0 {
				return err
			}
			return add(string(k), s, note)
		})
	})
}
