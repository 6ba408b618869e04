package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// owners returns the nicknames of the owners of addresses, as a host sees them.
func owners(t *testing.T, l *lab.Lab, host string) (names []string) {
	t.Helper()
	for _, o := range report(t, l, host).IPAM.Owners {
		names = append(names, o.Nickname)
	}
	slices.Sort(names)
	return names
}

// gone reports whether a host no longer knows a peer, and has no tunnel to it.
func gone(t *testing.T, l *lab.Lab, host, nickname, key string) bool {
	t.Helper()
	_, tunnel := deviceOf(t, l, host).Peers[key]
	return !tunnel && !strings.Contains(run(t, l, host, "weft", "status", "peers"), "("+nickname+")")
}

// Five seconds after a host was banned, no packet of its containers reaches another host, and its
// addresses belong to others. The flow between two other hosts loses nothing. After the end of the ban
// it connects again by itself, with new addresses.
func TestABanUnderTraffic(t *testing.T) {
	l := membersByToken(t, 3)
	reachEachOther(t, l, l.Hosts()...)
	h3 := report(t, l, "h3").Router
	key, old := deviceOf(t, l, "h3").Public, addrs(t, l, "h3/c1")
	flows := map[string]func() []probe.Result{}
	for _, proto := range []string{"icmp", "tcp"} {
		flows[proto+" from h1"] = traffic(t, l, "h1/c1", proto, "", addrs(t, l, "h2/c1")...)
	}
	banned := traffic(t, l, "h3/c1", "icmp", marker, slices.Concat(addrs(t, l, "h1/c1"), addrs(t, l, "h2/c1"))...)
	says(t, fails(t, l, "h2", "", "weft", "rmpeer", "--ban", "h3"), "may not admit or ban", "exit code")
	says(t, fails(t, l, "h2", "", "weft", "unban", h3.ID), "may not admit or ban", "exit code")
	says(t, fails(t, l, "h1", "", "weft", "unban", h3.ID), "is not banned")

	start := time.Now()
	says(t, run(t, l, "h1", "weft", "rmpeer", "--ban", "--reason", "stolen from the rack", "h3"), "(h3)")
	t.Logf("rmpeer --ban took %v", time.Since(start).Round(10*time.Millisecond))
	for _, h := range []string{"h1", "h2"} {
		eventually.True(t, time.Until(start.Add(5*time.Second)), h+" has forgotten h3", func() bool { return gone(t, l, h, "h3", key) })
	}
	t.Logf("both others have forgotten h3 after %v", time.Since(start).Round(10*time.Millisecond))
	for _, at := range []string{"h1/c1", "h2/c1"} {
		if n := watch(t, l, at, func() {}); n != 0 {
			t.Errorf("%d packets of the banned host's container arrived at %s, want none", n, at)
		}
	}
	if got := owners(t, l, "h1"); !slices.Equal(got, []string{"h1", "h2"}) {
		t.Errorf("the owners of addresses are %v, want h1 and h2", got)
	}
	knowsOwnBan := func() bool {
		out, _ := l.Exec(t.Context(), "h3", nil, "weft", "status")
		return strings.Contains(out, "was banned") && strings.Contains(out, "stolen from the rack")
	}
	eventually.True(t, 10*time.Second, "h3 reports that it is banned", knowsOwnBan)
	if err := l.Kill(t.Context(), "h3", "agent"); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Exec(t.Context(), "h3", nil, "weft", "launch", "--wait", "0"); err != nil {
		t.Fatal(err, out)
	}
	eventually.True(t, 10*time.Second, "h3 reports after a restart that it is banned", knowsOwnBan)
	for _, r := range banned() {
		if r.Received == 0 || r.Lost == 0 {
			t.Errorf("of the banned host's flow to %v %d messages were answered, %d not; want some of each", r.Addr, r.Received, r.Lost)
		}
	}

	start = time.Now()
	run(t, l, "h1", "weft", "unban", h3.ID)
	for _, h := range l.Hosts() {
		eventually.True(t, time.Until(start.Add(30*time.Second)), h+" has all its tunnels after the end of the ban", func() bool {
			return len(deviceOf(t, l, h).Peers) == 2
		})
	}
	established(t, l)
	t.Logf("h3 is connected %v after the end of its ban", time.Since(start).Round(10*time.Millisecond))
	eventually.True(t, 20*time.Second, "h3 reports the addresses that it lost", func() bool {
		out, _ := l.Exec(t.Context(), "h3", nil, "weft", "status", "ipam")
		return strings.Contains(out, "had "+old[0]+", which")
	})
	eventually.True(t, 10*time.Second, "h3 is ready again", func() bool { return report(t, l, "h3").Ready })
	for _, h := range l.Hosts() {
		out := run(t, l, h, "weft", "status")
		if strings.Contains(out, "this host was banned") || strings.Contains(out, "reported falsely") {
			t.Errorf("after the end of the ban, the status of %s still has a ban of its own, or accuses a host; want neither:\n%s", h, out)
		}
	}
	container(t, l, "h3/d")
	fresh, err := l.Plug(t.Context(), "h3/d")
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 20*time.Second, "a new container of h3 reaches h1 and h2", func() bool {
		_, err := l.Exec(t.Context(), "h3/d", nil, append([]string{"weft", "probe", "icmp", "--count", "1"}, slices.Concat(addrs(t, l, "h1/c1"), addrs(t, l, "h2/c1"))...)...)
		return err == nil
	})
	if _, err := l.Exec(t.Context(), "h3/c1", nil, "weft", "probe", "icmp", "--count", "1", addrs(t, l, "h1/c1")[0]); err == nil || slices.Contains(fresh, old[0]) {
		t.Errorf("the container of before, with the lost address %s, still reaches others (%v), or the new one has its address: %v", old[0], err, fresh)
	}

	// An agent that is not restarted meanwhile connects again as well.
	run(t, l, "h1", "weft", "rmpeer", "--ban", "h3")
	eventually.True(t, 10*time.Second, "h3 reports the second ban", func() bool {
		out, _ := l.Exec(t.Context(), "h3", nil, "weft", "status")
		return strings.Contains(out, "this host was banned")
	})
	start = time.Now()
	run(t, l, "h1", "weft", "unban", h3.ID)
	for _, h := range l.Hosts() {
		eventually.True(t, time.Until(start.Add(30*time.Second)), h+" has all its tunnels after the second ban", func() bool {
			return len(deviceOf(t, l, h).Peers) == 2
		})
	}
	t.Logf("h3 is connected %v after the end of its second ban", time.Since(start).Round(10*time.Millisecond))
	undisturbed(t, flows)
}

// A host that a token with --admits admitted can admit and ban, but neither give that right nor ban a
// host that holds the secret.
func TestAHostThatAdmits(t *testing.T) {
	labtest.Waits(t)
	l := bare(t, 3)
	launchFounder(t, l)
	joinBy(t, l, "h2", newToken(t, l, "h1", "--admits", "--name", "deputy"), "192.0.2.1")
	says(t, fails(t, l, "h2", "", "weft", "token", "create", "--admits"), "only a host that holds the network's secret")
	joinBy(t, l, "h3", newToken(t, l, "h2", "--name", "of the deputy"), "192.0.2.2")
	established(t, l)
	plugEach(t, l, l.Hosts()...)
	reachEachOther(t, l, l.Hosts()...)
	key, id := deviceOf(t, l, "h3").Public, report(t, l, "h3").Router.ID
	find := func(host string) (found api.Token) {
		for _, tok := range tokensOf(t, l, host) {
			if tok.Name == "of the deputy" {
				found = tok
			}
		}
		return found
	}
	eventually.True(t, 10*time.Second, "h1 lists h2's token, with the host that it admitted", func() bool {
		tok := find("h1")
		return strings.HasSuffix(tok.By, "(h2)") && len(tok.Hosts) == 1 && strings.HasSuffix(tok.Hosts[0], "(h3)")
	})

	says(t, fails(t, l, "h2", "", "weft", "rmpeer", "--ban", "h1"), "only a host that holds the network's secret", "exit code")
	says(t, fails(t, l, "h3", "", "weft", "rmpeer", "--ban", "h2"), "may not admit or ban")
	time.Sleep(2 * time.Second) // a ban that counts takes effect within this time
	established(t, l)
	for _, h := range l.Hosts() {
		if log := run(t, l, h, "cat", "/var/lib/weft/agent.log"); strings.Contains(log, "is banned") {
			t.Errorf("%s logs a ban, want none: no ban counts\n%s", h, log)
		}
	}

	run(t, l, "h2", "weft", "rmpeer", "--ban", "h3")
	for _, h := range []string{"h1", "h2"} {
		eventually.True(t, 5*time.Second, h+" has forgotten h3", func() bool { return gone(t, l, h, "h3", key) })
		if got := owners(t, l, h); !slices.Equal(got, []string{"h1", "h2"}) {
			t.Errorf("%s: the owners of addresses are %v, want h1 and h2", h, got)
		}
	}
	says(t, fails(t, l, "h3", newToken(t, l, "h1"), "sh", "-c", "weft stop && weft launch --wait 5s --token - 192.0.2.1"), "this host was banned", fmt.Sprintf("weft unban %s", id), "exit code 4")
	// The holder's ban of a host that admits counts. With it, the bans by that host end.
	key = deviceOf(t, l, "h2").Public
	run(t, l, "h1", "weft", "rmpeer", "--ban", "h2")
	eventually.True(t, 5*time.Second, "h1 has forgotten h2, and h3's ban has ended", func() bool {
		return gone(t, l, "h1", "h2", key) && strings.Contains(run(t, l, "h1", "cat", "/var/lib/weft/agent.log"), "the ban of a peer has ended")
	})
}
