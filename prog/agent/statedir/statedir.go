// Package statedir handles the folder of an agent's state, /var/lib/weft, for commands while no agent
// runs, and for the agent before it opens the store: the secret, the decision of `weft launch`, and
// facts from the store.
//
// Functions take the path of the folder. Only one process at a time may use it: the store is locked
// (prog/state).
package statedir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"weft/ipam/ring"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/state"
)

// ReleaseDir holds one file per release that weft-cni queued while the agent was down.
const ReleaseDir = "releases"

// leastFree is the free space that the state's disk must have. Below it, no more containers are
// attached, so that existing ones can still be changed and detached.
const leastFree = 1 << 20

// CheckDisk reports why no files can be written into a folder.
func CheckDisk(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("the state folder %s: %w", dir, err)
	}
	switch free := st.Bavail * uint64(st.Bsize); {
	case st.Flags&unix.ST_RDONLY != 0:
		return fmt.Errorf("the file system of %s is read-only, and Weft keeps its state there: find the cause (dmesg), and mount it writable (mount -o remount,rw), or name another folder with --state-dir", dir)
	case st.Blocks > 0 && free < leastFree: // a tmpfs without a limit has no blocks
		return fmt.Errorf("the disk of %s is full (%d KiB are left, %d are needed): make room there (df %s)", dir, free>>10, leastFree>>10, dir)
	case st.Files > 0 && st.Ffree == 0:
		return fmt.Errorf("the file system of %s has no more inodes: delete files there (df -i %s)", dir, dir)
	}
	return nil
}

// Make makes the state folder, and reports why no files can be written there.
func Make(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return state.Explained(fmt.Errorf("the state folder %s cannot be made: %w", dir, err))
	}
	return CheckDisk(dir)
}

// hasStore reports whether an agent has run with this folder.
func hasStore(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, state.File))
	return !errors.Is(err, fs.ErrNotExist)
}

// withStore opens the store for f.
func withStore(dir string, f func(*state.Store) error) error {
	s, err := state.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.Close())
}

// Founds reports whether an agent with these targets founds a ring: it has no targets, and no ring
// in its state.
func Founds(dir string, targets []string) (founds bool, err error) {
	if len(targets) > 0 {
		return false, nil
	}
	if !hasStore(dir) {
		return true, nil
	}
	err = withStore(dir, func(s *state.Store) error {
		kept, _, err := s.Targets()
		if err != nil {
			return err
		}
		st, err := s.Load()
		founds = len(kept) == 0 && len(st.Ring) == 0
		return err
	})
	return founds && err == nil, err
}

// Identity returns this host's peer id; it makes one if there is none yet.
func Identity(dir string) (id string, err error) {
	err = withStore(dir, func(s *state.Store) error {
		keys, err := s.Keys(rand.Reader)
		if err == nil {
			id = keys.ID().String()
		}
		return err
	})
	return id, err
}

// Owns reports whether the state of an agent that does not run owns addresses that other peers
// would lose with it. A state that cannot be read counts as owning nothing: reset renames it.
func Owns(dir string) (owns bool) {
	if !hasStore(dir) {
		return false
	}
	err := withStore(dir, func(s *state.Store) error {
		keys, err := s.Keys(rand.Reader)
		st, loadErr := s.Load()
		peers, peersErr := s.Peers()
		r, ringErr := ring.Restore(st.Ring)
		if err := errors.Join(err, loadErr, peersErr, ringErr); err != nil {
			return err
		}
		self := keys.ID()
		others := slices.ContainsFunc(peers, func(data []byte) bool {
			p, err := peer.Decode(data)
			return err == nil && p.Record.ID() != self && p.Record.State != peer.Left
		})
		owns = others && len(r.Owned()[self]) > 0
		return nil
	})
	return owns && err == nil
}

// KeepTargets adds hosts to join to the state of an agent that does not run yet.
func KeepTargets(dir string, targets []string) error {
	return withStore(dir, func(s *state.Store) error {
		_, err := AddTargets(s, targets)
		return err
	})
}

// AddTargets adds hosts to join to the targets in the store, and returns all targets.
func AddTargets(s *state.Store, targets []string) ([]string, error) {
	kept, _, err := s.Targets()
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if err := mesh.CheckTarget(t); err != nil {
			return nil, err
		}
		if !slices.Contains(kept, t) {
			kept = append(kept, t)
		}
	}
	return kept, s.SaveTargets(kept)
}
