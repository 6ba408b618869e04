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
	"weft/mesh/peer"
)

// still makes a mesh that does not run.
func still(t *testing.T, i int, options ...option) *Mesh {
	t.Helper()
	cfg := Config{
		Identity: identity(i), Store: &memory{peers: map[peer.ID][]byte{}}, Changed: func() {},
		Record: peer.Record{Underlay: []netip.Addr{address(i).Addr()}},
		Log:    slog.New(slog.DiscardHandler),
	}
	for _, o := range options {
		o(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Anybody can send garbage, with any source: it fills neither memory nor log, and
// makes nobody look at the whole data path.
func TestStrangersCostLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes, log := 0, &bytes.Buffer{}
		m := still(t, 1, func(c *Config) {
			c.Changed, c.Log = func() { changes++ }, slog.New(slog.NewTextHandler(log, nil))
		})
		for i := range 1000 {
			fmt.Fprintf(logWriter{m}, "[ERR] memberlist: Decrypt packet failed: x from=192.0.2.%d:%d\n", i%256, i)
		}
		if lines := bytes.Count(log.Bytes(), []byte("\n")); changes > 0 || lines != 1 || len(m.Rejections()) != maxRejections {
			t.Errorf("%d changes, %d lines in the log, %d rejections", changes, lines, len(m.Rejections()))
		}
		time.Sleep(rejectionLife + time.Second)
		if n := len(m.Rejections()); n != 0 {
			t.Errorf("%d are still shown", n)
		}
	})
}

// Who listens on the underlay sends the same bytes again: they are not served twice,
// neither by this run of the agent nor by the next.
func TestInvariant7RequestsAreServedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(8)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "both are here", func() bool { return allReach([]*host{a, b})() && record(b, a).Identity != nil })
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
			t.Errorf("served %d times what was asked 3 times", n)
		}
		s.end(b)
		again := s.start(2, b.store, []string{"192.0.2.1"})
		s.eventually(time.Minute, "it is back", allReach([]*host{a, again}))
		again.serve(t.Context(), captured, nil)
		synctest.Wait()
		if n := again.echoed.Load(); n != 0 {
			t.Error("the next run served a request of the last")
		}
		s.end(a, again)
	})
}

// A peer that starts anew again and again is answered as on the first day, and costs no more.
func TestAPeerThatStartsOftenIsAnswered(t *testing.T) {
	m := still(t, 1)
	id := peer.ID{7}
	m.peers[id] = &known{}
	for run := range uint64(4 * maxRuns) {
		for i := range uint64(2) {
			if err := m.once(message{ID: run<<32 | i + 1, From: id, Run: m.name}); err != nil {
				t.Fatalf("run %d: %v", run, err)
			}
		}
		for old := range min(run+1, maxRuns/2) {
			if m.once(message{ID: (run-old)<<32 | 1, From: id, Run: m.name}) == nil {
				t.Fatalf("run %d was served a second time in run %d", run-old, run)
			}
		}
	}
	if n := len(m.peers[id].asked); n > maxRuns {
		t.Errorf("%d runs of one peer are remembered", n)
	}
}

// A late rumour of a peer's old run, and its end, do not hide the run that is there.
func TestOldRunsHideNobody(t *testing.T) {
	m := still(t, 1)
	id := peer.IDOf(identity(2).Public().(ed25519.PublicKey))
	signed, err := peer.Sign(peer.Record{Underlay: []netip.Addr{address(2).Addr(), address(3).Addr()}, Gossip: Port}, identity(2))
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
			t.Errorf("%s counts before it has proved to be alive", n.Name)
		}
		m.proved(m.peers[id].runs[n.Name], true)
	}
	e.NotifyLeave(old)
	if !m.Reachable(id) || m.peers[id].node != now.Name || m.peers[id].addr != address(3).Addr() {
		t.Errorf("after the rumour: %+v", m.peers[id])
	}
	e.NotifyLeave(now)
	if m.Reachable(id) {
		t.Error("it is reachable after its end")
	}
}

// Of two hosts with one identity, as cloned machines have, the one that was started last
// stops, and says why. One that restored an older state is believed at once.
func TestOneOfTwinsStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t, meshtest.New(9)}
		a := s.start(1, nil, nil)
		restored := s.start(2, nil, []string{"192.0.2.1"})
		s.eventually(10*time.Second, "it is here", func() bool { return record(a, restored).Identity != nil })
		s.end(restored)
		restored = s.start(2, nil, []string{"192.0.2.1"}, func(c *Config) { c.Record.Nickname = "restored" })
		s.eventually(time.Minute, "its new word counts", func() bool { return record(a, restored).Nickname == "restored" })
		if r := restored.Rejections(); len(r) != 0 {
			t.Errorf("a restored host: %v", r)
		}
		twin := s.start(3, nil, []string{"192.0.2.1"}, func(c *Config) { c.Identity = identity(2) })
		before := record(a, restored).Sequence
		if err := <-twin.done; !errors.Is(err, ErrTwin) {
			t.Errorf("the twin that was started last ends with %v", err)
		}
		time.Sleep(time.Minute)
		if n := record(a, restored).Sequence - before; n > 30 {
			t.Errorf("%d words since then", n)
		}
		if r := twin.Rejections(); len(r) != 1 || r[0].Addr != "192.0.2.2" {
			t.Errorf("it names %v", r)
		}
		if got := record(a, restored).Underlay; len(got) != 1 || got[0] != address(2).Addr() {
			t.Errorf("the mesh believes it at %v", got)
		}
		s.end(a, restored)
	})
}

// A host that reaches nobody any more, and knows many, stops as fast as any other:
// attempts to join that hang do not add up.
func TestStopDoesNotWaitForTheUnreachable(t *testing.T) {
	for name, after := range map[string]time.Duration{"just cut off": 100 * time.Millisecond, "long cut off": 5 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sim{t, meshtest.New(10)}
				var hosts []*host
				for i := 1; i <= 12; i++ {
					hosts = append(hosts, s.start(i, nil, []string{"192.0.2.1"}, func(c *Config) {
						c.Record.Underlay = append(c.Record.Underlay, netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}))
					}))
				}
				s.eventually(time.Minute, "all are here", allReach(hosts))
				s.net.Hang()
				s.net.Partition(func(a, b netip.Addr) bool { return true })
				time.Sleep(after)
				start := time.Now()
				hosts[0].stop()
				if err := <-hosts[0].done; err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > 6*time.Second {
					t.Errorf("it took %v to stop", took)
				}
				s.end(hosts[1:]...)
			})
		})
	}
}

func TestWindow(t *testing.T) {
	var w window
	for i, tt := range []struct {
		n    uint32
		want bool
	}{{1, true}, {1, false}, {3, true}, {2, true}, {2, false}, {100, true}, {3, false}, {36, false}, {37, true}, {37, false}, {1 << 31, true}, {100, false}} {
		if got := w.fresh(tt.n); got != tt.want {
			t.Errorf("step %d, number %d: %v", i, tt.n, got)
		}
	}
}
