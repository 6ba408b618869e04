// Package peer defines the identity of a peer: its identity key, its PeerID, and the signed record
// in which the peer announces how other peers can reach it.
//
// A PeerID is the truncated SHA-256 of an Ed25519 public key, so a record proves that its name is
// right. Without a peer's private key no one can sign for it, not even with the cluster secret.
//
// All types are values. The package reads no clock, network or disk.
package peer

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/slot"
)

// ID identifies a peer: the first 8 bytes of the SHA-256 of its identity key. With 64 bits
// accidental collisions do not happen. A deliberate collision needs the cluster secret and 2^64
// keys, and is refused as a changed identity.
type ID [8]byte

// IDOf returns the PeerID of an identity key.
func IDOf(key ed25519.PublicKey) ID {
	sum := sha256.Sum256(key)
	return ID(sum[:8])
}

// ParseID parses the format of String.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return ID{}, fmt.Errorf("peer id %q: want %d hexadecimal digits; `weft status peers` shows the ids", s, 2*len(id))
	}
	return ID(b), nil
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is unset.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText returns id in hexadecimal.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses the format of MarshalText.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// State is the state that a peer announces. The peer does not announce whether it is reachable:
// other peers detect that.
type State uint8

// These are the states of a peer.
const (
	Running State = iota // the agent runs
	Stopped              // the agent was stopped on purpose; the data path continues
	Left                 // the peer left the mesh for good (`weft reset`); its tunnel is removed
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

// Record is a peer's announcement of itself.
type Record struct {
	Identity  ed25519.PublicKey `cbor:"1,keyasint"`           // 32 bytes; its hash is the PeerID
	WireGuard [32]byte          `cbor:"2,keyasint"`           // Curve25519 public key
	Nickname  string            `cbor:"3,keyasint"`           // for people; at most MaxNickname bytes
	Underlay  []netip.Addr      `cbor:"4,keyasint"`           // the preferred address first; at most MaxUnderlay
	Port      uint16            `cbor:"5,keyasint"`           // WireGuard's UDP port
	Gossip    uint16            `cbor:"10,keyasint"`          // gossip's port, TCP and UDP
	Node      slot.Slot         `cbor:"6,keyasint,omitempty"` // the slot of its node address; 0 if it has none
	Sequence  uint64            `cbor:"7,keyasint"`           // raised with every change; the highest wins
	State     State             `cbor:"8,keyasint,omitempty"`
	Ring      []byte            `cbor:"9,keyasint,omitempty"` // id of the peer's ring; empty while it waits for one
	// Host is the UID of the Kubernetes Node that the peer runs on; empty outside Kubernetes. A
	// Node that is created again under the same name has another UID.
	Host string `cbor:"11,keyasint,omitempty"` // at most MaxHost bytes
	// Copy is the address of another host that uses this peer's identity, for some minutes after
	// that was detected.
	Copy netip.Addr `cbor:"12,keyasint,omitzero"`
	// MTUs are the link MTUs of the Underlay addresses, in the same order; 0 or missing if unknown.
	MTUs []uint32 `cbor:"13,keyasint,omitempty"`
	// Certificate proves that the peer is a member (mesh/member); this package does not read it.
	Certificate []byte `cbor:"14,keyasint,omitempty"` // at most MaxCertificate bytes
}

// These bounds limit a record, so that a peer cannot make other peers store any amount.
const (
	MaxNickname = 64
	MaxHost     = 64 // UIDs have 36 bytes, but the API server may choose other ones
	MaxUnderlay = 16
	// MaxCertificate also bounds certificates in mesh/member.
	MaxCertificate = 512
	maxSigned      = 4096
)

// ID returns the PeerID of the record's identity key.
func (r Record) ID() ID { return IDOf(r.Identity) }

// MTU returns the MTU of the link with one of the peer's addresses; 0 if it is unknown.
func (r Record) MTU(addr netip.Addr) int {
	if i := slices.Index(r.Underlay, addr); i >= 0 && i < len(r.MTUs) {
		return int(r.MTUs[i])
	}
	return 0
}

// Name returns the peer's name for messages: id(nickname).
func (r Record) Name() string { return r.ID().String() + "(" + r.Nickname + ")" }

// Signed is a record with its signature. It keeps the signed bytes as received, so that fields of a
// newer version are passed on.
type Signed struct {
	Record    Record
	payload   []byte
	signature []byte
}

// wire is the encoding of Signed, on the network and on disk.
type wire struct {
	Payload   []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

// context makes a record's signature invalid for anything else.
const context = "weft peer record v1\x00"

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 64, MaxMapPairs: 64, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only constant options reach this
	}
	return v
}

// Sign signs r with key, and sets its identity to the public key.
func Sign(r Record, key ed25519.PrivateKey) (Signed, error) {
	r.Identity = key.Public().(ed25519.PublicKey)
	if err := r.validate(); err != nil {
		return Signed{}, err
	}
	payload, err := encoding.Marshal(r)
	if err != nil {
		return Signed{}, fmt.Errorf("peer record: encoding: %w", err)
	}
	return Signed{Record: r, payload: payload, signature: ed25519.Sign(key, append([]byte(context), payload...))}, nil
}

// Encode encodes s for Decode.
func (s Signed) Encode() []byte {
	return must(encoding.Marshal(wire{s.payload, s.signature}))
}

// Decode decodes a signed record, and refuses a record with an invalid signature.
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

// Parse decodes a signed record without verifying the signature, which is much cheaper. Call Verify
// before you rely on the record.
func Parse(data []byte) (Signed, error) {
	if len(data) > maxSigned {
		return Signed{}, fmt.Errorf("peer record: refused: it has %d bytes, at most %d are allowed", len(data), maxSigned)
	}
	var w wire
	if err := decoding.Unmarshal(data, &w); err != nil {
		return Signed{}, fmt.Errorf("peer record: decoding: %w", err)
	}
	s := Signed{payload: w.Payload, signature: w.Signature}
	if err := decoding.Unmarshal(w.Payload, &s.Record); err != nil {
		return Signed{}, fmt.Errorf("peer record: decoding its content: %w", err)
	}
	if err := s.Record.validate(); err != nil {
		return Signed{}, err
	}
	return s, nil
}

// Verify returns an error if the signature is invalid.
func (s Signed) Verify() error {
	if !ed25519.Verify(s.Record.Identity, append([]byte(context), s.payload...), s.signature) {
		return fmt.Errorf("peer record: the signature of %v is invalid", s.Record.ID())
	}
	return nil
}

func (r Record) validate() error {
	switch {
	case len(r.Identity) != ed25519.PublicKeySize:
		return errors.New("peer record: no identity key")
	case CheckNickname(r.Nickname) != nil:
		return fmt.Errorf("peer record: %w", CheckNickname(r.Nickname))
	case len(r.Underlay) > MaxUnderlay:
		return fmt.Errorf("peer record: %d underlay addresses, at most %d are allowed", len(r.Underlay), MaxUnderlay)
	case len(r.MTUs) > MaxUnderlay:
		return fmt.Errorf("peer record: %d MTUs, at most %d are allowed", len(r.MTUs), MaxUnderlay)
	case len(r.Host) > MaxHost || !Printable(r.Host):
		return errors.New("peer record: invalid host UID")
	case len(r.Certificate) > MaxCertificate:
		return fmt.Errorf("peer record: a certificate of %d bytes, at most %d are allowed", len(r.Certificate), MaxCertificate)
	case len(r.Ring) > 16:
		return errors.New("peer record: invalid ring id")
	}
	for _, a := range r.Underlay {
		if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("peer record: invalid underlay address %v", a)
		}
	}
	return nil
}

// CheckNickname returns an error if no peer can have a nickname. One that reverses the order of text (UAX #9) would make
// the line of a status read otherwise than it is.
func CheckNickname(s string) error {
	reverses := func(c rune) bool { return unicode.Is(unicode.Bidi_Control, c) }
	if len(s) > MaxNickname || !Printable(s) || strings.ContainsFunc(s, reverses) {
		return fmt.Errorf("nickname %.100q: want at most %d bytes, without characters that control a terminal or the direction of text", s, MaxNickname)
	}
	return nil
}

// Printable reports whether s has no control characters. It keeps terminals and logs safe from
// strings of other hosts.
func Printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return unicode.IsControl(c) || c == unicode.ReplacementChar })
}

// Supersedes reports whether s replaces old, a record of the same peer. The order is total: by
// sequence number, then by bytes. So all peers choose the same record.
func (s Signed) Supersedes(old Signed) bool {
	if s.Record.Sequence != old.Record.Sequence {
		return s.Record.Sequence > old.Record.Sequence
	}
	return string(s.payload) > string(old.payload)
}
