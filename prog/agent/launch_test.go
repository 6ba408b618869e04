package agent

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/prog/agent/config"
	"weft/prog/agent/statedir"
	"weft/prog/api"
	"weft/router/routertest"
)

// An agent that belongs to no network founds none. It reports that, tells its supervisor that it
// runs, and continues once launch has decided.
func TestAgentWaitsUntilLaunchDecides(t *testing.T) {
	dir := t.TempDir()
	notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notified.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	opts := config.Options{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Log: slog.New(slog.DiscardHandler)}
	if err := statedir.MarkLaunched(opts.StateDir, false); err != nil { // an earlier launch decided to join
		t.Fatal(err)
	}
	type outcome struct {
		launched bool
		err      error
	}
	done := make(chan outcome, 1)
	n := routertest.New(t) // a user namespace: ordinary users have NET_ADMIN in it
	before := statedir.Launched(opts.StateDir)
	go n.Do(func() {
		launched, err := AwaitLaunch(t.Context(), opts, before)
		done <- outcome{launched, err}
	})
	said := make([]byte, 4096)
	k, err := notified.Read(said)
	if err != nil || !strings.HasPrefix(string(said[:k]), "READY=1\nSTATUS=this host belongs to no network") {
		t.Fatalf("systemd got %q, error %v; want READY=1, and what the agent waits for", said[:k], err)
	}
	client := api.NewClient(opts.Socket())
	r, err := client.Report(t.Context())
	if err != nil || !r.Waiting || r.Ready || !strings.Contains(r.NotReady, "weft launch --token - HOST") {
		t.Errorf("report %+v, error %v; want one that waits for weft launch", r, err)
	}
	if err := client.Ready(t.Context()); err == nil {
		t.Error("a waiting agent is ready, want an error")
	}
	if entries, _ := os.ReadDir(opts.StateDir); len(entries) != 1 || statedir.ToldToFound(opts.StateDir) {
		t.Errorf("the state folder has %v, want only the earlier decision", entries)
	}
	select {
	case o := <-done:
		t.Fatalf("the agent started because of an earlier decision: %+v; want it to wait for a new decision", o)
	default:
	}
	if err := statedir.MarkLaunched(opts.StateDir, true); err != nil {
		t.Fatal(err)
	}
	if o := <-done; !o.launched || o.err != nil || !statedir.ToldToFound(opts.StateDir) {
		t.Errorf("after the decision: %+v, want launched, no error, and the decision to found", o)
	}
}

func TestWaitingAgentCanBeStopped(t *testing.T) {
	dir := t.TempDir()
	opts := config.Options{StateDir: dir, RunDir: dir, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	routertest.New(t).Do(func() {
		if launched, err := AwaitLaunch(ctx, opts, nil); launched || err != nil {
			t.Error(launched, err)
		}
	})
}
