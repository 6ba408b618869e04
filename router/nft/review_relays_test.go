package nft

import (
	"net/netip"
	"testing"

	"weft/router/routertest"
)

// A member registers for two peers from one port: the rules of all others still load, and change without being loaded anew.
func TestTwoPairsFromOnePortLoad(t *testing.T) {
	at := netip.MustParseAddrPort
	own := at("192.0.2.3:6784")
	m := Leg{at("192.0.2.66:20001"), own}
	x, y := Leg{at("192.0.2.1:20001"), own}, Leg{at("192.0.2.2:20002"), own}
	other := Pair{{at("192.0.2.7:20001"), own}, {at("192.0.2.8:20001"), own}}
	ns := routertest.New(t)
	ns.Do(func() {
		k := &Kernel{}
		defer k.Close()
		for i, pairs := range [][]Pair{{other}, {other, {m, x}}, {other, {m, x}, {m, y}}, {other, {m, y}}, {other, {m, x}, {m, y}}, {other}, {other, {m, x}, {m, y}}, {}} {
			k.mu.Lock()
			before := k.loaded
			k.mu.Unlock()
			p := build(Config{Guard: Guard{Universe: universe, Port: 6784}, Relays: Relays{Pairs: pairs}})
			names := map[string]bool{}
			for _, c := range p.Chains {
				if names[c.Name] {
					t.Errorf("step %d: chain %s is there twice", i, c.Name)
				}
				names[c.Name] = true
			}
			if before != nil {
				if err := k.load(p); err != nil {
					t.Errorf("step %d: the change of the rules fails: %v", i, err)
				}
			}
			if err := k.Apply(p); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
		}
	})
}
