package mesh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/member"
	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// Simulated peers have numbers: identity returns the key of peer n, idOf the id, and address the
// address.
var identity, idOf, address = meshtest.Identity, meshtest.ID, meshtest.Address

// counter is a Replica whose state is the largest number received.
type counter struct {
	mu sync.Mutex
	n  byte
}

func (c *counter) Name() string { return "counter" }
func (c *counter) Full() []byte { return []byte{c.get()} }

func (c *counter) get() byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *counter) Merge(data []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(data) != 1 {
		return nil, errors.New("counter: want one byte")
	}
	if data[0] <= c.n {
		return nil, nil
	}
	c.n = data[0]
	return data, nil
}

// host is one run of a simulated peer.
type host struct {
	*Mesh
	counter *counter
	echoed  atomic.Int32
	disk    *meshtest.Disk
	stop    context.CancelFunc
	done    chan error
}

// cluster is a set of hosts, each with a whole mesh, on a network that carries memberlist's packets.
type cluster struct {
	t   *testing.T
	net *meshtest.Network
}

type option func(*Config)

// signed returns the record of a holder of the tests' secret.
func signed(r peer.Record, key ed25519.PrivateKey) (peer.Signed, error) {
	c := Config{Identity: key}
	shares(secret.Secret{1})(&c)
	r.Certificate = c.Certificate
	return peer.Sign(r, key)
}

// shares makes a host one that holds a secret.
func shares(s secret.Secret) option {
	return func(c *Config) {
		c.Root, c.GossipKey = s.Root().Public().(ed25519.PublicKey), s.GossipKey()
		c.Certificate = member.Certify(s.Root(), c.Identity.Public().(ed25519.PublicKey), member.Holder).Encode()
	}
}

func (s *cluster) start(i int, disk *meshtest.Disk, targets []string, options ...option) *host {
	s.t.Helper()
	return s.startWith(nil, i, disk, targets, options...)
}

// apart drops what two hosts send to each other.
func (s *cluster) apart(i, j int) {
	x, y := address(i).Addr(), address(j).Addr()
	s.net.Partition(func(a, b netip.Addr) bool { return a == x && b == y || a == y && b == x })
}

// startWith starts a peer with additional replicas.
func (s *cluster) startWith(more []Replica, i int, disk *meshtest.Disk, targets []string, options ...option) *host {
	s.t.Helper()
	h := s.make(more, i, disk, targets, options...)
	h.run()
	return h
}

func (s *cluster) make(more []Replica, i int, disk *meshtest.Disk, targets []string, options ...option) *host {
	s.t.Helper()
	if disk == nil {
		disk = &meshtest.Disk{}
	}
	cfg := Config{
		Identity: identity(i),
		Record:   peer.Record{Nickname: fmt.Sprintf("h%d", i), Underlay: []netip.Addr{address(i).Addr()}, Port: 6784, Gossip: Port},
		Targets:  targets, Peers: slices.Collect(maps.Values(disk.Peers())), Store: disk, Port: Port,
		Log: slog.New(slog.DiscardHandler), Changed: func() {},
		Transport: s.net.Join(address(i)),
	}
	for _, o := range options {
		o(&cfg)
	}
	if cfg.Root == nil {
		shares(secret.Secret{1})(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	h := &host{Mesh: m, counter: &counter{}, disk: disk, done: make(chan error, 1)}
	m.Replicate(h.counter)
	for _, r := range more {
		m.Replicate(r)
	}
	m.Handle("echo", func(_ context.Context, from peer.ID, p []byte) ([]byte, error) {
		h.echoed.Add(1)
		if len(p) == 0 {
			return nil, errors.New("nothing to echo")
		}
		return append([]byte(from.String()+" "), p...), nil
	})
	m.Handle("slow", func(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	return h
}

func (h *host) run() {
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	go func() { h.done <- h.Run(ctx) }()
}

// end stops hosts, and waits for memberlist, whose Shutdown does not wait.
func (s *cluster) end(hosts ...*host) {
	for _, h := range hosts {
		h.stop()
		if err := <-h.done; err != nil {
			s.t.Error(err)
		}
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()
}

func allReach(hosts []*host) func() bool {
	return func() bool {
		for _, h := range hosts {
			if h.reachableCount() != len(hosts) {
				return false
			}
		}
		return true
	}
}

// Twenty peers know only the first one. All states converge, although a tenth of the packets is
// lost, and also after a partition of ten minutes.
func TestTwentyPeersConverge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(1)}
		s.net.SetLoss(0.1)
		s.net.SetDelay(5 * time.Millisecond)
		hosts := []*host{s.start(1, nil, nil)}
		for i := 2; i <= 20; i++ {
			hosts = append(hosts, s.start(i, nil, []string{"192.0.2.1"}))
		}
		eventually.True(t, time.Minute, "all hosts are connected", allReach(hosts))

		if _, err := hosts[3].counter.Merge([]byte{7}); err != nil {
			t.Fatal(err)
		}
		hosts[3].Broadcast("counter", []byte{7})
		eventually.True(t, 10*time.Second, "a delta reaches all hosts", func() bool {
			for _, h := range hosts {
				if h.counter.get() != 7 {
					return false
				}
			}
			return true
		})

		if err := hosts[2].Update(func(r *peer.Record) { r.MTUs = []uint32{9000} }); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, 10*time.Second, "the MTU of a changed record is known on another host", func() bool { return len(record(hosts[19], hosts[2]).MTUs) == 1 })

		side := func(a netip.Addr) bool { return a.As4()[3] <= 8 }
		s.net.Partition(func(a, b netip.Addr) bool { return side(a) != side(b) })
		eventually.True(t, 2*time.Minute, "both sides notice the partition", func() bool {
			return hosts[0].reachableCount() == 8 && hosts[19].reachableCount() == 12
		})
		if err := hosts[0].Update(func(r *peer.Record) { r.Node = 77 }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if got := record(hosts[19], hosts[0]).Node; got != 0 {
			t.Fatalf("during the partition the record arrived: node slot %d, want 0", got)
		}
		s.net.Heal()
		eventually.True(t, 2*time.Minute, "all hosts are connected again", allReach(hosts))
		eventually.True(t, time.Minute, "the record arrives", func() bool { return record(hosts[19], hosts[0]).Node == 77 })
		s.end(hosts...)
	})
}

func record(at, of *host) peer.Record { return peerAt(at, of).Record }

// peerAt returns what the host at knows of the host of; the zero Peer if at knows nothing of it.
func peerAt(at, of *host) Peer {
	for _, p := range at.Peers() {
		if p.Record.ID() == of.Self() {
			return p
		}
	}
	return Peer{}
}

func TestStoppedLeftAndUnreachablePeersAreDistinguished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(2)}
		a := s.start(1, nil, nil)
		to := []string{"192.0.2.1"}
		stopped, left, vanished := s.start(2, nil, to), s.start(3, nil, to), s.start(4, nil, to)
		hosts := []*host{a, stopped, left, vanished}
		eventually.True(t, 10*time.Second, "all hosts are connected", allReach(hosts))

		s.net.Partition(func(x, y netip.Addr) bool { return x == address(4).Addr() || y == address(4).Addr() })
		left.Farewell(peer.Left)
		s.end(stopped, left)
		for h, want := range map[*host]peer.State{stopped: peer.Stopped, left: peer.Left, vanished: peer.Running} {
			if got := record(a, h).State; got != want {
				t.Errorf("the record of host %v has the state %v; want %v", h.Own().Nickname, got, want)
			}
			if a.Reachable(h.Self()) {
				t.Errorf("host %v is reachable after it ended; want it lost", h.Own().Nickname)
			}
		}
		s.end(a, vanished)
	})
}

// A peer that restarts without targets, at a new address, rejoins through its stored peers under
// its old id.
func TestRestartRejoinsThroughStoredPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(3)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", allReach([]*host{a, b}))
		eventually.True(t, 10*time.Second, "records are exchanged", func() bool { return len(b.disk.Peers()) == 2 })
		s.end(b)
		moved := s.start(2, b.disk, nil, func(c *Config) {
			c.Record.Underlay = []netip.Addr{address(9).Addr()}
			c.Transport = s.net.Join(address(9))
		})
		eventually.True(t, time.Minute, "both hosts are connected again", allReach([]*host{a, moved}))
		eventually.True(t, time.Minute, "the new address is known", func() bool {
			r := record(a, moved)
			return len(r.Underlay) == 1 && r.Underlay[0] == address(9).Addr() && r.State == peer.Running
		})
		s.end(a, moved)
	})
}

func TestRequestReturnsReplyOrError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(4)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool {
			return allReach([]*host{a, b})() && record(a, b).Identity != nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for x, y := range map[*host]*host{a: b, b: a} { // as if the records had not arrived by gossip yet
			x.mu.Lock()
			x.peers[y.Self()].signed = peer.Signed{}
			x.mu.Unlock()
		}
		b.mu.Lock()
		b.peers[a.Self()].node = ""
		b.mu.Unlock()
		got, err := a.Request(ctx, b.Self(), "echo", []byte("hello"))
		if err != nil || string(got) != a.Self().String()+" hello" {
			t.Errorf("the reply to echo is %q, error %v; want the sender and its text", got, err)
		}
		var refused *RefusedError
		if _, err := a.Request(ctx, b.Self(), "echo", nil); !errors.As(err, &refused) {
			t.Errorf("a refused request returned %v; want a RefusedError", err)
		}
		if _, err := a.Request(ctx, b.Self(), "no such thing", nil); !errors.As(err, &refused) {
			t.Errorf("a request of an unknown kind returned %v; want a RefusedError", err)
		}
		if _, err := a.Request(ctx, peer.ID{9}, "echo", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("a request to an unknown peer returned %v; want ErrUnreachable", err)
		}
		s.end(a, b)
	})
}

// Invariant 7: a host without the secret cannot join, and both sides report why.
func TestInvariant7WrongSecretIsRefusedOnBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(5)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"}, shares(secret.Secret{2}))
		time.Sleep(10 * time.Second)
		if a.reachableCount() != 1 || b.reachableCount() != 1 {
			t.Error("a peer with another secret was accepted; want it refused")
		}
		if err := b.Targets()[0].Err; err == nil || !strings.Contains(err.Error(), "wrong secret") || !strings.Contains(err.Error(), "192.0.2.1") {
			t.Errorf("the joining host reports %v; want 'wrong secret' with the other host's address", err)
		}
		if r := a.Rejections(); len(r) != 1 || r[0].Addr != "192.0.2.2" || !strings.Contains(r[0].Reason, "wrong secret") || r[0].Count < 2 {
			t.Errorf("the other host reports the rejections %+v; want one with 'wrong secret' and the address", r)
		}
		s.end(a, b)
	})
}

// Invariant 7: a peer that knows only the secret cannot impersonate another peer.
func TestInvariant7RecordsAreSignedByTheirPeer(t *testing.T) {
	r := peer.Record{Nickname: "x", Sequence: 1}
	signed, err := signed(r, identity(1))
	if err != nil {
		t.Fatal(err)
	}
	m := still(t, 2)
	good := signed.Encode()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if news, err := (peersReplica{m}).Merge(encode([][]byte{bad})); news != nil || err == nil {
			t.Fatalf("a record with byte %d changed was accepted: news %v, error %v; want an error", i, news, err)
		}
	}
	if news, err := (peersReplica{m}).Merge(encode([][]byte{good})); news == nil || err != nil {
		t.Fatalf("merging the valid record returned news %v, error %v; want news", news, err)
	}
	if news, err := (peersReplica{m}).Merge(encode([][]byte{good})); news != nil || err != nil {
		t.Fatalf("the same record again: news %v, error %v; want neither", news, err)
	}
}

func TestMismatchedVersionOrRangeIsRefused(t *testing.T) {
	other := slot.Universe{V4: netip.MustParsePrefix("10.99.0.0/16")}
	ours := slot.Universe{V4: slot.DefaultV4}
	for name, tt := range map[string]struct {
		change  option
		version uint
		want    string
	}{
		"universe": {func(c *Config) { c.Universe = other }, Version, "10.99.0.0/16"},
		"version":  {func(*Config) {}, Version + 1, "upgrade the older one"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &cluster{t, meshtest.New(7)}
				a := s.start(1, nil, nil, func(c *Config) { c.Universe = ours })
				b := s.start(2, nil, []string{"192.0.2.1"}, tt.change)
				b.mu.Lock()
				b.hello.Version = tt.version
				b.mu.Unlock()
				time.Sleep(10 * time.Second)
				if a.reachableCount() != 1 || b.reachableCount() != 1 {
					t.Error("a peer with another universe or version was accepted; want it refused")
				}
				if err := b.Targets()[0].Err; err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("the joining host reports %v; want %q", err, tt.want)
				}
				if r := a.Rejections(); len(r) != 1 || !strings.Contains(r[0].Reason, tt.want) {
					t.Errorf("the other host reports the rejections %+v; want one with %q", r, tt.want)
				}
				s.end(a, b)
			})
		})
	}
}

// Records that another version stored do not prevent the start.
func TestUnreadableStoredRecordsAreIgnored(t *testing.T) {
	signed, err := signed(peer.Record{Nickname: "x", Sequence: 1}, identity(1))
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Clone(signed.Encode())
	newer[len(newer)-1] ^= 1
	m := still(t, 2, func(c *Config) { c.Peers = [][]byte{newer, signed.Encode(), []byte("x")} })
	if others := m.Others(); len(others) != 1 || others[0] != signed.Record.ID() {
		t.Errorf("known peers are %v, want only the one with a valid record", others)
	}
}

func TestCheckTargetRefusesInvalidTargets(t *testing.T) {
	for _, good := range []string{"192.0.2.1", "node1.example", "node1:6783", "2001:db8::1", "[2001:db8::1]:6783", "127.0.0.1", "h1", "host.example.", "1and1.example"} {
		if err := CheckTarget(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{
		"", "a b", "-x", "host:port", "host:70000", "http://x", "x/24",
		"300.1.2.3", "300.1.2.3:6783", "192.0.2", "192.0.2.1.", "2001:db8::zz", "1", "h1:0", "1.2.3.4:", "a,b", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255",
	} {
		if CheckTarget(bad) == nil {
			t.Errorf("CheckTarget accepted the invalid target %q; want an error", bad)
		}
	}
}

// No data from the network causes a panic or changes this peer's own record or targets.
func FuzzReceive(f *testing.F) {
	signed, _ := signed(peer.Record{Nickname: "x"}, identity(1))
	f.Add(encode(envelope{Kind: kindDelta, Replica: peersName, Payload: encode([][]byte{signed.Encode()})}))
	f.Add(encode(envelope{Kind: kindRequest, Payload: encode(signedMessage{Message: encode(message{ID: 1, Kind: "echo"}), Signature: make([]byte, 64), Record: signed.Encode()})}))
	f.Add(encode(envelope{Kind: kindReply, Payload: encode(signedMessage{Message: encode(message{ID: 1, IsReply: true})})}))
	f.Add([]byte{0xa1, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := still(t, 2)
		m.receive(t.Context(), data)
		delegate{m}.MergeRemoteState(data, true)
		_, _ = logWriter{m}.Write(data)
		if m.Own().Sequence != 0 || len(m.Targets()) != 0 {
			t.Fatal("data from the network changed our own record or targets; want both unchanged")
		}
	})
}

// gathered is a Replica whose state is the set of all words received. It has no state for
// push/pull, so everything in it arrived by gossip.
type gathered struct {
	mu    sync.Mutex
	words map[string]bool
}

func (*gathered) Name() string { return "gathered" }
func (*gathered) Full() []byte { return nil }

func (g *gathered) Merge(data []byte) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.words[string(data)] {
		return nil, nil
	}
	g.words[string(data)] = true
	return data, nil
}

// Without packet loss, gossip delivers every delta to every peer, without push/pull.
func TestGossipReachesEveryPeer(t *testing.T) {
	if testing.Short() {
		t.Skip("short: 60 hosts take minutes under the race detector, and this test is about probabilities, not races")
	}
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(12)}
		s.net.SetDelay(time.Millisecond)
		var hosts []*host
		var heard []*gathered
		for i := 1; i <= 60; i++ {
			g := &gathered{words: map[string]bool{}}
			heard = append(heard, g)
			hosts = append(hosts, s.startWith([]Replica{g}, i, nil, []string{"192.0.2.1"}))
		}
		eventually.True(t, time.Minute, "all hosts are connected", allReach(hosts))
		const news = 100
		for n := range news {
			word := fmt.Appendf(nil, "word %d", n)
			i := n % len(hosts)
			_, _ = heard[i].Merge(word)
			hosts[i].Broadcast("gathered", word)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		for i, g := range heard {
			if len(g.words) != news {
				t.Errorf("host %d received %d of %d broadcast words; want all", i+1, len(g.words), news)
			}
		}
		s.end(hosts...)
	})
}
