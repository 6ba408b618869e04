package judge_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"weft/mesh/judge"
)

// village is a few hosts whose memberlists only hear each other through their judges.
type village struct {
	mu      sync.Mutex
	hosts   map[string]*host
	left    []string // runs that have signed that they leave
	silent  string   // a run whose packets and streams are lost
	accused []string // "liar about run", as any host says
}

// host is memberlist's transport, its delegates, and the rules of its judge.
type host struct {
	village *village
	name    string
	addr    *net.UDPAddr
	judge   *judge.Judge
	list    *memberlist.Memberlist
	packets chan *memberlist.Packet
	streams chan net.Conn

	mu      sync.Mutex
	members map[string]bool
	lost    []string // runs that memberlist once took for gone
	heard   [][]byte // user messages and user states
}

const ceiling = 1000

func (v *village) add(t *testing.T, name string) *host {
	t.Helper()
	h := &host{
		village: v, name: name, members: map[string]bool{},
		addr:    &net.UDPAddr{IP: net.IPv4(192, 0, 2, byte(len(v.hosts)+1)).To4(), Port: 6783},
		packets: make(chan *memberlist.Packet, 256), streams: make(chan net.Conn, 16),
	}
	h.judge = judge.New(h)
	v.mu.Lock()
	v.hosts[name] = h
	v.mu.Unlock()
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.Transport, conf.RequireNodeNames, conf.EnableCompression = name, h, true, false
	conf.Delegate, conf.Events, conf.Logger = h, h, log.New(io.Discard, "", 0)
	conf.BindPort = h.addr.Port
	list, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	h.list = list
	return h
}

func (v *village) peer(from, to string) *host {
	v.mu.Lock()
	defer v.mu.Unlock()
	if from == v.silent || to == v.silent {
		return nil
	}
	return v.hosts[to]
}

// These are the judge's rules. Metadata reads "NAME ADDRESS".

func (h *host) Self() string { return h.name }

func (h *host) Ceiling(run string) (uint32, bool) {
	h.village.mu.Lock()
	defer h.village.mu.Unlock()
	return ceiling, h.village.hosts[run] != nil
}

func (h *host) CeilingIn(meta []byte, name string, addr netip.Addr, port uint16) (uint32, error) {
	if string(meta) != fmt.Sprintf("%s %v", name, netip.AddrPortFrom(addr, port)) {
		return 0, errors.New("forged")
	}
	return ceiling, nil
}

func (h *host) Left(run string) bool {
	h.village.mu.Lock()
	defer h.village.mu.Unlock()
	return slices.Contains(h.village.left, run)
}

func (h *host) Told(uint32) {}

func (h *host) Doubted(string)      {}
func (h *host) Excused(string) bool { return false }

func (h *host) Accuse(liar, about, _ string) {
	h.village.mu.Lock()
	defer h.village.mu.Unlock()
	h.village.accused = append(h.village.accused, liar+" about "+about)
}

// This is the transport.

func (h *host) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return h.addr.IP, h.addr.Port, nil
}
func (h *host) PacketCh() <-chan *memberlist.Packet { return h.packets }
func (h *host) StreamCh() <-chan net.Conn           { return h.streams }
func (h *host) Shutdown() error                     { return nil }

func (h *host) WriteTo(b []byte, addr string) (time.Time, error) {
	return h.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (h *host) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	h.judge.Sent(a.Name, b)
	if p := h.village.peer(h.name, a.Name); p != nil {
		p.receive(h.name, h.addr, b)
	}
	return time.Now(), nil
}

func (h *host) receive(sender string, from net.Addr, packet []byte) {
	out, ok := h.judge.Packet(sender, bytes.Clone(packet))
	if !ok {
		return
	}
	select {
	case h.packets <- &memberlist.Packet{Buf: out, From: from, Timestamp: time.Now()}:
	default:
	}
}

func (h *host) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	return h.DialAddressTimeout(memberlist.Address{Addr: addr}, d)
}

func (h *host) DialAddressTimeout(a memberlist.Address, _ time.Duration) (net.Conn, error) {
	p := h.village.peer(h.name, a.Name)
	if p == nil {
		return nil, fmt.Errorf("no way to %v", &a)
	}
	near, far := net.Pipe()
	p.streams <- &conn{Conn: far, judge: p.judge, sender: h.name}
	return &conn{Conn: near, judge: h.judge, sender: p.name}, nil
}

// conn judges what the peer at its other end says.
type conn struct {
	net.Conn
	judge  *judge.Judge
	sender string
	passed io.Reader
}

func (c *conn) Read(p []byte) (int, error) {
	if c.passed == nil {
		out, err := c.judge.Stream(c.sender, c.Conn, 1<<20)
		if err != nil {
			return 0, err
		}
		c.passed = bytes.NewReader(out)
	}
	return c.passed.Read(p)
}

// These are memberlist's delegates.

func (h *host) NodeMeta(int) []byte { return fmt.Appendf(nil, "%s %v", h.name, h.addr) }

func (h *host) NotifyMsg(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard = append(h.heard, bytes.Clone(b))
}

func (h *host) GetBroadcasts(int, int) [][]byte   { return nil }
func (h *host) LocalState(bool) []byte            { return []byte("state of " + h.name) }
func (h *host) MergeRemoteState(b []byte, _ bool) { h.NotifyMsg(b) }
func (h *host) NotifyUpdate(*memberlist.Node)     {}
func (h *host) NotifyJoin(n *memberlist.Node)     { h.note(n.Name, true) }
func (h *host) NotifyLeave(n *memberlist.Node)    { h.note(n.Name, false) }

func (h *host) note(run string, joined bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.members[run] = joined
	if !joined {
		h.lost = append(h.lost, run)
	}
}

func (h *host) sees(run string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.members[run]
}

func (h *host) everLost(run string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.lost, run)
}

func (h *host) heardText(text string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.heard, func(b []byte) bool { return string(b) == text })
}

func within(t *testing.T, d time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v it does not hold that %s", d, what)
		}
	}
}

// simulate runs a test with three hosts that have found each other, in virtual time.
func simulate(t *testing.T, test func(t *testing.T, v *village, a, b, c *host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		v := &village{hosts: map[string]*host{}}
		a, b, c := v.add(t, "a"), v.add(t, "b"), v.add(t, "c")
		all := []*host{a, b, c}
		for _, h := range []*host{b, c} {
			if n, err := h.list.Join([]string{"a/" + a.addr.String()}); n != 1 || err != nil {
				t.Fatalf("%s could not join: %v", h.name, err)
			}
		}
		within(t, 10*time.Second, "all hosts see each other", func() bool {
			return !slices.ContainsFunc(all, func(h *host) bool { return !h.sees("a") || !h.sees("b") || !h.sees("c") })
		})
		test(t, v, a, b, c)
		for _, h := range all {
			if err := h.list.Shutdown(); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Minute) // memberlist's timers end
	})
}

func TestHostsConverge(t *testing.T) {
	simulate(t, func(t *testing.T, v *village, a, b, c *host) {
		if !a.heardText("state of b") || !b.heardText("state of a") {
			t.Error("the user states of a push/pull did not arrive, want both")
		}
		for _, n := range a.list.Members() {
			if n.Name == "b" {
				if err := a.list.SendBestEffort(n, []byte("by packet")); err != nil {
					t.Error(err)
				}
				if err := a.list.SendReliable(n, []byte("by stream")); err != nil {
					t.Error(err)
				}
			}
		}
		within(t, time.Second, "both user messages arrive", func() bool { return b.heardText("by packet") && b.heardText("by stream") })
		time.Sleep(5 * time.Minute)
		for _, h := range []*host{a, b, c} {
			if len(h.lost) > 0 || len(v.accused) > 0 || h.list.GetHealthScore() != 0 {
				t.Errorf("%s lost %v, has the health score %d, and the accused are %v, want a quiet mesh", h.name, h.lost, h.list.GetHealthScore(), v.accused)
			}
		}
	})
}

func TestLeaveIsSeen(t *testing.T) {
	simulate(t, func(t *testing.T, v *village, a, b, c *host) {
		v.mu.Lock()
		v.left = []string{"c"}
		v.mu.Unlock()
		if err := c.list.Leave(5 * time.Second); err != nil {
			t.Error(err)
		}
		// A suspicion would need 4 s more.
		within(t, 3*time.Second, "a and b see that c left", func() bool { return !a.sees("c") && !b.sees("c") })
		if len(v.accused) > 0 {
			t.Errorf("accused are %v, want nobody", v.accused)
		}
	})
}

func TestDeathIsSeen(t *testing.T) {
	simulate(t, func(t *testing.T, v *village, a, b, _ *host) {
		v.mu.Lock()
		v.silent = "c"
		v.mu.Unlock()
		within(t, time.Minute, "a and b see that c is dead", func() bool { return !a.sees("c") && !b.sees("c") })
	})
}

// One host declares another dead again and again. The others suspect it, it refutes, and nobody
// loses it.
func TestSuspicionIsRefuted(t *testing.T) {
	simulate(t, func(t *testing.T, v *village, a, b, c *host) {
		for incarnation := range 30 {
			forged := []byte{5}
			fields := map[string]any{"Incarnation": incarnation + 1, "Node": "c", "From": "a"}
			var body []byte
			if err := codec.NewEncoderBytes(&body, &codec.MsgpackHandle{}).Encode(fields); err != nil {
				t.Fatal(err)
			}
			forged = append(forged, body...)
			b.receive("a", a.addr, forged)
			c.receive("a", a.addr, forged)
			time.Sleep(2 * time.Second)
		}
		time.Sleep(time.Minute)
		if a.everLost("c") || b.everLost("c") || !b.sees("c") {
			t.Errorf("a lost %v, b lost %v, want that nobody loses c", a.lost, b.lost)
		}
		v.mu.Lock()
		early := slices.Contains(v.accused, "a about c")
		v.accused = nil
		v.mu.Unlock()
		if !early {
			t.Error("c did not accuse a, want it accused at once")
		}
		b.judge.Alive("c")
		if !slices.Equal(v.accused, []string{"a about c"}) {
			t.Errorf("when b hears c, the accused are %v, want a once", v.accused)
		}
	})
}
