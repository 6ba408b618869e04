package member

import (
	"bytes"
	"crypto/ed25519"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/mesh/peer"
	"weft/mesh/secret"
)

var (
	rootKey = secret.Secret{1}.Root()
	root    = public(rootKey)
)

func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

// identity returns the identity of host n. Most tests use 1 as a holder, 2 and 3 as members that admit.
func identity(n byte) ed25519.PublicKey { return public(key(n)) }

func id(n byte) peer.ID { return peer.IDOf(identity(n)) }

// admitted returns the certificate of one host by another one, which may admit.
func admitted(t testing.TB, by, host byte, token TokenID) Certificate {
	t.Helper()
	c, err := Certify(rootKey, identity(by), Admits).AdmitByToken(key(by), identity(by), identity(host), 0, token)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCertificateSaysWhatItsSignerGave(t *testing.T) {
	token := TokenID{9}
	for name, c := range map[string]struct {
		certificate Certificate
		want        Member
		size        int
	}{
		"member":                            {Certify(rootKey, identity(5), 0), Member{}, 68},
		"member that admits":                {Certify(rootKey, identity(5), Admits), Member{Rights: Admits}, 75},
		"holder":                            {Certify(rootKey, identity(5), Holder), Member{Rights: Holder}, 75},
		"by root and token":                 {CertifyByToken(rootKey, identity(5), Admits, token), Member{Rights: Admits, Token: token}, 105},
		"by a member":                       {admitted(t, 2, 5, TokenID{}), Member{By: id(2)}, 176},
		"by a member and token":             {admitted(t, 2, 5, token), Member{By: id(2), Token: token}, 211},
		"by a holder with its own key":      {mustAdmit(t, Certify(rootKey, identity(2), Holder), TokenID{}), Member{By: id(2)}, 176},
		"by a member that a token admitted": {mustAdmit(t, CertifyByToken(rootKey, identity(2), Admits, token), token), Member{By: id(2), Token: token}, 246},
	} {
		data := c.certificate.Encode()
		got, err := Verify(root, identity(5), data)
		if err != nil || got.Rights != c.want.Rights || got.By != c.want.By || got.Token != c.want.Token || got.ID() != id(5) {
			t.Errorf("%s: Verify returned %+v, error %v; want %+v", name, got, err, c.want)
		}
		if len(data) > c.size {
			t.Errorf("%s: the certificate has %d bytes, want at most %d", name, len(data), c.size)
		}
	}
}

// mustAdmit returns the certificate of host 5 by host 2, whose own certificate is c.
func mustAdmit(t testing.TB, c Certificate, token TokenID) Certificate {
	t.Helper()
	a, err := c.AdmitByToken(key(2), identity(2), identity(5), 0, token)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestMemberAdmitsOnlyWhatItMay(t *testing.T) {
	admits := Certify(rootKey, identity(2), Admits)
	for name, c := range map[string]struct {
		certificate Certificate
		key         ed25519.PrivateKey
		self, host  ed25519.PublicKey
		rights      Rights
		want        string
	}{
		"without the right":     {Certify(rootKey, identity(2), 0), key(2), identity(2), identity(5), 0, "may not admit"},
		"itself admitted":       {admitted(t, 3, 2, TokenID{}), key(2), identity(2), identity(5), 0, "may not admit"},
		"gives Admits":          {admits, key(2), identity(2), identity(5), Admits, "only a holder"},
		"gives Holder":          {admits, key(2), identity(2), identity(5), Holder, "only a holder"},
		"with another key":      {admits, key(3), identity(2), identity(5), 0, "not that of the admitting"},
		"without a key":         {admits, nil, identity(2), identity(5), 0, "not that of the admitting"},
		"host without identity": {admits, key(2), identity(2), nil, 0, "no identity"},
	} {
		if _, err := c.certificate.Admit(c.key, c.self, c.host, c.rights); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Admit returned error %v, want one with %q", name, err, c.want)
		}
	}
}

// A member with modified software signs what Admit refuses to sign.
func TestForgedCertificatesAreRefused(t *testing.T) {
	forge := func(by byte, issuer Certificate, rights Rights) []byte {
		c := Certificate{rights: rights, issuer: identity(by), issued: issuer.Encode()}
		c.signature = ed25519.Sign(key(by), c.signed(identity(5)))
		return c.Encode()
	}
	otherRoot := secret.Secret{2}.Root()
	plain := Certificate{issuer: identity(2), issued: Certify(rootKey, identity(2), Admits).Encode()}
	plain.signature = ed25519.Sign(key(2), plain.signed(identity(5))[len(memberContext):])
	moved := admitted(t, 2, 5, TokenID{})
	moved.issued = CertifyByToken(rootKey, identity(2), Admits, TokenID{1}).Encode()
	for name, data := range map[string][]byte{
		"gives Admits":                 forge(2, Certify(rootKey, identity(2), Admits), Admits),
		"gives Holder":                 forge(2, Certify(rootKey, identity(2), Holder), Holder),
		"issuer without the right":     forge(2, Certify(rootKey, identity(2), 0), 0),
		"issuer of another cluster":    forge(2, Certify(otherRoot, identity(2), Admits), 0),
		"issuer with stolen rights":    forge(2, Certify(rootKey, identity(3), Admits), 0),
		"issuer certified by a member": forge(2, admitted(t, 3, 2, TokenID{}), 0),
		"issuer certified by itself":   forge(2, Certify(key(2), identity(2), Admits), 0),
		"no context":                   plain.Encode(),
		"another issuer's certificate": moved.Encode(),
		"unknown rights":               Certify(rootKey, identity(5), 2).Encode(),
		"more unknown rights":          Certify(rootKey, identity(5), 4).Encode(),
		"another cluster":              Certify(otherRoot, identity(5), 0).Encode(),
		"nothing":                      nil,
		"too long":                     make([]byte, MaxCertificate+1),
	} {
		if m, err := Verify(root, identity(5), data); err == nil {
			t.Errorf("%s: Verify accepted the forged certificate as %+v, want an error", name, m)
		}
	}
	good := Certify(rootKey, identity(5), 0).Encode()
	for name, keys := range map[string][2]ed25519.PublicKey{"no root key": {nil, identity(5)}, "no identity": {root, identity(5)[:31]}} {
		if _, err := Verify(keys[0], keys[1], good); err == nil {
			t.Errorf("%s: Verify accepted the certificate, want an error", name)
		}
	}
}

// anyCertificate draws a valid certificate of host n.
func anyCertificate(t *rapid.T, n byte) Certificate {
	token := TokenID{rapid.Byte().Draw(t, "token")}
	if rapid.Bool().Draw(t, "by the root key") {
		return CertifyByToken(rootKey, identity(n), rapid.SampledFrom([]Rights{0, Admits, Holder}).Draw(t, "rights"), token)
	}
	issuer := rapid.SampledFrom([]Rights{Admits, Holder}).Draw(t, "issuer's rights")
	c, err := Certify(rootKey, identity(2), issuer).AdmitByToken(key(2), identity(2), identity(n), 0, token)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCertificateIsOfOneIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, other := rapid.Byte().Draw(t, "host"), rapid.Byte().Draw(t, "other host")
		_, err := Verify(root, identity(other), anyCertificate(t, n).Encode())
		if (err == nil) != (n == other) {
			t.Fatalf("verifying the certificate of host %d for host %d returned error %v; want one only if they differ", n, other, err)
		}
	})
}

func TestChangedCertificateIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := anyCertificate(t, 5).Encode()
		i := rapid.IntRange(0, len(data)-1).Draw(t, "position")
		data[i] ^= rapid.ByteRange(1, 255).Draw(t, "change")
		if m, err := Verify(root, identity(5), data); err == nil {
			t.Fatalf("Verify accepted a certificate whose byte %d was changed, as %+v; want an error", i, m)
		}
	})
}

func TestRightsIncludeOthers(t *testing.T) {
	for _, c := range []struct {
		rights         Rights
		admits, holder bool
	}{{0, false, false}, {Admits, true, false}, {Holder, true, true}} {
		if c.rights.Has(Admits) != c.admits || c.rights.Has(Holder) != c.holder {
			t.Errorf("a %v has Admits: %v, Holder: %v; want %v, %v", c.rights, c.rights.Has(Admits), c.rights.Has(Holder), c.admits, c.holder)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(Certify(rootKey, identity(5), Holder).Encode())
	f.Add(admitted(f, 2, 5, TokenID{1}).Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Verify(root, identity(5), data)
		c, err := DecodeCertificate(data)
		if err == nil && !bytes.Equal(c.Encode(), data) {
			t.Fatal("a decoded certificate has another encoding; want the same bytes")
		}
	})
}
