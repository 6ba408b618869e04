package e2e

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// isolatedLab is a lab with an isolated container on h2. Policies allow it to talk with friends, and
// deny traffic from and to foes. h1 and h2 have a friend and a foe each. Friends have flows to the
// isolated container. The isolated container and the foes send to each other all the time.
type isolatedLab struct {
	*policyLab
	flows map[string][]oneFlow // flows of each friend, by its name
	start time.Time
}

const isolatedPolicy = `test: {podSelector: {matchLabels: {role: isolated}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}], egress: [{to: [{podSelector: {matchLabels: {role: friend}}}]}]}`

func newIsolatedLab(t *testing.T) *isolatedLab {
	t.Helper()
	b := &isolatedLab{policyLab: newPolicyLab(t, lab.Options{Hosts: 3}), flows: map[string][]oneFlow{}}
	who := func(role, name string) lab.Identity {
		return lab.Identity{Namespace: "test", Name: name, Labels: map[string]string{"role": role}}
	}
	b.apply("h3", manifest(isolatedPolicy))
	b.add("h2/isolated", who("isolated", "isolated"), 80, streamPort)
	var foes []netip.AddrPort
	for _, host := range []string{"h1", "h2"} {
		b.add(host+"/foe", who("foe", "foe-"+host), 80)
		b.add(host+"/friend", who("friend", "friend-"+host), 80)
		for _, a := range b.addrs[host+"/foe"] {
			foes = append(foes, netip.AddrPortFrom(a, 80))
		}
	}
	b.settled("h1")
	var isolated []netip.AddrPort
	for _, a := range b.addrs["h2/isolated"] {
		isolated = append(isolated, netip.AddrPortFrom(a, 80))
	}
	for _, host := range []string{"h1", "h2"} {
		b.reaches(host+"/friend", "h2/isolated", true, 80)
		b.flows[host+"/friend"] = b.policyLab.flows(host+"/friend", "h2/isolated")
		ask[Nothing](b.policyLab, host+"/foe", "Flood", Datagrams{isolated, 400})
	}
	b.start = time.Now()
	ask[Nothing](b.policyLab, "h2/isolated", "Flood", Datagrams{foes, 400})
	b.goesOn("at first")
	return b
}

// goesOn asserts that flows continue, and that nothing forbidden has arrived so far.
func (b *isolatedLab) goesOn(when string) {
	b.t.Helper()
	b.t.Log(when, "at", time.Since(b.start).Round(beat))
	for friend, flows := range b.flows {
		b.flowing(friend, flows)
	}
	for _, h := range []string{"h1", "h2"} {
		for from := range ask[map[Heard]int](b.policyLab, h+"/foe", "Heard", Nothing{}) {
			b.t.Errorf("%s: the foe on %s received %+v, want nothing", when, h, from)
		}
	}
	for from, n := range ask[map[Heard]int](b.policyLab, "h2/isolated", "Heard", Nothing{}) {
		if b.isFoe(from.From) {
			b.t.Errorf("%s: the isolated container received %d datagrams from the foe %+v, want none", when, n, from)
		}
	}
}

func (b *isolatedLab) isFoe(a netip.Addr) bool {
	return slices.Contains(b.addrs["h1/foe"], a) || slices.Contains(b.addrs["h2/foe"], a)
}

// ends stops all flows, and asserts that they lost no message.
func (b *isolatedLab) ends() {
	b.t.Helper()
	for friend, flows := range b.flows {
		for _, f := range flows {
			c := ask[Count](b.policyLab, friend, "Stop", f.Name)
			if c.Err != "" || len(c.Missing) > 0 || c.Received < c.Sent {
				b.t.Errorf("the flow from %s, %s, lost messages or ended, want no loss: %+v", friend, f.Name, c)
			}
			b.t.Logf("the flow from %s, %s, received %d of %d, longest pause %v", friend, f.Name, c.Received, c.Sent, c.Pause.Round(time.Millisecond))
		}
	}
}

// attack runs commands that flush nftables tables, as other programs may do.
func (b *isolatedLab) attack(when string) {
	b.t.Helper()
	for _, command := range []string{"nft flush ruleset", "nft delete table inet weft", "nft flush table inet weft", "nft flush chain inet weft policies"} {
		_, err := b.Exec(b.t.Context(), "h2", nil, strings.Fields(command)...)
		if _, failed := errors.AsType[*lab.CommandError](err); err != nil && !failed {
			b.t.Fatal(err)
		}
		b.goesOn(when + ", " + command)
	}
}

// upgrade starts the stopped agent of a host from programs of another version.
func (b *isolatedLab) upgrade(host, version string) {
	b.t.Helper()
	programs := labtest.Release(b.t, version)
	if _, err := b.Exec(b.t.Context(), host, nil, programs+"/weft", "launch"); err != nil {
		b.t.Fatal(err)
	}
	out, err := b.weft(host, "", "report", "-f", "{{.version}}")
	if err != nil || strings.TrimSpace(out) != version {
		b.t.Fatalf("after the upgrade %s runs version %q, want %q: %v", host, out, version, err)
	}
}

// The agent is killed, stopped, started, upgraded and restarted with other options. Other programs
// try to flush its tables. Meanwhile no forbidden packet ever passes, and allowed flows lose
// nothing.
func TestPolicyOutlivesAgents(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	b := newIsolatedLab(t)
	kill := func(host string) {
		if err := b.Kill(t.Context(), host, "agent"); err != nil {
			t.Fatal(err)
		}
	}
	start := func(host string, flags ...string) {
		if _, err := b.weft(host, "", append([]string{"launch"}, flags...)...); err != nil {
			t.Fatal(err)
		}
	}
	stop := func(host string) {
		if err := b.Stop(t.Context(), host); err != nil {
			t.Fatal(err)
		}
	}
	b.attack("while the agent of h2 runs")
	kill("h2")
	b.goesOn("the agent of h2 was killed")
	start("h2")
	b.goesOn("the agent of h2 was started again")
	for range 3 {
		kill("h2")
		start("h2")
	}
	b.goesOn("the agent of h2 was killed and started at once, three times")
	stop("h2")
	b.goesOn("the agent of h2 was stopped")
	start("h2", "--policy-exempt", "none")
	b.goesOn("the agent of h2 was started with other rules for the kernel")
	b.attack("while the restarted agent of h2 runs")
	stop("h2")
	b.upgrade("h2", "next")
	b.goesOn("the agent of h2 was upgraded")
	b.attack("while the upgraded agent of h2 runs")
	kill("h1")
	stop("h2")
	b.goesOn("the agents of both hosts are stopped")
	start("h1")
	start("h2")
	b.goesOn("the agents of both hosts run again")
	b.ends()
}

// When a table's owner exits, the kernel keeps the table but clears its owner flag (nf_tables_api.c),
// so that any program can flush it. Then policies are not enforced until an agent is back; they are
// in force when weft launch returns. Allowed flows lose nothing.
func TestPolicyComesBackAfterAFlush(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	b := newIsolatedLab(t)
	if err := b.Kill(t.Context(), "h2", "agent"); err != nil {
		t.Fatal(err)
	}
	run(t, b.Lab, "h2", "nft", "flush", "ruleset")
	if err := b.Start(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // let packets in flight arrive
	heard := func() (n int) {
		for _, h := range []string{"h1/foe", "h2/foe"} {
			for _, k := range ask[map[Heard]int](b.policyLab, h, "Heard", Nothing{}) {
				n += k
			}
		}
		for from, k := range ask[map[Heard]int](b.policyLab, "h2/isolated", "Heard", Nothing{}) {
			if b.isFoe(from.From) {
				n += k
			}
		}
		return n
	}
	before := heard()
	time.Sleep(time.Second)
	if now := heard(); now != before {
		t.Errorf("%d forbidden packets arrived after the agent was back, want none", now-before)
	}
	t.Logf("%d forbidden packets arrived while the table was flushed", before)
	b.ends()
}

// A policy that changes while a host's agent is down is enforced as soon as the agent is back. Until
// then the host enforces the old policy.
func TestAPolicyChangeIsEnforcedOnceTheAgentIsBack(t *testing.T) {
	b := newIsolatedLab(t)
	if err := b.Kill(t.Context(), "h2", "agent"); err != nil {
		t.Fatal(err)
	}
	deny := manifest(`test: {podSelector: {matchLabels: {role: isolated}}, policyTypes: [Ingress, Egress]}`)
	if _, err := b.weft("h1", deny, "policy", "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	b.goesOn("the policy was changed while the agent of h2 is down")
	start := time.Now()
	if err := b.Start(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	b.settled("h2")
	t.Logf("the changed policy was in force %v after the launch began", time.Since(start).Round(time.Millisecond))
	for friend, flows := range b.flows {
		b.silent(friend, flows)
	}
	// A host that joins, here again after weft reset, learns the policies before it is ready.
	if err := b.Stop(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.weft("h3", "", "reset", "--force"); err != nil {
		t.Fatal(err)
	}
	if err := b.Launch(t.Context(), "h3", token(t, b.Lab), "h1"); err != nil {
		t.Fatal(err)
	}
	b.add("h3/isolated", lab.Identity{Namespace: "test", Name: "late", Labels: map[string]string{"role": "isolated"}}, 80)
	b.reaches("h1/foe", "h3/isolated", false, 80)
	b.reaches("h1/friend", "h3/isolated", false, 80)
}
