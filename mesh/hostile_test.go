package mesh

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// still returns a mesh that does not run.
func still(t *testing.T, i int, options ...option) *Mesh {
	t.Helper()
	cfg := Config{
		Identity: identity(i), Store: &meshtest.Disk{}, Changed: func() {},
		Record: peer.Record{Underlay: []netip.Addr{address(i).Addr()}},
		Log:    slog.New(slog.DiscardHandler),
	}
	shares(secret.Secret{1})(&cfg)
	for _, o := range options {
		o(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Garbage from any source address fills neither memory nor log, and causes no change notification.
func TestInvalidMessagesAreBoundedAndCauseNoNotification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes, log := 0, &bytes.Buffer{}
		m := still(t, 1, func(c *Config) {
			c.Changed, c.Log = func() { changes++ }, slog.New(slog.NewTextHandler(log, nil))
		})
		for i := range 1000 {
			m.reject(fmt.Sprintf("192.0.2.%d", i%256), "it is another program")
		}
		if lines := bytes.Count(log.Bytes(), []byte("\n")); changes > 0 || lines != 1 || len(m.Rejections()) != maxRejections {
			t.Errorf("invalid packets caused %d change notifications, %d log lines and %d rejections; want none, 1 and maxRejections", changes, lines, len(m.Rejections()))
		}
		time.Sleep(rejectionLife + time.Second)
		if n := len(m.Rejections()); n != 0 {
			t.Errorf("%d rejections are shown after rejectionLife; want 0", n)
		}
	})
}

// A replayed request is not served again, neither by this run of the agent nor by the next run.
func TestInvariant7RequestsAreServedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(8)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "both hosts are connected", func() bool { return allReach([]*host{a, b})() && record(b, a).Identity != nil })
		for range 3 {
			if _, err := a.Request(t.Context(), b.Self(), "echo", []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		a.mu.Lock()
		msg := message{ID: uint64(a.nonce)<<32 | 2, From: a.self, To: b.self, Kind: "echo", Run: a.peers[b.self].node}
		a.mu.Unlock()
		captured := a.sign(msg)
		b.serve(t.Context(), captured, nil)
		synctest.Wait()
		if n := b.echoed.Load(); n != 3 {
			t.Errorf("3 requests and a replay were served %d times; want 3", n)
		}
		s.end(b)
		again := s.start(2, b.disk, []string{"192.0.2.1"})
		eventually.True(t, time.Minute, "the restarted host is connected", allReach([]*host{a, again}))
		again.serve(t.Context(), captured, nil)
		synctest.Wait()
		if n := again.echoed.Load(); n != 0 {
			t.Errorf("the next run served %d replayed requests of the previous run; want 0", n)
		}
		s.end(a, again)
	})
}

// A peer that restarts any number of times is still answered, and uses bounded memory.
func TestReplayWindowsAreBoundedPerPeer(t *testing.T) {
	m := still(t, 1)
	id := peer.ID{7}
	m.peers[id] = &known{}
	for run := range uint64(4 * maxRuns) {
		for i := range uint64(2) {
			if err := m.once(message{ID: run<<32 | i + 1, From: id, Run: m.name}); err != nil {
				t.Fatalf("a new message of run %d was refused: error %v, want none", run, err)
			}
		}
		for old := range min(run+1, maxRuns/2) {
			if m.once(message{ID: (run-old)<<32 | 1, From: id, Run: m.name}) == nil {
				t.Fatalf("a replayed request of run %d was served in run %d; want it refused", run-old, run)
			}
		}
	}
	if n := len(m.peers[id].asked); n > maxRuns {
		t.Errorf("%d replay windows of one peer are stored; want at most maxRuns", n)
	}
}

// Late reports of a peer's earlier run, and of its end, do not affect the current run.
func TestLateReportsAboutEarlierRunsOfAgentAreIgnored(t *testing.T) {
	m := still(t, 1)
	id := peer.IDOf(identity(2).Public().(ed25519.PublicKey))
	signed, err := signed(peer.Record{Underlay: []netip.Addr{address(2).Addr(), address(3).Addr()}, Gossip: Port}, identity(2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.mergeRecord(signed.Encode()); err != nil {
		t.Fatal(err)
	}
	old := &memberlist.Node{Name: id.String() + "-00000001", Addr: net.IPv4(192, 0, 2, 2), Port: Port}
	now := &memberlist.Node{Name: id.String() + "-00000002", Addr: net.IPv4(192, 0, 2, 3), Port: Port}
	e := events{m}
	for _, n := range []*memberlist.Node{now, old} {
		e.NotifyJoin(n)
		if m.peers[id].node == n.Name {
			t.Errorf("run %s has proven nothing, but counts as reachable; want it unreachable", n.Name)
		}
		m.proved(m.peers[id].runs[n.Name], true)
	}
	e.NotifyLeave(old)
	if !m.Reachable(id) || m.peers[id].node != now.Name || m.peers[id].addr != address(3).Addr() {
		t.Errorf("late reports about the old run changed the peer's state to %+v; want the new run reachable", m.peers[id])
	}
	e.NotifyLeave(now)
	if m.Reachable(id) {
		t.Error("the run has ended, but its peer is reachable; want it unreachable")
	}
}

// Of two hosts with one identity, for example cloned machines, the host that started last stops
// with an error. A host that was restored from an older state is accepted at once.
func TestLaterHostWithSameIdentityStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(9)}
		a := s.start(1, nil, nil)
		restored := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 10*time.Second, "the host's record arrives", func() bool { return record(a, restored).Identity != nil })
		s.end(restored)
		restored = s.start(2, nil, []string{"192.0.2.1"}, func(c *Config) { c.Record.Nickname = "restored" })
		eventually.True(t, time.Minute, "the restored host's new record is accepted", func() bool { return record(a, restored).Nickname == "restored" })
		if r := restored.Rejections(); len(r) != 0 {
			t.Errorf("the restored host reports the rejections %v; want none", r)
		}
		twin := s.start(3, nil, []string{"192.0.2.1"}, func(c *Config) { c.Identity = identity(2) })
		before := record(a, restored).Sequence
		if err := <-twin.done; !errors.Is(err, ErrTwin) {
			t.Errorf("the host that started last ended with %v, want ErrTwin", err)
		}
		time.Sleep(time.Minute)
		if n := record(a, restored).Sequence - before; n > 30 {
			t.Errorf("%d new records were written in a minute; want at most 30", n)
		}
		if r := twin.Rejections(); len(r) != 1 || r[0].Addr != "192.0.2.2" {
			t.Errorf("the host that started last reports the rejections %v, want one with the restored host's address", r)
		}
		if got := record(a, restored).Underlay; len(got) != 1 || got[0] != address(2).Addr() {
			t.Errorf("other peers know the addresses %v of the restored host; want only its current one", got)
		}
		s.end(a, restored)
	})
}

// A partitioned host that knows many peers stops as fast as any other host: the timeouts of pending
// joins do not add up.
func TestStopDoesNotWaitForUnreachablePeers(t *testing.T) {
	for name, after := range map[string]time.Duration{"just partitioned": 100 * time.Millisecond, "partitioned for long": 5 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &cluster{t, meshtest.New(10)}
				var hosts []*host
				for i := 1; i <= 12; i++ {
					hosts = append(hosts, s.start(i, nil, []string{"192.0.2.1"}, func(c *Config) {
						c.Record.Underlay = append(c.Record.Underlay, netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}))
					}))
				}
				eventually.True(t, time.Minute, "all hosts are connected", allReach(hosts))
				s.net.HangDials()
				s.net.Partition(func(a, b netip.Addr) bool { return true })
				time.Sleep(after)
				start := time.Now()
				hosts[0].stop()
				if err := <-hosts[0].done; err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > 6*time.Second {
					t.Errorf("stopping the host took %v; want at most 6 s", took)
				}
				s.end(hosts[1:]...)
			})
		})
	}
}

func TestReplayWindowAcceptsEachNumberOnce(t *testing.T) {
	var w window
	for i, tt := range []struct {
		n    uint32
		want bool
	}{{1, true}, {1, false}, {3, true}, {2, true}, {2, false}, {100, true}, {3, false}, {36, false}, {37, true}, {37, false}, {1 << 31, true}, {100, false}} {
		if got := w.fresh(tt.n); got != tt.want {
			t.Errorf("step %d: fresh(%d) is %v; want the opposite", i, tt.n, got)
		}
	}
}
