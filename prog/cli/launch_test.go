package cli

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/mesh/secret"
	"weft/prog/agent/statedir"
	"weft/prog/api"
)

// An agent without targets founds a network only if it was told to.
func TestAgentFoundsANetworkOnlyOnRequest(t *testing.T) {
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		change func(*launchFlags) error
		waits  bool
	}{
		"nothing":       {func(*launchFlags) error { return nil }, true},
		"joined before": {func(f *launchFlags) error { return statedir.MarkLaunched(f.StateDir, false) }, true},
		"a token":       {func(f *launchFlags) error { f.tokenSrc = "-"; return nil }, true},
		"--found":       {func(f *launchFlags) error { f.found = true; return nil }, false},
		"weft launch":   {func(f *launchFlags) error { return statedir.MarkLaunched(f.StateDir, true) }, false},
		"--discover":    {func(f *launchFlags) error { f.Discover = true; return nil }, false},
		"discover in the file after weft reset": {func(f *launchFlags) error {
			f.Discover, f.from = true, origins{"discover": api.FromFile}
			return nil
		}, true},
		"discover in the file after weft launch": {func(f *launchFlags) error {
			f.Discover, f.from = true, origins{"discover": api.FromFile}
			return statedir.MarkLaunched(f.StateDir, false)
		}, false},
		"PEER":            {func(f *launchFlags) error { f.Targets = []string{"192.0.2.1"}; return nil }, false},
		"targets kept":    {func(f *launchFlags) error { return statedir.KeepTargets(f.StateDir, []string{"192.0.2.1"}) }, false},
		"--ipalloc-init=": {func(f *launchFlags) error { f.init = "observer"; return nil }, false},
	} {
		f := &launchFlags{}
		f.StateDir, f.RunDir, f.Log = t.TempDir(), t.TempDir(), slog.New(slog.DiscardHandler)
		if err := tt.change(f); err != nil {
			t.Fatal(err)
		}
		ended, err := f.awaitLaunch(stopped)
		if waited := ended || err != nil; waited != tt.waits { // an error also counts: without root it cannot wait
			t.Errorf("%s: the agent waited: %v, error %v; want the opposite", name, waited, err)
		}
	}
}

// Announcements of a network with a password would let others on the LAN try passwords.
func TestDiscoverNeedsARandomSecret(t *testing.T) {
	password, err := secret.FromPassword("a password of all hosts", "")
	if err != nil {
		t.Fatal(err)
	}
	f := &launchFlags{}
	if err := f.checkDiscover(statedir.Given{Secret: &password}); err != nil {
		t.Errorf("without --discover: %v, want no error", err)
	}
	f.Discover = true
	if err := f.checkDiscover(statedir.Given{Secret: &password}); err == nil || !strings.Contains(err.Error(), "weft token new") {
		t.Errorf("a password with --discover: %v, want an error that names weft token new", err)
	}
	if err := f.checkDiscover(statedir.Given{Secret: &secret.Token{Cluster: secret.ClusterID{1}}}); err != nil {
		t.Errorf("a random secret with --discover: %v, want no error", err)
	}
}

// When launch is interrupted, its error says that the agent keeps running.
func TestInterruptedLaunchKeepsAgentRunning(t *testing.T) {
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	a := &app{err: &bytes.Buffer{}}
	err := a.waitReady(interrupted, api.NewClient(filepath.Join(t.TempDir(), "none")), &launchFlags{wait: time.Minute}, nil)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotReady || !strings.Contains(e.Message, "the agent keeps running") {
		t.Errorf("got error %v, want one with the code %s that says that the agent keeps running", err, api.CodeNotReady)
	}
}
