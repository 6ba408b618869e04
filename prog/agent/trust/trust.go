// Package trust holds what proves that this host is itself and belongs to the network: its
// identity, its WireGuard key, the cluster's token, and the pre-shared keys that follow from it.
// A Trust is a value; it never changes while the agent runs.
package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/agent/statedir"
	"weft/prog/state"
)

// Trust has the keys and the token of this host.
type Trust struct {
	Self   peer.ID
	Keys   state.Keys
	Public wgtypes.Key // this host's WireGuard key
	Token  secret.Token
	// Root is the public key that certifies the members of the cluster, Certificate is this host's own.
	Root        ed25519.PublicKey
	Certificate []byte
	Member      member.Member // what Certificate says
}

// Store keeps the keys over a restart, and makes them the first time.
type Store interface {
	Keys(random io.Reader) (state.Keys, error)
}

// Self returns the peer id that the keys of a store give this host.
func Self(store Store) (peer.ID, error) {
	keys, err := store.Keys(rand.Reader)
	if err != nil {
		return peer.ID{}, err
	}
	return keys.ID(), nil
}

// Load reads the keys from the store, and the token from the state folder.
func Load(store Store, dir string) (t Trust, err error) {
	if t.Keys, err = store.Keys(rand.Reader); err != nil {
		return t, err
	}
	t.Self = t.Keys.ID()
	private, err := wgtypes.NewKey(t.Keys.WireGuard[:])
	if err != nil {
		return t, fmt.Errorf("trust: WireGuard key: %w", err)
	}
	t.Public = private.PublicKey()
	identity := t.Keys.Identity.Public().(ed25519.PublicKey)
	t.Token, err = statedir.Secret(dir)
	switch {
	case err == nil:
		root := t.Token.Secret.Root()
		t.Root = root.Public().(ed25519.PublicKey)
		t.Certificate = member.Certify(root, identity, member.Holder).Encode()
	case errors.Is(err, fs.ErrNotExist):
		m, e := statedir.ReadMembership(dir)
		if errors.Is(e, fs.ErrNotExist) {
			return t, fmt.Errorf("secret: %w", err)
		}
		if e != nil {
			return t, e
		}
		t.Root, t.Certificate, t.Token.Cluster = m.Root, m.Certificate, m.Cluster
	default:
		return t, fmt.Errorf("secret: %w", err)
	}
	if t.Member, err = member.Verify(t.Root, identity, t.Certificate); err != nil {
		return t, fmt.Errorf("this host's membership: %w: run `weft reset`, and join again with a token", err)
	}
	return t, nil
}

// Holds reports whether this host holds the cluster's secret.
func (t Trust) Holds() bool { return t.Member.Rights.Has(member.Holder) }

// GossipKey returns the key of older versions' gossip; nil without the secret.
func (t Trust) GossipKey() []byte {
	if !t.Holds() {
		return nil
	}
	return t.Token.Secret.GossipKey()
}

// PresharedKey returns WireGuard's pre-shared key for the tunnel to another peer that holds the secret.
// It is for hosts that hold the secret themselves.
func (t Trust) PresharedKey(other peer.ID) [32]byte {
	return t.Token.Secret.PresharedKey(t.Self, other)
}
