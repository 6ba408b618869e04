package mesh

import (
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
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// recorded is what an eavesdropper without the secret has: packets, and whom they were for.
type recorded struct {
	to     netip.AddrPort
	packet *memberlist.Packet
}

// again sends all that was recorded to hosts for a while, over and over.
func again(n *meshtest.Network, packets []recorded, d time.Duration, to ...netip.AddrPort) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		for _, p := range packets {
			for _, host := range to {
				n.Send(host, p.packet)
			}
		}
	}
}

// Packets that are sent again, also those about a host's earlier run at another address, end
// no agent, and name no copy of its disk.
func TestReplayEndsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(21)}
		var packets []recorded
		s.net.Tap(func(to netip.AddrPort, p *memberlist.Packet) { packets = append(packets, recorded{to, p}) })
		a := s.start(1, nil, nil)
		before := s.start(9, nil, []string{"192.0.2.1"}, func(c *Config) { c.Identity = identity(2) })
		s.eventually(10*time.Second, "they meet", func() bool { return allReach([]*host{a, before})() && before.store.count() == 2 })
		time.Sleep(20 * time.Second)
		s.end(before)
		now := s.start(2, before.store, nil)
		s.eventually(time.Minute, "it is back at another address", allReach([]*host{a, now}))
		s.net.Tap(nil)
		again(s.net, packets, time.Minute, address(1), address(2))
		select {
		case err := <-now.done:
			t.Fatalf("it ended: %v", err)
		default:
		}
		if r := slices.Concat(a.Rejections(), now.Rejections()); len(r) != 0 {
			t.Errorf("turned away: %v", r)
		}
		if !allReach([]*host{a, now})() {
			t.Error("they do not reach each other any more")
		}
		s.end(a, now)
	})
}

// A dead peer does not come back because what it once said is sent again.
func TestReplayRevivesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(22)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "they meet", allReach([]*host{a, b}))
		var packets []recorded
		s.net.Tap(func(to netip.AddrPort, p *memberlist.Packet) { packets = append(packets, recorded{to, p}) })
		c := s.start(3, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "all are here", allReach([]*host{a, b, c}))
		time.Sleep(5 * time.Second)
		s.net.Tap(nil)
		s.net.Partition(func(x, y netip.Addr) bool { return x == address(3).Addr() || y == address(3).Addr() })
		s.eventually(time.Minute, "it is dead", allReach([]*host{a, b}))
		time.Sleep(time.Minute) // memberlist has forgotten it
		for range 20 {
			again(s.net, packets, 2*time.Second, address(1), address(2))
			if a.Reachable(c.Self()) || b.Reachable(c.Self()) {
				t.Fatal("it is alive again")
			}
		}
		s.net.Heal()
		s.eventually(2*time.Minute, "it comes back itself", allReach([]*host{a, b, c}))
		s.end(a, b, c)
	})
}

// rawMember is somebody that knows the secret, and speaks memberlist under any name.
func rawMember(t *testing.T, n *meshtest.Network, i int, name string, meta []byte) *memberlist.Memberlist {
	t.Helper()
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.Transport, conf.AdvertiseAddr, conf.AdvertisePort = name, n.Join(address(i)), address(i).Addr().String(), Port
	var err error
	if conf.Keyring, err = memberlist.NewKeyring(nil, secret.Secret{1}.GossipKey()); err != nil {
		t.Fatal(err)
	}
	conf.Delegate, conf.Logger = silentMember{meta}, log.New(io.Discard, "", 0)
	list, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list.Join([]string{address(1).String()}); err != nil {
		t.Fatal(err)
	}
	return list
}

type silentMember struct{ meta []byte }

func (m silentMember) NodeMeta(int) []byte             { return m.meta }
func (silentMember) NotifyMsg([]byte)                  {}
func (silentMember) GetBroadcasts(int, int) [][]byte   { return nil }
func (silentMember) LocalState(bool) []byte            { return nil }
func (silentMember) MergeRemoteState(_ []byte, _ bool) {}

// A member under the name of another one neither ends that nor answers for it, whether the
// name is that of a later run or of one that is over.
func TestInvariant7MembersCannotTakeAName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(23)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "they meet", func() bool { return allReach([]*host{a, b})() && record(a, b).Identity != nil })
		for i, when := range []time.Time{time.Now().Add(-time.Hour), time.Now().Add(time.Hour)} {
			liar := rawMember(t, s.net, 9+i, nodeName(b.Self(), when), encode(hello{Version: Version}))
			time.Sleep(10 * time.Second)
			select {
			case err := <-b.done:
				t.Fatalf("it ended: %v", err)
			default:
			}
			for _, p := range a.Peers() {
				if p.Record.ID() == b.Self() && (!p.Reachable || p.Addr != address(2).Addr()) {
					t.Errorf("it is reached at %v: %v", p.Addr, p.Reachable)
				}
			}
			if _, err := a.Request(t.Context(), b.Self(), "echo", []byte("x")); err != nil {
				t.Errorf("it does not answer: %v", err)
			}
			if r := b.Rejections(); len(r) != 0 {
				t.Errorf("a copy of its disk is suspected: %v", r)
			}
			_ = liar.Shutdown()
		}
		s.end(a, b)
	})
}

// Members with names of any length and number keep nobody from joining: every exchange of
// states would carry them.
func TestNamesAreNoPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(28)}
		a := s.start(1, nil, nil)
		time.Sleep(time.Second)
		for i := range 2 {
			name := strings.Repeat(string(rune('x'+i)), maxStream*2/3)
			liar := rawMember(t, s.net, 9+i, peer.ID{9}.String()+"-"+name, encode(hello{Version: Version}))
			defer func() { _ = liar.Shutdown(); time.Sleep(2 * time.Minute) }()
		}
		b := s.start(2, nil, []string{"192.0.2.1"})
		s.eventually(3*time.Second, "it is here", allReach([]*host{a, b}))
		s.end(a, b)
	})
	m := still(t, 1)
	said := 0
	for i := range maxPeers + 100 {
		n := &memberlist.Node{Name: nodeName(peer.ID{1, byte(i >> 8), byte(i)}, time.Now()), Addr: address(9).Addr().AsSlice(), Port: Port, Meta: encode(hello{Version: Version})}
		if (gate{m}).NotifyAlive(n) == nil {
			events{m}.NotifyJoin(n)
			said++
		}
		if i > 0 && i < maxPeers && (gate{m}).NotifyAlive(n) != nil {
			t.Fatal("one that is here is refused")
		}
	}
	if said != maxPeers {
		t.Errorf("%d members are taken in", said)
	}
}

// A copy of a host says nothing in its name before it stops: nobody learns of its address.
// The original and all others learn that there is a copy, and where, for a while.
func TestCopiesSayNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(24)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		c := s.start(3, nil, []string{"192.0.2.1"})
		all := []*host{a, b, c}
		s.eventually(10*time.Second, "all are here", func() bool { return allReach(all)() && b.store.count() == 3 })
		disk := b.store.clone()
		for range 3 { // as with Restart=always
			copied := s.start(9, disk, nil, func(c *Config) { c.Identity = identity(2) })
			_, _ = copied.counter.Merge([]byte{9})
			copied.Broadcast("counter", []byte{9})
			for len(copied.done) == 0 {
				if copied.Confirmed() {
					t.Fatal("the copy was confirmed")
				}
				for _, h := range all[:1] {
					if r := record(h, b); len(r.Underlay) != 1 || r.Underlay[0] != address(2).Addr() || r.State != peer.Running || !h.Reachable(b.Self()) {
						t.Fatalf("the others know the host at %v, %v", r.Underlay, r.State)
					}
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err := <-copied.done; !errors.Is(err, ErrTwin) {
				t.Fatalf("the copy ended with %v", err)
			}
		}
		if n := a.counter.get(); n != 0 {
			t.Errorf("the others heard of what the copy has: %d", n)
		}
		s.eventually(10*time.Second, "all know of the copy", func() bool {
			return !slices.ContainsFunc(all, func(h *host) bool { return record(h, b).Copy != address(9).Addr() })
		})
		if !allReach(all)() || !b.Confirmed() {
			t.Error("the original is not what it was")
		}
		time.Sleep(rejectionLife + time.Minute)
		if got := record(a, b).Copy; got.IsValid() {
			t.Errorf("the copy at %v is still spoken of", got)
		}
		s.end(all...)
	})
}

// A copy whose clock is behind stops as any other, although by its clock it was there first.
// Where neither was, the one that was started last stops.
func TestACopyWithASlowClockStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(27)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "they meet", func() bool { return allReach([]*host{a, b})() && b.store.count() == 2 })
		for _, to := range [][]string{{"192.0.2.1"}, {"192.0.2.2"}, nil} {
			copied := s.make(nil, 9, b.store.clone(), to, func(c *Config) { c.Identity = identity(2) })
			copied.name = nodeName(b.Self(), time.Now().Add(-time.Hour))
			copied.run()
			select {
			case err := <-b.done:
				t.Fatalf("the original ended: %v", err)
			case err := <-copied.done:
				if !errors.Is(err, ErrTwin) || copied.Confirmed() {
					t.Fatalf("the copy ended with %v", err)
				}
			}
			time.Sleep(10 * time.Second)
		}
		if r := b.Rejections(); len(r) != 1 || r[0].Addr != address(9).Addr().String() || !allReach([]*host{a, b})() {
			t.Errorf("the original names %v", r)
		}
		s.end(a, b)
	})
}

// A host that comes back is confirmed as soon as it has joined; one that reaches nobody is
// after a while.
func TestConfirmation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(25)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		if !a.Confirmed() || !b.Confirmed() {
			t.Error("somebody who knows nobody waits")
		}
		s.eventually(10*time.Second, "they meet", func() bool { return allReach([]*host{a, b})() && b.store.count() == 2 })
		s.end(b)
		b = s.start(2, b.store, nil)
		if b.Confirmed() {
			t.Error("it is confirmed by nobody")
		}
		s.eventually(time.Second, "it is confirmed", b.Confirmed)
		s.eventually(time.Second, "the others know its new word", func() bool { return record(a, b).State == peer.Running && allReach([]*host{a, b})() })
		s.end(a, b)
		start := time.Now()
		b = s.start(2, b.store, nil)
		s.eventually(confirmWait+time.Second, "it goes on alone", b.Confirmed)
		if took := time.Since(start); took < confirmWait {
			t.Errorf("it went on after %v", took)
		}
		s.end(b)
	})
}

// FuzzChallenge reads anything: what is accepted can be answered.
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
			t.Errorf("an answer goes to %v", c.Addr)
		}
	})
}

// A liar's names, however many, are forgotten once memberlist gives them up, and at any time
// there are not more than a few for one peer.
func TestNamesAreBounded(t *testing.T) {
	m := still(t, 1)
	id := peer.ID{7}
	for i := range 100 {
		events{m}.NotifyJoin(&memberlist.Node{Name: fmt.Sprintf("%v-%08x", id, i), Addr: address(9).Addr().AsSlice(), Port: Port})
	}
	if n := len(m.peers[id].runs); n != maxRunsHeard {
		t.Errorf("%d names of one peer are kept", n)
	}
	for i := range 100 {
		events{m}.NotifyLeave(&memberlist.Node{Name: fmt.Sprintf("%v-%08x", id, i)})
	}
	if len(m.peers) != 1 || len(m.proof.challenges) != 0 {
		t.Errorf("%d peers and %d challenges are kept", len(m.peers), len(m.proof.challenges))
	}
}

// Members that take many names of a host that is away do not keep it from coming back.
func TestInvariant7ManyNamesHideNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(26)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "they meet", func() bool { return allReach([]*host{a, b})() && b.store.count() == 2 })
		s.end(b)
		var liars []*memberlist.Memberlist
		for i := range maxRunsHeard {
			liars = append(liars, rawMember(t, s.net, 9+i, nodeName(b.Self(), time.Now().Add(time.Hour)), encode(hello{Version: Version})))
		}
		time.Sleep(10 * time.Second)
		b = s.start(2, b.store, nil)
		s.eventually(30*time.Second, "it is back", func() bool { return a.Reachable(b.Self()) })
		for _, l := range liars {
			_ = l.Shutdown()
		}
		s.end(a, b)
	})
}
