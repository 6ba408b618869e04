package member_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"

	"weft/mesh/document"
	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// A holder of the secret creates a token. A host redeems it, and becomes a member without the secret.
func Example() {
	founder := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	host := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	rootKey := secret.Secret{7}.Root()
	root := rootKey.Public().(ed25519.PublicKey)
	own := member.Certify(rootKey, founder.Public().(ed25519.PublicKey), member.Holder)

	token, err := member.New(bytes.NewReader(make([]byte, 16)), root) // real code uses crypto/rand.Reader
	if err != nil {
		panic(err)
	}
	body, err := member.TokenBody{Created: 1000, TTL: 3600, Uses: 1, Name: "rack 1", Certificate: own.Encode()}.Encode()
	if err != nil {
		panic(err)
	}
	d, err := document.Next(nil, member.KindToken, token.ID().Name(), body, false, 1000, founder)
	if err != nil {
		panic(err)
	}
	ledger := member.Read(root, []*document.Document{d})

	binding := bytes.Repeat([]byte{3}, 32) // real code exports it from the TLS session
	id, err := member.VerifyProof(token.Prove(binding), binding)
	if err != nil {
		panic(err)
	}
	_, err = ledger.Redeem(id, peer.IDOf(host), 5000)
	fmt.Println(err)
	granted, err := ledger.Redeem(id, peer.IDOf(host), 2000)
	if err != nil {
		panic(err)
	}
	certificate := member.CertifyByToken(rootKey, host, granted.Rights, id)
	m, err := member.Verify(root, host, certificate.Encode())
	fmt.Println(token, m.Rights, m.Token == id, err)
	// Output:
	// token 686b760fe1fde350 (rack 1): it expired at 1970-01-01 01:16:40 UTC, and this member's clock says 1970-01-01 01:23:20 UTC: create another with `weft token create`; if that clock is wrong, set it, or join at another member
	// [token] member true <nil>
}
