package mesh

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/mesh/session"
)

// recorded is a packet and its receiver, as captured by an eavesdropper without the secret.
type recorded struct {
	to     netip.AddrPort
	packet *memberlist.Packet
}

// again replays all recorded packets to hosts for a while.
func again(n *meshtest.Network, packets []recorded, d time.Duration, to ...netip.AddrPort) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		for _, p := range packets {
			for _, host := range to {
				n.Send(host, p.packet)
			}
		}
	}
}

// Replayed packets, even about a host's earlier run at another address, stop no agent and report no
// copied disk.
func TestReplayedPacketsStopNoAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(21)}
		var packets []recorded
		s.net.Tap(func(to netip.AddrPort, p *memberlist.Packet) { packets = append(packets, recorded{to, p}) })
		a := s.start(1, nil, nil)
		before := s.start(9, nil, []string{"192.0.2.1"}, func(c *Config) { c.Identity = identity(2) })
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool { return allReach([]*host{a, before})() && len(before.disk.Peers()) == 2 })
		time.Sleep(20 * time.Second)
		s.end(before)
		now := s.start(2, before.disk, nil)
		eventually.True(t, time.Minute, "the host is connected again at another address", allReach([]*host{a, now}))
		s.net.Tap(nil)
		again(s.net, packets, time.Minute, address(1), address(2))
		select {
		case err := <-now.done:
			t.Fatalf("replayed packets stopped the agent: error %v; want it running", err)
		default:
		}
		if r := slices.Concat(a.Rejections(), now.Rejections()); len(r) != 0 {
			t.Errorf("replayed packets caused the rejections %v; want none", r)
		}
		if !allReach([]*host{a, now})() {
			t.Error("after replayed packets the hosts do not reach each other; want them connected")
		}
		s.end(a, now)
	})
}

// Replayed packets do not make a dead peer reachable.
func TestReplayedPacketsReviveNoPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(22)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", allReach([]*host{a, b}))
		var packets []recorded
		s.net.Tap(func(to netip.AddrPort, p *memberlist.Packet) { packets = append(packets, recorded{to, p}) })
		c := s.start(3, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "all hosts are connected", allReach([]*host{a, b, c}))
		time.Sleep(5 * time.Second)
		s.net.Tap(nil)
		s.net.Partition(func(x, y netip.Addr) bool { return x == address(3).Addr() || y == address(3).Addr() })
		eventually.True(t, time.Minute, "the third host is unreachable", allReach([]*host{a, b}))
		time.Sleep(time.Minute) // wait until memberlist has forgotten the third host
		for range 20 {
			again(s.net, packets, 2*time.Second, address(1), address(2))
			if a.Reachable(c.Self()) || b.Reachable(c.Self()) {
				t.Fatal("after a replay the dead host counts as reachable; want it unreachable")
			}
		}
		s.net.Heal()
		eventually.True(t, 2*time.Minute, "the third host itself connects again", allReach([]*host{a, b, c}))
		s.end(a, b, c)
	})
}

// rawMember is a malicious member: it knows the secret, and joins memberlist under any name.
func rawMember(t *testing.T, n *meshtest.Network, i int, name string) *memberlist.Memberlist {
	t.Helper()
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.Transport, conf.AdvertiseAddr, conf.AdvertisePort = name, sessions(t, n, i), address(i).Addr().String(), Port
	conf.Delegate, conf.Logger = silentMember{greeting(identity(i), name, address(i))}, log.New(io.Discard, "", 0)
	list, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = list.Join([]string{address(1).String()}) // it is refused, and stays connected with what it sent
	return list
}

// greeting returns the metadata that a holder of the secret signs for a run.
func greeting(key ed25519.PrivateKey, name string, at netip.AddrPort) []byte {
	c := Config{Identity: key}
	shares(secret.Secret{1})(&c)
	return hello{Version: Version, Certificate: c.Certificate, Ceiling: ceilingStep}.sign(key, name, at)
}

// sessions returns the transport of an admitted peer that runs no mesh.
func sessions(t *testing.T, n *meshtest.Network, i int) *session.Transport {
	t.Helper()
	return sessionsOf(t, n, i, nodeName(idOf(i), time.Now()))
}

func sessionsOf(t *testing.T, n *meshtest.Network, i int, run string, change ...func(*session.Config)) *session.Transport {
	t.Helper()
	c := Config{Identity: identity(i)}
	shares(secret.Secret{1})(&c)
	conf := session.Config{
		Identity: c.Identity, Run: run, Network: n.Join(address(i)), Knows: func(netip.Addr) bool { return true },
		Show: func(session.Use) []byte { return c.Certificate }, Welcome: func(session.Peer, session.Use) error { return nil },
	}
	for _, c := range change {
		c(&conf)
	}
	out, err := session.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type silentMember struct{ meta []byte }

func (m silentMember) NodeMeta(int) []byte             { return m.meta }
func (silentMember) NotifyMsg([]byte)                  {}
func (silentMember) GetBroadcasts(int, int) [][]byte   { return nil }
func (silentMember) LocalState(bool) []byte            { return nil }
func (silentMember) MergeRemoteState(_ []byte, _ bool) {}

// A member under another peer's name neither stops that peer nor answers for it. The name can look
// like that of a later or of an earlier run.
func TestInvariant7MembersCannotImpersonatePeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(23)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool { return allReach([]*host{a, b})() && record(a, b).Identity != nil })
		for i, when := range []time.Time{time.Now().Add(-time.Hour), time.Now().Add(time.Hour)} {
			rogue := rawMember(t, s.net, 9+i, nodeName(b.Self(), when))
			time.Sleep(10 * time.Second)
			select {
			case err := <-b.done:
				t.Fatalf("another member used the peer's name, and the agent stopped: error %v; want it running", err)
			default:
			}
			for _, p := range a.Peers() {
				if p.Record.ID() == b.Self() && (!p.Reachable || p.Addr != address(2).Addr()) {
					t.Errorf("the impersonated peer is at %v, reachable: %v; want its own address, and true", p.Addr, p.Reachable)
				}
			}
			if _, err := a.Request(t.Context(), b.Self(), "echo", []byte("x")); err != nil {
				t.Errorf("the impersonated peer does not answer: error %v, want none", err)
			}
			if r := b.Rejections(); len(r) != 0 {
				t.Errorf("the impersonation is reported as a copied disk: %v; want no report", r)
			}
			_ = rogue.Shutdown()
		}
		s.end(a, b)
	})
}

// Members with long names, or any number of members, prevent no host from joining. Without bounds,
// every push/pull would contain all these names.
func TestInvalidMemberNamesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(28)}
		a := s.start(1, nil, nil)
		time.Sleep(time.Second)
		for i := range 2 {
			name := strings.Repeat(string(rune('x'+i)), maxStream*2/3)
			rogue := rawMember(t, s.net, 9+i, peer.ID{9}.String()+"-"+name)
			defer func() { _ = rogue.Shutdown(); time.Sleep(2 * time.Minute) }()
		}
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 3*time.Second, "the joining host is connected", allReach([]*host{a, b}))
		s.end(a, b)
	})
	m := still(t, 1)
	said := 0
	for i := range maxPeers + 100 {
		key := ed25519.NewKeyFromSeed(append(make([]byte, 30), byte(i>>8), byte(i)))
		name := nodeName(peer.IDOf(key.Public().(ed25519.PublicKey)), time.Now())
		n := &memberlist.Node{Name: name, Addr: address(9).Addr().AsSlice(), Port: Port, Meta: greeting(key, name, address(9))}
		if (gate{m}).NotifyAlive(n) == nil {
			events{m}.NotifyJoin(n)
			said++
		}
		if i > 0 && i < maxPeers && (gate{m}).NotifyAlive(n) != nil {
			t.Fatal("NotifyAlive refused a known member; want it accepted")
		}
	}
	if said != maxPeers {
		t.Errorf("%d members were accepted; want maxPeers", said)
	}
}

// A copied host announces nothing before it stops, so no peer learns its address. The original host
// and all other hosts report the copy and its address for a while.
func TestCopiedHostAnnouncesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(24)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		c := s.start(3, nil, []string{"192.0.2.1"})
		all := []*host{a, b, c}
		eventually.True(t, 10*time.Second, "all hosts are connected", func() bool { return allReach(all)() && len(b.disk.Peers()) == 3 })
		disk := b.disk.Copy()
		for range 3 { // the copy is restarted again and again, as by systemd's Restart=always
			copied := s.start(9, disk, nil, func(c *Config) { c.Identity = identity(2) })
			_, _ = copied.counter.Merge([]byte{9})
			copied.Broadcast("counter", []byte{9})
			for len(copied.done) == 0 {
				if copied.Confirmed() {
					t.Fatal("the copy of a running host was confirmed; want it to stop")
				}
				for _, h := range all[:1] {
					if r := record(h, b); len(r.Underlay) != 1 || r.Underlay[0] != address(2).Addr() || r.State != peer.Running || !h.Reachable(b.Self()) {
						t.Fatalf("for other hosts, the original has the addresses %v and state %v; want its own address and running", r.Underlay, r.State)
					}
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err := <-copied.done; !errors.Is(err, ErrTwin) {
				t.Fatalf("the copy of a running host ended with %v; want ErrTwin", err)
			}
		}
		if n := a.counter.get(); n != 0 {
			t.Errorf("the counter that the copy sent reached another host: %d, want 0", n)
		}
		eventually.True(t, 10*time.Second, "all hosts know of the copy", func() bool {
			return !slices.ContainsFunc(all, func(h *host) bool { return record(h, b).Copy != address(9).Addr() })
		})
		if !allReach(all)() || !b.Confirmed() {
			t.Error("the original is disconnected or no longer confirmed; want neither")
		}
		time.Sleep(rejectionLife + time.Minute)
		if got := record(a, b).Copy; got.IsValid() {
			t.Errorf("the copy at %v is still reported; want no copy", got)
		}
		s.end(all...)
	})
}

// A copied host stops even if its clock says that it started first. If neither host is confirmed,
// the host that started last stops.
func TestCopiedHostWithItsClockBehindStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(27)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool { return allReach([]*host{a, b})() && len(b.disk.Peers()) == 2 })
		for _, to := range [][]string{{"192.0.2.1"}, {"192.0.2.2"}, nil} {
			copied := s.make(nil, 9, b.disk.Copy(), to, func(c *Config) { c.Identity = identity(2) })
			copied.name = nodeName(b.Self(), time.Now().Add(-time.Hour))
			copied.run()
			select {
			case err := <-b.done:
				t.Fatalf("the original host stopped because of its copy: error %v; want it running", err)
			case err := <-copied.done:
				if !errors.Is(err, ErrTwin) || copied.Confirmed() {
					t.Fatalf("the copy ended with %v, or was confirmed; want ErrTwin", err)
				}
			}
			time.Sleep(10 * time.Second)
		}
		if r := b.Rejections(); len(r) != 1 || r[0].Addr != address(9).Addr().String() || !allReach([]*host{a, b})() {
			t.Errorf("the original reports %v, want the copy's address", r)
		}
		s.end(a, b)
	})
}

// A returning host is confirmed once it has joined. If it reaches no other host, it is confirmed
// after a while.
func TestIdentityIsConfirmedAfterJoinOrTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(25)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		if !a.Confirmed() || !b.Confirmed() {
			t.Error("a new host is not confirmed; want it confirmed at once")
		}
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool { return allReach([]*host{a, b})() && len(b.disk.Peers()) == 2 })
		s.end(b)
		b = s.start(2, b.disk, nil)
		if b.Confirmed() {
			t.Error("a returning host was confirmed before it had joined; want it confirmed afterwards")
		}
		eventually.True(t, time.Second, "the returning host is confirmed", b.Confirmed)
		eventually.True(t, time.Second, "the other host has its new record", func() bool { return record(a, b).State == peer.Running && allReach([]*host{a, b})() })
		s.end(a, b)
		start := time.Now()
		b = s.start(2, b.disk, nil)
		eventually.True(t, confirmWait+time.Second, "the host is confirmed without any other host", b.Confirmed)
		if took := time.Since(start); took < confirmWait {
			t.Errorf("the host was confirmed after %v; want confirmWait or later", took)
		}
		s.end(b)
	})
}

// FuzzChallenge decodes arbitrary data: an accepted challenge has an address that can be answered.
func FuzzChallenge(f *testing.F) {
	for _, to := range []string{"192.0.2.1:6783", "[2001:db8::1]:6783", "127.0.0.1:6783", "192.0.2.1:0", "[fe80::1%eth0]:1", "[::]:1"} {
		f.Add(encode(challenge{"run", netip.MustParseAddrPort(to)}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := readChallenge(data)
		if err != nil {
			return
		}
		if a := c.Addr.Addr(); !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() || c.Addr.Port() == 0 || a.Zone() != "" {
			t.Errorf("a challenge with the unusable address %v was accepted; want it refused", c.Addr)
		}
	})
}

// The stored runs of one peer are bounded, and are dropped once memberlist drops them.
func TestStoredAgentRunsPerPeerAreBounded(t *testing.T) {
	m := still(t, 1)
	id := peer.ID{7}
	for i := range 100 {
		events{m}.NotifyJoin(&memberlist.Node{Name: fmt.Sprintf("%v-%08x", id, i), Addr: address(9).Addr().AsSlice(), Port: Port})
	}
	if n := len(m.peers[id].runs); n != maxRunsHeard {
		t.Errorf("%d runs of one peer are stored; want maxRunsHeard", n)
	}
	for i := range 100 {
		events{m}.NotifyLeave(&memberlist.Node{Name: fmt.Sprintf("%v-%08x", id, i)})
	}
	if len(m.peers) != 1 || len(m.proof.challenges) != 0 {
		t.Errorf("%d peers and %d challenges are left, want 1 and 0", len(m.peers), len(m.proof.challenges))
	}
}

// Members that use many names of an absent host do not prevent its return.
func TestInvariant7FalseMemberNamesDoNotBlockReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(26)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool { return allReach([]*host{a, b})() && len(b.disk.Peers()) == 2 })
		s.end(b)
		var rogues []*memberlist.Memberlist
		for i := range maxRunsHeard {
			rogues = append(rogues, rawMember(t, s.net, 9+i, nodeName(b.Self(), time.Now().Add(time.Hour))))
		}
		time.Sleep(10 * time.Second)
		b = s.start(2, b.disk, nil)
		eventually.True(t, 30*time.Second, "the returning host is connected", func() bool { return a.Reachable(b.Self()) })
		for _, l := range rogues {
			_ = l.Shutdown()
		}
		s.end(a, b)
	})
}
