// Package peer says who a peer is: its identity, its PeerID, and the signed
// record in which it tells the mesh how to reach it.
//
// A PeerID is the truncated SHA-256 of an Ed25519 public key, so that a record
// proves its own name: nobody, not even one who knows the cluster secret, can
// speak for another peer without that peer's private key.
//
// Everything here is a value; nothing reads a clock, the network or the disk.
package peer

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/slot"
)

// ID names a peer. It is the first 8 bytes of the SHA-256 of its identity key:
// 64 bits are enough that an accidental clash does not happen; a deliberate one
// needs the cluster secret and 2^64 keys, and is refused as a changed identity.
type ID [8]byte

// IDOf derives the PeerID of an identity key.
func IDOf(key ed25519.PublicKey) ID {
	sum := sha256.Sum256(key)
	return ID(sum[:8])
}

// ParseID reads the form that String writes.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return ID{}, fmt.Errorf("peer id %q: want %d hexadecimal digits, as `weft status peers` shows them", s, 2*len(id))
	}
	return ID(b), nil
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id names nobody.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText writes id as people see it.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// State is what a peer says of itself; that it fell silent is for others to notice.
type State uint8

// The states of a record, as the peer that signs it sees itself.
const (
	Running State = iota // the agent runs
	Stopped              // the agent was stopped on purpose; the data path goes on
	Left                 // the peer left for good (`weft reset`): forget its tunnel
)

func (s State) String() string {
	switch s {
	case Running:
		return "running"
	case Stopped:
		return "stopped"
	case Left:
		return "left"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Record is what a peer tells the mesh about itself.
type Record struct {
	Identity  ed25519.PublicKey `cbor:"1,keyasint"`           // 32 bytes; its hash is the PeerID
	WireGuard [32]byte          `cbor:"2,keyasint"`           // Curve25519 public key
	Nickname  string            `cbor:"3,keyasint"`           // for people; at most MaxNickname bytes
	Underlay  []netip.Addr      `cbor:"4,keyasint"`           // preferred first; at most MaxUnderlay
	Port      uint16            `cbor:"5,keyasint"`           // WireGuard's UDP port
	Gossip    uint16            `cbor:"10,keyasint"`          // gossip's port, TCP and UDP
	Node      slot.Slot         `cbor:"6,keyasint,omitempty"` // the slot of the node address; 0 while it has none
	Sequence  uint64            `cbor:"7,keyasint"`           // grows with every change; the highest wins
	State     State             `cbor:"8,keyasint,omitempty"`
	Ring      []byte            `cbor:"9,keyasint,omitempty"` // id of the ring that the peer is in; empty while it waits for one
	// Host is the UID of the Kubernetes Node that the peer runs on; empty outside Kubernetes. A
	// Node that is made again under the same name is another one, with another UID.
	Host string `cbor:"11,keyasint,omitempty"` // at most MaxHost bytes
	// Copy is where another host speaks with this peer's identity, for some minutes after
	// that was noticed.
	Copy netip.Addr `cbor:"12,keyasint,omitzero"`
	// MTUs are those of the links that the addresses of Underlay are on, in the same order; 0, or
	// none, where the peer does not say.
	MTUs []uint32 `cbor:"13,keyasint,omitempty"`
}

// Bounds of a record, so that a peer cannot make others hold what it likes.
const (
	MaxNickname = 64
	MaxHost     = 64 // a UID has 36; it is the API server's to choose
	MaxUnderlay = 16
	maxSigned   = 4096
)

// ID is the PeerID that the record's identity key stands for.
func (r Record) ID() ID { return IDOf(r.Identity) }

// MTU is that of the link with one of the peer's addresses; 0: it does not say.
func (r Record) MTU(addr netip.Addr) int {
	if i := slices.Index(r.Underlay, addr); i >= 0 && i < len(r.MTUs) {
		return int(r.MTUs[i])
	}
	return 0
}

// Name is how people see the peer: id(nickname).
func (r Record) Name() string { return r.ID().String() + "(" + r.Nickname + ")" }

// Signed is a record with the signature over its exact bytes. The bytes are kept
// as they came, so that fields of a newer version survive being passed on.
type Signed struct {
	Record    Record
	payload   []byte
	signature []byte
}

// wire is the form of Signed on the network and on disk.
type wire struct {
	Payload   []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

// context keeps a record's signature from being good for anything else.
const context = "weft peer record v1\x00"

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 64, MaxMapPairs: 64, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options
	}
	return v
}

// Sign makes r the word of the holder of key, whose public half it puts into r.
func Sign(r Record, key ed25519.PrivateKey) (Signed, error) {
	r.Identity = key.Public().(ed25519.PublicKey)
	if err := r.validate(); err != nil {
		return Signed{}, err
	}
	payload, err := encoding.Marshal(r)
	if err != nil {
		return Signed{}, fmt.Errorf("peer record: %w", err)
	}
	return Signed{Record: r, payload: payload, signature: ed25519.Sign(key, append([]byte(context), payload...))}, nil
}

// Encode writes s so that Decode reads it.
func (s Signed) Encode() []byte {
	return must(encoding.Marshal(wire{s.payload, s.signature}))
}

// Decode reads a signed record and refuses one that does not verify.
func Decode(data []byte) (Signed, error) {
	s, err := Parse(data)
	if err != nil {
		return Signed{}, err
	}
	if err := s.Verify(); err != nil {
		return Signed{}, err
	}
	return s, nil
}

// Parse reads a signed record that nothing vouches for before Verify does: it costs a
// fraction of that.
func Parse(data []byte) (Signed, error) {
	if len(data) > maxSigned {
		return Signed{}, fmt.Errorf("peer record: %d bytes, at most %d are allowed", len(data), maxSigned)
	}
	var w wire
	if err := decoding.Unmarshal(data, &w); err != nil {
		return Signed{}, fmt.Errorf("peer record: %w", err)
	}
	s := Signed{payload: w.Payload, signature: w.Signature}
	if err := decoding.Unmarshal(w.Payload, &s.Record); err != nil {
		return Signed{}, fmt.Errorf("peer record: %w", err)
	}
	if err := s.Record.validate(); err != nil {
		return Signed{}, err
	}
	return s, nil
}

// Verify refuses a record that its peer did not sign.
func (s Signed) Verify() error {
	if !ed25519.Verify(s.Record.Identity, append([]byte(context), s.payload...), s.signature) {
		return fmt.Errorf("peer record: the signature of %v does not verify", s.Record.ID())
	}
	return nil
}

func (r Record) validate() error {
	switch {
	case len(r.Identity) != ed25519.PublicKeySize:
		return errors.New("peer record: no identity key")
	case len(r.Nickname) > MaxNickname || !Printable(r.Nickname):
		return errors.New("peer record: unusable nickname")
	case len(r.Underlay) > MaxUnderlay:
		return fmt.Errorf("peer record: %d underlay addresses, at most %d are allowed", len(r.Underlay), MaxUnderlay)
	case len(r.MTUs) > MaxUnderlay:
		return fmt.Errorf("peer record: %d MTUs, at most %d are allowed", len(r.MTUs), MaxUnderlay)
	case len(r.Host) > MaxHost || !Printable(r.Host):
		return errors.New("peer record: unusable host UID")
	case len(r.Ring) > 16:
		return errors.New("peer record: unusable ring id")
	}
	for _, a := range r.Underlay {
		if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("peer record: unusable underlay address %v", a)
		}
	}
	return nil
}

// Printable keeps control characters of a stranger's nickname out of terminals and logs.
func Printable(s string) bool {
	for _, c := range s {
		if c < ' ' || c == 0x7f || c == '\uFFFD' || c >= 0x80 && c < 0xa0 {
			return false
		}
	}
	return true
}

// Supersedes reports whether s replaces old, both records of one peer. The order
// is total: sequence first, then the bytes, so that all peers choose alike.
func (s Signed) Supersedes(old Signed) bool {
	if s.Record.Sequence != old.Record.Sequence {
		return s.Record.Sequence > old.Record.Sequence
	}
	return string(s.payload) > string(old.payload)
}
