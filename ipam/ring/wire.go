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

// wire is the encoding of a ring or a part of it, on the network and on disk.
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

const segmentLen = 5 // number of encoded values per segment

// MaxSegments bounds the memory that a malicious peer can make us use. CIDR-aligned donation among
// thousands of peers stays far below it. Merge enforces it, so that every stored ring can be sent,
// and every receiver can decode it.
const MaxSegments = 1 << 16

// MaxEncoded is the largest encoding, in bytes, of a ring with at most MaxSegments.
const (
	maxHead    = 128
	maxSegment = 30
	MaxEncoded = maxHead + MaxSegments*maxSegment
)

var (
	encoding = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, TextMarshaler: cbor.TextMarshalerNone}.EncMode())
	decoding = must(decodeOptions(MaxSegments).DecMode())
	// Our own disk holds only rings that this release or an earlier one accepted, so the number of
	// segments needs no limit.
	restoring = must(decodeOptions(math.MaxInt32).DecMode())
)

func decodeOptions(elements int) cbor.DecOptions {
	return cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: elements, MaxMapPairs: 64, MaxNestedLevels: 8}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only wrong options fail, and these are constant
	}
	return v
}

// Encode returns r in the form that Decode reads. Equal rings have equal bytes.
func (r Ring) Encode() []byte {
	w := wire{head{r.ID, r.Cluster, r.Universe.V4, r.Universe.V6}, make([]segment, len(r.segments))}
	for i, s := range r.segments {
		w.Segments[i] = segment{Start: s.Start, End: s.End, Generation: s.Generation, Version: s.Version, Owner: s.Owner}
	}
	return must(encoding.Marshal(w))
}

// read decodes a ring. Segments of a newer version may have more than five elements: the extra ones
// are skipped. The extra elements are not forwarded either, since every merge encodes the ring
// anew.
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
		return w, err // return the error of the first attempt
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

// Decode reads a ring. It refuses rings with segments out of order, outside the universe or without
// owner, and rings with more than MaxSegments.
func Decode(data []byte) (Ring, error) { return decode(data, decoding) }

// Restore reads a ring from this peer's own disk. Unlike Decode it accepts rings above MaxSegments,
// which an earlier release may have stored: only an agent that starts can repair them.
func Restore(data []byte) (Ring, error) { return decode(data, restoring) }

func decode(data []byte, mode cbor.DecMode) (Ring, error) {
	w, err := read(data, mode)
	if err != nil {
		return Ring{}, fmt.Errorf("ring: decoding: %w", err)
	}
	r := Ring{ID: w.ID, Cluster: w.Cluster, Universe: slot.Universe{V4: w.V4, V6: w.V6}}
	if r.IsZero() {
		return Ring{}, errors.New("ring: the encoded ring has no id")
	}
	if err := r.Universe.Validate(); err != nil {
		return Ring{}, fmt.Errorf("ring: the universe is invalid: %w", err)
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
