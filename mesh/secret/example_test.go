package secret_test

import (
	"bytes"
	"fmt"

	"weft/mesh/peer"
	"weft/mesh/secret"
)

// A token does not show its secret by accident. Each pair of peers derives the same key from it.
func Example() {
	random := bytes.NewReader(make([]byte, 64)) // real code uses crypto/rand.Reader
	token, err := secret.New(random)
	if err != nil {
		panic(err)
	}
	fmt.Println(token)

	joined, err := secret.Parse(token.Reveal()) // another host parses the token
	if err != nil {
		panic(err)
	}
	a, b := peer.ID{1}, peer.ID{2}
	fmt.Println(joined.Secret.PresharedKey(a, b) == token.Secret.PresharedKey(b, a))
	// Output:
	// token of cluster 00000000000000000000000000000000
	// true
}
