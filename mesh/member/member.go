// Package member says which identities belong to a cluster, and how hosts without the cluster's secret
// become members.
//
// The root key, derived from the secret, certifies identities. A Certificate names the rights of its
// identity. A member with the right Admits certifies others, without rights. A Token admits hosts for
// some time; it proves the cluster to the host, and itself to the cluster, and does not hold the secret.
// Tokens, joins and bans are documents that all peers share (see package document). Judge says which
// of them count, and a Ledger says what they mean together: which tokens admit, and who is banned.
//
// A Certificate does not end: a member stays one until it is banned. Documents of a kind are replaced
// by their newest version, so a member that may write them can undo what another wrote; the signature
// of each version names its writer.
//
// All types are values; a Ledger may be read by many goroutines. The package reads no clock, network
// or disk, and no randomness but the caller's. All times are Unix seconds.
package member

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
)

// Rights are what a member may do, apart from being a member.
type Rights uint8

// These are the rights. Only the root key gives them.
const (
	Admits Rights = 1          // may admit hosts, and ban members
	Holder Rights = 2 | Admits // holds the cluster's secret
)

// Has reports whether r includes all of the given rights.
func (r Rights) Has(rights Rights) bool { return r&rights == rights }

func (r Rights) valid() bool { return r == 0 || r == Admits || r == Holder }

func (r Rights) String() string {
	switch r {
	case 0:
		return "member"
	case Admits:
		return "member that admits"
	case Holder:
		return "holder of the secret"
	}
	return fmt.Sprintf("rights %d", uint8(r))
}

// Member is what a certificate says about an identity.
type Member struct {
	Identity ed25519.PublicKey
	Rights   Rights
	By       peer.ID // the member that certified it; zero: the root key did
	Token    TokenID // the token that admitted it; zero if none did
}

// ID returns the PeerID of the member.
func (m Member) ID() peer.ID { return peer.IDOf(m.Identity) }

// TokenID identifies a token: the SHA-256 of the public key that is derived from it. It is not secret.
type TokenID [sha256.Size]byte

// String returns the start of the id, for people.
func (id TokenID) String() string { return hex.EncodeToString(id[:8]) }

// Name returns the whole id in hexadecimal, the name of the token's document.
func (id TokenID) Name() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is unset.
func (id TokenID) IsZero() bool { return id == TokenID{} }

// MarshalText returns the same text as Name, for JSON and logs.
func (id TokenID) MarshalText() ([]byte, error) { return []byte(id.Name()), nil }

// ParseTokenID parses the format of Name. It accepts no capitals, so that each token has one document.
func ParseTokenID(s string) (TokenID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != sha256.Size || TokenID(b).Name() != s || TokenID(b).IsZero() {
		return TokenID{}, fmt.Errorf("id of a token %.70q: want %d lower-case hexadecimal digits", s, 2*sha256.Size)
	}
	return TokenID(b), nil
}

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 64, MaxMapPairs: 64, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only constant options and our own types reach this
	}
	return v
}
