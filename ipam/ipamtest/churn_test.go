package ipamtest

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"weft/ipam/slot"
	"weft/mesh/secret"
)

// In a simulated day of 200 peers, containers start and stop, and every ten minutes one host leaves
// and another joins. Each peer's list of allowed IPs stays short, even with three of four addresses
// in use. The figures are in site/docs/ipam.md.
func TestOneDayOfChurnKeepsAllowedIPsFew(t *testing.T) {
	for name, c := range map[string]struct {
		universe           string
		pods, hours, bound int
	}{
		"a million addresses":             {"10.32.0.0/12", 60, 24, 8},
		"16,384, three of four in use":    {"10.32.0.0/18", 60, 24, 64},
		"16,384, nearly all of them used": {"10.32.0.0/18", 78, 2, 128}, // each grant costs more here
	} {
		t.Run(name, func(t *testing.T) { day(t, netip.MustParsePrefix(c.universe), c.pods, c.hours, c.bound) })
	}
}

func day(t *testing.T, v4 netip.Prefix, pods, hours, bound int) {
	const peers = 200
	r := rand.New(rand.NewPCG(1, 2))
	m := New(slot.Universe{V4: v4, V6: secret.ClusterID{1}.V6()})
	for len(m.Peers) < peers {
		m.Join()
	}
	worst, sum, n, most := 0, 0, 0, 0
	for minute := int64(0); minute < int64(60*hours); minute++ {
		m.Release(minute)
		used := 0
		for _, p := range m.Peers { // on each host three containers start or stop per minute; their number stays around pods
			for range 3 {
				if len(p.Used) == 0 || r.IntN(2*pods) >= len(p.Used) {
					m.Allocate(p) // if no slot is free anywhere, the container does not start
				} else {
					m.Free(p, r.IntN(len(p.Used)), minute+1)
				}
			}
			used += len(p.Used)
		}
		most = max(most, used)
		if minute%10 == 0 {
			m.Leave(r.IntN(len(m.Peers)))
			m.Join()
		}
		if minute%60 == 59 {
			for _, cidrs := range m.AllowedIPs() {
				worst, sum, n = max(worst, cidrs), sum+cidrs, n+1
			}
		}
	}
	t.Logf("%d of %d addresses in use, %d grants, %d segments; allowed IPs per peer and family: %.1f on average, %d at most",
		most, m.Ring.Universe.Usable().Len(), m.Grants, len(m.Ring.Segments()), float64(sum)/float64(n), worst)
	if worst > bound {
		t.Errorf("a peer has %d allowed IPs in one family, want at most %d", worst, bound)
	}
}
