package directory

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

func key(n int) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(n)}, ed25519.SeedSize))
}

var ids = func() (out [4]peer.ID) {
	for n := range out {
		out[n] = peer.IDOf(key(n).Public().(ed25519.PublicKey))
	}
	return out
}()

func id(n int) peer.ID { return ids[n] }

// Endpoints are drawn from these few values, so that they often collide.
var (
	someIDs    = []string{"a/eth0", "b/eth0", "c/eth0", "node"}
	someNames  = []string{"", "web", "db", "a.b"}
	someSpaces = []string{"", "shop", "b"}
	aliases    = []string{"b", "db", "shop", "web.shop", "www", "x.web.shop"}
	allNames   = append([]string{"a", "a.b.shop", "eb.shop", "absent", "op", "x"}, append(aliases, someNames[1:]...)...)
)

const someSlots = 8

func subset[T any](t *rapid.T, all []T, label string) (out []T) {
	for _, v := range all {
		if rapid.IntRange(0, 3).Draw(t, label) == 0 {
			out = append(out, v)
		}
	}
	return out
}

func anyEndpoint(t *rapid.T, id string) Endpoint {
	e := Endpoint{
		ID: id, Name: rapid.SampledFrom(someNames).Draw(t, "name"), Namespace: rapid.SampledFrom(someSpaces).Draw(t, "namespace"),
		Aliases: subset(t, aliases, "alias"), IPv4Only: rapid.Bool().Draw(t, "IPv4 only"),
		Slots:   rapid.SliceOfN(rapid.Map(rapid.Uint32Range(0, someSlots-1), func(n uint32) slot.Slot { return slot.Slot(n) }), 0, 2).Draw(t, "slots"),
		Outside: subset(t, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, "outside"),
		Ports:   subset(t, []Port{{"http", "tcp", 80}, {"dns", "udp", 53}}, "port"),
	}
	for _, k := range subset(t, []string{"app", "tier", "app.kubernetes.io/name"}, "label") {
		if e.Labels == nil {
			e.Labels = map[string]string{}
		}
		e.Labels[k] = rapid.SampledFrom([]string{"", "x", "größer"}).Draw(t, "value")
	}
	return e
}

func anyEndpoints(t *rapid.T) (out []Endpoint) {
	for _, id := range subset(t, someIDs, "id") {
		out = append(out, anyEndpoint(t, id))
	}
	return out
}

func next(t rapid.TB, old *Set, endpoints []Endpoint, atLeast uint64, n int) (*Set, *Delta) {
	s, d, err := Next(old, endpoints, atLeast, key(n))
	if err != nil {
		t.Fatal(err)
	}
	return s, d
}

// history draws the sets that a peer published. Two can have the same version, as after a restart
// from an older copy of the disk.
func history(t *rapid.T, n int) (sets []*Set, deltas []*Delta) {
	for range rapid.IntRange(1, 6).Draw(t, "changes") {
		var old *Set
		if len(sets) > 0 && rapid.IntRange(0, 9).Draw(t, "from scratch") > 0 {
			old = sets[len(sets)-1]
			if rapid.IntRange(0, 4).Draw(t, "from a copy") == 0 {
				old = rapid.SampledFrom(sets).Draw(t, "copy")
			}
		}
		if s, d := next(t, old, anyEndpoints(t), 0, n); d != nil {
			sets, deltas = append(sets, s), append(deltas, d)
		}
	}
	return sets, deltas
}

// someRing is a Ring: the owner of each slot is peer 1 to 3, or 0 for none.
type someRing [someSlots]int

func (r someRing) Owner(s slot.Slot) (peer.ID, bool) {
	if r[s] == 0 {
		return peer.ID{}, false
	}
	return id(r[s]), true
}

// check compares the answers of a directory with a linear search through its sets.
func check(t *rapid.T, d *Directory, ring someRing) {
	var all, counting []Entry
	for _, owner := range d.Owners() {
		for _, e := range d.Set(owner).Endpoints() {
			all = append(all, Entry{e, owner})
			if !slices.ContainsFunc(e.Slots, func(s slot.Slot) bool { return ring[s] == 0 || id(ring[s]) != owner }) {
				counting = append(counting, Entry{e, owner})
			}
		}
	}
	same := func(what string, got, want []Entry) {
		if !slices.EqualFunc(got, want, func(a, b Entry) bool { return a.Owner == b.Owner && a.Same(b.Endpoint) }) {
			t.Fatalf("%s returned %+v; want %+v", what, got, want)
		}
	}
	same("entries", d.Entries(ring), counting)
	nameless := slices.DeleteFunc(slices.Clone(counting), func(e Entry) bool { return len(e.Names()) > 0 })
	if got := d.Named(ring); got != len(counting)-len(nameless) {
		t.Fatalf("%d entries have a name; want %d", got, len(counting)-len(nameless))
	}
	for _, name := range append(slices.Clone(allNames), "web.b", "db.b", "a.b.b", "b.b", "shop.b", "db.shop") {
		var want []Entry
		for _, e := range counting {
			if slices.Contains(e.Names(), name) {
				want = append(want, e)
			}
		}
		below := slices.ContainsFunc(all, func(e Entry) bool {
			return slices.ContainsFunc(e.Names(), func(n string) bool { return strings.HasSuffix(n, "."+name) })
		})
		got, exists := d.Lookup(name, ring)
		if same(name, got, want); exists != (below || len(want) > 0) {
			t.Fatalf("Lookup of %s reports exists %v; want %v", name, exists, !exists)
		}
	}
	for s := range slot.Slot(someSlots) {
		for n := 1; n <= 3; n++ {
			i := slices.IndexFunc(all, func(e Entry) bool { return e.Owner == id(n) && slices.Contains(e.Slots, s) })
			if d.Lists(id(n), s) != (i >= 0) || slices.Contains(d.Listed(id(n)), s) != (i >= 0) {
				t.Fatalf("peer %d lists slot %d: Lists is %v, or Listed differs from it; want what its set says", n, s, d.Lists(id(n), s))
			}
			if ring[s] != n {
				continue
			}
			var want []Entry
			if i >= 0 && slices.ContainsFunc(counting, func(e Entry) bool { return e.Owner == id(n) && e.ID == all[i].ID }) {
				want = append(want, all[i])
			}
			if got, ok := d.At(s, ring); ok != (want != nil) {
				t.Fatalf("the entry of slot %d is %+v; want %+v", s, got, want)
			} else if ok {
				same(fmt.Sprint("at ", s), []Entry{got}, want)
			}
		}
		if got, ok := d.At(s, ring); ok && (ring[s] == 0 || got.Owner != id(ring[s])) {
			t.Fatalf("slot %d belongs to peer %d, but its entry is %+v; want one of that peer, or none", s, ring[s], got)
		}
	}
}

// The indexes match the sets, and only entries that the ring confirms are valid, after any sequence
// of Put and Forget.
func TestDirectoryIndexesMatchEndpointSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ring someRing
		for s := range ring {
			ring[s] = rapid.IntRange(0, 3).Draw(t, "owner")
		}
		d := New()
		var sets []*Set
		for n := 1; n <= 3; n++ {
			s, _ := history(t, n)
			sets = append(sets, s...)
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "forget") == 0 {
				d.Forget(id(rapid.IntRange(1, 3).Draw(t, "peer")))
			} else {
				d.Put(rapid.SampledFrom(sets).Draw(t, "set"))
			}
			check(t, d, ring)
		}
		for n := 1; n <= 3; n++ {
			d.Forget(id(n))
		}
		if len(d.names)+len(d.below)+len(d.sets) > 0 {
			t.Fatalf("after all owners were forgotten, the directory has %v, %v, %v; want nothing", d.names, d.below, d.sets)
		}
	})
}

// Directories do not depend on the order and grouping of Put, even if a peer published two sets
// with one version.
func TestPutIsCommutativeAndIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sets []*Set
		for n := 1; n <= 2; n++ {
			s, _ := history(t, n)
			sets = append(sets, s...)
		}
		put := func(order []*Set) *Directory {
			d := New()
			for _, s := range order {
				before := d.Set(s.Owner)
				if news, lacked := d.Lacks(s.Held()), d.Put(s); news != lacked {
					t.Fatalf("version %d after %v: Lacks is %v, but Put reports %v; want the same", s.Version, before, news, lacked)
				}
				if d.Put(s) || d.Lacks(s.Held()) {
					t.Fatal("a second Put of the same set reported news; want none")
				}
			}
			return d
		}
		want := put(sets)
		shuffled := put(rapid.Permutation(sets).Draw(t, "order"))
		if !cmp.Equal(shuffled.Held(), want.Held()) {
			t.Fatalf("Put in another order resulted in %v; want %v", shuffled.Held(), want.Held())
		}
		// Put some sets into one directory and the others into a second one, and merge these two.
		cut := rapid.IntRange(0, len(sets)).Draw(t, "cut")
		left, right := put(sets[:cut]), put(sets[cut:])
		for _, owner := range right.Owners() {
			left.Put(right.Set(owner))
		}
		if !cmp.Equal(left.Held(), want.Held()) {
			t.Fatalf("Put in groups resulted in %v; want %v", left.Held(), want.Held())
		}
	})
}

// Two peers that send each other exactly the sets that Lacks reports end with equal directories.
func TestExchangeOfMissingSetsMakesDirectoriesEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := New(), New()
		for n := 1; n <= 3; n++ {
			sets, _ := history(t, n)
			for _, s := range sets {
				if rapid.Bool().Draw(t, "a has it") {
					a.Put(s)
				}
				if rapid.Bool().Draw(t, "b has it") {
					b.Put(s)
				}
			}
		}
		for _, h := range b.Held() {
			if a.Lacks(h) && !a.Put(b.Set(h.Owner)) {
				t.Fatalf("Lacks is true for %v, but Put reports no news; want news", h)
			}
		}
		for _, h := range a.Held() {
			if b.Lacks(h) {
				b.Put(a.Set(h.Owner))
			}
		}
		if !cmp.Equal(a.Held(), b.Held()) {
			t.Fatalf("after the exchange, the directories hold %v and %v; want the same", a.Held(), b.Held())
		}
	})
	if New().Lacks(Held{Owner: id(1), Version: 1, Digest: make([]byte, heldBytes+1)}) {
		t.Error("Lacks is true for a digest that is too long; want false")
	}
}
