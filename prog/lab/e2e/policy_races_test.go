package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
)

// The numbers of restarts of closed containers.
const (
	raceWaves   = 12
	racePerHost = 6 // times three hosts: 216 starts
	raceWindow  = 2 * racePerHost
)

// raceLaws are the alternating policies of closed containers. All of them allow friends and deny
// everyone else, and deny closed containers to send to others than friends.
var raceLaws = []string{
	`race: {podSelector: {matchLabels: {role: closed}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}], egress: [{to: [{podSelector: {matchLabels: {role: friend}}}]}]}`,
	`race: {podSelector: {matchExpressions: [{key: role, operator: In, values: [closed]}]}, policyTypes: [Ingress, Egress], ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: friend}}}], ports: [{port: 80, protocol: UDP}]}], egress: [{to: [{podSelector: {matchExpressions: [{key: role, operator: In, values: [friend, buddy]}]}}]}]}`,
	`race: {podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [foe, friend]}]}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}], ports: [{port: 70, endPort: 90, protocol: UDP}, {port: 443}]}], egress: [{to: [{podSelector: {matchLabels: {role: friend}}}]}]}`,
}

// raceMore are further policies that are added and removed. They change the chains of closed
// containers too, but never allow a foe.
var raceMore = []string{
	`race: {podSelector: {matchLabels: {role: closed}}, ingress: [{from: [{podSelector: {matchLabels: {role: buddy}}}]}]}`,
	`race: {podSelector: {matchLabels: {role: foe}}, policyTypes: [Ingress], ingress: [{}]}`,
	`other: {podSelector: {}, policyTypes: [Ingress, Egress]}`,
}

// race is the state of a run.
type race struct {
	*policed
	next   map[string]netip.Addr // highest address that a closed container of a host has had
	starts int
	aimed  int // starts at addresses to which foes were already sending

	dropped int // in all waves
}

func raceIdentity(role string, i int) lab.Identity {
	return lab.Identity{Namespace: "race", Name: fmt.Sprintf("%s-%d", role, i), Labels: map[string]string{"role": role}}
}

// Containers start and stop, and policies change. From before ADD returns until after DEL, no
// packet of a foe ever reaches a closed container. No packet of a closed container reaches a foe.
func TestPolicyRaces(t *testing.T) {
	r := &race{policed: policeLab(t, lab.Options{Hosts: 3}), next: map[string]netip.Addr{}}
	r.apply("h1", manifest(raceLaws[0]))
	var closed []string
	for _, host := range r.Hosts() {
		for i, role := range []string{"foe", "friend"} {
			r.add(host+"/"+role, raceIdentity(role, i), 80)
		}
		r.next[host] = r.addrs[host+"/friend"][0]
		for i := range racePerHost {
			name := fmt.Sprintf("%s/c%d", host, i)
			if err := r.AddContainer(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			r.start(name, 80) // before any interface exists
			closed = append(closed, name)
		}
	}
	for _, name := range closed {
		ask[Nothing](r.policed, name, "Hammer", Blows{r.at("foe"), 200})
	}
	ctx, stop := context.WithCancel(t.Context())
	var changing sync.WaitGroup
	var changes int
	changing.Go(func() { changes = r.change(ctx) })
	for wave := range raceWaves {
		r.wave(closed, wave)
		if t.Failed() {
			break
		}
	}
	stop()
	changing.Wait()
	r.verdict(closed)
	t.Logf("%d starts, %d of them at addresses to which foes were sending; meanwhile %d changes of policies and %d dropped packets", r.starts, r.aimed, changes, r.dropped)
	if r.aimed < r.starts*9/10 || changes < raceWaves {
		t.Error("too few starts at addresses with traffic, or too few dropped packets, to prove anything")
	}
}

// at returns the addresses on which all containers of a role listen.
func (r *race) at(role string) (out []netip.AddrPort) {
	for _, host := range r.Hosts() {
		for _, a := range r.addrs[host+"/"+role] {
			out = append(out, netip.AddrPortFrom(a, 80))
		}
	}
	return out
}

// change applies one policy after the other, on any host, until ctx ends.
func (r *race) change(ctx context.Context) (n int) {
	rng := rand.New(rand.NewPCG(1, 2))
	for ; ctx.Err() == nil; n++ {
		host, more := r.Hosts()[rng.IntN(3)], manifest(raceLaws[rng.IntN(len(raceLaws))], raceMore[rng.IntN(len(raceMore))])
		_, err := r.weft(host, more, "policy", "apply", "-f", "-")
		if rng.IntN(3) == 0 && err == nil { // in either namespace; it may be deleted already
			_, _ = r.weft(host, "", "policy", "delete", []string{"race/p1", "other/p1"}[rng.IntN(2)])
		}
		if err != nil && ctx.Err() == nil {
			r.t.Errorf("a change of policies failed: %v", err)
			return n
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return n
}

// window returns the current addresses of closed containers, and their probable next ones.
func (r *race) window(closed []string) (out []netip.AddrPort) {
	add := func(a netip.Addr) {
		if to := netip.AddrPortFrom(a, 80); !slices.Contains(out, to) {
			out = append(out, to)
		}
	}
	for _, host := range r.Hosts() {
		a, b := r.addrs[host+"/friend"][0], r.addrs[host+"/friend"][1]
		for a != r.next[host] {
			a, b = a.Next(), b.Next()
		}
		for range raceWindow {
			a, b = a.Next(), b.Next()
			add(a)
			add(b)
		}
	}
	for _, name := range closed {
		for _, a := range r.addrs[name] {
			add(a)
		}
	}
	return out
}

// wave restarts all closed containers once.
func (r *race) wave(closed []string, wave int) {
	r.t.Helper()
	targets := r.window(closed)
	r.aim(targets)
	before := r.friendly(closed)
	r.all(closed, func(name string) error {
		given, err := r.PlugAs(r.t.Context(), name, raceIdentity("closed", wave))
		if err != nil {
			return err
		}
		var list []netip.Addr
		for _, a := range given {
			list = append(list, netip.MustParseAddr(a))
		}
		r.keep(name, list)
		return nil
	})
	if r.t.Failed() {
		return
	}
	for _, name := range closed {
		a := r.addrs[name][0]
		if r.starts++; slices.Contains(targets, netip.AddrPortFrom(a, 80)) {
			r.aimed++
		}
		if host := name[:2]; r.next[host].Less(a) {
			r.next[host] = a
		}
	}
	r.aim(r.window(closed))
	// If friends get through, foes would too without policies.
	eventually.True(r.t, 30*time.Second, "all friends reach all containers", func() bool {
		for name, heard := range r.friendly(closed) {
			for _, f := range r.at("friend") {
				from := Heard{"udp", 80, f.Addr()}
				if heard[from] == before[name][from] {
					return false
				}
			}
		}
		return true
	})
	for _, one := range r.status("h1").Peers {
		if one.Dropped == 0 {
			r.t.Errorf("wave %d: %s dropped no packets, so no foe was sending", wave, one.Nickname)
		}
		r.dropped += int(one.Dropped)
	}
	r.all(closed, func(name string) error { return r.Unplug(r.t.Context(), name) })
}

// keep stores the addresses of a container.
func (r *race) keep(name string, list []netip.Addr) {
	raceMu.Lock()
	defer raceMu.Unlock()
	r.addrs[name] = list
}

var raceMu sync.Mutex

// aim sets the targets of foes and friends.
func (r *race) aim(targets []netip.AddrPort) {
	r.t.Helper()
	for _, host := range r.Hosts() {
		ask[Nothing](r.policed, host+"/foe", "Hammer", Blows{targets, 3000})
		ask[Nothing](r.policed, host+"/friend", "Hammer", Blows{targets, 800})
	}
}

// friendly returns what closed containers have received so far.
func (r *race) friendly(closed []string) map[string]map[Heard]int {
	r.t.Helper()
	out := map[string]map[Heard]int{}
	for _, name := range closed {
		out[name] = ask[map[Heard]int](r.policed, name, "Heard", Nothing{})
	}
	return out
}

// all does something with all containers, two of each host at a time.
func (r *race) all(names []string, do func(string) error) {
	r.t.Helper()
	var mu sync.Mutex
	var errs []error
	var group sync.WaitGroup
	slots := make(chan struct{}, 6)
	for _, name := range names {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := do(name); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		r.t.Error(err)
	}
}

// verdict checks everything that has arrived.
func (r *race) verdict(closed []string) {
	r.t.Helper()
	friends, total := r.at("friend"), 0
	for _, name := range closed {
		for h, n := range ask[map[Heard]int](r.policed, name, "Heard", Nothing{}) {
			if total += n; !slices.Contains(friends, netip.AddrPortFrom(h.From, 80)) {
				r.t.Errorf("%s received %d datagrams from %v, which is no friend (foes are at %v)", name, n, h.From, r.at("foe"))
			}
		}
	}
	for _, host := range r.Hosts() {
		for h, n := range ask[map[Heard]int](r.policed, host+"/foe", "Heard", Nothing{}) {
			r.t.Errorf("the foe of %s received %d datagrams from %v", host, n, h.From)
		}
	}
	r.t.Logf("closed containers received %d datagrams, all from friends", total)
}
