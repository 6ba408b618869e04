package topology

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
)

// Links is what a peer says about its links to others. A peer that reaches all others says nothing.
type Links struct {
	Cut map[peer.ID]bool // whom it does not reach
	// RTT are round trips. Only their order of magnitude counts, so that small changes move nothing.
	RTT map[peer.ID]time.Duration
	// Usual is the round trip to all others that are neither in Cut nor in RTT; 0: it says nothing about them. In a
	// network of a thousand near hosts, this one number stands for a thousand.
	Usual time.Duration
	// Refuses means that it relays for nobody: it was told so, or it has no room.
	Refuses bool
}

// IsZero reports whether l says nothing.
func (l Links) IsZero() bool { return len(l.Cut) == 0 && len(l.RTT) == 0 && l.Usual == 0 && !l.Refuses }

// SameCuts reports whether two Links say the same, apart from round trips.
func (l Links) SameCuts(o Links) bool { return maps.Equal(l.Cut, o.Cut) && l.Refuses == o.Refuses }

// Equal reports whether two Links say the same.
func (l Links) Equal(o Links) bool {
	return l.SameCuts(o) && l.Usual == o.Usual && maps.Equal(l.RTT, o.RTT)
}

// MaxLinks is how many peers Links can name. It is the largest number of peers.
const MaxLinks = 1 << 12

// These bounds limit what DecodeLinks reads. Fields of newer versions have room.
const (
	maxLinksBytes = 64 << 10
	maxOrder      = 20 // round trips of 9 minutes and more
)

// wireLinks is the encoding of Links. Ids are sorted, one after the other.
type wireLinks struct {
	Cut []byte `cbor:"1,keyasint,omitempty"`
	// RTT has the ids by the order of their round trip. Usual is an order plus 1; 0: none.
	RTT     map[uint64][]byte `cbor:"2,keyasint,omitempty"`
	Usual   uint64            `cbor:"3,keyasint,omitempty"`
	Refuses bool              `cbor:"4,keyasint,omitempty"`
}

var (
	linksEncoding = must(cbor.CoreDetEncOptions().EncMode())
	linksDecoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 12, MaxMapPairs: 1 << 10, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only constant options and our own types reach this
	}
	return v
}

// Order returns the order of magnitude of a round trip: 0 below 1 ms, then the powers of two of a millisecond.
func Order(rtt time.Duration) int { return bits.Len64(uint64(max(rtt, 0).Milliseconds())) }

// OfOrder returns the least round trip of an order; for order 0 it returns half a millisecond, since 0 means unknown.
func OfOrder(order int) time.Duration {
	if order <= 0 {
		return time.Millisecond / 2
	}
	return time.Millisecond << (min(order, maxOrder) - 1)
}

// Encode encodes Links for DecodeLinks. Equal Links have equal encodings. Of round trips only the order is kept, and
// none of those to peers in Cut.
func (l Links) Encode() ([]byte, error) {
	w := wireLinks{Cut: join(slices.Collect(maps.Keys(l.Cut))), RTT: map[uint64][]byte{}, Refuses: l.Refuses}
	if l.Usual > 0 {
		w.Usual = uint64(min(Order(l.Usual), maxOrder)) + 1
	}
	byOrder, named := map[uint64][]peer.ID{}, len(l.Cut)
	for id, rtt := range l.RTT {
		if order := uint64(min(Order(rtt), maxOrder)); !l.Cut[id] && order+1 != w.Usual {
			byOrder[order] = append(byOrder[order], id)
			named++
		}
	}
	if named > MaxLinks {
		return nil, fmt.Errorf("topology: a host says something about %d links, at most %d are allowed", named, MaxLinks)
	}
	for order, ids := range byOrder {
		w.RTT[order] = join(ids)
	}
	return linksEncoding.Marshal(w)
}

// join returns ids sorted, one after the other.
func join(ids []peer.ID) []byte {
	slices.SortFunc(ids, func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
	out := make([]byte, 0, len(ids)*len(peer.ID{}))
	for _, id := range ids {
		out = append(out, id[:]...)
	}
	return out
}

// DecodeLinks decodes Links, which any member of the mesh may have written. It ignores fields of newer versions.
func DecodeLinks(data []byte) (l Links, err error) {
	if len(data) > maxLinksBytes {
		return l, fmt.Errorf("topology: links refused: %d bytes, at most %d are allowed", len(data), maxLinksBytes)
	}
	var w wireLinks
	if err := linksDecoding.Unmarshal(data, &w); err != nil {
		return l, fmt.Errorf("topology: decoding links: %w", err)
	}
	named := len(w.Cut)
	for _, ids := range w.RTT {
		named += len(ids)
	}
	if named > MaxLinks*len(peer.ID{}) {
		return l, fmt.Errorf("topology: links refused: they name %d peers, at most %d are allowed", named/len(peer.ID{}), MaxLinks)
	}
	l = Links{Cut: map[peer.ID]bool{}, RTT: map[peer.ID]time.Duration{}, Refuses: w.Refuses}
	if w.Usual > 0 {
		l.Usual = OfOrder(int(min(w.Usual-1, maxOrder)))
	}
	if err := each(w.Cut, func(id peer.ID) bool { l.Cut[id] = true; return true }); err != nil {
		return Links{}, err
	}
	for order, ids := range w.RTT {
		rtt := OfOrder(int(min(order, maxOrder)))
		err := each(ids, func(id peer.ID) bool {
			_, twice := l.RTT[id]
			l.RTT[id] = rtt
			return !twice && !l.Cut[id]
		})
		if err != nil {
			return Links{}, err
		}
	}
	return l, nil
}

// each calls f with each id of a list, until f returns false. The ids must be sorted, and differ.
func each(list []byte, f func(peer.ID) bool) error {
	var last peer.ID
	if len(list)%len(last) != 0 {
		return errors.New("topology: links refused: a list of peers is cut short")
	}
	for i := 0; i < len(list); i += len(last) {
		id := peer.ID(list[i:])
		if i > 0 && bytes.Compare(last[:], id[:]) >= 0 || !f(id) {
			return errors.New("topology: links refused: a peer is named twice, or in the wrong order")
		}
		last = id
	}
	return nil
}
