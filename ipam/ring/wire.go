package ring

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// wire is a ring, whole or in part, on the network and on disk.
type wire struct {
	head
	Segments []segment `cbor:"5,keyasint"`
}

type head struct {
	ID      ID           `cbor:"1,keyasint"`
	Cluster [16]byte     `cbor:"2,keyasint"`
	V4      netip.Prefix `cbor:"3,keyasint"`
	V6      netip.Prefix `cbor:"4,keyasint"`
}

type segment struct {
	_          struct{} `cbor:",toarray"`
	Start      slot.Slot
	End        uint64
	Generation uint32
	Version    uint32
	Owner      peer.ID
}

const segmentLen = 5 // elements of a segment

// MaxSegments bounds what a stranger can make us hold: far above what CIDR-aligned
// donation leads to with thousands of peers. Merge keeps it, so that what is stored can be
// sent, and can be read by who receives it.
const MaxSegments = 1 << 16

// MaxEncoded is how large a ring within the bound can be on the wire.
const (
	maxHead    = 128
	maxSegment = 30
	MaxEncoded = maxHead + MaxSegments*maxSegment
)

var (
	encoding = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, TextMarshaler: cbor.TextMarshalerNone}.EncMode())
	decoding = must(decodeOptions(MaxSegments).DecMode())
	// What is on our own disk was once accepted, by this release or another one: how many
	// segments that may be is bounded by the file.
	restoring = must(decodeOptions(math.MaxInt32).DecMode())
)

func decodeOptions(elements int) cbor.DecOptions {
	return cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: elements, MaxMapPairs: 64, MaxNestedLevels: 8}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options
	}
	return v
}

// Encode writes r so that Decode reads it. Equal rings have equal bytes.
func (r Ring) Encode() []byte {
	w := wire{head{r.ID, r.Cluster, r.Universe.V4, r.Universe.V6}, make([]segment, len(r.segments))}
	for i, s := range r.segments {
		w.Segments[i] = segment{Start: s.Start, End: s.End, Generation: s.Generation, Version: s.Version, Owner: s.Owner}
	}
	return must(encoding.Marshal(w))
}

// read decodes a ring, also one of a newer version whose segments say more: what is
// beyond the fifth element of one is skipped. A ring is made anew by every merge, so that
// what is skipped is not passed on either.
func read(data []byte, mode cbor.DecMode) (w wire, err error) {
	err = mode.Unmarshal(data, &w)
	if _, differs := errors.AsType[*cbor.UnmarshalTypeError](err); !differs {
		return w, err
	}
	var newer struct {
		head
		Segments [][]cbor.RawMessage `cbor:"5,keyasint"`
	}
	if mode.Unmarshal(data, &newer) != nil {
		return w, err // of the first attempt
	}
	w = wire{newer.head, make([]segment, len(newer.Segments))}
	for i, elements := range newer.Segments {
		known := elements[:min(len(elements), segmentLen)]
		if err := decoding.Unmarshal(must(encoding.Marshal(known)), &w.Segments[i]); err != nil {
			return w, err
		}
	}
	return w, nil
}

// Decode reads a ring and refuses one that cannot be: segments out of order,
// outside the universe, or without owner, or more of them than MaxSegments.
func Decode(data []byte) (Ring, error) { return decode(data, decoding) }

// Restore reads a ring from this peer's own disk: also one above the bound, which an earlier
// release has stored. An agent that does not start could not mend it.
func Restore(data []byte) (Ring, error) { return decode(data, restoring) }

func decode(data []byte, mode cbor.DecMode) (Ring, error) {
	w, err := read(data, mode)
	if err != nil {
		return Ring{}, fmt.Errorf("ring: %w", err)
	}
	r := Ring{ID: w.ID, Cluster: w.Cluster, Universe: slot.Universe{V4: w.V4, V6: w.V6}}
	if r.IsZero() {
		return Ring{}, errors.New("ring: it has no id")
	}
	if err := r.Universe.Validate(); err != nil {
		return Ring{}, fmt.Errorf("ring: %w", err)
	}
	at := uint64(0)
	for _, s := range w.Segments {
		g := Segment{slot.Range{Start: s.Start, End: s.End}, Claim{s.Generation, s.Version, s.Owner}}
		if uint64(g.Start) < at || g.Len() == 0 || g.End > r.Universe.Range().End {
			return Ring{}, fmt.Errorf("ring: segment %v is out of order or outside the universe", g.Range)
		}
		if g.Owner.IsZero() || g.Generation == 0 || g.Version == 0 {
			return Ring{}, fmt.Errorf("ring: segment %v has no owner, generation or version", g.Range)
		}
		at = g.End
		r.segments = push(r.segments, g)
	}
	return r, nil
}
