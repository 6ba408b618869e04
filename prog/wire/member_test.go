package wire

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"testing"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// These items say who is a member: keys, tokens, certificates, and documents about tokens and bans.

var memberItems = map[string]item{
	"secret/root":           {what: "the public key that certifies the members, derived from secret/token", read: readRoot},
	"secret/password-named": {what: "the token derived from the password `correct horse` and the name `shop` of the cluster, text", read: readToken},
	"member/token":          {what: "a token that admits hosts, text", read: readMemberToken},
	"member/certificate":    {what: "the certificate of alpha, a holder of the secret", read: readCertificate(alpha)},
	"member/admitted":       {what: "the certificate of delta, which alpha admitted by member/token", read: readCertificate(delta)},
	"peer/admitted":         {what: "the record of delta, with member/admitted", read: readRecord, newer: newerRecord},
	"documents/token":       {what: "alpha's document of member/token", read: readMemberDocument, newer: newerMemberDocument},
	"documents/join":        {what: "a document: alpha admitted delta", read: readMemberDocument, newer: newerMemberDocument},
	"documents/ban":         {what: "a document: alpha banned echo", read: readMemberDocument, newer: newerMemberDocument},
}

// newerMemberDocument adds unknown fields to a document and to its body.
func newerMemberDocument(data []byte) []byte {
	w := must(decode[v1Signed](data))
	w.Content = within(w.Content, 7, wrapped(withFields))
	return newerDocument(encode(w))
}

func public(n int) ed25519.PublicKey { return key(n).Public().(ed25519.PublicKey) }

func rootPublic() ed25519.PublicKey { return rootKey.Public().(ed25519.PublicKey) }

func produceMembers(t *testing.T) map[string][]byte {
	t.Helper()
	named := must(secret.FromPassword("correct horse", "shop"))
	token := must(member.New(bytes.NewReader(bytes.Repeat([]byte{0x66}, 16)), rootPublic()))
	own := member.Certify(rootKey, public(alpha), member.Holder)
	admitted := must(own.AdmitByToken(key(alpha), public(alpha), public(delta), 0, token.ID()))
	r := record(delta)
	r.Sequence, r.Certificate = 3, admitted.Encode()
	all := map[string][]byte{
		"secret/root": rootPublic(), "secret/password-named": []byte(named.Reveal()), "member/token": []byte(token.Reveal()),
		"member/certificate": own.Encode(), "member/admitted": admitted.Encode(), "peer/admitted": must(peer.Sign(r, key(delta))).Encode(),
	}
	for item, c := range map[string]mesh.Change{
		"documents/token": {Kind: member.KindToken, Name: token.ID().Name(), Body: must(member.TokenBody{
			Created: now.Unix(), TTL: 3600, Uses: 2, Name: "rack 7", Rights: member.Admits, Certificate: own.Encode(),
		}.Encode())},
		"documents/join": {Kind: member.KindJoin, Name: member.JoinName(token.ID(), id(delta)), Body: must(member.JoinBody{
			Token: token.ID(), Peer: public(delta), Nickname: "delta", From: netip.MustParseAddrPort("192.0.2.4:40000"), At: now.Unix(), Certificate: own.Encode(),
		}.Encode())},
		"documents/ban": {Kind: member.KindBan, Name: id(echo).String(), Body: must(member.BanBody{
			Banned: true, Reason: "stolen", At: now.Unix(), Certificate: own.Encode(),
		}.Encode())},
	} {
		all[item] = written(t, c)
	}
	return all
}

// written returns the document that a change makes, as its first version.
func written(t *testing.T, c mesh.Change) []byte {
	t.Helper()
	s := &station{}
	if err := documentsOf(alpha, s, newShelf()).Write([]mesh.Change{c}); err != nil {
		t.Fatal(err)
	}
	return must(decode[v1DocumentNews](s.last())).Documents[0]
}

func readRoot(t *testing.T, data []byte) string {
	t.Helper()
	tok := must(secret.Parse(string(scene["secret/token"])))
	return show(map[string]any{"is the root key of secret/token": bytes.Equal(tok.Secret.Root().Public().(ed25519.PublicKey), data)})
}

func readMemberToken(t *testing.T, data []byte) string {
	t.Helper()
	tok, err := member.ParseToken(string(data))
	if err != nil {
		return show(err)
	}
	return show(map[string]any{"id": tok.ID(), "is of this cluster": tok.Proves(rootPublic())})
}

func readCertificate(n int) func(*testing.T, []byte) string {
	return func(t *testing.T, data []byte) string {
		t.Helper()
		return describeMember(public(n), data)
	}
}

// describeMember returns what a certificate says about an identity.
func describeMember(identity ed25519.PublicKey, certificate []byte) string {
	m, err := member.Verify(rootPublic(), identity, certificate)
	if err != nil {
		return show(err)
	}
	by := "the root key"
	if !m.By.IsZero() {
		by = nameOf(m.By)
	}
	out := "member: " + nameOf(m.ID()) + ", " + m.Rights.String() + ", certified by " + by + "\n"
	if !m.Token.IsZero() {
		out += "admitted by token " + m.Token.Name() + "\n"
	}
	return out
}

func readMemberDocument(t *testing.T, data []byte) string {
	t.Helper()
	d, err := document.Decode(data)
	if err != nil {
		return show(err)
	}
	var body any
	switch d.Kind {
	case member.KindToken:
		body, err = member.DecodeTokenBody(d.Body)
	case member.KindJoin:
		body, err = member.DecodeJoinBody(d.Body)
	case member.KindBan:
		body, err = member.DecodeBanBody(d.Body)
	}
	return tell("of "+nameOf(d.WriterID())+"\n", show(map[string]any{"kind": d.Kind, "name": d.Name, "version": d.Version, "written": d.Written, "error": err}),
		show(map[string]any{"body": body, "counts": member.Judge(d, rootPublic()) == nil}))
}

// A certificate has one encoding, and no room for fields: a changed certificate is refused.
func TestCertificatesWithUnknownFieldsAreRefused(t *testing.T) {
	data, _ := load(t, latest())
	scene = data
	for _, name := range []string{"member/certificate", "member/admitted"} {
		if _, err := member.DecodeCertificate(withFields(data[name])); err == nil {
			t.Errorf("%s with unknown fields was decoded; want it refused", name)
		}
	}
}
