package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// An agent that a supervisor started, on a host of no network, waits. Launch has it join, in the
// same process; of two launches at once one wins, and the other says so.
func TestLaunchHasAWaitingAgentJoin(t *testing.T) {
	l := bare(t, 2)
	launchFounder(t, l)
	if _, err := l.Background(t.Context(), "h2", "belongs to no network", "weft", "agent"); err != nil {
		t.Fatal(err)
	}
	before := report(t, l, "h2")
	if before.Ready || !before.Waiting || !strings.Contains(before.NotReady, "weft launch --token - HOST") {
		t.Errorf("it says that it is ready: %v, waits: %v, %s", before.Ready, before.Waiting, before.NotReady)
	}
	says(t, fails(t, l, "h2", "", "weft", "launch", "192.0.2.1"), "needs its token")
	if out, err := l.Exec(t.Context(), "h2", strings.NewReader(token(t, l)), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	established(t, l)
	if now := report(t, l, "h2").Router.PID; now != before.Router.PID {
		t.Errorf("the agent that waited had the pid %d, the one that joined has %d", before.Router.PID, now)
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
		t.Fatalf("of two launches at once: %v and %v", errs[0], errs[1])
	}
	for _, err := range errs {
		if err != nil && !strings.Contains(err.Error(), "is under way on this host") && !strings.Contains(err.Error(), "runs on this host already") {
			t.Errorf("the one that lost says: %v", err)
		}
	}
	established(t, l)
}

// While the state's disk is full, a host is not ready and launch says why; what is attached goes
// on and can be ended. Once there is room, it is ready by itself.
func TestAFullDisk(t *testing.T) {
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
		t.Fatalf("%v: %s", err, out)
	}
	fill()
	eventually(t, 10*time.Second, "the host is not ready, and says why", func() bool {
		r := report(t, l, "h1")
		return !r.Ready && strings.Contains(r.NotReady, "is full")
	})
	out, err := plugin(l, t, "ADD", "y", other, good)
	var answer struct{ Code int }
	if json.Unmarshal([]byte(out), &answer) != nil || err == nil || answer.Code != 11 || !strings.Contains(out, "is full") {
		t.Errorf("ADD: %v: %s", err, out)
	}
	if out, err := plugin(l, t, "DEL", "x", netns, good); err != nil {
		t.Errorf("DEL: %v: %s", err, out)
	}
	nothingLeft(t, l, "h1")
	run(t, l, "h1", "rm", room)
	eventually(t, 5*time.Second, "it is ready again", func() bool { return report(t, l, "h1").Ready })
	if out, err := plugin(l, t, "ADD", "y", other, good); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
