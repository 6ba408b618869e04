package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
	"weft/router/link"
)

// newToken creates a token on a host.
func newToken(t *testing.T, l *lab.Lab, host string, flags ...string) string {
	t.Helper()
	return strings.TrimSpace(run(t, l, host, append([]string{"weft", "token", "create"}, flags...)...))
}

// joinBy has a host join by a token at the host with this underlay address.
func joinBy(t *testing.T, l *lab.Lab, host, token, at string) {
	t.Helper()
	if _, err := l.Exec(t.Context(), host, strings.NewReader(token), "weft", "launch", "--token", "-", at); err != nil {
		t.Fatal(err)
	}
}

// membersByToken returns a lab whose h1 holds the secret. The other hosts have joined by tokens, so they
// do not. Each host has one container.
func membersByToken(t *testing.T, hosts int) *lab.Lab {
	t.Helper()
	l := bare(t, hosts)
	launchFounder(t, l)
	for _, h := range l.Hosts()[1:] {
		joinBy(t, l, h, newToken(t, l, "h1"), "192.0.2.1")
	}
	established(t, l)
	plugEach(t, l, l.Hosts()...)
	return l
}

// plugEach attaches the container c1 of hosts, which then answers probes.
func plugEach(t *testing.T, l *lab.Lab, hosts ...string) {
	t.Helper()
	for _, h := range hosts {
		if _, err := l.Plug(t.Context(), h+"/c1"); err != nil {
			t.Fatal(err)
		}
		listen(t, l, h+"/c1")
	}
}

// reachEachOther waits until the containers c1 of all hosts know each other's way, and then expects that
// no message between any two of them is lost. It waits 5 s for each: hosts share a machine, and late is not lost.
func reachEachOther(t *testing.T, l *lab.Lab, hosts ...string) {
	t.Helper()
	for _, from := range hosts {
		var to []string
		for _, h := range hosts {
			if h != from {
				to = append(to, addrs(t, l, h+"/c1")...)
			}
		}
		eventually.True(t, 20*time.Second, from+"'s container reaches the others", func() bool {
			_, err := l.Exec(t.Context(), from+"/c1", nil, append([]string{"weft", "probe", "icmp", "--count", "1"}, to...)...)
			return err == nil
		})
		for _, proto := range []string{"icmp", "tcp"} {
			run(t, l, from+"/c1", append([]string{"weft", "probe", proto, "--count", "3", "--interval", "20ms", "--timeout", "5s", "--size", "400", "--marker", marker}, to...)...)
		}
	}
}

// traffic sends a message that contains mark every 20 ms from a container until the returned function is
// called, which returns what arrived.
func traffic(t *testing.T, l *lab.Lab, from, proto, mark string, to ...string) (stop func() []probe.Result) {
	t.Helper()
	in, end := io.Pipe()
	type outcome struct {
		out string
		err error
	}
	done := make(chan outcome, 1)
	args := []string{"weft", "probe", proto, "--until-eof", "--count", "1000000", "--interval", "20ms", "--timeout", "5s", "--marker", mark, "--json"}
	ctx := context.WithoutCancel(t.Context())
	go func() {
		out, err := l.Exec(ctx, from, in, append(args, to...)...)
		done <- outcome{out, err}
	}()
	return func() (results []probe.Result) {
		t.Helper()
		end.Close()
		o := <-done
		if err := json.Unmarshal([]byte(o.out), &results); err != nil {
			t.Fatalf("%s from %s: error %v, and the result is unreadable, want JSON: %s", proto, from, o.err, o.out)
		}
		return results
	}
}

// undisturbed ends flows and asserts that they lost nothing.
func undisturbed(t *testing.T, flows map[string]func() []probe.Result) {
	t.Helper()
	for name, stop := range flows {
		for _, r := range stop() {
			if !r.OK() || r.Sent < 50 {
				t.Errorf("%s: %+v; want at least 50 messages, and none lost, repeated or changed", name, r)
			}
			t.Logf("%s to %v: %d sent, %d lost", name, r.Addr, r.Sent, r.Lost)
		}
	}
}

// tunnels prints the public key of this host's WireGuard device, and the pre-shared key of each of its
// peers by their public keys, as JSON.
func tunnels([]string) error {
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer client.Close()
	dev, err := client.Device(link.Device)
	if err != nil {
		return err
	}
	d := device{Public: dev.PublicKey.String(), Peers: map[string]string{}}
	for _, p := range dev.Peers {
		d.Peers[p.PublicKey.String()] = p.PresharedKey.String()
	}
	return json.NewEncoder(os.Stdout).Encode(d)
}

// device is what tunnels prints.
type device struct {
	Public string
	Peers  map[string]string
}

func deviceOf(t *testing.T, l *lab.Lab, host string) (d device) {
	t.Helper()
	if err := json.Unmarshal([]byte(run(t, l, host, toolArgs(t, "tunnels")...)), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// leftNothing asserts that a refused launch left no trace of a network on a host.
func leftNothing(t *testing.T, l *lab.Lab, host string) {
	t.Helper()
	for _, name := range []string{"secret", "invitation", "membership", "launched"} {
		if _, err := os.Stat(filepath.Join(l.StateDir(host), name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after a refused launch %s has the file %s (%v), want none", host, name, err)
		}
	}
	says(t, fails(t, l, host, "", "weft", "status"), "not running")
	says(t, fails(t, l, host, "", "weft", "launch", "192.0.2.1"), "needs a token") // no earlier token is left
}

// tokensOf returns what a host lists as tokens.
func tokensOf(t *testing.T, l *lab.Lab, host string) (list []api.Token) {
	t.Helper()
	if err := json.Unmarshal([]byte(run(t, l, host, "weft", "token", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// Hosts join by tokens, without the secret. A token counts only at hosts that may admit, only in its
// network, and until it is used up, revoked or expired.
func TestHostsJoinByTokens(t *testing.T) {
	labtest.Waits(t)
	l := bare(t, 4)
	launchFounder(t, l)
	one, rack := newToken(t, l, "h1"), newToken(t, l, "h1", "--uses", "2", "--name", "rack")
	joinBy(t, l, "h2", one, "192.0.2.1")
	says(t, fails(t, l, "h3", rack, "weft", "launch", "--token", "-", "192.0.2.2"), "may not admit", "exit code 1")
	leftNothing(t, l, "h3")
	joinBy(t, l, "h3", rack, "192.0.2.1")
	three := []string{"h1", "h2", "h3"}
	plugEach(t, l, three...)
	capture, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	reachEachOther(t, l, three...)
	silent(t, capture)

	list := tokensOf(t, l, "h2")
	i := slices.IndexFunc(list, func(tok api.Token) bool { return tok.Name == "rack" })
	if len(list) != 2 || i < 0 || list[i].Uses != 2 || list[i].Used != 1 || len(list[i].Hosts) != 1 || !strings.HasSuffix(list[i].Hosts[0], "(h3)") {
		t.Fatalf("h2 lists the tokens %+v; want two, of which rack admitted h3 with one of its two uses", list)
	}
	says(t, run(t, l, "h1", "weft", "token", "list"), "rack", "1 of 2", "(h3)", "used up")
	for _, h := range three {
		if _, err := os.Stat(filepath.Join(l.StateDir(h), "secret")); (err == nil) != (h == "h1") {
			t.Errorf("%s: the file of the secret: %v; want it on h1 only", h, err)
		}
		if _, err := os.Stat(filepath.Join(l.StateDir(h), "invitation")); err == nil {
			t.Errorf("%s still has the token with which it joined, want it removed", h)
		}
		var log string
		joined := fmt.Sprintf("%s token=%s from=\"?192.0.2.3", list[i].Hosts[0], list[i].ID)
		eventually.True(t, 10*time.Second, h+" logs that h3 joined", func() bool {
			log = run(t, l, h, "cat", "/var/lib/weft/agent.log")
			return strings.Contains(strings.ReplaceAll(log, `"`, ""), strings.ReplaceAll(joined, `"?`, ""))
		})
		public := run(t, l, h, "weft", "report") + run(t, l, h, "weft", "status") + run(t, l, h, "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; true")
		for _, secret := range []string{one, rack} {
			if strings.Contains(log+public, strings.TrimPrefix(secret, "weft2-")) {
				t.Errorf("%s: a log, the status or a process's arguments contain a token, want it in none", h)
			}
		}
	}

	revoked, brief := newToken(t, l, "h1", "--name", "lost"), newToken(t, l, "h1", "--ttl", "1s")
	run(t, l, "h1", "weft", "token", "revoke", "lost")
	run(t, l, "h4", "weft", "launch")
	foreign := newToken(t, l, "h4")
	run(t, l, "h4", "weft", "reset")
	for _, c := range []struct {
		token string
		words []string
	}{
		{foreign, []string{"another network"}},
		{one, []string{"its one use went to", "(h2)", "weft token create"}},
		{revoked, []string{"(lost)", "revoked it"}},
		{brief, []string{"expired at", "clock says"}}, // by now, its second has passed
	} {
		says(t, fails(t, l, "h4", c.token, "weft", "launch", "--token", "-", "192.0.2.1"), append(c.words, "exit code 1")...)
		leftNothing(t, l, "h4")
	}
	if n := len(report(t, l, "h1").Router.Peers); n != 3 {
		t.Errorf("h1 knows %d peers, want 3: no refused host", n)
	}
	run(t, l, "h2", "weft", "reset", "--force")
	says(t, fails(t, l, "h2", one, "weft", "launch", "--token", "-", "192.0.2.1"), "its one use went to")
	joinBy(t, l, "h2", newToken(t, l, "h1"), "192.0.2.1")
	joinBy(t, l, "h4", token(t, l), "192.0.2.1") // the secret itself, as before there were tokens
	if _, err := os.Stat(filepath.Join(l.StateDir("h4"), "secret")); err != nil {
		t.Error(err)
	}
	established(t, l)
	for _, h := range []string{"h2/d", "h4/d"} {
		container(t, l, h)
		if _, err := l.Plug(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, 20*time.Second, "the new containers reach each other", func() bool {
		_, err := l.Exec(t.Context(), "h2/d", nil, append([]string{"weft", "probe", "icmp", "--count", "1"}, addrs(t, l, "h4/d")...)...)
		return err == nil
	})
}
