package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/argon2"

	"weft/mesh/peer"
)

func token(t *testing.T) Token {
	t.Helper()
	tok, err := New(bytes.NewReader(append(bytes.Repeat([]byte{7, 99, 200, 31}, 8), bytes.Repeat([]byte{1, 2}, 8)...)))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestParseReturnsRevealedToken(t *testing.T) {
	want := token(t)
	for _, s := range []string{want.Reveal(), " " + want.Reveal() + "\r\n", strings.ToUpper(want.Reveal())} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("Parse of %q returned %v, error %v; want the token", s, got, err)
		}
	}
}

// A token with any one character changed, removed, doubled or swapped with its neighbour is refused
// as mistyped.
func TestMistypedTokenIsRefused(t *testing.T) {
	good := token(t).Reveal()
	for i := len(prefix); i < len(good); i++ {
		other := byte('a')
		if good[i] == 'a' {
			other = 'b'
		}
		bad := []string{good[:i] + string(other) + good[i+1:], good[:i] + good[i+1:], good[:i] + good[i:i+1] + good[i:]}
		if i+1 < len(good) && good[i] != good[i+1] {
			bad = append(bad, good[:i]+good[i+1:i+2]+good[i:i+1]+good[i+2:])
		}
		for _, s := range bad {
			if _, err := Parse(s); !errors.Is(err, ErrMistyped) {
				t.Errorf("Parse of %q returned %v; want ErrMistyped", s, err)
			}
		}
	}
	if _, err := Parse("hunter2"); !errors.Is(err, ErrNoToken) {
		t.Errorf("Parse of a string that is no token: got %v, want ErrNoToken", err)
	}
}

func TestSecretsAreRedactedWhenPrinted(t *testing.T) {
	tok := token(t)
	inJSON, err := json.Marshal(tok)
	if err != nil {
		t.Fatal(err)
	}
	raw := tok.Reveal()[len(prefix)+30:] // raw is the part of the token after the cluster id
	for _, printed := range []string{
		fmt.Sprint(tok), fmt.Sprintf("%+v %#v %s", tok, tok, tok.Secret), fmt.Sprintf("%v %#v", tok.Secret, tok.Secret), string(inJSON),
	} {
		if strings.Contains(printed, raw) || strings.Contains(printed, fmt.Sprintf("%x", tok.Secret[:4])) || strings.Contains(printed, "7, 99") || strings.Contains(printed, "0x63") {
			t.Errorf("formatting a token shows the secret: %s; want it hidden", printed)
		}
	}
}

func TestPresharedKeysDifferPerPair(t *testing.T) {
	s := token(t).Secret
	a, b, c := peer.ID{1}, peer.ID{2}, peer.ID{3}
	if s.PresharedKey(a, b) != s.PresharedKey(b, a) {
		t.Error("the two ends of a tunnel have different keys; want the same")
	}
	if s.PresharedKey(a, b) == s.PresharedKey(a, c) || bytes.Equal(s.GossipKey(), s.derive("")) {
		t.Error("two tunnels, or gossip and another use, share a key; want different keys")
	}
}

func TestPasswordDeterminesSecret(t *testing.T) {
	a, err := FromPassword("correct horse", "")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := FromPassword("correct horse", ""); a != b {
		t.Error("the same password gave two secrets; want one")
	}
	if b, _ := FromPassword("Correct horse", ""); a == b {
		t.Error("two passwords gave the same secret; want two")
	}
	if _, err := FromPassword("short", ""); err == nil {
		t.Error("FromPassword accepted a password of 5 bytes; want an error")
	}
}

// The salt has the name of the cluster. Without a name it is the salt of version 0.2.
func TestClusterNameSaltsPassword(t *testing.T) {
	none, shop, bank := password(t, ""), password(t, "shop"), password(t, "bank")
	if none.Secret == shop.Secret || shop.Secret == bank.Secret || shop != password(t, "shop") {
		t.Error("one password gave two clusters the same secret, or one cluster two; want one secret per cluster")
	}
	for name, c := range map[string]struct {
		salt string
		got  Token
	}{"no name": {"weft cluster secret v1", none}, "a name": {"weft cluster secret v1\x00shop", shop}} {
		if want := Secret(argon2.IDKey([]byte("correct horse"), []byte(c.salt), 3, 64*1024, 4, 32)); c.got.Secret != want {
			t.Errorf("%s: the secret is not the one of the salt %q", name, c.salt)
		}
	}
	for _, bad := range []string{strings.Repeat("x", MaxCluster+1), "shop\n", "\x1b[2J", "a\x00b", "\xff"} {
		if _, err := FromPassword("correct horse", bad); err == nil {
			t.Errorf("FromPassword accepted the cluster name %q; want an error", bad)
		}
	}
}

func password(t *testing.T, cluster string) Token {
	t.Helper()
	tok, err := FromPassword("correct horse", cluster)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestRootKeyIsOfOneSecret(t *testing.T) {
	s := token(t).Secret
	root := s.Root()
	if !root.Equal(s.Root()) || root.Equal(Secret{1}.Root()) || bytes.Equal(root.Seed(), s.GossipKey()) {
		t.Error("the root key is not the same each time, or is another secret's or the gossip key; want one per secret")
	}
}

func TestClusterV6IsULA(t *testing.T) {
	a, b := ClusterID{1}.V6(), ClusterID{2}.V6()
	if a == b || a.Bits() != 96 || a.Addr().As16()[0] != 0xfd || a.Masked() != a {
		t.Errorf("IPv6 universes of two clusters: %v and %v, want two different ULA /96", a, b)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Token{}.Reveal())
	f.Add(prefix)
	f.Add("weft1-aaaa")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(tok.Reveal()); err != nil || again != tok {
			t.Fatalf("Parse of the revealed token of %q returned another token or error %v; want the same token", s, err)
		}
	})
}
