package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// end is a Transport, and what happened at it.
type end struct {
	*Transport
	addr netip.AddrPort
	run  string

	mu       sync.Mutex
	served   []*Stream
	refused  []string
	older    int
	incoming []string // packets, as RUN: CONTENT
}

func (e *end) locked(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

func (e *end) got() (out []string) {
	e.locked(func() { out = append(out, e.incoming...) })
	return out
}

func (e *end) refusals() (out []string) {
	e.locked(func() { out = append(out, e.refused...) })
	return out
}

func runName(i, start int) string { return fmt.Sprintf("%v-%020x", meshtest.ID(i), start) }

// start returns the transport of run number start of peer i. A stream for requests waits in served.
func start(t testing.TB, n *meshtest.Network, i, start int, change ...func(*Config)) *end {
	t.Helper()
	e := &end{addr: meshtest.Address(i), run: runName(i, start)}
	cfg := Config{
		Identity: meshtest.Identity(i), Run: e.run, Network: n.Join(e.addr),
		Show:    func(use Use) []byte { return fmt.Appendf(nil, "shown by %d for %d", i, use) },
		Welcome: func(Peer, Use) error { return nil },
		Gossip:  func(s *Stream) net.Conn { return s },
		Serve:   func(s *Stream) { e.locked(func() { e.served = append(e.served, s) }) },
		Incoming: func(from Peer, content []byte) []byte {
			e.locked(func() { e.incoming = append(e.incoming, from.Run+": "+string(content)) })
			return content
		},
		Outgoing: func(string, []byte) {},
		Knows:    func(netip.Addr) bool { return true }, Older: func(net.Conn) { e.locked(func() { e.older++ }) },
		Refused: func(_, reason string) { e.locked(func() { e.refused = append(e.refused, reason) }) },
	}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if e.Transport, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return e
}

// stop ends transports, and waits for the goroutines of their streams.
func stop(t testing.TB, ends ...*end) {
	t.Helper()
	for _, e := range ends {
		e.locked(func() {
			for _, s := range e.served {
				s.Close()
			}
		})
		if err := e.Shutdown(); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(time.Minute)
	synctest.Wait()
}

func (e *end) at() memberlist.Address { return memberlist.Address{Addr: e.addr.String(), Name: e.run} }

func (e *end) send(to *end, text string) { _, _ = e.WriteToAddress([]byte(text), to.at()) }

// Both ends of a stream know the other's key, id, run and body, and have the same binding, which no other
// stream has.
func TestBothEndsKnowEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := start(t, n, 1, 1), start(t, n, 2, 1)
		var bindings [][]byte
		for range 2 {
			s, err := a.Ask(b.at(), Request, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			synctest.Wait()
			far := b.served[len(b.served)-1]
			for _, c := range []struct {
				got  Peer
				i    int
				body string
			}{{s.Peer, 2, "shown by 2 for 3"}, {far.Peer, 1, "shown by 1 for 3"}} {
				if !c.got.Key.Equal(meshtest.Identity(c.i).Public()) || c.got.ID != meshtest.ID(c.i) || c.got.Run != runName(c.i, 1) ||
					string(c.got.Body) != c.body || c.got.Addr != meshtest.Address(c.i) {
					t.Errorf("one end sees %+v at the other; want peer %d with body %q", c.got, c.i, c.body)
				}
			}
			if s.Use != Request || far.Use != Request || !bytes.Equal(s.Binding, far.Binding) || len(s.Binding) != 32 {
				t.Errorf("the ends have the uses %d and %d and the bindings %x and %x; want the same", s.Use, far.Use, s.Binding, far.Binding)
			}
			bindings = append(bindings, s.Binding)
			go func() { _, _ = far.Write([]byte("word")) }()
			word := make([]byte, 4)
			if _, err := io.ReadFull(s, word); err != nil || string(word) != "word" {
				t.Errorf("the stream carries %q, error %v; want word", word, err)
			}
		}
		if bytes.Equal(bindings[0], bindings[1]) {
			t.Error("two streams have the same binding; want different ones")
		}
		stop(t, a, b)
	})
}

// A stream reaches only the run that was addressed. An empty name addresses any run.
func TestStreamToAnotherRunIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := start(t, n, 1, 1), start(t, n, 2, 2)
		if _, err := a.Ask(memberlist.Address{Addr: b.addr.String(), Name: runName(2, 1)}, Request, time.Second); !errors.Is(err, errOther) {
			t.Errorf("a stream to an earlier run returned %v; want errOther", err)
		}
		if a.table.to(b.run) != nil {
			t.Error("after a refused stream there is a session; want none")
		}
		s, err := a.Ask(memberlist.Address{Addr: b.addr.String()}, Request, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if _, err := a.Ask(a.at(), Request, time.Second); !errors.Is(err, errItself) {
			t.Errorf("a stream to the host itself returned %v; want errItself", err)
		}
		synctest.Wait()
		if len(a.refusals())+len(b.refusals()) > 0 {
			t.Errorf("the ends report the refusals %v and %v; want none", a.refusals(), b.refusals())
		}
		stop(t, a, b)
	})
}

// A peer cannot call its run as if it were another peer's, whoever dials.
func TestRunWithNameOfAnotherPeerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a := start(t, n, 1, 1)
		liar := start(t, n, 2, 1, func(c *Config) { c.Run = runName(3, 1) })
		for _, way := range [][2]*end{{a, liar}, {liar, a}} {
			_, err := way[0].Ask(memberlist.Address{Addr: way[1].addr.String()}, Request, time.Second)
			if err == nil || (way[0] == liar) != strings.Contains(err.Error(), "was refused") {
				t.Errorf("a run with the name of another peer got the error %v; want a refusal", err)
			}
		}
		synctest.Wait()
		for _, e := range []*end{a, liar} {
			if len(e.served) > 0 || len(e.table.byRun) > 0 || len(e.table.byIndex) > 0 {
				t.Errorf("%d streams were served, and keys for %d runs are left; want none", len(e.served), len(e.table.byRun))
			}
		}
		stop(t, a, liar)
	})
}

// A refusal by Welcome reaches the other side with its reason, also if the reason is long or not legible.
func TestRefusalReachesOtherSide(t *testing.T) {
	for name, reason := range map[string]string{
		"plain": "it is not a member", "long": strings.Repeat("é", maxRefuse), "with lines": "one\ntwo\x00\xff",
	} {
		for _, who := range []string{"the dialing side", "the accepting side"} {
			t.Run(name+" by "+who, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := meshtest.New(1)
					refuse := func(c *Config) { c.Welcome = func(Peer, Use) error { return errors.New(reason) } }
					a, b := start(t, n, 1, 1), start(t, n, 2, 1, refuse)
					if who == "the dialing side" {
						a, b = b, a
					}
					_, err := a.Ask(b.at(), Request, time.Second)
					refusal, ok := errors.AsType[*Refusal](err)
					if !ok || refusal.Ours != (who == "the dialing side") {
						t.Fatalf("the stream failed with %v; want a refusal by %s", err, who)
					}
					want := legible(reason)
					if !refusal.Ours && refusal.Reason != want {
						t.Errorf("the dialing side is told %q; want %q", refusal.Reason, want)
					}
					time.Sleep(proofTimeout)
					synctest.Wait()
					if refusal.Ours && len(b.refusals()) > 0 { // it is no host that the accepting side refused
						t.Errorf("the accepting side reports %q; want no report", b.refusals())
					}
					if !refusal.Ours && (len(b.refusals()) != 1 || b.refusals()[0] != reason) {
						t.Errorf("the accepting side reports %q; want the reason, once", b.refusals())
					}
					if len(b.served) > 0 || len(a.table.byIndex)+len(b.table.byIndex) > 0 {
						t.Error("a refused stream was served, or left keys; want neither")
					}
					stop(t, a, b)
				})
			})
		}
	}
}

// Each use of a stream reaches its user. A host that asks to become a member gets no packets.
func TestStreamsReachTheirUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := start(t, n, 1, 1), start(t, n, 2, 1)
		s, err := a.Ask(b.at(), Admit, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(b.served) != 1 || b.served[0].Use != Admit {
			t.Errorf("the streams %v were served; want one for admission", b.served)
		}
		if b.table.to(a.run) != nil || len(a.table.byIndex)+len(b.table.byIndex) > 0 {
			t.Error("a host that asks to become a member has a session for packets; want none")
		}
		s.Close()
		g, err := a.DialAddressTimeout(b.at(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		far := <-b.StreamCh()
		go func() { _, _ = g.Write([]byte("x")) }()
		if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
			t.Errorf("memberlist's stream failed: %v; want one byte", err)
		}
		g.Close()
		far.Close()
		if a.table.to(b.run) == nil || b.table.to(a.run) == nil {
			t.Error("after memberlist's stream an end has no session for packets; want one at both")
		}
		if _, err := a.WriteTo([]byte("x"), b.addr.String()); err == nil {
			t.Error("a packet without the name of a run was sent; want an error")
		}
		stop(t, a, b)
		if err := a.Shutdown(); err != nil {
			t.Errorf("a second Shutdown returned %v; want no error", err)
		}
	})
}

// The time for a stream includes that of the dial.
func TestAskEndsWithinItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a := start(t, n, 1, 1, func(c *Config) { c.Network = slow{c.Network, 900 * time.Millisecond} })
		mute := n.Join(meshtest.Address(2))
		begin := time.Now()
		_, err := a.Ask(memberlist.Address{Addr: meshtest.Address(2).String()}, Request, time.Second)
		if took := time.Since(begin); err == nil || took > time.Second {
			t.Errorf("a stream to a silent host returned %v after %v; want an error within a second", err, took)
		}
		_ = mute.Shutdown()
		stop(t, a)
	})
}

// slow is a network on which each dial takes a while.
type slow struct {
	memberlist.Transport
	dial time.Duration
}

func (s slow) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	time.Sleep(s.dial)
	return s.Transport.DialTimeout(addr, timeout)
}
