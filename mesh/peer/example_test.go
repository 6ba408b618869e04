package peer_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/netip"

	"weft/mesh/peer"
)

// A record proves that its name is right: the id is the hash of the key that signed it.
func Example() {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	signed, err := peer.Sign(peer.Record{
		Nickname: "h1", Underlay: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Port: 6784, Gossip: 6783, Sequence: 1,
	}, key)
	if err != nil {
		panic(err)
	}
	data := signed.Encode()
	received, err := peer.Decode(data)
	fmt.Println(received.Record.Name(), err)

	_, err = peer.Decode(bytes.Replace(data, []byte("h1"), []byte("h9"), 1))
	fmt.Println("changed on its way:", err != nil)
	// Output:
	// 139e3940e64b5491(h1) <nil>
	// changed on its way: true
}
