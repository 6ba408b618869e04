package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/ipam"
	"weft/mesh/secret"
	"weft/prog/state"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

func TestAFullOrReadOnlyDiskIsNamedWithItsFix(t *testing.T) {
	dir := t.TempDir()
	routertest.New(t).Do(func() {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Skip(err)
		}
		if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m")); err != nil {
			t.Skip(err)
		}
		fill := filepath.Join(dir, "fill")
		if err := CheckDisk(dir); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(fill, make([]byte, 4<<20-4096), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Make(filepath.Join(dir, "state")); err == nil || !strings.Contains(err.Error(), "is full") || !strings.Contains(err.Error(), "make room") {
			t.Error(err)
		}
		os.Remove(fill)
		if err := CheckDisk(dir); err != nil {
			t.Errorf("there is room again: %v", err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{CheckDisk(dir), Make(filepath.Join(dir, "other"))} {
			if err == nil || !strings.Contains(err.Error(), "read-only") || strings.Contains(err.Error(), "reset") {
				t.Error(err)
			}
		}
	})
}

func TestOnlyALaterDecisionOfLaunchCounts(t *testing.T) {
	dir := t.TempDir()
	if LaunchedSince(dir, nil) {
		t.Error("launch has not decided yet")
	}
	for range 3 {
		before := Launched(dir)
		if before != nil && LaunchedSince(dir, before) {
			t.Error("the earlier decision counts")
		}
		if err := MarkLaunched(dir, true); err != nil {
			t.Fatal(err)
		}
		if !LaunchedSince(dir, before) {
			t.Error("a new decision does not count")
		}
	}
	if !ToldToFound(dir) {
		t.Error("launch decided that this host founds")
	}
	if err := MarkLaunched(dir, false); err != nil || ToldToFound(dir) {
		t.Errorf("launch decided that this host joins: %v", err)
	}
	if err := errors.Join(ForgetLaunched(dir), ForgetLaunched(dir)); err != nil || Launched(dir) != nil {
		t.Errorf("the decision is still there: %v", err)
	}
}

func TestAFailedLaunchLeavesNothingUnlessTheHostBelongsToANetwork(t *testing.T) {
	for name, belongs := range map[string]bool{"failed": false, "founded": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := KeepTargets(dir, []string{"192.0.2.9"}); err != nil { // an earlier launch kept this target
				t.Fatal(err)
			}
			undo, err := BeforeLaunch(dir)
			if err != nil {
				t.Fatal(err)
			}
			_, err = EstablishSecret(dir, nil, true)
			if err := errors.Join(err, MarkLaunched(dir, true), KeepTargets(dir, []string{"192.0.2.1"})); err != nil {
				t.Fatal(err)
			}
			s, err := state.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if belongs {
				if err := s.Update(ipam.Change{Ring: []byte("a ring")}); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(s.Close(), undo(), undo()); err != nil {
				t.Fatal(err)
			}
			_, err = Secret(dir)
			if kept := err == nil; kept != belongs || ToldToFound(dir) != belongs {
				t.Errorf("the secret is kept: %v, the decision: %v", kept, ToldToFound(dir))
			}
			if s, err = state.Open(dir); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if targets, _, err := s.Targets(); err != nil || len(targets) != map[bool]int{true: 2, false: 1}[belongs] {
				t.Error(targets, err)
			}
		})
	}
}

func TestAHostKeepsTheSecretOfItsCluster(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := EstablishSecret(dir, nil, false); err == nil || !strings.Contains(err.Error(), "weft launch --token - HOST") {
		t.Errorf("a host that joins without a token: %v", err)
	}
	mine, err := EstablishSecret(dir, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, SecretFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	other, err := secret.FromPassword("of another cluster")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := EstablishSecret(dir, &other, false); err == nil || !strings.Contains(err.Error(), "weft reset") {
		t.Errorf("the secret of another cluster: %v", err)
	}
	for _, given := range []*secret.Token{nil, &mine} {
		if kept, err := EstablishSecret(dir, given, false); err != nil || kept != mine {
			t.Errorf("it has another secret now: %v", err)
		}
	}
}
