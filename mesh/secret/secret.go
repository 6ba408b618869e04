// Package secret holds the one secret of a cluster and what is derived from it:
// the key of the gossip, the pre-shared keys of the tunnels, and the token that
// lets another host in.
//
// A Secret never prints itself: String, GoString and MarshalText are redacted, so
// that it cannot end in a log by accident. Token.Reveal is the one way out.
package secret

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"golang.org/x/crypto/argon2"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// Secret is the 32 random bytes that every peer of a cluster shares.
type Secret [32]byte

const redacted = "[secret]"

func (Secret) String() string { return redacted }

// GoString keeps the secret out of what %#v prints.
func (Secret) GoString() string { return redacted }

// MarshalText keeps the secret out of JSON and logs.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ClusterID names a cluster. It is random, made at founding, and never changes,
// whatever is rotated; it is no secret.
type ClusterID [16]byte

func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// MarshalText is String, for JSON and logs.
func (c ClusterID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// IsZero reports that the cluster is not known yet: a peer that joins by password
// learns the id from the ring.
func (c ClusterID) IsZero() bool { return c == ClusterID{} }

// Token is what a host needs to join: the secret, and the cluster it belongs to.
type Token struct {
	Cluster ClusterID // zero when the secret came from a password
	Secret  Secret
}

func (t Token) String() string { return "token of cluster " + t.Cluster.String() }

// GoString keeps the secret out of what %#v prints.
func (t Token) GoString() string { return t.String() }

// New makes the token of a new cluster from a source of randomness.
func New(random io.Reader) (Token, error) {
	var t Token
	if _, err := io.ReadFull(random, t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("secret: %w", err)
	}
	if _, err := io.ReadFull(random, t.Cluster[:]); err != nil {
		return Token{}, fmt.Errorf("secret: %w", err)
	}
	return t, nil
}

// MinPassword is the shortest password that is stretched, in bytes.
const MinPassword = 8

// FromPassword stretches a password with Argon2id (RFC 9106, the second
// recommended option: 3 passes over 64 MiB). The salt is fixed, since hosts that
// share only a password have nothing else in common: a random token is stronger.
func FromPassword(password string) (Token, error) {
	if len(password) < MinPassword {
		return Token{}, fmt.Errorf("password: too short: at least %d bytes are needed; or let the first host make a token", MinPassword)
	}
	key := argon2.IDKey([]byte(password), []byte("weft cluster secret v1"), 3, 64*1024, 4, 32)
	return Token{Secret: Secret(key)}, nil
}

// The token's form: a prefix with its version, then base32 (RFC 4648) in lower
// case of cluster id, secret and the first bytes of their SHA-256.
const (
	prefix      = "weft1-"
	checksumLen = 4
)

var alphabet = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func checksum(payload []byte) []byte {
	sum := sha256.Sum256(append([]byte("weft token v1\x00"), payload...))
	return sum[:checksumLen]
}

// Reveal is the token as one word, to be handed to another host or kept in a file of mode 0600.
func (t Token) Reveal() string {
	payload := append(bytes.Clone(t.Cluster[:]), t.Secret[:]...)
	return prefix + alphabet.EncodeToString(append(payload, checksum(payload)...))
}

// Errors of Parse. Neither carries any part of the token.
var (
	ErrNoToken  = errors.New("this is not a Weft token: one starts with " + prefix + " (the first host's is in /var/lib/weft/secret)")
	ErrMistyped = errors.New("the token's checksum does not match: it was mistyped or cut off; copy it again, whole, from the first host (/var/lib/weft/secret)")
)

// Parse reads what Reveal wrote. Case and surrounding white space do not matter.
func Parse(s string) (Token, error) {
	body, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(s)), prefix)
	if !ok {
		return Token{}, ErrNoToken
	}
	raw, err := alphabet.DecodeString(body)
	var t Token
	// Encoded again it must be the same: the last character has bits to spare.
	if err != nil || len(raw) != len(t.Cluster)+len(t.Secret)+checksumLen || alphabet.EncodeToString(raw) != body {
		return Token{}, ErrMistyped
	}
	payload, sum := raw[:len(raw)-checksumLen], raw[len(raw)-checksumLen:]
	if !bytes.Equal(sum, checksum(payload)) {
		return Token{}, ErrMistyped
	}
	copy(t.Cluster[:], payload)
	copy(t.Secret[:], payload[len(t.Cluster):])
	return t, nil
}

// GossipKey is the AES-256 key of the gossip.
func (s Secret) GossipKey() []byte { return s.derive("weft gossip v1") }

// PresharedKey is WireGuard's pre-shared key for a pair of peers, in any order.
func (s Secret) PresharedKey(a, b peer.ID) [32]byte {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	return [32]byte(s.derive("weft wireguard v1\x00" + string(a[:]) + string(b[:])))
}

func (s Secret) derive(info string) []byte {
	key, err := hkdf.Key(sha256.New, s[:], nil, info, 32)
	if err != nil {
		panic(err) // only for a length that HKDF cannot give
	}
	return key
}

// V6 is the IPv6 universe of a cluster that was not told another.
func (c ClusterID) V6() netip.Prefix {
	sum := sha256.Sum256(append([]byte("weft universe v1\x00"), c[:]...))
	return slot.ClusterV6(sum[:])
}
