package discovery

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

var (
	rootKey = secret.Secret{1}.Root()
	root    = rootKey.Public().(ed25519.PublicKey)
	begin   = time.Unix(1_800_000_000, 0)
)

func network(root ed25519.PublicKey) Network {
	cluster := member.ClusterOf(root)
	return NetworkOf(cluster[:])
}

// key returns the identity of host n.
func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

// announced returns an announcement of host n, certified by a root key.
func announced(n byte, by ed25519.PrivateKey) Announcement {
	identity := key(n).Public().(ed25519.PublicKey)
	return Announcement{
		Kind: Seeking, Network: network(root), Gossip: 6783, Identity: identity,
		Certificate: member.Certify(by, identity, member.Holder).Encode(),
	}
}

func TestAMemberReadsWhatAnotherMemberAnnounces(t *testing.T) {
	sent := announced(2, rootKey)
	packet := sent.Sign(key(2))
	got, err := Parse(packet)
	if err != nil || got.Kind != Seeking || got.Network != sent.Network || got.Gossip != 6783 {
		t.Fatalf("got %+v, error %v; want what was sent", got, err)
	}
	if m, err := got.Verify(root); err != nil || m.ID() != peer.IDOf(sent.Identity) {
		t.Errorf("Verify returned %+v, error %v; want the sender", m, err)
	}
	if seed := (secret.Secret{1}); bytes.Contains(packet, seed[:]) || bytes.Contains(packet, root) {
		t.Error("the packet contains the secret or the root key, want neither")
	}
}

func TestAChangedOrForeignAnnouncementIsRefused(t *testing.T) {
	packet := announced(2, rootKey).Sign(key(2))
	for i := range packet {
		changed := bytes.Clone(packet)
		changed[i] ^= 1
		if a, err := Parse(changed); err == nil {
			if _, err := a.Verify(root); err == nil {
				t.Errorf("the packet with a changed byte %d of %d was accepted", i, len(packet))
			}
		}
	}
	for name, data := range map[string][]byte{
		"of another network": announced(2, secret.Secret{9}.Root()).Sign(key(2)),
		"of another key":     announced(2, rootKey).Sign(key(3)),
	} {
		a, err := Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Verify(root); err == nil {
			t.Errorf("an announcement %s was accepted, want an error", name)
		}
	}
}

func FuzzParseNeverPanicsAndKeepsBounds(f *testing.F) {
	f.Add(announced(2, rootKey).Sign(key(2)))
	f.Add([]byte(magic))
	f.Add(bytes.Repeat([]byte{1}, MaxSize+1))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := Parse(data)
		if err != nil {
			return
		}
		if !a.Kind.valid() || a.Gossip == 0 || len(a.Identity) != ed25519.PublicKeySize || len(a.Certificate) > member.MaxCertificate {
			t.Errorf("Parse returned %+v, want a bounded announcement", a)
		}
		if _, err := a.Verify(root); err == nil && !bytes.Equal(data[:len(a.signed)], a.signed) {
			t.Error("Verify accepted other bytes than the packet's")
		}
	})
}

// starter is a host of the simulation of starting hosts.
type starter struct {
	id     peer.ID
	at     time.Time // when it starts
	slow   time.Duration
	seeker *Seeker
	pace   Pace
	kind   Kind
	ringAt time.Time // when it has the ring that it founds
}

// step lets a host decide, and returns what it announces now; 0: nothing.
func (s *starter) step(now time.Time, random float64) Kind {
	switch {
	case now.Before(s.at):
		return 0
	case s.seeker == nil:
		s.seeker, s.kind = NewSeeker(s.id, now), Seeking
		s.pace.Changed(now)
	case s.kind == Seeking:
		switch s.seeker.Next(now) {
		case Found:
			s.kind, s.ringAt = Deciding, now.Add(s.slow)
			s.pace.Changed(now)
		case Join:
			s.kind, s.ringAt = HasRing, now
			s.pace.Changed(now)
		case Wait:
		}
	case s.kind == Deciding && !now.Before(s.ringAt):
		s.kind = HasRing
		s.pace.Changed(now)
	}
	if s.pace.Due(now, s.kind == Seeking, random) {
		return s.kind
	}
	return 0
}

func (s *starter) hear(from *starter, kind Kind, now time.Time, random float64) {
	if now.Before(s.at) || s.seeker == nil {
		return
	}
	if s.kind == Seeking {
		s.seeker.Heard(from.id, kind, "", now)
	}
	if kind == Seeking {
		s.pace.Asked(now, random)
	}
}

// Whenever hosts start, one founds, and all others join, though every tenth announcement is lost.
func TestHostsThatStartWithoutARingFoundOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "hosts")
		random := func() float64 { return float64(rapid.IntRange(0, 100).Draw(t, "random")) / 100 }
		var hosts []*starter
		for i := range n {
			hosts = append(hosts, &starter{
				id: peer.ID{byte(rapid.IntRange(0, 255).Draw(t, "id")), byte(i)}, at: begin.Add(time.Duration(rapid.IntRange(0, 800).Draw(t, "start")) * 50 * time.Millisecond),
				slow: time.Duration(rapid.IntRange(0, 240).Draw(t, "slow")) * 50 * time.Millisecond,
			})
		}
		lost, run := 0, map[[2]int]int{}
		for now := begin; now.Before(begin.Add(90 * time.Second)); now = now.Add(50 * time.Millisecond) {
			for i, from := range hosts {
				kind := from.step(now, random())
				if kind == 0 {
					continue
				}
				for j, to := range hosts {
					pair := [2]int{i, j}
					if lost++; lost%10 == rapid.IntRange(0, 9).Draw(t, "lost") && run[pair] < 2 { // three in a row are not lost
						run[pair]++
						continue
					}
					run[pair] = 0
					to.hear(from, kind, now, random())
				}
			}
		}
		founded := 0
		for _, h := range hosts {
			if h.kind != HasRing {
				t.Errorf("host %v is in the state %d after 90 s, want a ring", h.id, h.kind)
			}
			if h.seeker.Next(begin.Add(time.Hour)) == Found {
				founded++
			}
		}
		if founded != 1 {
			t.Errorf("%d hosts founded a ring, want 1", founded)
		}
	})
}

func TestWhatHoldsASeekingHostBack(t *testing.T) {
	self, lower, higher := peer.ID{5}, peer.ID{1}, peer.ID{9}
	for name, tt := range map[string]struct {
		id   peer.ID
		kind Kind
		want Step // just before the time of silence ends anew, if it does
		why  bool
	}{
		"a lower host seeks":                  {lower, Seeking, Wait, true},
		"a higher host seeks":                 {higher, Seeking, Found, false},
		"a higher host decides":               {higher, Deciding, Wait, true},
		"a host waits for a ring":             {lower, Waiting, Found, false},
		"a host has a ring":                   {higher, HasRing, Join, false},
		"this host, by a packet that it sent": {self, HasRing, Found, false},
	} {
		s := NewSeeker(self, begin)
		late := begin.Add(Quiet - time.Millisecond)
		if s.Next(late) != Wait {
			t.Fatal("a host that hears nothing decides before the time of silence is over")
		}
		s.Heard(tt.id, tt.kind, "h9", late)
		if got := s.Next(late.Add(Quiet - time.Millisecond)); got != tt.want || (s.Why() != "") != tt.why {
			t.Errorf("%s: step %d, reason %q; want %d", name, got, s.Why(), tt.want)
		}
		if got := s.Next(late.Add(Quiet)); got == Wait {
			t.Errorf("%s: the host still waits after another time of silence", name)
		}
	}
}

func TestHostsAreBoundedAndEnd(t *testing.T) {
	var h Hosts
	addr := func(n int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 6783)
	}
	for n := range 2 * MaxHosts {
		h.Add(addr(n), begin)
	}
	if got := h.List(begin); len(got) != MaxHosts || !slices.IsSortedFunc(got, netip.AddrPort.Compare) {
		t.Errorf("%d hosts after twice as many as allowed, want %d, sorted", len(got), MaxHosts)
	}
	h.Add(addr(3), begin.Add(Lasts-1))
	h.Add(netip.AddrPortFrom(addr(3).Addr(), 7000), begin.Add(Lasts-1)) // one port per address
	if got := h.List(begin.Add(Lasts)); len(got) != 1 || got[0].Port() != 7000 {
		t.Errorf("hosts %v, want only the one that announced itself again", got)
	}
	if got := h.List(begin.Add(3 * Lasts)); len(got) != 0 {
		t.Errorf("hosts %v, want none after %v", got, Lasts)
	}
}

// announcements counts a host's announcements from a time on, if it is asked every so often.
func announcements(p *Pace, from time.Time, d time.Duration, seeking bool, asked time.Duration) (n int) {
	for now := from; now.Before(from.Add(d)); now = now.Add(10 * time.Millisecond) {
		if asked != 0 && now.Sub(from)%asked == 0 {
			p.Asked(now, 0.5)
		}
		if p.Due(now, seeking, 0.5) {
			n++
		}
	}
	return n
}

func TestHostsAnnounceThemselvesRarelyAtRestAndSoonWhenAsked(t *testing.T) {
	var p Pace
	p.Changed(begin)
	rest := begin.Add(quick)
	for _, tt := range []struct {
		what     string
		from     time.Time
		asked    time.Duration
		seeking  bool
		min, max int
	}{
		{"after a change, in 10 s", begin, 0, false, 18, 22},
		{"at rest, in 10 s", rest.Add(20 * time.Second), 0, false, 1, 1},
		{"asked often, in 10 s", rest.Add(60 * time.Second), 50 * time.Millisecond, false, 8, 11},
		{"seeking, in 10 s", rest.Add(100 * time.Second), 0, true, 18, 22},
	} {
		if got := announcements(&p, tt.from, 10*time.Second, tt.seeking, tt.asked); got < tt.min || got > tt.max {
			t.Errorf("%s: %d announcements, want %d to %d", tt.what, got, tt.min, tt.max)
		}
	}
}
