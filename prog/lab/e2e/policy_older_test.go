package e2e

import (
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// Before Linux 6.9 tables have no owners, and another program can flush ours: the linker
// makes an agent that does without them. What passes in the gap is counted: it is closed at
// once while the agent runs, and within its next look in any case.
func TestPolicyWithoutTableOwners(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-X weft/router/nft.ownerless=yes", "-o", bin+"/", "weft/cmd/weft", "weft/cmd/weft-cni")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("WEFT_BIN", bin)
	p := policeLab(t, lab.Options{Hosts: 2})
	p.apply("h1", manifest(`siege: {podSelector: {matchLabels: {role: closed}}}`))
	p.add("h2/closed", lab.Identity{Namespace: "siege", Name: "closed", Labels: map[string]string{"role": "closed"}}, 80)
	p.add("h1/foe", lab.Identity{Namespace: "siege", Name: "foe"}, 80)
	p.settled("h1")
	var closed []netip.AddrPort
	for _, a := range p.addrs["h2/closed"] {
		closed = append(closed, netip.AddrPortFrom(a, 80))
	}
	const rate = 500 // a second, of each address
	ask[Nothing](p, "h1/foe", "Hammer", Blows{closed, rate})
	heard := func() (n int) {
		for _, count := range ask[map[Heard]int](p, "h2/closed", "Heard", Nothing{}) {
			n += count
		}
		return n
	}
	eventually(t, 10*time.Second, "something is dropped, so that somebody hammers", func() bool {
		dropped := uint64(0)
		for _, peer := range p.status("h1").Peers {
			dropped += peer.Dropped
		}
		return dropped > 0
	})
	if n := heard(); n > 0 {
		t.Fatalf("%d forbidden packets before anything happened", n)
	}
	for _, command := range [][]string{
		{"nft", "flush", "ruleset"},
		{"nft", "delete", "table", "inet", "weft"},
		{"nft", "flush", "table", "inet", "weft"},
		{"nft", "flush", "chain", "inet", "weft", "policies"},
		{"nft", "flush", "map", "inet", "weft", "ingress4"},
	} {
		before := heard()
		if _, err := p.Exec(t.Context(), "h2", nil, command...); err != nil {
			t.Fatal(err)
		}
		start, n, last := time.Now(), before, time.Now()
		for time.Since(last) < time.Second { // nothing more has come for a while
			if now := heard(); now > n {
				n, last = now, time.Now()
			}
			if time.Since(start) > 10*time.Second {
				t.Fatalf("%v: forbidden packets still pass", command)
			}
			time.Sleep(20 * time.Millisecond)
		}
		gap := time.Duration(n-before) * time.Second / (2 * rate)
		t.Logf("%v: %d forbidden packets passed: a gap of about %v", command, n-before, gap.Round(time.Millisecond))
		if gap > 5*time.Second {
			t.Errorf("%v: the gap was %v", command, gap)
		}
	}
}
