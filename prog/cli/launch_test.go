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
		"nothing":         {func(*launchFlags) error { return nil }, true},
		"joined before":   {func(f *launchFlags) error { return statedir.MarkLaunched(f.StateDir, false) }, true},
		"a token":         {func(f *launchFlags) error { f.tokenSrc = "-"; return nil }, true},
		"--found":         {func(f *launchFlags) error { f.found = true; return nil }, false},
		"weft launch":     {func(f *launchFlags) error { return statedir.MarkLaunched(f.StateDir, true) }, false},
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
