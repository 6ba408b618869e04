package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
)

// An agent that a supervisor started on a host without a network waits. weft launch makes it join in
// the same process. Of two concurrent launches, one succeeds; the other fails, and says that a
// launch is under way.
func TestLaunchMakesWaitingAgentJoin(t *testing.T) {
	l := bare(t, 2)
	launchFounder(t, l)
	if _, err := l.Background(t.Context(), "h2", "belongs to no network", "weft", "agent"); err != nil {
		t.Fatal(err)
	}
	before := report(t, l, "h2")
	if before.Ready || !before.Waiting || !strings.Contains(before.NotReady, "weft launch --token - HOST") {
		t.Errorf("the waiting agent reports ready %v, waiting %v, reason %s; want waiting, and how to launch", before.Ready, before.Waiting, before.NotReady)
	}
	says(t, fails(t, l, "h2", "", "weft", "launch", "192.0.2.1"), "needs a token")
	if out, err := l.Exec(t.Context(), "h2", strings.NewReader(token(t, l)), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Fatalf("launch with a token returned %v, want success: %s", err, out)
	}
	established(t, l)
	if now := report(t, l, "h2").Router.PID; now != before.Router.PID {
		t.Errorf("the waiting agent had the pid %d, after launch it has %d; want the same process", before.Router.PID, now)
	}

	run(t, l, "h2", "weft", "stop")
	var both sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		both.Go(func() {
			if out, err := l.Exec(t.Context(), "h2", nil, "weft", "launch"); err != nil {
				errs[i] = fmt.Errorf("%w: %s", err, out)
			}
		})
	}
	both.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Fatalf("two concurrent launches returned %v and %v, want one success", errs[0], errs[1])
	}
	for _, err := range errs {
		if err != nil && !strings.Contains(err.Error(), "is under way on this host") && !strings.Contains(err.Error(), "already runs on this host") {
			t.Errorf("the second launch returned %v, want an error that a launch is under way or the agent runs", err)
		}
	}
	established(t, l)
}

// While the state's disk is full, the host is not ready, and launch says why. Attached containers
// keep working and can be detached. Once there is room, the host becomes ready by itself.
func TestFullDiskMakesTheHostNotReady(t *testing.T) {
	l := bare(t, 1)
	const room = "/var/lib/weft/room"
	fill := func() {
		run(t, l, "h1", "sh", "-ec", "head -c $(( ($(stat -f -c %a /var/lib/weft) * $(stat -f -c %S /var/lib/weft)) - 300000 )) /dev/zero >"+room)
	}
	run(t, l, "h1", "mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/var/lib/weft")
	fill()
	says(t, fails(t, l, "h1", "", "weft", "launch"), "/var/lib/weft is full", "make room")
	run(t, l, "h1", "rm", room)
	launchFounder(t, l)
	good := fmt.Sprintf(conf, "1.1.0", "")
	netns, other := container(t, l, "h1/x"), container(t, l, "h1/y")
	if out, err := plugin(l, t, "ADD", "x", netns, good); err != nil {
		t.Fatalf("ADD before the disk is full returned %v, want success: %s", err, out)
	}
	fill()
	eventually.True(t, 10*time.Second, "the host is not ready, and reports the reason", func() bool {
		r := report(t, l, "h1")
		return !r.Ready && strings.Contains(r.NotReady, "is full")
	})
	out, err := plugin(l, t, "ADD", "y", other, good)
	var answer struct{ Code int }
	if json.Unmarshal([]byte(out), &answer) != nil || err == nil || answer.Code != 11 || !strings.Contains(out, "is full") {
		t.Errorf("ADD on a full disk: error %v, want code 11 and the reason: %s", err, out)
	}
	if out, err := plugin(l, t, "DEL", "x", netns, good); err != nil {
		t.Errorf("DEL on a full disk returned %v, want success: %s", err, out)
	}
	nothingLeft(t, l, "h1")
	run(t, l, "h1", "rm", room)
	eventually.True(t, 5*time.Second, "the host is ready again", func() bool { return report(t, l, "h1").Ready })
	if out, err := plugin(l, t, "ADD", "y", other, good); err != nil {
		t.Errorf("ADD after the disk has room returned %v, want success: %s", err, out)
	}
}

// Invariant 8: launch refuses an unusable state file, names it and leaves it unchanged. reset renames it.
func TestInvariant8UnusableStateFileIsRefused(t *testing.T) {
	l := bare(t, 1)
	launchFounder(t, l)
	run(t, l, "h1", "weft", "stop")
	path := filepath.Join(l.StateDir("h1"), "state.db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"torn": good[:2*os.Getpagesize()] /* the heads of the file, which grows by more than it needs */, "foreign": []byte("I am something else"), "empty": {}} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		says(t, fails(t, l, "h1", "", "weft", "launch"), "/var/lib/weft/state.db", "was not changed")
		if after, _ := os.ReadFile(path); !bytes.Equal(after, content) {
			t.Errorf("%s: launch changed the unusable state file, want it unchanged", name)
		}
	}
	run(t, l, "h1", "weft", "reset")
	if aside, _ := filepath.Glob(path + ".aside-*"); len(aside) != 1 {
		t.Errorf("reset left the renamed files %v, want one", aside)
	}
	launchFounder(t, l)
}

// Settings of launch persist over stop and reboot, and `weft config view` shows them. reset removes
// them.
func TestSettingsSurviveRestarts(t *testing.T) {
	l := bare(t, 1)
	launchFounder(t, l, "--mtu", "1300", "--nickname", "a")
	kept := func(when, nickname string, mtu int) {
		t.Helper()
		if r := report(t, l, "h1").Router; r.MTU != mtu || r.Nickname != nickname {
			t.Errorf("%s: the nickname is %s and the MTU %d, want %s and %d", when, r.Nickname, r.MTU, nickname, mtu)
		}
	}
	run(t, l, "h1", "weft", "stop")
	run(t, l, "h1", "weft", "launch")
	kept("after a stop", "a", 1300)
	run(t, l, "h1", "weft", "stop")
	run(t, l, "h1", "weft", "launch", "--nickname", "b")
	kept("with another name", "b", 1300)
	if err := l.Reboot(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	run(t, l, "h1", "weft", "launch")
	kept("after a reboot", "b", 1300)
	says(t, run(t, l, "h1", "weft", "config", "view", "--json"), `"running": true`, `"name": "mtu",
      "value": "1300",
      "origin": "file"`)
	run(t, l, "h1", "weft", "reset")
	run(t, l, "h1", "weft", "launch")
	kept("after a reset", "h1", 1420)
}
