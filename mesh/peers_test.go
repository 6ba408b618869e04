package mesh

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// inventedRecord returns an invented record with the longest allowed nickname.
func inventedRecord(tb testing.TB, i int) []byte {
	tb.Helper()
	seed := binary.BigEndian.AppendUint64(bytes.Repeat([]byte{0xee}, ed25519.SeedSize-8), uint64(i))
	s, err := signed(peer.Record{
		Nickname: strings.Repeat("x", peer.MaxNickname), Host: strings.Repeat("y", peer.MaxHost),
		Underlay: []netip.Addr{netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})}, Gossip: Port,
	}, ed25519.NewKeyFromSeed(seed))
	if err != nil {
		tb.Fatal(err)
	}
	return s.Encode()
}

// A malicious member invents any number of records. The number of records in memory is bounded,
// none of the invented ones is stored, and peers that are reachable or own addresses stay. Another
// host can join meanwhile.
func TestStoredPeerRecordsAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("short: 10,000 signatures take minutes under the race detector")
	}
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(31)}
		owner := peer.IDOf(identity(77).Public().(ed25519.PublicKey))
		a := s.start(1, nil, nil, func(c *Config) { c.Owns = func(id peer.ID) bool { return id == owner } })
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool { return allReach([]*host{a, b})() && record(a, b).Identity != nil })
		silent, err := signed(peer.Record{Nickname: "owner"}, identity(77))
		if err != nil {
			t.Fatal(err)
		}
		a.merge(peersName, encode([][]byte{silent.Encode()}))
		var c *host
		for i := range 5 {
			var records [][]byte
			for j := range 2000 {
				records = append(records, inventedRecord(t, 2000*i+j))
			}
			a.merge(peersName, encode(records))
			a.mu.Lock()
			total := 0
			for _, k := range a.peers {
				total += k.size
			}
			peers, counted, forgotten := len(a.peers), a.kept.bytes, len(a.kept.forgotten)
			a.mu.Unlock()
			if peers > maxPeers || total > maxPeerBytes || total != counted || forgotten > maxPeers {
				t.Fatalf("there are %d peers with %d bytes (counted: %d), and %d forgotten peers; want at most maxPeers and maxPeerBytes", peers, total, counted, forgotten)
			}
			if i == 3 {
				c = s.start(3, nil, []string{"192.0.2.1"})
				eventually.True(t, 10*time.Second, "the third host is connected", func() bool { return a.Reachable(c.Self()) })
			}
			time.Sleep(2 * time.Second)
		}
		for _, h := range []*host{b, c} {
			if record(a, h).Identity == nil || !a.Reachable(h.Self()) {
				t.Errorf("host %s is forgotten or unreachable; want it known and reachable", h.Own().Nickname)
			}
		}
		if len(a.Full(peersName)) > maxPeerBytes+maxPeers*8 {
			t.Errorf("the state for push/pull has %d bytes; want at most maxPeerBytes and 8 for each peer", len(a.Full(peersName)))
		}
		if n := len(a.disk.Peers()); n != 4 { // host a, the two connected hosts, and the unreachable peer that owns addresses
			t.Errorf("%d peer records are stored; want 4", n)
		}
		s.end(a, b, c)
	})
}

// Full returns the whole state of one kind.
func (m *Mesh) Full(replica string) []byte { return m.replicas[replica].Full() }

// An older release stored any number of records. As many are loaded as there is room for.
func TestExcessStoredRecordsAreDropped(t *testing.T) {
	disk := &meshtest.Disk{}
	for i := range maxPeers + 500 {
		data := inventedRecord(t, i)
		s, err := peer.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		if err := disk.SavePeers(map[peer.ID][]byte{s.Record.ID(): data}); err != nil {
			t.Fatal(err)
		}
	}
	m := still(t, 1, func(c *Config) {
		c.Store, c.Peers = disk, slices.Collect(maps.Values(disk.Peers()))
	})
	if n := len(m.Peers()); n < maxPeers/2 || n > maxPeers {
		t.Errorf("%d stored peers were loaded; want maxPeers/2 to maxPeers", n)
	}
	if err := m.save(); err != nil || len(disk.Peers()) > maxPeers {
		t.Errorf("after save, %d records are stored, error %v; want at most maxPeers", len(disk.Peers()), err)
	}
}

// A peer that owns nothing and is unreachable for a day is forgotten by all hosts, although they
// send each other its record. If it returns later, it is accepted at once.
func TestUnreachablePeersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(32)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		gone := s.start(3, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "all hosts are connected", func() bool { return allReach([]*host{a, b, gone})() && record(a, gone).Identity != nil })
		s.net.Partition(func(x, y netip.Addr) bool { return x == address(3).Addr() || y == address(3).Addr() })
		knows := func(h *host) bool { return record(h, gone).Identity != nil }
		eventually.True(t, time.Minute, "the third host is unreachable", allReach([]*host{a, b}))
		for _, h := range []*host{a, b} { // simulating a whole day would take too long
			h.mu.Lock()
			k := h.peers[gone.Self()]
			k.heard = k.heard.Add(5*time.Minute - forgetAfter)
			h.mu.Unlock()
		}
		time.Sleep(2 * time.Minute)
		if !knows(a) || !knows(b) {
			t.Error("the peer was forgotten too early; want it known for a day")
		}
		time.Sleep(5 * time.Minute)
		if knows(a) || knows(b) || len(a.disk.Peers()) != 2 {
			t.Errorf("after a day, the two hosts know the peer: %v, %v, and %d records are stored; want false, false and 2", knows(a), knows(b), len(a.disk.Peers()))
		}
		s.net.Heal()
		eventually.True(t, 2*time.Minute, "the third host is connected again", allReach([]*host{a, b, gone}))
		s.end(a, b, gone)
	})
}

// ForgetPeer forgets a peer on all hosts at once, unless it is reachable or owns addresses.
func TestForgetPeerForgetsOnAllHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(33)}
		owner := peer.IDOf(identity(4).Public().(ed25519.PublicKey))
		owns := func(c *Config) { c.Owns = func(id peer.ID) bool { return id == owner } }
		a := s.start(1, nil, nil, owns)
		to := []string{"192.0.2.1"}
		b, gone, owning := s.start(2, nil, to, owns), s.start(3, nil, to, owns), s.start(4, nil, to, owns)
		eventually.True(t, 10*time.Second, "all hosts are connected", func() bool { return allReach([]*host{a, b, gone, owning})() && record(b, gone).Identity != nil })
		if err := a.ForgetPeer(t.Context(), gone.Self()); err == nil || !strings.Contains(err.Error(), "alive") {
			t.Errorf("forgetting a reachable peer: got %v, want a refusal", err)
		}
		s.end(gone, owning)
		if err := a.ForgetPeer(t.Context(), gone.Self()); err != nil {
			t.Error(err)
		}
		if err := a.ForgetPeer(t.Context(), owner); err == nil || !strings.Contains(err.Error(), "owns") {
			t.Errorf("forgetting an owner of addresses: got %v, want a refusal", err)
		}
		time.Sleep(time.Minute) // push/pull must not restore the forgotten record
		for _, h := range []*host{a, b} {
			if record(h, gone).Identity != nil || record(h, owning).Identity == nil {
				t.Errorf("%s, which knows %d peers, still knows the forgotten peer or forgot the owner of addresses; want neither", h.Own().Nickname, len(h.Peers()))
			}
		}
		s.end(a, b)
	})
}

// A record with another peer's WireGuard key is refused. A key that its peer no longer uses can be
// used by another peer.
func TestWireGuardKeyBelongsToOnePeer(t *testing.T) {
	own, theirs, free := [32]byte{1}, [32]byte{2}, [32]byte{3}
	m := still(t, 1, func(c *Config) { c.Record.WireGuard = own })
	say := func(i int, sequence uint64, key [32]byte) bool {
		t.Helper()
		s, err := signed(peer.Record{WireGuard: key, Sequence: sequence}, identity(i))
		if err != nil {
			t.Fatal(err)
		}
		news, err := m.mergeRecord(s.Encode())
		if news != (err == nil) {
			t.Errorf("mergeRecord returned news %v with error %v; want exactly one of them", news, err)
		}
		return news
	}
	if !say(2, 1, theirs) || say(3, 1, theirs) || say(3, 1, own) || !say(3, 1, free) || say(3, 2, theirs) {
		t.Error("a record with another peer's key was accepted, or one with a free key refused; want neither")
	}
	if !say(2, 2, [32]byte{4}) || !say(3, 3, theirs) {
		t.Error("a key that its peer no longer uses was refused; want it accepted")
	}
	if err := m.forgetSilent(peer.IDOf(identity(3).Public().(ed25519.PublicKey))); err != nil {
		t.Fatal(err)
	}
	if !say(4, 1, theirs) || !say(5, 1, [32]byte{}) || !say(6, 1, [32]byte{}) {
		t.Error("a record with the key of a forgotten peer, or without a key, was refused; want it accepted")
	}
}

// The signature of a record that is not news is not verified.
func TestSignaturesOfKnownRecordsAreNotVerifiedAgain(t *testing.T) {
	m := still(t, 1)
	data := inventedRecord(t, 1)
	if news, err := m.mergeRecord(data); err != nil || !news {
		t.Fatalf("merging a new record returned news %v, error %v; want news", news, err)
	}
	forged := bytes.Clone(data)
	forged[len(forged)-1] ^= 1
	if news, err := m.mergeRecord(forged); news || err != nil {
		t.Errorf("the signature of a known record was verified: error %v, want none", err)
	}
	m.mu.Lock()
	for id := range m.peers {
		if id != m.self {
			m.forget(id)
		}
	}
	clear(m.kept.forgotten)
	m.mu.Unlock()
	if news, err := m.mergeRecord(forged); news || err == nil {
		t.Error("after the original was forgotten, a forged record was accepted; want an error")
	}
}

// A host can join even if the largest number of peers is known.
func TestHostJoinsWhenPeerTableIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(34)}
		a := s.start(1, nil, nil)
		var records [][]byte
		for i := range maxPeers - 1 {
			records = append(records, inventedRecord(t, i))
		}
		a.merge(peersName, encode(records))
		if n := len(a.Peers()); n != maxPeers {
			t.Fatalf("%d peers are known; want maxPeers", n)
		}
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 5*time.Minute, "the new host is connected", func() bool { return a.Reachable(b.Self()) })
		s.end(a, b)
	})
}

// A malicious member invents peers at addresses that do not answer. Known peers are still rejoined
// as soon as before.
func TestInventedPeersDoNotDelayRejoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(36)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool { return allReach([]*host{a, b})() && record(a, b).Identity != nil })
		if err := b.Forget([]string{"192.0.2.1"}); err != nil {
			t.Fatal(err)
		}
		var records [][]byte
		for i := range 1000 {
			records = append(records, inventedRecord(t, i))
			s.net.Join(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), Port))
		}
		s.net.HangDials()
		s.net.Partition(func(netip.Addr, netip.Addr) bool { return true })
		for _, h := range []*host{a, b} {
			h.merge(peersName, encode(records))
		}
		time.Sleep(5 * time.Minute)
		s.net.Partition(func(_, to netip.Addr) bool { return to.As4()[0] == 198 })
		eventually.True(t, time.Minute, "both hosts are connected again", allReach([]*host{a, b}))
		s.end(a, b)
	})
}
