package document_test

import (
	"crypto/ed25519"
	"fmt"

	"weft/mesh/document"
)

// Two peers write the same document without knowing of each other. Every peer keeps the same one of
// the two versions, in whichever order they arrive.
func Example() {
	write := func(seed byte, body string) *document.Document {
		key := ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), seed))
		d, err := document.Next(nil, "policy", "shop/db", []byte(body), false, 0, key)
		if err != nil {
			panic(err)
		}
		return d
	}
	one, other := write(1, "allow web"), write(2, "allow api")
	here, there := document.NewSet(), document.NewSet()
	for _, d := range []*document.Document{one, other} {
		_, _ = here.Put(d, 0)
	}
	for _, d := range []*document.Document{other, one} {
		_, _ = there.Put(d, 0)
	}
	fmt.Println(here.Digest(0) == there.Digest(0))
	fmt.Println(string(here.Get("policy", "shop/db").Body) == string(there.Get("policy", "shop/db").Body))
	// Output:
	// true
	// true
}
