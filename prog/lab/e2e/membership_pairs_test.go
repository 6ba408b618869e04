package e2e

import (
	"maps"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/prog/lab"
	"weft/prog/lab/probe"
)

// pairKeys returns the pre-shared key of each pair of hosts. It asserts that both ends of each tunnel have
// the same key, that no other tunnel has it, and that it is not zero.
func pairKeys(t *testing.T, l *lab.Lab) map[string]string {
	t.Helper()
	devices, keys, seen := map[string]device{}, map[string]string{}, map[string]string{}
	for _, h := range l.Hosts() {
		devices[h] = deviceOf(t, l, h)
	}
	for i, a := range l.Hosts() {
		for _, b := range l.Hosts()[i+1:] {
			pair := a + "-" + b
			key, other := devices[a].Peers[devices[b].Public], devices[b].Peers[devices[a].Public]
			if key != other || key == "" || key == (wgtypes.Key{}).String() {
				t.Errorf("the tunnel %s has the key %q at one end, %q at the other; want the same key, which is not zero", pair, key, other)
			}
			if seen[key] != "" {
				t.Errorf("the tunnels %s and %s have the same pre-shared key, want one of each pair's own", pair, seen[key])
			}
			keys[pair], seen[key] = key, pair
		}
	}
	return keys
}

// Hosts without the secret agree on a pre-shared key with each other and with those that hold it. While
// agents are restarted and killed one after the other, the keys stay and no packet is lost.
func TestPairsWithoutTheSecret(t *testing.T) {
	l := membersByToken(t, 3)
	reachEachOther(t, l, l.Hosts()...)
	before := pairKeys(t, l)
	flows := map[string]func() []probe.Result{}
	for _, ends := range [][2]string{{"h2/c1", "h3/c1"}, {"h1/c1", "h2/c1"}} {
		for _, proto := range []string{"icmp", "tcp"} {
			flows[proto+" from "+ends[0]] = traffic(t, l, ends[0], proto, marker, addrs(t, l, ends[1])...)
		}
	}
	for _, h := range l.Hosts() {
		for what, step := range map[string]func() error{
			"killed": func() error {
				if err := l.Kill(t.Context(), h, "agent"); err != nil {
					return err
				}
				time.Sleep(300 * time.Millisecond)
				return l.Start(t.Context(), h)
			},
			"stopped": func() error {
				if err := l.Stop(t.Context(), h); err != nil {
					return err
				}
				return l.Start(t.Context(), h)
			},
		} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
			established(t, l)
			if now := pairKeys(t, l); !maps.Equal(now, before) {
				t.Errorf("after the agent of %s was %s and started, the pre-shared keys are %v, want those of before: %v", h, what, now, before)
			}
		}
	}
	time.Sleep(3 * time.Second) // by now, each host has offered its keys again
	if now := pairKeys(t, l); !maps.Equal(now, before) {
		t.Errorf("at the end, the pre-shared keys are %v, want those of before: %v", now, before)
	}
	undisturbed(t, flows)
}
