package membership

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/member"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/trust"
	"weft/prog/api"
	"weft/prog/state"
)

var cluster = secret.Token{Secret: secret.Secret{1}, Cluster: secret.ClusterID{2}}

// papers are the documents of one host. They reach another host only by send.
type papers struct {
	key     ed25519.PrivateKey
	changed func()

	mu  sync.Mutex
	set *document.Set
}

func (p *papers) List(kind string) []*document.Document {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.set.List(kind)
}

func (p *papers) Generation(kind string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.set.Generation(kind)
}

func (p *papers) put(t *testing.T, d *document.Document) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.set.Put(d, time.Now().Unix()); err != nil {
		t.Fatal(err)
	}
}

func (p *papers) Write(changes []mesh.Change) error {
	defer p.changed()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range changes {
		d, err := p.set.Next(c.Kind, c.Name, c.Body, c.Deleted, time.Now().Unix(), p.key)
		if err != nil {
			return err
		}
		if _, err := p.set.Put(d, time.Now().Unix()); err != nil {
			return err
		}
	}
	return nil
}

// crowd is the mesh of one host.
type crowd struct {
	mu       sync.Mutex
	expelled []peer.ID
}

func (c *crowd) HoldsSecret(id peer.ID) bool { return id == meshtest.ID(1) }
func (c *crowd) Name(id peer.ID) string      { return id.String() + "(name)" }
func (c *crowd) Expel(id peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expelled = append(c.expelled, id)
}

type host struct {
	*Membership
	papers *papers
	crowd  *crowd
	log    *bytes.Buffer
}

func public(n int) ed25519.PublicKey { return meshtest.Identity(n).Public().(ed25519.PublicKey) }

// newHost returns host n with the rights of a certificate of the root key.
func newHost(t *testing.T, n int, r member.Rights) *host {
	t.Helper()
	root := cluster.Secret.Root()
	tr := trust.Trust{Keys: state.Keys{Identity: meshtest.Identity(n)}, Root: root.Public().(ed25519.PublicKey), Self: meshtest.ID(n)}
	if r.Has(member.Holder) {
		tr.Token = cluster
	}
	tr.Certificate = member.Certify(root, public(n), r).Encode()
	var err error
	if tr.Member, err = member.Verify(tr.Root, public(n), tr.Certificate); err != nil {
		t.Fatal(err)
	}
	h := &host{papers: &papers{key: meshtest.Identity(n), set: document.NewSet()}, crowd: &crowd{}, log: &bytes.Buffer{}}
	h.Membership = New(Config{Trust: tr, Random: rand.Reader, Log: slog.New(slog.NewTextHandler(h.log, nil))})
	h.Documents, h.Mesh, h.papers.changed = h.papers, h.crowd, h.Wake
	h.Load()
	return h
}

// send brings the documents of one host to another, which judges them.
func send(t *testing.T, from, to *host) {
	t.Helper()
	for _, kind := range kinds {
		for _, d := range from.papers.List(kind) {
			if to.Refuse(d) != nil {
				continue
			}
			to.papers.put(t, d)
		}
	}
	to.read()
	to.Wake()
}

func create(t *testing.T, h *host, req api.TokenRequest) (member.Token, string) {
	t.Helper()
	r, err := h.CreateToken(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	token, err := member.ParseToken(r.Token)
	if err != nil {
		t.Fatal(err)
	}
	return token, r.ID
}

func applicant(n int, token member.Token) mesh.Applicant {
	return mesh.Applicant{Identity: public(n), Token: token.ID(), Nickname: "h", From: netip.MustParseAddrPort("192.0.2.9:40000"), Clock: time.Now()}
}

// A token admits as many hosts as it says, until it expires or is revoked. A host may ask again, since the
// answer may have been lost.
func TestATokenAdmitsAsOftenAsItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 1, member.Holder)
		token, _ := create(t, h, api.TokenRequest{TTL: 3600, Uses: 2, Name: "rack 7"})
		for _, n := range []int{2, 3, 2} {
			a, err := h.Admit(applicant(n, token))
			if err != nil {
				t.Fatalf("host %d was not admitted: %v", n, err)
			}
			m, err := member.Verify(h.cfg.Trust.Root, public(n), a.Certificate)
			if err != nil || m.Rights != 0 || m.Token != token.ID() || a.Cluster != [16]byte(cluster.Cluster) {
				t.Errorf("host %d got %+v of cluster %x, error %v; want a member without rights, by this token", n, m, a.Cluster, err)
			}
		}
		var used *member.UsedUpError
		if _, err := h.Admit(applicant(4, token)); !errors.As(err, &used) {
			t.Errorf("a third host: error %v, want that the token is used up", err)
		}
		late, _ := create(t, h, api.TokenRequest{TTL: 60, Uses: 9})
		time.Sleep(time.Minute)
		var expired *member.ExpiredError
		if _, err := h.Admit(applicant(5, late)); !errors.As(err, &expired) {
			t.Errorf("after its time: error %v, want that the token has expired", err)
		}
		gone, id := create(t, h, api.TokenRequest{TTL: 60, Uses: 9})
		if _, err := h.RevokeToken(t.Context(), api.RevokeRequest{Token: id[:6]}); err != nil {
			t.Fatal(err)
		}
		var revoked *member.RevokedError
		if _, err := h.Admit(applicant(5, gone)); !errors.As(err, &revoked) {
			t.Errorf("a revoked token: error %v, want that it was revoked", err)
		}
		list, err := h.Tokens(t.Context())
		if err != nil || len(list) != 3 {
			t.Fatalf("the tokens are %+v, error %v; want three", list, err)
		}
		for _, l := range list {
			if used := l.Name == "rack 7"; used != (l.Used == 2) || used != (len(l.Hosts) == 2) || l.Revoked != (l.ID == id) {
				t.Errorf("a token is listed as %+v; want the first used twice, and the last revoked", l)
			}
		}
	})
}

// The clock of the member that admits decides. A host that joins may have any clock; a member whose clock is
// behind the token's creation admits nobody by it.
func TestTheAdmittingMembersClockDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 1, member.Holder)
		token, _ := create(t, h, api.TokenRequest{TTL: 3600, Uses: 9})
		for _, clock := range []time.Duration{-20 * 365 * 24 * time.Hour, 20 * 365 * 24 * time.Hour} {
			a := applicant(2, token)
			a.Clock = time.Now().Add(clock)
			if _, err := h.Admit(a); err != nil {
				t.Errorf("a host whose clock is off by %v was not admitted: %v", clock, err)
			}
		}
		if !strings.Contains(h.log.String(), "disagrees with this host's clock") {
			t.Errorf("the log does not say that the clocks disagree:\n%s", h.log)
		}
		years := 10 * 365 * 24 * time.Hour
		time.Sleep(years)
		newer := newHost(t, 3, member.Holder) // its clock is right, and years ahead of the one before
		fresh, _ := create(t, newer, api.TokenRequest{TTL: 3600, Uses: 9})
		for _, d := range newer.papers.List(member.KindToken) {
			body, err := member.DecodeTokenBody(d.Body)
			if err != nil {
				t.Fatal(err)
			}
			var skewed *member.ClockError
			ledger := member.Read(h.cfg.Trust.Root, []*document.Document{d})
			if _, err := ledger.Redeem(fresh.ID(), meshtest.ID(4), body.Created-int64(years.Seconds())); !errors.As(err, &skewed) {
				t.Errorf("a member whose clock is years behind: error %v, want that the clocks disagree", err)
			}
		}
		var expired *member.ExpiredError
		if _, err := h.Admit(applicant(5, token)); !errors.As(err, &expired) {
			t.Errorf("a member whose clock is years ahead: error %v, want that the token has expired", err)
		}
	})
}

// Both sides of a partition may admit a host by the last use of a token. Once they meet, both name both.
func TestATokenUsedOnBothSidesOfAPartitionIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newHost(t, 1, member.Holder), newHost(t, 2, member.Admits)
		token, _ := create(t, a, api.TokenRequest{TTL: 3600, Uses: 1})
		send(t, a, b)
		if _, err := a.Admit(applicant(3, token)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Admit(applicant(4, token)); err != nil {
			t.Fatal(err)
		}
		if list := append(a.Problems(), b.Problems()...); len(list) != 0 {
			t.Errorf("before they meet, the problems are %v; want none", list)
		}
		send(t, a, b)
		send(t, b, a)
		for _, h := range []*host{a, b} {
			list := h.Problems()
			if len(list) != 1 || !strings.Contains(list[0].What, meshtest.ID(3).String()) || !strings.Contains(list[0].What, meshtest.ID(4).String()) {
				t.Errorf("the problems are %v; want one that names both hosts", list)
			}
		}
	})
}

// A ban expels a peer once on every host; the banned host's own status says so; only rights count.
func TestABanExpelsAPeerAndNeedsTheRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		holder, admitter, plain, banned := newHost(t, 1, member.Holder), newHost(t, 2, member.Admits), newHost(t, 3, 0), newHost(t, 4, 0)
		for _, h := range []*host{admitter, plain, banned} {
			agenttest.Run(t, h.Run)
		}
		var refused *api.Error
		if err := plain.Ban(meshtest.ID(4), true, ""); !errors.As(err, &refused) || plain.Admitter() != nil {
			t.Errorf("a host without the right bans: error %v, or it admits; want it refused", err)
		}
		if err := admitter.Ban(meshtest.ID(1), true, ""); err == nil {
			send(t, admitter, holder)
			if holder.Banned(holder.cfg.Trust.Member) != nil {
				t.Error("a member without the secret banned a holder of the secret; want that it does not count")
			}
		}
		if err := holder.Ban(meshtest.ID(4), true, "stolen"); err != nil {
			t.Fatal(err)
		}
		for _, h := range []*host{admitter, plain, banned} {
			send(t, holder, h)
			send(t, holder, h)
		}
		time.Sleep(2 * lastWord)
		plain.crowd.mu.Lock()
		defer plain.crowd.mu.Unlock()
		if got := plain.crowd.expelled; len(got) != 1 || got[0] != meshtest.ID(4) {
			t.Errorf("another host expelled %v; want the banned peer once", got)
		}
		if err := plain.Banned(banned.cfg.Trust.Member); err == nil || !strings.Contains(err.Error(), "stolen") {
			t.Errorf("the banned member is refused with %v; want the reason", err)
		}
		if !plain.Expelled(meshtest.ID(4)) || plain.Expelled(meshtest.ID(1)) {
			t.Error("the banned peer does not count as expelled, or another one does")
		}
		if err := banned.Check(); err == nil || !strings.Contains(err.Error(), "this host was banned") {
			t.Errorf("the banned host reports %v; want its ban", err)
		}
		if err := admitter.Ban(meshtest.ID(4), false, ""); err == nil {
			t.Error("a member without the secret ended a holder's ban; want it refused")
		}
		send(t, admitter, plain)
		if plain.Banned(banned.cfg.Trust.Member) == nil {
			t.Error("a member without the secret wrote over a holder's ban, and it ended; want it to last")
		}
		if err := holder.Ban(meshtest.ID(4), false, ""); err != nil {
			t.Fatal(err)
		}
		send(t, holder, plain)
		if err := plain.Banned(banned.cfg.Trust.Member); err != nil {
			t.Errorf("after the ban has ended: %v, want none", err)
		}
		if synctest.Wait(); plain.Expelled(meshtest.ID(4)) {
			t.Error("after the ban has ended, the peer still counts as expelled")
		}
	})
}

// A banned member with the admitting right cannot certify a new identity, and its later documents do not
// count, whoever passes them on. Hosts that it admitted before stay members.
func TestABannedAdmitterAdmitsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		holder, admitter := newHost(t, 1, member.Holder), newHost(t, 2, member.Admits)
		token, _ := create(t, admitter, api.TokenRequest{TTL: 3600, Uses: 9})
		admitted := func(n int) member.Member {
			a, err := admitter.Admit(applicant(n, token))
			if err != nil {
				t.Fatal(err)
			}
			m, err := member.Verify(holder.cfg.Trust.Root, public(n), a.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		before := admitted(3)
		send(t, admitter, holder)
		if err := holder.Ban(meshtest.ID(2), true, ""); err != nil {
			t.Fatal(err)
		}
		after := admitted(4) // the banned host does not know of its ban, or ignores it
		send(t, admitter, holder)
		if err := holder.Banned(before); err != nil {
			t.Errorf("a host that was admitted before the ban: %v, want it to stay a member", err)
		}
		if holder.Banned(after) == nil {
			t.Error("a host that the banned member certified after its ban is a member, want it refused")
		}
		if _, err := holder.Admit(applicant(5, token)); err == nil {
			t.Error("a token of the banned member admitted a host, want it refused")
		}
	})
}

// An admitter bans a holder of the secret that has written nothing yet. The ban does not count, also not
// against what the holder then writes.
func TestAnAdmitterCannotSilenceAHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		holder, admitter, other := newHost(t, 1, member.Holder), newHost(t, 2, member.Admits), newHost(t, 3, 0)
		body, err := member.BanBody{Banned: true, At: time.Now().Unix(), Certificate: admitter.cfg.Trust.Certificate}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := admitter.papers.Write([]mesh.Change{{Kind: member.KindBan, Name: member.BanName(meshtest.ID(1), member.Admits), Body: body}}); err != nil {
			t.Fatal(err)
		}
		send(t, admitter, other)
		send(t, admitter, holder)
		if err := holder.Ban(meshtest.ID(2), true, ""); err != nil {
			t.Fatal(err)
		}
		send(t, holder, other)
		if other.Banned(admitter.cfg.Trust.Member) == nil {
			t.Error("another host refuses the ban that the holder wrote; want the admitter banned")
		}
	})
}

// A token has the id of another one as its name. The other one can still be revoked.
func TestATokenIsRevokedByItsID(t *testing.T) {
	h := newHost(t, 1, member.Holder)
	token, _ := create(t, h, api.TokenRequest{TTL: 60, Uses: 1})
	create(t, h, api.TokenRequest{TTL: 60, Uses: 1, Name: token.ID().String()})
	if _, err := h.RevokeToken(t.Context(), api.RevokeRequest{Token: token.ID().String()}); err != nil {
		t.Fatal(err)
	}
	for _, other := range h.Ledger().Tokens() {
		if other.Revoked != (other.ID == token.ID()) {
			t.Errorf("token %v is revoked: %v, want only the one with that id", other.ID, other.Revoked)
		}
	}
}
