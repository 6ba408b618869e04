package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/ipam"
	"weft/prog/api"
	"weft/prog/state"
	"weft/router/link"
	"weft/router/routertest"
)

// An agent that belongs to no network founds none: it says so, tells its supervisor that it runs,
// and goes on once launch has decided.
func TestAgentWaitsUntilLaunchDecides(t *testing.T) {
	dir := t.TempDir()
	notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notified.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	opts := Options{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Log: slog.New(slog.DiscardHandler)}
	if err := MarkLaunched(opts.StateDir, false); err != nil { // from an earlier life
		t.Fatal(err)
	}
	type outcome struct {
		launched bool
		err      error
	}
	done := make(chan outcome, 1)
	n := routertest.New(t) // NET_ADMIN, also for ordinary users
	go n.Do(func() {
		launched, err := AwaitLaunch(t.Context(), opts, nil)
		done <- outcome{launched, err}
	})
	said := make([]byte, 4096)
	k, err := notified.Read(said)
	if err != nil || !strings.HasPrefix(string(said[:k]), "READY=1\nSTATUS=this host belongs to no network") {
		t.Fatalf("%q, %v", said[:k], err)
	}
	client := api.NewClient(opts.socket())
	r, err := client.Report(t.Context())
	if err != nil || !r.Waiting || r.Ready || !strings.Contains(r.NotReady, "weft launch --token - HOST") {
		t.Errorf("%+v, %v", r, err)
	}
	if err := client.Ready(t.Context()); err == nil {
		t.Error("it is ready")
	}
	if entries, _ := os.ReadDir(opts.StateDir); len(entries) != 1 || ToldToFound(opts.StateDir) {
		t.Errorf("it made %v", entries)
	}
	if err := MarkLaunched(opts.StateDir, true); err != nil {
		t.Fatal(err)
	}
	if o := <-done; !o.launched || o.err != nil || !ToldToFound(opts.StateDir) {
		t.Errorf("%+v", o)
	}
}

// The word from an earlier life is none.
func TestOnlyANewWordCounts(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, LaunchedFile)
	if launchedSince(path, nil) {
		t.Error("without a word")
	}
	for range 3 {
		before, _ := os.Stat(path)
		if before != nil && launchedSince(path, before) {
			t.Error("the old word counts")
		}
		if err := MarkLaunched(dir, true); err != nil {
			t.Fatal(err)
		}
		if !launchedSince(path, before) {
			t.Error("a new word does not count")
		}
	}
}

func TestWaitingAgentCanBeStopped(t *testing.T) {
	dir := t.TempDir()
	opts := Options{StateDir: dir, RunDir: dir, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	routertest.New(t).Do(func() {
		if launched, err := AwaitLaunch(ctx, opts, nil); launched || err != nil {
			t.Error(launched, err)
		}
	})
}

// What Weft changed is as before, unless somebody else changed it since.
func TestResetRestoresSysctls(t *testing.T) {
	s, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	value := func(name string) string {
		data, _ := os.ReadFile("/proc/sys/net/" + name)
		return strings.TrimSpace(string(data))
	}
	const four, six = "ipv4/ip_forward", "ipv6/conf/all/forwarding"
	routertest.New(t).Do(func() {
		for range 2 { // the second time nothing is to be remembered
			if err := link.Forwarding(true, s.SaveSysctl); err != nil {
				if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
					t.Skip(err)
				}
				t.Fatal(err)
			}
		}
		changed, err := s.Sysctls()
		if err != nil || len(changed) < 2 || value(four) != "1" || value(six) != "1" {
			t.Fatal(changed, err)
		}
		if kept := restoreSysctls(changed); len(kept) > 0 || value(four) != "0" || value(six) != "0" {
			t.Errorf("%v: %s, %s", kept, value(four), value(six))
		}
		if err := link.Sysctl("1", four); err != nil {
			t.Fatal(err)
		}
		if restoreSysctls([]state.Sysctl{{Name: four, Was: "0", Set: "2"}}); value(four) != "1" {
			t.Error("a value that another one set was changed")
		}
	})
}

// A full disk and a read-only one are named with what to do; there is room again once there is.
func TestStateDiskInTrouble(t *testing.T) {
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
		if err := MakeStateDir(filepath.Join(dir, "state")); err == nil || !strings.Contains(err.Error(), "is full") || !strings.Contains(err.Error(), "make room") {
			t.Error(err)
		}
		os.Remove(fill)
		if err := CheckDisk(dir); err != nil {
			t.Error(err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{CheckDisk(dir), MakeStateDir(filepath.Join(dir, "other"))} {
			if err == nil || !strings.Contains(err.Error(), "read-only") || strings.Contains(err.Error(), "reset") {
				t.Error(err)
			}
		}
	})
}

// What a launch that failed wrote is taken back, unless the host belongs to a network by then.
func TestAFailedLaunchLeavesNothing(t *testing.T) {
	for name, belongs := range map[string]bool{"failed": false, "founded": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := KeepTargets(dir, []string{"192.0.2.9"}); err != nil { // of an earlier one
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
				t.Errorf("the secret is kept: %v, the word: %v", kept, ToldToFound(dir))
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
