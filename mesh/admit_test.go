package mesh

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/member"
	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// admits lets a host certify everybody that proves a token.
func admits(c *Config) {
	c.Admit = func(a Applicant) (Admission, error) {
		if a.Nickname == "stranger" {
			return Admission{}, errors.New("the token was revoked")
		}
		root := secret.Secret{1}.Root()
		return Admission{Root: root.Public().(ed25519.PublicKey), Certificate: member.CertifyByToken(root, a.Identity, 0, a.Token).Encode(), Cluster: [16]byte{7}}, nil
	}
}

func newToken(t *testing.T, s secret.Secret) member.Token {
	t.Helper()
	token, err := member.New(rand.Reader, s.Root().Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// A host with a token becomes a member without the secret, and joins. Tokens of other networks, refusals and
// hosts that may not admit are told.
func TestAHostJoinsByAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(41)}
		a := s.start(1, nil, nil, admits)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", allReach([]*host{a, b}))
		ask := func(token member.Token, nickname, host string) (Admission, error) {
			j := Joiner{Identity: identity(3), Token: token, Nickname: nickname, Port: Port, Network: s.net.Join(address(3))}
			got, _, err := j.Ask(t.Context(), host)
			return got, err
		}
		for name, tt := range map[string]struct {
			token          member.Token
			nickname, host string
			want           string
		}{
			"another network": {newToken(t, secret.Secret{2}), "h3", "192.0.2.1", "of another network"},
			"refused":         {newToken(t, secret.Secret{1}), "stranger", "192.0.2.1", "the token was revoked"},
			"may not admit":   {newToken(t, secret.Secret{1}), "h3", "192.0.2.2", "may not admit"},
			"nobody there":    {newToken(t, secret.Secret{1}), "h3", "192.0.2.9", "connection refused"},
		} {
			if _, err := ask(tt.token, tt.nickname, tt.host); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: error %v, want %q", name, err, tt.want)
			}
		}
		got, err := ask(newToken(t, secret.Secret{1}), "h3", "192.0.2.1")
		if err != nil || got.Cluster != [16]byte{7} {
			t.Fatalf("a valid token: got %+v, error %v; want a membership of the cluster", got, err)
		}
		c := s.start(3, nil, []string{"192.0.2.1"}, func(c *Config) { c.Root, c.Certificate = got.Root, got.Certificate })
		eventually.True(t, 10*time.Second, "the admitted host is connected", allReach([]*host{a, b, c}))
		if a.HoldsSecret(c.Self()) || !a.HoldsSecret(b.Self()) || !c.HoldsSecret(a.Self()) {
			t.Error("it is not known who holds the secret; want only the first two hosts")
		}
		s.end(a, b, c)
	})
}

// Within 5 s of a ban, no other host reaches the banned one or takes its records, and it is told.
func TestABannedPeerIsRefusedByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(42)}
		var ban atomic.Pointer[peer.ID]
		ban.Store(&peer.ID{})
		refuse := func(c *Config) {
			c.Banned = func(m member.Member) error {
				if m.ID() == *ban.Load() {
					return errors.New("it was banned")
				}
				return nil
			}
		}
		a := s.start(1, nil, nil, refuse)
		b := s.start(2, nil, []string{"192.0.2.1"}, refuse)
		c := s.start(3, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "all hosts are connected", allReach([]*host{a, b, c}))
		banned := c.Self()
		ban.Store(&banned)
		a.Expel(banned)
		b.Expel(banned)
		for range 20 {
			time.Sleep(time.Second)
			if a.Reachable(banned) || b.Reachable(banned) || a.Knows(banned) || b.Knows(banned) {
				t.Fatal("a banned peer is known again; want it refused")
			}
			if _, err := c.Request(t.Context(), a.Self(), "echo", []byte("x")); err == nil {
				t.Fatal("a request of a banned peer was served; want it refused")
			}
		}
		told := false
		for _, r := range c.Rejections() {
			told = told || strings.Contains(r.Reason, "it refuses this host: it was banned")
		}
		if !told {
			t.Errorf("the banned host reports %v; want that it was banned", c.Rejections())
		}
		if r := b.Rejections(); len(r) > 1 || len(r) == 1 && !strings.Contains(r[0].Reason, "banned") {
			t.Errorf("another host reports %v; want at most the banned one", r)
		}
		eventually.True(t, 30*time.Second, "the others still reach each other", allReach([]*host{a, b}))
		ban.Store(&peer.ID{})
		eventually.True(t, 2*time.Minute, "after the ban, all hosts are connected", allReach([]*host{a, b, c}))
		s.end(a, b, c)
	})
}

// A peer is forgotten, because it is banned, while a request and a challenge of it are handled.
func TestAPeerIsForgottenWhileItAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(43)}
		h := s.start(1, nil, nil)
		time.Sleep(time.Second)
		if err := h.once(message{From: idOf(2), Run: h.name}); err == nil {
			t.Error("a request of a forgotten peer is served; want it refused")
		}
		h.answerChallenge(message{From: idOf(2), Payload: encode(challenge{"run", address(2)})}, nil)
		s.end(h)
	})
}
