package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// statusOf returns what a host's status says, also if the host is not ready.
func statusOf(t *testing.T, l *lab.Lab, host string) string {
	t.Helper()
	out, _ := l.Exec(t.Context(), host, nil, "weft", "status") // the exit code only says whether the host is ready
	return out
}

// Agents are upgraded one by one from the version before sessions, on the same state. The two versions
// refuse each other and both say why. Meanwhile all tunnels stay and no packet is lost. In the end all
// hosts are connected, with the addresses and policies of before.
func TestMovingFromTheVersionBefore(t *testing.T) {
	old := filepath.Join(labtest.Earlier(t, labtest.BeforeSessions), "weft")
	l := bare(t, 3)
	run(t, l, "h1", old, "launch")
	for _, h := range []string{"h2", "h3"} {
		if _, err := l.Exec(t.Context(), h, strings.NewReader(token(t, l)), old, "launch", "--token", "-", "192.0.2.1"); err != nil {
			t.Fatal(err)
		}
	}
	established(t, l)
	plugEach(t, l, l.Hosts()...)
	container(t, l, "h2/iso")
	if _, err := l.PlugAs(t.Context(), "h2/iso", lab.Identity{Namespace: "test", Name: "iso", Labels: map[string]string{"role": "isolated"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Exec(t.Context(), "h1", strings.NewReader(manifest(`test: {podSelector: {matchLabels: {role: isolated}}}`)), old, "policy", "apply", "--wait", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	reachEachOther(t, l, l.Hosts()...)
	isolated := func(when string) {
		t.Helper()
		for _, from := range []string{"h1/c1", "h2/c1", "h3/c1"} {
			if _, err := l.Exec(t.Context(), from, nil, "weft", "probe", "icmp", "--count", "1", "--timeout", "300ms", addrs(t, l, "h2/iso")[0]); err == nil {
				t.Errorf("%s: %s reaches the isolated container, want the policy in force", when, from)
			}
		}
	}
	isolated("before the upgrade")
	before, keys, given := owners(t, l, "h1"), pairKeys(t, l), map[string][]string{}
	for _, h := range l.Hosts() {
		given[h] = slices.Concat(addrs(t, l, h+"/c1"), []string{report(t, l, h).Router.Node[0].String()})
	}
	flows := map[string]func() []probe.Result{}
	for from, to := range map[string]string{"h1/c1": "h2/c1", "h2/c1": "h3/c1", "h3/c1": "h1/c1"} {
		for _, proto := range []string{"icmp", "tcp"} {
			flows[proto+" from "+from] = traffic(t, l, from, proto, marker, addrs(t, l, to)...)
		}
	}
	start := time.Now()
	for i, h := range l.Hosts() {
		run(t, l, h, old, "stop")
		run(t, l, h, "weft", "launch")
		t.Logf("%v: %s runs the new version", time.Since(start).Round(10*time.Millisecond), h)
		if log := run(t, l, h, "cat", "/var/lib/weft/agent.log"); strings.Contains(log, "level=ERROR") {
			t.Errorf("the new agent of %s logs an error, want none:\n%s", h, log)
		}
		if i == 2 {
			break
		}
		last := "h3" // it still runs the version before
		eventually.True(t, 20*time.Second, h+" names the hosts of the older version", func() bool {
			return strings.Contains(statusOf(t, l, h), "older version of Weft")
		})
		eventually.True(t, 20*time.Second, last+" is told that it is the older one", func() bool {
			out := statusOf(t, l, last)
			return strings.Contains(out, "it uses protocol version 2, this peer version 1: upgrade the older one") && !strings.Contains(out, "another program")
		})
		if i == 0 {
			t.Log(h, statusOf(t, l, h))
			t.Log(last, statusOf(t, l, last), run(t, l, last, "weft", "status", "targets"))
		}
		isolated("while " + h + " is the last that was upgraded")
		if now := pairKeys(t, l); fmt.Sprint(now) != fmt.Sprint(keys) {
			t.Errorf("after the upgrade of %s, the pre-shared keys of the tunnels are %v, want those of before: %v", h, now, keys)
		}
	}
	established(t, l)
	t.Logf("%v: all hosts are connected", time.Since(start).Round(10*time.Millisecond))
	for _, h := range l.Hosts() {
		eventually.True(t, 20*time.Second, h+" has no complaint and the owners of before", func() bool {
			return report(t, l, h).Ready && slices.Equal(owners(t, l, h), before)
		})
		if now := slices.Concat(addrs(t, l, h+"/c1"), []string{report(t, l, h).Router.Node[0].String()}); !slices.Equal(now, given[h]) {
			t.Errorf("%s has the addresses %v, want those of before: %v", h, now, given[h])
		}
		container(t, l, h+"/new")
		if _, err := l.Plug(t.Context(), h+"/new"); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range l.Hosts() {
		eventually.True(t, 20*time.Second, "the new container of "+h+" reaches all others", func() bool {
			var to []string
			for _, other := range l.Hosts() {
				to = append(to, slices.Concat(addrs(t, l, other+"/c1"), addrs(t, l, other+"/new"))...)
			}
			_, err := l.Exec(t.Context(), h+"/new", nil, append([]string{"weft", "probe", "icmp", "--count", "1"}, to...)...)
			return err == nil
		})
	}
	isolated("after the upgrade")
	if now := pairKeys(t, l); fmt.Sprint(now) != fmt.Sprint(keys) {
		t.Errorf("after the upgrade, the pre-shared keys are %v, want those of before: %v", now, keys)
	}
	undisturbed(t, flows)
}
