package member

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/document"
	"weft/mesh/secret"
)

var from = netip.MustParseAddrPort("192.0.2.7:6783")

// certificateOf returns the encoded certificate of host n by the root key.
func certificateOf(n byte, r Rights) []byte { return Certify(rootKey, identity(n), r).Encode() }

func tokenBody(writer byte, r Rights) TokenBody {
	return TokenBody{Created: 1e9, TTL: 3600, Uses: 2, Name: "rack 1", Certificate: certificateOf(writer, r)}
}

func joinBody(writer byte, r Rights, token TokenID, host byte) JoinBody {
	return JoinBody{Token: token, Peer: identity(host), Nickname: "h" + string('0'+rune(host)), From: from, At: 1e9 + int64(host), Certificate: certificateOf(writer, r)}
}

func banBody(writer byte, r Rights) BanBody {
	return BanBody{Banned: true, Reason: "stolen", At: 1e9, Certificate: certificateOf(writer, r)}
}

func TestBodiesAreDecodedAsEncoded(t *testing.T) {
	tb, jb, bb := tokenBody(1, Holder), joinBody(1, Holder, TokenID{1}, 5), banBody(1, Holder)
	data, err := tb.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeTokenBody(data); err != nil || got.Expires() != 1e9+3600 || got.Name != tb.Name || !bytes.Equal(got.Certificate, tb.Certificate) {
		t.Errorf("decoding a token's body returned %+v, error %v; want %+v", got, err, tb)
	}
	jb.From = netip.MustParseAddrPort("[::ffff:192.0.2.7]:6783") // how a socket of both families shows IPv4
	if data, err = jb.Encode(); err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeJoinBody(data); err != nil || got.From != from || got.Token != jb.Token || !bytes.Equal(got.Peer, jb.Peer) {
		t.Errorf("decoding a join's body returned %+v, error %v; want %+v", got, err, jb)
	}
	if data, err = bb.Encode(); err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeBanBody(data); err != nil || !got.Banned || got.Reason != bb.Reason {
		t.Errorf("decoding a ban's body returned %+v, error %v; want %+v", got, err, bb)
	}
}

// A newer version may add fields.
func TestUnknownFieldsOfBodiesAreAccepted(t *testing.T) {
	data := must(encoding.Marshal(map[int]any{3: 1, 4: certificateOf(1, Holder), 99: "new field"}))
	if got, err := DecodeBanBody(data); err != nil || got.At != 1 {
		t.Errorf("decoding a body with an unknown field returned %+v, error %v; want the known fields", got, err)
	}
}

func TestInvalidBodiesAreRefused(t *testing.T) {
	refuse := func(name string, b body, decode func([]byte) error) {
		t.Helper()
		if _, err := encode(b); err == nil {
			t.Errorf("%s: Encode accepted the body, want an error", name)
		}
		if decode(must(cbor.Marshal(b))) == nil {
			t.Errorf("%s: decoding accepted the body, want an error", name)
		}
	}
	for name, change := range map[string]func(*TokenBody){
		"time before 1970": func(b *TokenBody) { b.Created = -1 },
		"impossible time":  func(b *TokenBody) { b.Created = maxTime + 1 },
		"no end":           func(b *TokenBody) { b.TTL = 0 },
		"ends before":      func(b *TokenBody) { b.TTL = -1 },
		"ends too late":    func(b *TokenBody) { b.TTL = MaxTTL + 1 },
		"no uses":          func(b *TokenBody) { b.Uses = 0 },
		"too many uses":    func(b *TokenBody) { b.Uses = MaxUses + 1 },
		"long name":        func(b *TokenBody) { b.Name = strings.Repeat("x", MaxName+1) },
		"terminal escape":  func(b *TokenBody) { b.Name = "\x1b[2J" },
		"gives Holder":     func(b *TokenBody) { b.Rights = Holder },
		"unknown rights":   func(b *TokenBody) { b.Rights = 4 },
		"no certificate":   func(b *TokenBody) { b.Certificate = nil },
	} {
		b := tokenBody(1, Holder)
		change(&b)
		refuse("token: "+name, b, func(data []byte) error { _, err := DecodeTokenBody(data); return err })
	}
	for name, change := range map[string]func(*JoinBody){
		"no token":        func(b *JoinBody) { b.Token = TokenID{} },
		"no identity":     func(b *JoinBody) { b.Peer = nil },
		"long identity":   func(b *JoinBody) { b.Peer = make([]byte, 33) },
		"long nickname":   func(b *JoinBody) { b.Nickname = strings.Repeat("x", 65) },
		"terminal escape": func(b *JoinBody) { b.Nickname = "\x1b[2J" },
		"no source":       func(b *JoinBody) { b.From = netip.AddrPort{} },
		"impossible time": func(b *JoinBody) { b.At = maxTime + 1 },
		"no certificate":  func(b *JoinBody) { b.Certificate = []byte{1} },
	} {
		b := joinBody(1, Holder, TokenID{1}, 5)
		change(&b)
		refuse("join: "+name, b, func(data []byte) error { _, err := DecodeJoinBody(data); return err })
	}
	for name, change := range map[string]func(*BanBody){
		"long reason":     func(b *BanBody) { b.Reason = strings.Repeat("x", MaxReason+1) },
		"terminal escape": func(b *BanBody) { b.Reason = "\x1b[2J" },
		"impossible time": func(b *BanBody) { b.At = -1 },
		"no certificate":  func(b *BanBody) { b.Certificate = nil },
	} {
		b := banBody(1, Holder)
		change(&b)
		refuse("ban: "+name, b, func(data []byte) error { _, err := DecodeBanBody(data); return err })
	}
	if _, err := DecodeBanBody(make([]byte, maxBody+1)); err == nil {
		t.Error("DecodeBanBody accepted a body that is too long, want an error")
	}
	zoned := joinBody(1, Holder, TokenID{1}, 5)
	zoned.From = netip.MustParseAddrPort("[fe80::1%eth0]:1")
	if _, err := DecodeJoinBody(must(cbor.Marshal(zoned))); err == nil {
		t.Error("DecodeJoinBody accepted a source with a zone, want an error")
	}
}

// write returns a document by host n that follows old.
func write(t testing.TB, old *document.Document, n byte, kind, name string, b body) *document.Document {
	t.Helper()
	data, err := encode(b)
	if err != nil {
		t.Fatal(err)
	}
	d, err := document.Next(old, kind, name, data, false, 1e9, key(n))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestJudgeAcceptsDocumentsOfMembersThatAdmit(t *testing.T) {
	token := TokenID{1}
	policy, err := document.Next(nil, "policy", "shop/db", []byte("allow web"), false, 0, key(9))
	if err != nil {
		t.Fatal(err)
	}
	rights, revoked := tokenBody(1, Holder), tokenBody(2, Admits)
	rights.Rights, revoked.Rights, revoked.Revoked = Admits, Admits, true
	for name, d := range map[string]*document.Document{
		"another kind":                  policy,
		"token":                         write(t, nil, 2, KindToken, token.Name(), tokenBody(2, Admits)),
		"token that gives rights":       write(t, nil, 1, KindToken, token.Name(), rights),
		"revoked token of another":      write(t, nil, 2, KindToken, token.Name(), revoked),
		"join":                          write(t, nil, 2, KindJoin, JoinName(token, id(5)), joinBody(2, Admits, token, 5)),
		"ban":                           write(t, nil, 2, KindBan, id(5).String(), banBody(2, Admits)),
		"a holder's ban of itself ends": write(t, nil, 1, KindBan, id(1).String(), BanBody{Certificate: certificateOf(1, Holder)}),
	} {
		if err := Judge(d, root); err != nil {
			t.Errorf("%s: Judge returned error %v, want none", name, err)
		}
	}
}

func TestJudgeRefusesDocumentsThatDoNotCount(t *testing.T) {
	token, other := TokenID{1}, TokenID{2}
	tombstone, err := document.Next(nil, KindToken, token.Name(), nil, true, 0, key(1))
	if err != nil {
		t.Fatal(err)
	}
	garbage, err := document.Next(nil, KindBan, id(5).String(), []byte("garbage"), false, 0, key(1))
	if err != nil {
		t.Fatal(err)
	}
	foreign, rights, byMember := banBody(1, Holder), tokenBody(2, Admits), banBody(3, 0)
	foreign.Certificate = Certify(secret.Secret{2}.Root(), identity(1), Holder).Encode()
	rights.Rights = Admits
	byMember.Certificate = admitted(t, 2, 3, TokenID{}).Encode()
	for name, c := range map[string]struct {
		doc  *document.Document
		want string
	}{
		"deleted":                   {tombstone, "never deleted"},
		"garbage":                   {garbage, "decoding"},
		"member without rights":     {write(t, nil, 3, KindBan, id(5).String(), banBody(3, 0)), "may not admit"},
		"member that another added": {write(t, nil, 3, KindBan, id(5).String(), byMember), "may not admit"},
		"another's certificate":     {write(t, nil, 3, KindBan, id(5).String(), banBody(2, Admits)), "signature is invalid"},
		"another cluster":           {write(t, nil, 1, KindBan, id(5).String(), foreign), "signature is invalid"},
		"token that gives rights":   {write(t, nil, 2, KindToken, token.Name(), rights), "only a holder"},
		"token's name":              {write(t, nil, 1, KindToken, "rack 1", tokenBody(1, Holder)), "id of a token"},
		"token's name in capitals":  {write(t, nil, 1, KindToken, strings.ToUpper(TokenID{0xab}.Name()), tokenBody(1, Holder)), "lower-case"},
		"join of another token":     {write(t, nil, 1, KindJoin, JoinName(other, id(5)), joinBody(1, Holder, token, 5)), "differs"},
		"join of another host":      {write(t, nil, 1, KindJoin, JoinName(token, id(6)), joinBody(1, Holder, token, 5)), "differs"},
		"ban's name":                {write(t, nil, 1, KindBan, "h5", banBody(1, Holder)), "peer id"},
		"ban's name in capitals":    {write(t, nil, 1, KindBan, "AB00000000000000", banBody(1, Holder)), "capitals"},
		"own ban":                   {write(t, nil, 2, KindBan, id(2).String(), BanBody{Certificate: certificateOf(2, Admits)}), "own ban"},
		"body of another kind":      {write(t, nil, 1, KindToken, token.Name(), banBody(1, Holder)), "decoding"},
	} {
		if err := Judge(c.doc, root); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Judge returned error %v, want one with %q", name, err, c.want)
		}
	}
}

func FuzzDecodeTokenBody(f *testing.F) {
	f.Add(must(encode(tokenBody(1, Holder))))
	f.Fuzz(func(t *testing.T, data []byte) { again(t, data, DecodeTokenBody) })
}

func FuzzDecodeJoinBody(f *testing.F) {
	f.Add(must(encode(joinBody(1, Holder, TokenID{1}, 5))))
	f.Fuzz(func(t *testing.T, data []byte) { again(t, data, DecodeJoinBody) })
}

func FuzzDecodeBanBody(f *testing.F) {
	f.Add(must(encode(banBody(1, Holder))))
	f.Fuzz(func(t *testing.T, data []byte) { again(t, data, DecodeBanBody) })
}

// again checks that what was decoded can be encoded and decoded again.
func again[B body](t *testing.T, data []byte, decode func([]byte) (B, error)) {
	b, err := decode(data)
	if err != nil {
		return
	}
	encoded, err := encode(b)
	if err != nil {
		t.Fatalf("encoding a decoded body: %v", err)
	}
	if _, err := decode(encoded); err != nil {
		t.Fatalf("decoding it again: %v", err)
	}
}
