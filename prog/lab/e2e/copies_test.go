package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/state"
)

// copyState copies the state and the secret of one host to a folder.
func copyState(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range []string{state.File, "secret"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A host whose disk was copied from another stops as soon as the two meet, and says why;
// the other goes on.
func TestCopiedHostStops(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true})
	launchFounder(t, l)
	good := token(t, l)
	if _, err := l.Exec(t.Context(), "h2", strings.NewReader(good), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	copyState(t, l.StateDir("h2"), l.StateDir("h3"))
	run(t, l, "h3", "weft", "launch", "--wait", "0")
	log := filepath.Join(l.StateDir("h3"), "agent.log")
	eventually(t, 5*time.Second, "the copy stops", func() bool {
		data, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(data), "a disk was copied")
	})
	says(t, fails(t, l, "h3", "", "weft", "status"), "not running")
	eventually(t, time.Minute, "h1 reaches h2 as before", func() bool {
		r := report(t, l, "h2")
		_, err := l.Exec(t.Context(), "h1", nil, "weft", "probe", "icmp", "--count", "1", r.Router.Node[0].String())
		return err == nil && r.Ready
	})
	run(t, l, "h3", "weft", "reset", "--force")
	if _, err := l.Exec(t.Context(), "h3", strings.NewReader(good), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	oneRing(t, l, 3)
}

// An agent whose state was put back to an older copy gives nobody the address of a
// container that it has forgotten, and that still runs.
func TestRestoredStateSparesRunningContainers(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1, Containers: 1, Bare: true})
	launchFounder(t, l)
	if err := l.Stop(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	old := t.TempDir()
	copyState(t, l.StateDir("h1"), old)
	if err := l.Start(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	forgotten, err := l.Plug(t.Context(), "h1/c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Stop(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	copyState(t, old, l.StateDir("h1"))
	if err := l.Start(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	says(t, run(t, l, "h1", "weft", "status"), "does not know it", forgotten[0])
	if err := l.AddContainer(t.Context(), "h1/c2"); err != nil {
		t.Fatal(err)
	}
	fresh, err := l.Plug(t.Context(), "h1/c2")
	if err != nil {
		t.Fatal(err)
	}
	if fresh[0] == forgotten[0] {
		t.Errorf("%s was given twice", fresh[0])
	}
	run(t, l, "h1/c2", "weft", "probe", "icmp", "--count", "1", forgotten[0])
	if err := l.Unplug(t.Context(), "h1/c1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the address is free again", func() bool { return !strings.Contains(run(t, l, "h1", "weft", "status"), forgotten[0]) })
}
