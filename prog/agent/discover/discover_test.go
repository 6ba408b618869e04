package discover

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/discovery"
	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/trust"
	"weft/prog/agent/view"
	"weft/prog/state"
	"weft/router/link"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

// holder returns the trust of host n, which holds a secret.
func holder(n byte, s secret.Token) trust.Trust {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	root := s.Secret.Root()
	identity := key.Public().(ed25519.PublicKey)
	return trust.Trust{
		Self: peer.IDOf(identity), Keys: state.Keys{Identity: key}, Token: s, Root: root.Public().(ed25519.PublicKey),
		Certificate: member.Certify(root, identity, member.Holder).Encode(), Member: member.Member{Identity: identity, Rights: member.Holder},
	}
}

var ours, foreign = secret.Token{Cluster: secret.ClusterID{1}, Secret: secret.Secret{1}}, secret.Token{Cluster: secret.ClusterID{2}, Secret: secret.Secret{2}}

// says returns a packet of host n of a network.
func says(n byte, s secret.Token, kind discovery.Kind) []byte {
	t := holder(n, s)
	cluster := member.ClusterOf(t.Root)
	return discovery.Announcement{
		Kind: kind, Network: discovery.NetworkOf(cluster[:]), Gossip: 6783, Identity: t.Keys.Identity.Public().(ed25519.PublicKey), Certificate: t.Certificate,
	}.Sign(t.Keys.Identity)
}

// unsigned returns a packet that says that it is of a network, by a host that is no member.
func unsigned(s secret.Token) []byte {
	t, stranger := holder(9, s), holder(9, foreign)
	cluster := member.ClusterOf(t.Root)
	return discovery.Announcement{
		Kind: discovery.HasRing, Network: discovery.NetworkOf(cluster[:]), Gossip: 6783, Identity: stranger.Keys.Identity.Public().(ed25519.PublicKey), Certificate: stranger.Certificate,
	}.Sign(stranger.Keys.Identity)
}

func discovering(why *string) *Discover {
	return New(Config{
		GossipPort: 6783, Universe: slot.Universe{V4: slot.DefaultV4}, Log: slog.New(slog.DiscardHandler), Waiting: func(s string) { *why = s },
	})
}

var h2 = netip.MustParseAddr("192.0.2.2")

func TestAMemberTakesAnnouncementsOfOtherMembersOnly(t *testing.T) {
	for name, tt := range map[string]struct {
		packet []byte
		from   string
		taken  bool
	}{
		"of a member":              {says(2, ours, discovery.HasRing), "192.0.2.2", true},
		"of a member, over IPv6":   {says(2, ours, discovery.Waiting), "2001:db8::2", true},
		"of another network":       {says(2, foreign, discovery.HasRing), "192.0.2.2", false},
		"of no member":             {unsigned(ours), "192.0.2.2", false},
		"of this host":             {says(1, ours, discovery.HasRing), "192.0.2.2", false},
		"from an own address":      {says(2, ours, discovery.HasRing), "192.0.2.1", false},
		"from an overlay address":  {says(2, ours, discovery.HasRing), "10.32.0.5", false},
		"from a link-local source": {says(2, ours, discovery.HasRing), "fe80::2", false},
		"garbage":                  {bytes.Repeat([]byte{7}, 300), "192.0.2.2", false},
	} {
		d := discovering(new(string))
		d.own = []link.HostAddr{{Addr: netip.MustParseAddr("192.0.2.1")}}
		if err := d.Start(holder(1, ours), true, false); err != nil {
			t.Fatal(err)
		}
		d.heard(tt.packet, netip.MustParseAddr(tt.from))
		d.publish()
		if got := d.Get(); (len(got) == 1) != tt.taken {
			t.Errorf("%s: the targets are %v, want the sender: %v", name, got, tt.taken)
		}
	}
}

// A host that only has a token cannot verify announcements. It forgets what it took once it can.
func TestAnInvitedHostTakesUnverifiedAddressesToAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := discovering(new(string))
		token, err := member.New(rand.Reader, holder(1, ours).Root)
		if err != nil {
			t.Fatal(err)
		}
		d.Invited(&token)
		d.heard(says(2, foreign, discovery.HasRing), netip.MustParseAddr("192.0.2.4"))
		for n := range 200 {
			d.heard(unsigned(ours), netip.AddrFrom4([4]byte{192, 0, 3, byte(n)}))
		}
		d.publish()
		if got := d.Get(); len(got) != discovery.MaxHosts || slices.Contains(got, "192.0.2.4:6783") {
			t.Errorf("%d targets, want %d, and none of another network", len(got), discovery.MaxHosts)
		}
		if d.packet() != nil || d.Complete() {
			t.Error("a host that is no member announces itself, or counts its targets as complete at once; want neither")
		}
		time.Sleep(hearsAll)
		if !d.Complete() {
			t.Errorf("the targets are not complete after %v, want that they are", hearsAll)
		}
		if err := d.Start(holder(1, ours), false, false); err != nil || len(d.Get()) != 0 || d.packet() == nil {
			t.Errorf("as a member it has the targets %v, error %v; want none, and an announcement", d.Get(), err)
		}
	})
}

func TestAFloodDelaysFoundingAndCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var why string
		d := discovering(&why)
		go func() {
			for range 8 {
				for range 2 * mostVerified {
					d.heard(unsigned(ours), h2)
				}
				time.Sleep(time.Second)
			}
		}()
		start := time.Now()
		found, err := d.Seek(t.Context(), holder(1, ours))
		if took := time.Since(start); !found || err != nil || took < 7*time.Second+discovery.Quiet || !strings.Contains(why, "more announcements") {
			t.Errorf("founded: %v after %v, error %v, reason %q; want that it waits until the flood ends", found, took, err, why)
		}
	})
}

func TestASeekingHostFoundsOrJoins(t *testing.T) {
	for kind, want := range map[discovery.Kind]bool{discovery.HasRing: false, discovery.Waiting: true} {
		synctest.Test(t, func(t *testing.T) {
			d := discovering(new(string))
			time.AfterFunc(2*time.Second, func() { d.heard(says(2, ours, kind), h2) })
			time.AfterFunc(time.Second, func() { d.heard(unsigned(ours), h2) })
			found, err := d.Seek(t.Context(), holder(1, ours))
			if found != want || err != nil {
				t.Errorf("after an announcement of kind %d the host founds: %v, error %v; want %v", kind, found, err, want)
			}
			if after := map[bool]discovery.Kind{true: discovery.Deciding, false: discovery.Waiting}[want]; d.kind != after {
				t.Errorf("then it announces kind %d, want %d", d.kind, after)
			}
		})
	}
}

// A host that cannot announce itself would found beside a host that does not hear it.
func TestAHostWithoutALinkDoesNotFound(t *testing.T) {
	routertest.New(t).Do(func() {
		d, now := discovering(new(string)), time.Now()
		d.seeker = discovery.NewSeeker(holder(1, ours).Self, now)
		late := now.Add(discovery.Quiet)
		d.step(late)
		if d.seeker.Next(late) != discovery.Wait || !strings.Contains(d.seeker.Why(), "no link has an address") {
			t.Errorf("step %d, reason %q; want that the host waits for a link", d.seeker.Next(late), d.seeker.Why())
		}
	})
}

func TestSeekingEndsWithTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if found, err := discovering(new(string)).Seek(ctx, holder(1, ours)); found || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("founds: %v, error %v; want the end of the context", found, err)
		}
	})
}

func TestANetworkWithAPasswordIsNotAnnounced(t *testing.T) {
	d := discovering(new(string))
	password := secret.Token{Secret: secret.Secret{1}}
	if _, err := d.Seek(t.Context(), holder(1, password)); !errors.Is(err, ErrPassword) || d.packet() != nil {
		t.Errorf("error %v, want %v, and no announcement", err, ErrPassword)
	}
	if err := New(Config{Off: true}).Start(holder(1, password), true, false); err != nil {
		t.Errorf("without --discover: %v, want no error", err)
	}
}

// joins records the targets that the mesh gets.
type joins struct{ live.Value[[]string] }

func (j *joins) SetFound(hosts []string) { j.Set(hosts) }

func TestFoundHostsBecomeTargetsAndTheRingIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		d, mesh, seen := discovering(new(string)), &joins{}, &live.Value[*view.View]{}
		if err := d.Start(holder(1, ours), false, true); err != nil {
			t.Fatal(err)
		}
		go func() { _ = d.Follow(ctx, mesh, seen) }()
		d.heard(says(2, ours, discovery.HasRing), h2)
		d.publish()
		synctest.Wait()
		if got := mesh.Get(); fmt.Sprint(got) != "[192.0.2.2:6783]" || d.kind != discovery.Deciding {
			t.Errorf("targets %v, kind %d; want the host found, and no ring", got, d.kind)
		}
		for range 3 {
			seen.Set(agenttest.View())
			synctest.Wait()
		}
		if d.kind != discovery.HasRing || mesh.Version() != 1 {
			t.Errorf("kind %d, the targets were set %d times; want a ring, and once", d.kind, mesh.Version())
		}
		time.Sleep(discovery.Lasts)
		d.publish()
		synctest.Wait()
		if got := mesh.Get(); len(got) != 0 {
			t.Errorf("targets %v, want none after the host is gone", got)
		}
	})
}
