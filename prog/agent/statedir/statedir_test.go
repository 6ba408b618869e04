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
			t.Errorf("CheckDisk with free space again returned %v, want nil", err)
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

func TestOnlyALaunchDecisionAfterTheRecordedOneIsNew(t *testing.T) {
	dir := t.TempDir()
	if LaunchedSince(dir, nil) {
		t.Error("LaunchedSince returned true before any decision of weft launch was stored, want false")
	}
	for range 3 {
		before := Launched(dir)
		if before != nil && LaunchedSince(dir, before) {
			t.Error("LaunchedSince returned true for the earlier decision, want false")
		}
		if err := MarkLaunched(dir, true); err != nil {
			t.Fatal(err)
		}
		if !LaunchedSince(dir, before) {
			t.Error("LaunchedSince returned false for a new decision, want true")
		}
	}
	if !ToldToFound(dir) {
		t.Error("ToldToFound returned false after launch decided to found, want true")
	}
	if err := MarkLaunched(dir, false); err != nil || ToldToFound(dir) {
		t.Errorf("after launch decided to join: error %v, or ToldToFound is true; want neither", err)
	}
	if err := errors.Join(ForgetLaunched(dir), ForgetLaunched(dir)); err != nil || Launched(dir) != nil {
		t.Errorf("ForgetLaunched left the decision, or failed: %v; want no decision, also the second time", err)
	}
}

func TestAFailedLaunchIsRevertedUnlessTheHostBelongsToANetwork(t *testing.T) {
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
			err = EstablishSecret(dir, Given{}, true)
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
				t.Errorf("the secret exists: %v, the decision exists: %v; want both only if the host belongs to a network", kept, ToldToFound(dir))
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
	if err := EstablishSecret(dir, Given{}, false); err == nil || !strings.Contains(err.Error(), "weft launch --token - HOST") {
		t.Errorf("a host that joins without a token: error %v, want one that names weft launch", err)
	}
	if err := EstablishSecret(dir, Given{}, true); err != nil {
		t.Fatal(err)
	}
	mine, err := Secret(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, SecretFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the secret's file: %v, error %v; want mode 0600", info, err)
	}
	other, err := secret.FromPassword("of another cluster", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := EstablishSecret(dir, Given{Secret: &other}, false); err == nil || !strings.Contains(err.Error(), "weft reset") {
		t.Errorf("the secret of another cluster: error %v, want one that names weft reset", err)
	}
	for _, given := range []*secret.Token{nil, &mine} {
		err := EstablishSecret(dir, Given{Secret: given}, false)
		if kept, e := Secret(dir); err != nil || e != nil || kept != mine {
			t.Errorf("the secret changed, or error %v; want the secret of before", err)
		}
	}
}
