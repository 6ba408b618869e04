package meshtest

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"sync"

	"weft/mesh/peer"
)

// Identity returns the key of simulated peer n, which is always the same. n is at most 255.
func Identity(n int) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(n)}, ed25519.SeedSize))
}

// ID returns the id of simulated peer n.
func ID(n int) peer.ID { return ids()[byte(n)] }

// ids are computed once: keys are costly, and simulations ask for ids often.
var ids = sync.OnceValue(func() (out [256]peer.ID) {
	for n := range out {
		out[n] = peer.IDOf(Identity(n).Public().(ed25519.PublicKey))
	}
	return out
})

// gossipPort is mesh.Port, declared here again because the mesh's own tests import this package.
const gossipPort = 6783

// Address returns where simulated peer n serves gossip.
func Address(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), gossipPort)
}
