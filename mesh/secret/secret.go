// Package secret holds the secret of a cluster. It derives the gossip key, the pre-shared keys of
// the tunnels, the root key that certifies members, and the token with which other hosts join.
//
// A Secret never prints itself: String, GoString and MarshalText are redacted, so that it does not
// get into a log by accident. Only Token.Reveal returns it. All types are values.
package secret

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/crypto/argon2"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// Secret is the 32 random bytes that every peer of a cluster shares.
type Secret [32]byte

const redacted = "[secret]"

func (Secret) String() string { return redacted }

// GoString keeps the secret out of the output of %#v.
func (Secret) GoString() string { return redacted }

// MarshalText keeps the secret out of JSON and logs.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ClusterID identifies a cluster. It is random, created when the cluster is founded, and never
// changes, even if keys are rotated. It is not secret.
type ClusterID [16]byte

func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// MarshalText returns the same text as String, for JSON and logs.
func (c ClusterID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// IsZero reports whether the cluster is not known yet: a peer that joins by password learns the id
// from the ring.
func (c ClusterID) IsZero() bool { return c == ClusterID{} }

// Token is the data that a host needs to join: the secret and the id of its cluster.
type Token struct {
	Cluster ClusterID // zero if the secret was derived from a password
	Secret  Secret
}

func (t Token) String() string { return "token of cluster " + t.Cluster.String() }

// GoString keeps the secret out of the output of %#v.
func (t Token) GoString() string { return t.String() }

// New returns the token of a new cluster, read from a source of randomness.
func New(random io.Reader) (Token, error) {
	var t Token
	if _, err := io.ReadFull(random, t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("secret: reading random bytes: %w", err)
	}
	if _, err := io.ReadFull(random, t.Cluster[:]); err != nil {
		return Token{}, fmt.Errorf("secret: reading random bytes: %w", err)
	}
	return t, nil
}

// MinPassword is the shortest allowed password, and MaxCluster the longest name of a cluster, in bytes.
const (
	MinPassword = 8
	MaxCluster  = 64
)

// FromPassword derives a secret from a password with Argon2id (RFC 9106, the second recommended
// option: 3 passes over 64 MiB). The optional name of the cluster is part of the salt: without it,
// the salt is the same for all clusters, since hosts that share only a password have nothing else in
// common. A random token is stronger than both.
func FromPassword(password, cluster string) (Token, error) {
	if len(password) < MinPassword {
		return Token{}, fmt.Errorf("password: too short: use at least %d bytes, or let the first host create a token", MinPassword)
	}
	salt := "weft cluster secret v1"
	if cluster != "" {
		if err := CheckCluster(cluster); err != nil {
			return Token{}, err
		}
		salt += "\x00" + cluster
	}
	key := argon2.IDKey([]byte(password), []byte(salt), 3, 64*1024, 4, 32)
	return Token{Secret: Secret(key)}, nil
}

// CheckCluster returns an error if FromPassword refuses the name of a cluster.
func CheckCluster(name string) error {
	if name == "" || len(name) > MaxCluster || !peer.Printable(name) {
		return fmt.Errorf("name of the cluster %.*q: want 1 to %d bytes of UTF-8, without control characters", MaxCluster, name, MaxCluster)
	}
	return nil
}

// armour is the format of a token: the payload is the cluster id, then the secret.
var armour = Armour{Prefix: prefix, Context: "weft token v1\x00", Length: len(ClusterID{}) + len(Secret{})}

// These prefixes distinguish the tokens of package secret from those of package member, which do not
// hold the secret.
const (
	prefix       = "weft1-"
	MemberPrefix = "weft2-"
)

// Reveal returns the token as one word, for another host or for a file of mode 0600.
func (t Token) Reveal() string {
	return armour.Encode(append(bytes.Clone(t.Cluster[:]), t.Secret[:]...))
}

// These are the errors of Parse. They contain no part of the token.
var (
	ErrNoToken     = errors.New("this is not a Weft token: a token of `weft token create` starts with " + MemberPrefix + ", and the network's secret (/var/lib/weft/secret on the first host) starts with " + prefix)
	ErrMistyped    = errors.New("the token's checksum does not match: it was mistyped or truncated: copy the whole token again")
	ErrMemberToken = errors.New("this token (" + MemberPrefix + "…) admits a host, but does not hold the cluster's secret: give the token that starts with " + prefix + " instead; the first host has it in /var/lib/weft/secret")
)

// Parse parses the format of Reveal. Case and surrounding white space are ignored.
func Parse(s string) (Token, error) {
	payload, err := armour.Decode(s)
	switch {
	case (Armour{Prefix: MemberPrefix}).Matches(s):
		return Token{}, ErrMemberToken
	case errors.Is(err, ErrPrefix):
		return Token{}, ErrNoToken
	case err != nil:
		return Token{}, ErrMistyped
	}
	var t Token
	copy(t.Cluster[:], payload)
	copy(t.Secret[:], payload[len(t.Cluster):])
	return t, nil
}

// IsToken reports whether s starts like the token of a cluster. It may still be mistyped.
func IsToken(s string) bool { return armour.Matches(s) }

// Root returns the key that certifies the members of the cluster. Every holder of the secret has it.
func (s Secret) Root() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(s.derive("weft root v1")) }

// GossipKey returns the AES-256 key of gossip.
func (s Secret) GossipKey() []byte { return s.derive("weft gossip v1") }

// PresharedKey returns WireGuard's pre-shared key for two peers, in either order.
func (s Secret) PresharedKey(a, b peer.ID) [32]byte {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	return [32]byte(s.derive("weft wireguard v1\x00" + string(a[:]) + string(b[:])))
}

func (s Secret) derive(info string) []byte {
	key, err := hkdf.Key(sha256.New, s[:], nil, info, 32)
	if err != nil {
		panic(err) // this only happens for an invalid key length
	}
	return key
}

// V6 returns the IPv6 universe of a cluster whose configuration names none.
func (c ClusterID) V6() netip.Prefix {
	sum := sha256.Sum256(append([]byte("weft universe v1\x00"), c[:]...))
	return slot.ClusterV6(sum[:])
}
