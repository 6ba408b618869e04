package e2e

import (
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// Before Linux 6.9 nftables tables have no owner, so other programs can flush Weft's table. A linker
// flag makes the agent of this test, which does not use owners. After a flush, denied packets pass
// until the agent restores the table. The test counts them: a running agent restores it at once, and
// at the latest at its next check.
func TestPolicyIsRestoredAfterAFlushWithoutTableOwners(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-X weft/router/nft.ownerless=yes", "-o", bin+"/", "weft/cmd/weft", "weft/cmd/weft-cni")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the agent failed, want success: %v\n%s", err, out)
	}
	t.Setenv("WEFT_BIN", bin)
	p := newPolicyLab(t, lab.Options{Hosts: 2})
	p.apply("h1", manifest(`test: {podSelector: {matchLabels: {role: isolated}}}`))
	p.add("h2/isolated", lab.Identity{Namespace: "test", Name: "isolated", Labels: map[string]string{"role": "isolated"}}, 80)
	p.add("h1/foe", lab.Identity{Namespace: "test", Name: "foe"}, 80)
	p.settled("h1")
	var isolated []netip.AddrPort
	for _, a := range p.addrs["h2/isolated"] {
		isolated = append(isolated, netip.AddrPortFrom(a, 80))
	}
	const rate = 500 // datagrams per second to each address
	ask[Nothing](p, "h1/foe", "Flood", Datagrams{isolated, rate})
	heard := func() (n int) {
		for _, count := range ask[map[Heard]int](p, "h2/isolated", "Heard", Nothing{}) {
			n += count
		}
		return n
	}
	eventually.True(t, 10*time.Second, "packets are dropped, which shows that they are sent", func() bool {
		dropped := uint64(0)
		for _, peer := range p.status("h1").Peers {
			dropped += peer.Dropped
		}
		return dropped > 0
	})
	if n := heard(); n > 0 {
		t.Fatalf("%d forbidden packets arrived before the first flush, want none", n)
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
		for time.Since(last) < time.Second { // wait until no packet has arrived for a second
			if now := heard(); now > n {
				n, last = now, time.Now()
			}
			if time.Since(start) > 10*time.Second {
				t.Fatalf("10 s after %v, forbidden packets still arrive, want none", command)
			}
			time.Sleep(20 * time.Millisecond)
		}
		gap := time.Duration(n-before) * time.Second / (2 * rate)
		t.Logf("after %v %d forbidden packets arrived: a gap of about %v", command, n-before, gap.Round(time.Millisecond))
		if gap > 5*time.Second {
			t.Errorf("after %v the gap was %v, want at most 5 s", command, gap)
		}
	}
}
