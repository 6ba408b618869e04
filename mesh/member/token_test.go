package member

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"weft/mesh/secret"
)

func newToken(t testing.TB, n byte) Token {
	t.Helper()
	tok, err := New(bytes.NewReader(bytes.Repeat([]byte{n, 99}, 8)), root)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestParseTokenReturnsRevealedToken(t *testing.T) {
	want := newToken(t, 7)
	for _, s := range []string{want.Reveal(), " " + want.Reveal() + "\r\n", strings.ToUpper(want.Reveal())} {
		if got, err := ParseToken(s); err != nil || got != want || got.ID() != want.ID() {
			t.Errorf("ParseToken of %q returned error %v; want the token", s, err)
		}
	}
	if newToken(t, 8).ID() == want.ID() || want.ID().IsZero() {
		t.Error("two tokens have the same id; want different ids")
	}
}

func TestParseTokenSaysWhatIsWrong(t *testing.T) {
	good := newToken(t, 7).Reveal()
	for i := len(secret.MemberPrefix); i < len(good); i++ {
		other := "a"
		if good[i] == 'a' {
			other = "b"
		}
		for _, s := range []string{good[:i] + other + good[i+1:], good[:i] + good[i+1:], good[:i], good[:i] + good[i:i+1] + good[i:]} {
			if _, err := ParseToken(s); !errors.Is(err, ErrMistyped) {
				t.Errorf("ParseToken of %q returned error %v, want ErrMistyped", s, err)
			}
		}
	}
	for s, want := range map[string]error{
		"hunter2": ErrNoToken, "": ErrNoToken, "weft3-abc": ErrNoToken,
		secret.Token{}.Reveal(): ErrSecret, "WEFT1-abc": ErrSecret,
	} {
		if _, err := ParseToken(s); !errors.Is(err, want) {
			t.Errorf("ParseToken of %q returned error %v, want %v", s, err, want)
		}
	}
	if _, err := secret.Parse(good); !errors.Is(err, secret.ErrMemberToken) {
		t.Errorf("secret.Parse of a token that admits hosts returned error %v, want ErrMemberToken", err)
	}
}

func TestNewTokenNeedsRootKeyAndRandomness(t *testing.T) {
	if _, err := New(bytes.NewReader(make([]byte, 15)), root); err == nil {
		t.Error("New accepted 15 random bytes, want an error")
	}
	if _, err := New(bytes.NewReader(make([]byte, 16)), nil); err == nil {
		t.Error("New accepted no root key, want an error")
	}
}

func TestTokensAreRedactedWhenPrinted(t *testing.T) {
	tok := newToken(t, 7)
	inJSON, err := json.Marshal(map[string]any{"token": tok})
	if err != nil {
		t.Fatal(err)
	}
	for _, printed := range []string{
		fmt.Sprint(tok), fmt.Sprintf("%v %+v %#v %s %q %x %d", tok, tok, tok, tok, tok, tok, tok), fmt.Sprintf("%v %d", []Token{tok}, struct{ T Token }{tok}),
		string(inJSON), tok.String() + tok.GoString(),
	} {
		if strings.Contains(printed, "7 99") || strings.Contains(printed, "0763") || strings.Contains(printed, tok.Reveal()[32:]) {
			t.Errorf("formatting a token shows it: %s; want it hidden", printed)
		}
	}
}

func TestTokenProvesItsCluster(t *testing.T) {
	tok := newToken(t, 7)
	if !tok.Proves(root) || tok.Proves(public(secret.Secret{2}.Root())) || tok.Proves(nil) {
		t.Error("a token proves another cluster, or not its own; want only its own")
	}
}

func TestProofIsOfOneSession(t *testing.T) {
	tok := newToken(t, 7)
	binding := bytes.Repeat([]byte{1}, 32)
	proof := tok.Prove(binding)
	if got, err := VerifyProof(proof, binding); err != nil || got != tok.ID() {
		t.Errorf("VerifyProof returned %v, error %v; want %v", got, err, tok.ID())
	}
	if _, err := VerifyProof(proof, bytes.Repeat([]byte{2}, 32)); err == nil {
		t.Error("VerifyProof accepted a proof of another session, want an error")
	}
	if _, err := VerifyProof(tok.Prove(nil), nil); err == nil {
		t.Error("VerifyProof accepted a proof without a session, want an error")
	}
	for i := range proof {
		changed := bytes.Clone(proof)
		changed[i] ^= 1
		if _, err := VerifyProof(changed, binding); err == nil {
			t.Errorf("VerifyProof accepted a proof whose byte %d was changed, want an error", i)
		}
	}
	for _, n := range []int{0, 32, len(proof) - 1} {
		if _, err := VerifyProof(proof[:n], binding); err == nil {
			t.Errorf("VerifyProof accepted the first %d bytes of a proof, want an error", n)
		}
	}
}

func TestParseTokenIDRefusesInvalidIDs(t *testing.T) {
	want := newToken(t, 7).ID()
	if got, err := ParseTokenID(want.Name()); err != nil || got != want {
		t.Errorf("ParseTokenID returned %v, error %v; want %v", got, err, want)
	}
	for _, s := range []string{"", want.String(), strings.ToUpper(want.Name()), want.Name() + "00", strings.Repeat("0", 64), "x" + want.Name()[1:]} {
		if _, err := ParseTokenID(s); err == nil {
			t.Errorf("ParseTokenID accepted %q, want an error", s)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(newToken(f, 7).Reveal())
	f.Add(secret.MemberPrefix)
	f.Add("weft1-aaaa")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.Reveal()); err != nil || again != tok {
			t.Fatalf("ParseToken of the revealed token returned another token or error %v; want the same token", err)
		}
	})
}

func FuzzVerifyProof(f *testing.F) {
	binding := make([]byte, 32)
	f.Add(newToken(f, 7).Prove(binding), binding)
	f.Fuzz(func(_ *testing.T, proof, binding []byte) { _, _ = VerifyProof(proof, binding) })
}
