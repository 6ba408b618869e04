package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// pattern is which links between four hosts are cut.
type pattern struct {
	name    string
	cut     []string // such as "h1-h2"
	dropped []string // only packets from the first host to the second one
}

// rules returns what the switch drops.
func (p pattern) rules() (out []string) {
	drop := func(from, to string) { out = append(out, fmt.Sprintf("iifname %q oifname %q drop", from, to)) }
	for _, c := range p.cut {
		a, b, _ := strings.Cut(c, "-")
		drop(a, b)
		drop(b, a)
	}
	for _, c := range p.dropped {
		a, b, _ := strings.Cut(c, "-")
		drop(a, b)
	}
	return out
}

// linked reports whether packets pass directly between two hosts, in both directions.
func (p pattern) linked(a, b string) bool {
	all := slices.Concat(p.cut, p.dropped)
	return !slices.Contains(all, a+"-"+b) && !slices.Contains(all, b+"-"+a)
}

// hops returns how many links lie between two hosts; 0: there is no path.
func (p pattern) hops(hosts []string, a, b string) int {
	reached := []string{a}
	for n := 1; n < len(hosts); n++ {
		for _, from := range slices.Clone(reached) {
			for _, to := range hosts {
				if p.linked(from, to) && !slices.Contains(reached, to) {
					reached = append(reached, to)
				}
			}
		}
		if slices.Contains(reached, b) {
			return n
		}
	}
	return 0
}

// holds returns an error if a host's tunnel to another one is not as the links are: direct over a link, else over the
// fewest relays, and not working if no relay helps. Both ends name the same relays.
func (p pattern) holds(hosts []string, reports map[string]api.Report, a, b string) error {
	c, back := connectionIn(reports[a], b), connectionIn(reports[b], a)
	state := func(c api.Connection) error { return fmt.Errorf("the tunnel %s-%s is %s: %s", a, b, c.State, c.Info) }
	switch n := p.hops(hosts, a, b); {
	case p.linked(a, b):
		if c.State != api.ConnDirect {
			return state(c)
		}
	case n == 0:
		if c.State != api.ConnSilent && c.State != api.ConnBlocked && c.State != api.ConnOneWay {
			return state(c)
		}
	case c.State != api.ConnRelayed:
		return state(c)
	default:
		names := map[string]string{}
		for _, other := range reports[a].Router.Connections {
			names[other.Peer] = other.Nickname
		}
		before := a
		for _, via := range append(slices.Clone(c.Via), c.Peer) {
			if !p.linked(before, names[via]) {
				return fmt.Errorf("the tunnel %s-%s uses the cut link %s-%s: %s", a, b, before, names[via], c.Info)
			}
			before = names[via]
		}
		returning := slices.Clone(back.Via)
		slices.Reverse(returning)
		if len(c.Via) != n-1 || !slices.Equal(c.Via, returning) {
			return fmt.Errorf("the tunnel %s-%s goes over %v, and back over %v; want the same %d relays", a, b, c.Via, back.Via, n-1)
		}
	}
	return nil
}

// apply cuts the links, waits until all tunnels are as they should be, and sends packets between all containers that
// have a path.
func (p pattern) apply(t *testing.T, l *lab.Lab) {
	t.Helper()
	hosts := l.Hosts()
	between(t, l, p.rules()...)
	start := time.Now()
	var err error
	if !within(longestStay, func() bool {
		reports := map[string]api.Report{}
		for _, h := range hosts {
			reports[h] = report(t, l, h)
		}
		for _, a := range hosts {
			for _, b := range hosts {
				if a == b {
					continue
				}
				if err = p.holds(hosts, reports, a, b); err != nil {
					return false
				}
			}
		}
		return true
	}) {
		t.Fatalf("%s (cut %v, one way %v): %v", p.name, p.cut, p.dropped, err)
	}
	t.Logf("%s (cut %v, one way %v): all tunnels were as expected after %v", p.name, p.cut, p.dropped, time.Since(start).Round(time.Millisecond))
	for rest := hosts; len(rest) > 0; {
		var group, others []string
		for _, h := range rest {
			if h == rest[0] || p.hops(hosts, rest[0], h) > 0 {
				group = append(group, h)
			} else {
				others = append(others, h)
			}
		}
		if len(group) > 1 {
			reachEachOther(t, l, group...)
		}
		rest = others
	}
}

// fourHosts returns a lab of four hosts with traffic between each two, which ends with the test.
func fourHosts(t *testing.T) *lab.Lab {
	t.Helper()
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 4, Containers: 1, Underlay: "4"})
	measured(t, l)
	staysSilent(t, l)
	hosts := l.Hosts()
	for _, h := range hosts {
		listen(t, l, h+"/c1")
	}
	for i, a := range hosts {
		for _, b := range hosts[i+1:] {
			stop := traffic(t, l, a+"/c1", "udp", marker, addrs(t, l, b+"/c1")[0])
			t.Cleanup(func() { stop() })
		}
	}
	return l
}

// allCuts is the environment variable that makes TestEveryShapeOfCutLinks go through all 64 patterns.
const allCuts = "ALL_CUTS"

// Four hosts go through all shapes that their links can have, under traffic. After each change, pairs with a link use it,
// pairs without one use the fewest relays, the same in both directions, and all others are reported. Packets pass
// between all pairs that have a path. Nobody on the underlay can read them.
func TestEveryShapeOfCutLinks(t *testing.T) {
	labtest.Waits(t)
	if os.Getenv(allCuts) == "" {
		t.Logf("some patterns of each shape are tried; %s=1 tries all 64", allCuts)
		l := fourHosts(t)
		for _, p := range []pattern{
			{name: "diamond", cut: []string{"h1-h2"}},
			{name: "cycle", cut: []string{"h1-h2", "h3-h4"}},
			{name: "path", cut: []string{"h1-h2", "h3-h4", "h1-h4"}},
			{name: "star", cut: []string{"h1-h2", "h2-h4", "h1-h4"}},
			{name: "paw", cut: []string{"h2-h4", "h1-h4"}},
			{name: "one direction", dropped: []string{"h2-h1"}},
			{name: "one direction of two links, and another link", cut: []string{"h1-h4"}, dropped: []string{"h1-h2", "h4-h3"}},
			{name: "two halves", cut: []string{"h1-h3", "h1-h4", "h2-h3", "h2-h4"}},
			{name: "all links"},
		} {
			p.apply(t, l)
		}
		return
	}
	// Each pattern differs by one link from the one before (Gray code). Each lab takes eight, since tunnels that moved
	// often wait before they go back.
	links := []string{"h1-h2", "h1-h3", "h1-h4", "h2-h3", "h2-h4", "h3-h4"}
	for first := 0; first < 1<<len(links); first += 8 {
		t.Run(fmt.Sprintf("from %d", first), func(t *testing.T) {
			l := fourHosts(t)
			for n := first; n < first+8; n++ {
				p := pattern{name: fmt.Sprintf("pattern %d", n)}
				for i, link := range links {
					if (n^n>>1)>>i&1 == 1 {
						p.cut = append(p.cut, link)
					}
				}
				p.apply(t, l)
			}
		})
	}
}
