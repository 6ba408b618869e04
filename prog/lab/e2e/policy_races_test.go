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

// These constants determine how often isolated containers are restarted.
const (
	raceRounds  = 12
	racePerHost = 6 // isolated containers on each of three hosts: 216 starts in all rounds
	raceWindow  = 2 * racePerHost
)

// racePolicies are variants of the policy that isolates containers with the role "isolated". The test
// applies them in random order. Each variant allows traffic from and to friends, and denies all other
// traffic.
var racePolicies = []string{
	`race: {podSelector: {matchLabels: {role: isolated}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}], egress: [{to: [{podSelector: {matchLabels: {role: friend}}}]}]}`,
	`race: {podSelector: {matchExpressions: [{key: role, operator: In, values: [isolated]}]}, policyTypes: [Ingress, Egress], ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: friend}}}], ports: [{port: 80, protocol: UDP}]}], egress: [{to: [{podSelector: {matchExpressions: [{key: role, operator: In, values: [friend, buddy]}]}}]}]}`,
	`race: {podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [foe, friend]}]}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}], ports: [{port: 70, endPort: 90, protocol: UDP}, {port: 443}]}], egress: [{to: [{podSelector: {matchLabels: {role: friend}}}]}]}`,
}

// raceMorePolicies are additional policies that the test adds and removes. They too change the
// nftables chains of isolated containers, but never allow traffic with a foe.
var raceMorePolicies = []string{
	`race: {podSelector: {matchLabels: {role: isolated}}, ingress: [{from: [{podSelector: {matchLabels: {role: buddy}}}]}]}`,
	`race: {podSelector: {matchLabels: {role: foe}}, policyTypes: [Ingress], ingress: [{}]}`,
	`other: {podSelector: {}, policyTypes: [Ingress, Egress]}`,
}

// race is the state of the test. Its containers have three roles. Policies isolate the "isolated"
// containers, which start and stop all the time. A "friend" is a client that policies allow, a "foe" is a
// client that they deny.
type race struct {
	*policyLab
	next   map[string]netip.Addr // highest address that an isolated container on a host has had
	starts int                   // starts of isolated containers
	aimed  int                   // starts at addresses to which foes were already sending

	dropped int // packets that policies dropped in all rounds
}

func raceIdentity(role string, i int) lab.Identity {
	return lab.Identity{Namespace: "race", Name: fmt.Sprintf("%s-%d", role, i), Labels: map[string]string{"role": role}}
}

// Containers start and stop, and policies change. From before ADD returns until after DEL, no
// packet of a foe ever reaches an isolated container. No packet of an isolated container reaches a foe.
func TestPolicyRacesLetNoForbiddenPacketPass(t *testing.T) {
	r := &race{policyLab: newPolicyLab(t, lab.Options{Hosts: 3}), next: map[string]netip.Addr{}}
	r.apply("h1", manifest(racePolicies[0]))
	var isolated []string
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
			r.start(name, 80) // the server listens before the container has an interface
			isolated = append(isolated, name)
		}
	}
	for _, name := range isolated {
		ask[Nothing](r.policyLab, name, "Flood", Datagrams{r.at("foe"), 200})
	}
	ctx, stop := context.WithCancel(t.Context())
	var changing sync.WaitGroup
	var changes int
	changing.Go(func() { changes = r.change(ctx) })
	for round := range raceRounds {
		r.restartAll(isolated, round)
		if t.Failed() {
			break
		}
	}
	stop()
	changing.Wait()
	r.verdict(isolated)
	t.Logf("%d starts, %d of them at addresses to which foes were sending; meanwhile %d changes of policies and %d dropped packets", r.starts, r.aimed, changes, r.dropped)
	if r.aimed < r.starts*9/10 || changes < raceRounds {
		t.Errorf("%d of %d starts at addresses to which foes were sending, and %d changes of policies: too few to prove anything, want %d and %d", r.aimed, r.starts, changes, r.starts*9/10, raceRounds)
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
		host, more := r.Hosts()[rng.IntN(3)], manifest(racePolicies[rng.IntN(len(racePolicies))], raceMorePolicies[rng.IntN(len(raceMorePolicies))])
		_, err := r.weft(host, more, "policy", "apply", "-f", "-")
		if rng.IntN(3) == 0 && err == nil { // delete one of raceMorePolicies; it may be deleted already
			_, _ = r.weft(host, "", "policy", "delete", []string{"race/p1", "other/p1"}[rng.IntN(2)])
		}
		if err != nil && ctx.Err() == nil {
			r.t.Errorf("applying policies failed, want success: %v", err)
			return n
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return n
}

// window returns the current addresses of isolated containers, and those that they will probably get next.
func (r *race) window(isolated []string) (out []netip.AddrPort) {
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
	for _, name := range isolated {
		for _, a := range r.addrs[name] {
			add(a)
		}
	}
	return out
}

// restartAll attaches all isolated containers while foes send to their addresses, checks that friends
// reach them, and detaches them.
func (r *race) restartAll(isolated []string, round int) {
	r.t.Helper()
	targets := r.window(isolated)
	r.aim(targets)
	before := r.friendly(isolated)
	r.all(isolated, func(name string) error {
		given, err := r.PlugAs(r.t.Context(), name, raceIdentity("isolated", round))
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
	for _, name := range isolated {
		a := r.addrs[name][0]
		if r.starts++; slices.Contains(targets, netip.AddrPortFrom(a, 80)) {
			r.aimed++
		}
		if host := name[:2]; r.next[host].Less(a) {
			r.next[host] = a
		}
	}
	r.aim(r.window(isolated))
	// Friends send in the same way as foes. If friends arrive, foes would arrive too without policies.
	eventually.True(r.t, 30*time.Second, "all friends reach all isolated containers", func() bool {
		for name, heard := range r.friendly(isolated) {
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
			r.t.Errorf("round %d: %s dropped no packets, want some: no foe was sending", round, one.Nickname)
		}
		r.dropped += int(one.Dropped)
	}
	r.all(isolated, func(name string) error { return r.Unplug(r.t.Context(), name) })
}

// keep stores the addresses of a container.
func (r *race) keep(name string, list []netip.Addr) {
	raceMu.Lock()
	defer raceMu.Unlock()
	r.addrs[name] = list
}

var raceMu sync.Mutex

// aim sets the addresses to which foes and friends send.
func (r *race) aim(targets []netip.AddrPort) {
	r.t.Helper()
	for _, host := range r.Hosts() {
		ask[Nothing](r.policyLab, host+"/foe", "Flood", Datagrams{targets, 3000})
		ask[Nothing](r.policyLab, host+"/friend", "Flood", Datagrams{targets, 800})
	}
}

// friendly returns, by container, what isolated containers have received so far, by sender.
func (r *race) friendly(isolated []string) map[string]map[Heard]int {
	r.t.Helper()
	out := map[string]map[Heard]int{}
	for _, name := range isolated {
		out[name] = ask[map[Heard]int](r.policyLab, name, "Heard", Nothing{})
	}
	return out
}

// all calls do for all containers, six at a time, and reports errors.
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

// verdict asserts that isolated containers only received packets of friends, and foes none.
func (r *race) verdict(isolated []string) {
	r.t.Helper()
	friends, total := r.at("friend"), 0
	for _, name := range isolated {
		for h, n := range ask[map[Heard]int](r.policyLab, name, "Heard", Nothing{}) {
			if total += n; !slices.Contains(friends, netip.AddrPortFrom(h.From, 80)) {
				r.t.Errorf("%s received %d datagrams from %v, want datagrams of friends only (foes are at %v)", name, n, h.From, r.at("foe"))
			}
		}
	}
	for _, host := range r.Hosts() {
		for h, n := range ask[map[Heard]int](r.policyLab, host+"/foe", "Heard", Nothing{}) {
			r.t.Errorf("the foe on %s received %d datagrams from %v, want none", host, n, h.From)
		}
	}
	r.t.Logf("isolated containers received %d datagrams, all from friends", total)
}
