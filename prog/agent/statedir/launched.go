package statedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"weft/prog/state"
)

// LaunchedFile holds what `weft launch` decided about the network of this host: "found" or "join".
// An agent founds nothing by itself: one that a supervisor starts again after `weft reset` waits
// for this file.
const LaunchedFile = "launched"

// MarkLaunched stores what `weft launch` decided.
func MarkLaunched(dir string, found bool) error {
	word := "join"
	if found {
		word = "found"
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if err := state.WriteFile(filepath.Join(dir, LaunchedFile), []byte(word+"\n"), 0o600); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// ToldToFound reports whether `weft launch` decided that this host founds a network.
func ToldToFound(dir string) bool {
	word, err := os.ReadFile(filepath.Join(dir, LaunchedFile))
	return err == nil && strings.TrimSpace(string(word)) == "found"
}

// BeforeLaunch records the state of a host before launch changes it. The returned function reverts
// the changes of a failed launch. Otherwise the next agent would found or join a network that the
// operator has given up. If the host belongs to a network by then, the function reverts nothing.
func BeforeLaunch(dir string) (undo func() error, err error) {
	stored := func(f func(*state.Store) error) error {
		if !hasStore(dir) {
			return nil
		}
		return withStore(dir, f)
	}
	var targets []string
	if err := stored(func(s *state.Store) (err error) { targets, _, err = s.Targets(); return err }); err != nil {
		return nil, err
	}
	var fresh []string // files that are not there yet
	for _, name := range []string{SecretFile, InvitationFile, MembershipFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			fresh = append(fresh, name)
		}
	}
	return func() error {
		belongs := false
		err := stored(func(s *state.Store) error {
			st, err := s.Load()
			if belongs = len(st.Ring) > 0; belongs || err != nil {
				return err
			}
			return s.SaveTargets(targets)
		})
		if belongs || err != nil {
			return err
		}
		for _, name := range append(fresh, LaunchedFile) {
			if err := removeIfThere(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// removeIfThere removes a file, if it exists.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Launched returns the FileInfo of launch's decision; nil if there is no decision.
func Launched(dir string) os.FileInfo {
	info, _ := os.Stat(filepath.Join(dir, LaunchedFile))
	return info
}

// LaunchedSince reports whether launch has stored another decision than before, a result of Launched.
func LaunchedSince(dir string, before os.FileInfo) bool {
	now, err := os.Stat(filepath.Join(dir, LaunchedFile))
	return err == nil && (before == nil || !os.SameFile(before, now))
}

// ForgetLaunched deletes the decision. The agent calls it once there is a ring, since the decision is
// for the first start only.
func ForgetLaunched(dir string) error { return removeIfThere(filepath.Join(dir, LaunchedFile)) }
