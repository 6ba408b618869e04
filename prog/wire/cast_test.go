package wire

import (
	"bytes"
	"crypto/ed25519"
	"encoding"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// These peers occur in the corpus, the messages and stored values in testdata. Alpha and bravo share
// the ring, charlie owns no slots, delta joins, echo is an additional peer.
const (
	alpha = iota + 1
	bravo
	charlie
	delta
	echo
)

var names = map[int]string{alpha: "alpha", bravo: "bravo", charlie: "charlie", delta: "delta", echo: "echo"}

var key, id, address = meshtest.Identity, meshtest.ID, meshtest.Address

func nameOf(p peer.ID) string {
	for n, name := range names {
		if id(n) == p {
			return name
		}
	}
	return p.String()
}

var (
	cluster   = secret.ClusterID(bytes.Repeat([]byte{0x22}, 16))
	joinToken = secret.Token{Cluster: cluster, Secret: secret.Secret(bytes.Repeat([]byte{0x33}, 32))}
	universe  = slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/16"), V6: cluster.V6()}
	ringID    = ring.ID(bytes.Repeat([]byte{0x11}, 16))
	// now is the time at which the corpus is written, and at which simulations begin
	// (testing/synctest).
	now = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
)

var otherUniverse = netip.MustParsePrefix("10.99.0.0/16")

// The corpus uses these slots. Alpha owns the first half of the universe, bravo the second.
const (
	slotNode = slot.Slot(1)
	slotWeb  = slot.Slot(2)
	slotDB   = slot.Slot(3)
	slotFar  = slot.Slot(0x8005)
)

func founded() ring.Ring { return ring.Found(ringID, cluster, universe, id(alpha), id(bravo)) }

// record returns the record of a peer of the corpus.
func record(n int) peer.Record {
	return peer.Record{
		WireGuard: [32]byte(bytes.Repeat([]byte{0x40 + byte(n)}, 32)), Nickname: names[n], Port: 6784, Gossip: 6783,
		Underlay: []netip.Addr{address(n).Addr(), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n))},
	}
}

// settled returns the record of a peer that is in the ring and runs on Kubernetes.
func settled(n int) peer.Record {
	r := record(n)
	r.Node, r.Ring, r.Host = slotNode, ringID[:], "0f8c5f2e-0000-4000-8000-00000000000"+fmt.Sprint(n)
	return r
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// station replaces the mesh for a component that a test runs alone; the other peers are those of the
// corpus.
type station struct{ meshtest.Solo }

// among makes a station with other peers; answer, if given, returns their replies.
func among(others []int, answer ...func(meshtest.Asked) ([]byte, error)) *station {
	s := &station{}
	for _, n := range others {
		s.Peers = append(s.Peers, id(n))
	}
	for _, f := range answer {
		s.Reply = f
	}
	return s
}

func (s *station) Name(p peer.ID) string { return nameOf(p) }

// questions returns the payloads of all requests of one kind.
func (s *station) questions(kind string) (payloads [][]byte) {
	for _, q := range s.Requests(kind) {
		payloads = append(payloads, q.Payload)
	}
	return payloads
}

// last returns the message that was sent last.
func (s *station) last() []byte {
	said := s.Deltas()
	if len(said) == 0 {
		return nil
	}
	return said[len(said)-1]
}

// shelf is the store for a single component under test.
type shelf struct {
	meshtest.Disk
	ipam ipam.State
}

func newShelf() *shelf { return &shelf{} }

func (s *shelf) Load() (st ipam.State, err error) {
	s.Read(func() { st = s.ipam.Clone() })
	return st, nil
}

func (s *shelf) Update(c ipam.Change) error { return s.Write(func() { s.ipam.Apply(c) }) }

var quiet = slog.New(slog.DiscardHandler)

func nothing() {}

// show formats a value. It omits zero fields, so that a new field does not change how an older
// value is shown.
func show(v any) string {
	var b strings.Builder
	write(&b, "", reflect.ValueOf(v))
	return b.String()
}

func write(b *strings.Builder, indent string, v reflect.Value) {
	if text, ok := word(v); ok {
		fmt.Fprintf(b, "%s%s\n", indent, text)
		return
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		write(b, indent, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && !v.Field(i).IsZero() {
				entry(b, indent, f.Name, v.Field(i))
			}
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(x, y reflect.Value) int { return strings.Compare(fmt.Sprint(x), fmt.Sprint(y)) })
		for _, k := range keys {
			entry(b, indent, fmt.Sprint(k), v.MapIndex(k))
		}
	default:
		for i := range v.Len() {
			entry(b, indent, "-", v.Index(i))
		}
	}
}

func entry(b *strings.Builder, indent, name string, v reflect.Value) {
	if name != "-" {
		name += ":"
	}
	if text, ok := word(v); ok {
		fmt.Fprintf(b, "%s%s %s\n", indent, name, text)
		return
	}
	fmt.Fprintf(b, "%s%s\n", indent, name)
	write(b, indent+"  ", v)
}

// word formats a value that fits in one word or line.
func word(v reflect.Value) (string, bool) {
	if v.Kind() == reflect.Interface && !v.IsNil() {
		v = v.Elem()
	}
	if !v.IsValid() {
		return "none", true
	}
	if v.CanInterface() {
		switch x := v.Interface().(type) {
		case peer.ID:
			return nameOf(x), true
		case encoding.TextMarshaler:
			text, _ := x.MarshalText()
			return string(text), true
		case error:
			return x.Error(), true
		case slot.Range:
			return x.String(), true
		case ed25519.PublicKey:
			return hex.EncodeToString(x), true
		case []byte:
			if t := string(x); peer.Printable(strings.ReplaceAll(t, "\n", " ")) {
				return fmt.Sprintf("%q", t), true
			}
			return hex.EncodeToString(x), true
		}
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Map, reflect.Slice, reflect.Pointer, reflect.Interface:
		return "none", v.Kind() != reflect.Struct && (v.IsNil() || v.Kind() == reflect.Slice && v.Len() == 0)
	case reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return fmt.Sprintf("%x", v.Interface()), true
		}
		return "", false
	case reflect.String:
		return fmt.Sprintf("%q", v), true
	}
	return fmt.Sprint(v), true
}

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// tell joins the parts of a report.
func tell(parts ...string) string { return strings.Join(parts, "") }
