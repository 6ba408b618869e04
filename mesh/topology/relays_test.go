package topology

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/mesh/peer"
)

// meshes draws peers, and what they say about their links. cut is how many of 100 links are cut.
func meshes(t *rapid.T, most, cut int) ([]peer.ID, map[peer.ID]Links) {
	var peers []peer.ID
	links := map[peer.ID]Links{}
	for i := range rapid.IntRange(2, most).Draw(t, "peers") {
		peers = append(peers, peer.ID{byte(i), 1})
		links[peers[i]] = Links{Cut: map[peer.ID]bool{}, RTT: map[peer.ID]time.Duration{}, Refuses: rapid.IntRange(0, 9).Draw(t, "refuses") == 0}
	}
	for i, a := range peers {
		for _, b := range peers[:i] {
			one, other := links[a], links[b]
			if rapid.IntRange(0, 99).Draw(t, "cut") < cut {
				if who := rapid.IntRange(0, 2).Draw(t, "who says so"); who != 0 {
					one.Cut[b] = true
				} else {
					other.Cut[a] = true
				}
			}
			if rapid.Bool().Draw(t, "says its round trip") {
				one.RTT[b] = time.Duration(rapid.IntRange(0, 300).Draw(t, "ms")) * time.Millisecond
			}
		}
	}
	return peers, links
}

func reaches(a, b peer.ID, links map[peer.ID]Links) bool { return reach(a, b, links[a], links[b]) }

// connected reports whether peers reach each other over few enough relays that do not refuse: a slow and simple search.
func connected(a, b peer.ID, peers []peer.ID, links map[peer.ID]Links, relays int) bool {
	if reaches(a, b, links) {
		return true
	}
	return relays > 0 && slices.ContainsFunc(peers, func(p peer.ID) bool {
		return p != a && p != b && !links[p].Refuses && reaches(a, p, links) && connected(p, b, peers, links, relays-1)
	})
}

// Relays form a path without loops wherever there is one. Both ends agree, whatever the order of the peers. No relay
// refuses, and a path with fewer relays would not do.
func TestRelaysFormAPathOnWhichBothEndsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers, links := meshes(t, 9, 70)
		shuffled := rapid.Permutation(peers).Draw(t, "order")
		for i, a := range peers {
			for _, b := range peers[:i] {
				got := Relays(a, b, peers, links)
				back := Relays(b, a, shuffled, links)
				slices.Reverse(back)
				if !slices.Equal(got, back) {
					t.Fatalf("from %v to %v the relays are %v, and back %v; want the same", a, b, got, back)
				}
				path := append(append([]peer.ID{a}, got...), b)
				if len(got) == 0 {
					if !reaches(a, b, links) && connected(a, b, peers, links, maxRelays) {
						t.Fatalf("from %v to %v there is no relay, but a path", a, b)
					}
					continue
				}
				for j, p := range path[1:] {
					if !reaches(path[j], p, links) || slices.Contains(path[:j+1], p) {
						t.Fatalf("from %v to %v the path is %v: %v is cut off, or comes twice", a, b, path, p)
					}
				}
				if slices.ContainsFunc(got, func(p peer.ID) bool { return links[p].Refuses }) || len(got) > maxRelays || connected(a, b, peers, links, len(got)-1) {
					t.Fatalf("from %v to %v the relays are %v: one refuses, or fewer would do", a, b, got)
				}
			}
		}
	})
}

// What others say about links that a pair does not use moves nothing.
func TestRelaysStayWhileOtherLinksChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers, links := meshes(t, 9, 40)
		a, b := peers[0], peers[1]
		before := Relays(a, b, peers, links)
		x, y := rapid.SampledFrom(peers).Draw(t, "one"), rapid.SampledFrom(peers).Draw(t, "other")
		if len(before) != 1 || slices.Contains([]peer.ID{a, b, before[0]}, x) || slices.Contains([]peer.ID{a, b, before[0]}, y) {
			return
		}
		cut := maps.Clone(links[x].Cut)
		cut[y] = !cut[y]
		links[x] = Links{Cut: cut, RTT: links[x].RTT, Refuses: links[x].Refuses}
		if after := Relays(a, b, peers, links); !slices.Equal(before, after) {
			t.Fatalf("the link between %v and %v changed, and the relays of %v and %v from %v to %v", x, y, a, b, before, after)
		}
	})
}

// The nearest relay is used, by the order of magnitude. Relays that are as near share the pairs.
func TestTheNearestRelaysShareThePairs(t *testing.T) {
	const hosts, relays = 40, 4
	var peers []peer.ID
	links := map[peer.ID]Links{}
	for i := range hosts + relays + 1 {
		id := peer.ID{byte(i), 7}
		peers = append(peers, id)
		links[id] = Links{Cut: map[peer.ID]bool{}, RTT: map[peer.ID]time.Duration{}}
		for j := range i {
			switch {
			case i < hosts: // hosts reach no other host
				links[id].Cut[peers[j]] = true
			case j < hosts && i < hosts+relays:
				links[id].RTT[peers[j]] = 20*time.Millisecond + time.Duration(i*j%7)*time.Millisecond
			case j < hosts:
				links[id].RTT[peers[j]] = 90 * time.Millisecond
			}
		}
	}
	load := map[peer.ID]int{}
	for i := range hosts {
		for j := range i {
			got := Relays(peers[i], peers[j], peers, links)
			if len(got) != 1 {
				t.Fatalf("from host %d to host %d the relays are %v, want one", i, j, got)
			}
			load[got[0]]++
		}
	}
	const pairs = hosts * (hosts - 1) / 2
	for i, id := range peers[hosts:] {
		least, most := pairs/relays*6/10, pairs/relays*14/10
		if i == relays { // the far one
			least, most = 0, 0
		}
		if n := load[id]; n < least || n > most {
			t.Errorf("relay %d has %d of %d pairs; want %d to %d", i, n, pairs, least, most)
		}
	}
}

// One near link does not make up for a far one.
func TestTheSumOfRoundTripsCounts(t *testing.T) {
	a, b, even, uneven := peer.ID{1}, peer.ID{2}, peer.ID{3}, peer.ID{4}
	const near, middle, far = time.Millisecond, 40 * time.Millisecond, 500 * time.Millisecond
	links := map[peer.ID]Links{
		a: {Cut: map[peer.ID]bool{b: true}, RTT: map[peer.ID]time.Duration{even: middle, uneven: near}},
		b: {RTT: map[peer.ID]time.Duration{even: middle, uneven: far}},
	}
	if got := Relays(a, b, []peer.ID{a, b, even, uneven}, links); !slices.Equal(got, []peer.ID{even}) {
		t.Errorf("the relays are %v, want the one by which the whole round trip is shorter", got)
	}
}

func ExampleRelays() {
	h1, h2, h3 := peer.ID{1}, peer.ID{2}, peer.ID{3}
	links := map[peer.ID]Links{h1: {Cut: map[peer.ID]bool{h2: true}}}
	fmt.Println(Relays(h1, h2, []peer.ID{h1, h2, h3}, links))
	// Output: [0300000000000000]
}
