package mesh

import (
	"context"
	"io"
	"log"
	"math"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/session"
)

// liar is an admitted peer that sends whatever it likes.
type liar struct {
	*session.Transport
	list *memberlist.Memberlist
}

// join starts a liar as peer 9.
func (s *cluster) liar() *liar {
	s.t.Helper()
	name := nodeName(idOf(9), time.Now())
	l := &liar{Transport: sessionsOf(s.t, s.net, 9, name, func(c *session.Config) {
		c.Incoming = func(_ session.Peer, content []byte) []byte { return question(content) }
	})}
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.Transport, conf.AdvertiseAddr, conf.AdvertisePort = name, l.Transport, address(9).Addr().String(), Port
	conf.Delegate, conf.Logger, conf.EnableCompression = silentMember{greeting(identity(9), name, address(9))}, log.New(io.Discard, "", 0), false
	var err error
	if l.list, err = memberlist.Create(conf); err != nil {
		s.t.Fatal(err)
	}
	if _, err := l.list.Join([]string{address(1).String()}); err != nil {
		s.t.Fatal(err)
	}
	return l
}

// question returns the first message of a packet if it is a ping or an answer. So the liar's memberlist
// lives, and says nothing of others but what the test makes it say.
func question(packet []byte) []byte {
	if packet[0] == 12 { // a checksum
		packet = packet[5:]
	}
	if packet[0] == 7 { // a compound
		packet = packet[2+2*int(packet[1]):]
	}
	if packet[0] > 2 {
		return nil
	}
	return packet
}

// packed encodes as memberlist does.
func packed(kind byte, parts ...any) []byte {
	out := []byte{kind}
	for _, v := range parts {
		var part []byte
		if err := codec.NewEncoderBytes(&part, &codec.MsgpackHandle{}).Encode(v); err != nil {
			panic(err)
		}
		out = append(out, part...)
	}
	return out
}

type fields = map[string]any

// forge sends a packet to hosts.
func (l *liar) forge(packet []byte, to ...*host) {
	for _, h := range to {
		_, _ = l.WriteToAddress(packet, memberlist.Address{Addr: h.transport.Advertised().String(), Name: h.name})
	}
}

// stream sends a message on a stream to a host.
func (l *liar) stream(message []byte, to *host) {
	c, err := l.DialAddressTimeout(memberlist.Address{Addr: to.transport.Advertised().String(), Name: to.name}, time.Second)
	if err != nil {
		return
	}
	_ = c.SetDeadline(time.Now().Add(time.Second))
	go func() { _, _ = io.Copy(io.Discard, c) }()
	_, _ = c.Write(message)
	time.Sleep(100 * time.Millisecond)
	c.Close()
}

// vsn are the protocol versions that memberlist sends.
var vsn = []byte{1, 5, 2, 0, 0, 0}

// A peer that is admitted lies about a live peer. That peer stays reachable, or is reachable again within
// 5 seconds, and the liar is named.
func TestInvariant7LiesAboutLivePeerHaveNoLastingEffect(t *testing.T) {
	const dead, alive, suspect, pushPull = 5, 4, 3, 6
	about := func(b *host, incarnation uint32) fields {
		return fields{"Incarnation": incarnation, "Node": b.name, "From": ""}
	}
	said := func(kind byte, incarnation func(b *host) uint32) func(*liar, *host, []*host) {
		return func(l *liar, b *host, all []*host) {
			f := about(b, incarnation(b))
			f["From"] = l.list.LocalNode().Name
			l.forge(packed(kind, f), all...)
			f["From"] = b.name
			l.forge(packed(kind, f), all...)
		}
	}
	ceiling := func(more uint32) func(b *host) uint32 {
		return func(b *host) uint32 {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.hello.Ceiling + more
		}
	}
	top := func(*host) uint32 { return math.MaxUint32 }
	state := func(b *host, kind int, addr netip.AddrPort, incarnation uint32) fields {
		n := b.list.LocalNode()
		return fields{"Name": b.name, "Addr": addr.Addr().AsSlice(), "Port": addr.Port(), "Meta": n.Meta, "Incarnation": incarnation, "State": kind, "Vsn": vsn}
	}
	for name, c := range map[string]struct {
		attack  func(*liar, *host, []*host)
		unnamed bool // the message cannot be told from one of an honest peer
	}{
		"dead at once":           {attack: said(dead, func(*host) uint32 { return 1 })},
		"dead at the ceiling":    {attack: said(dead, ceiling(0))},
		"dead above the ceiling": {attack: said(dead, ceiling(1))},
		"dead at the top":        {attack: said(dead, top)},
		"suspect at the ceiling": {attack: said(suspect, ceiling(0)), unnamed: true},
		"suspect at the top":     {attack: said(suspect, top), unnamed: true},
		"suspect in a loop": {unnamed: true, attack: func(l *liar, b *host, all []*host) {
			for i := range uint32(3000) {
				said(suspect, func(*host) uint32 { return i })(l, b, all)
				time.Sleep(10 * time.Millisecond)
			}
		}},
		"dead in a loop": {attack: func(l *liar, b *host, all []*host) {
			for i := range uint32(1500) {
				said(dead, func(*host) uint32 { return i })(l, b, all)
				time.Sleep(20 * time.Millisecond)
			}
		}},
		"alive at another address": {attack: func(l *liar, b *host, all []*host) {
			n := b.list.LocalNode()
			for _, i := range []uint32{1, 100, math.MaxUint32} {
				l.forge(packed(alive, fields{"Incarnation": i, "Node": b.name, "Addr": address(9).Addr().AsSlice(), "Port": Port, "Meta": n.Meta, "Vsn": vsn}), all...)
			}
		}},
		"alive at the top": {attack: func(l *liar, b *host, all []*host) {
			l.forge(packed(alive, fields{"Incarnation": uint32(math.MaxUint32), "Node": b.name, "Addr": address(2).Addr().AsSlice(), "Port": Port, "Meta": b.list.LocalNode().Meta, "Vsn": vsn}), all...)
		}},
		"of another version, at the top": {attack: func(l *liar, b *host, all []*host) {
			n, other := b.list.LocalNode(), encode(helloWire{Version: Version + 1})
			for _, i := range []uint32{2, math.MaxUint32} {
				l.forge(packed(alive, fields{"Incarnation": i, "Node": b.name, "Addr": n.Addr.To4(), "Port": Port, "Meta": other, "Vsn": vsn}), all...)
				for _, h := range all {
					for _, kind := range []int{1, 2, 3} {
						f := state(b, kind, address(2), i)
						f["Meta"] = other
						l.stream(packed(pushPull, fields{"Nodes": 1, "UserStateLen": 0, "Join": false}, f), h)
					}
				}
			}
		}},
		"left, in a push/pull": {attack: func(l *liar, b *host, all []*host) {
			for _, i := range []uint32{0, 1, 100, ceiling(0)(b), math.MaxUint32} {
				for _, h := range all {
					l.stream(packed(pushPull, fields{"Nodes": 1, "UserStateLen": 0, "Join": true}, state(b, 3, address(2), i)), h)
				}
			}
		}},
		"dead and moved, in a push/pull": {attack: func(l *liar, b *host, all []*host) {
			for _, kind := range []int{0, 2, 3} {
				for _, h := range all {
					l.stream(packed(pushPull, fields{"Nodes": 1, "UserStateLen": 0, "Join": true}, state(b, kind, address(9), 7)), h)
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &cluster{t, meshtest.New(61)}
				hosts := []*host{s.start(1, nil, nil)}
				for i := 2; i <= 4; i++ {
					hosts = append(hosts, s.start(i, nil, []string{"192.0.2.1"}))
				}
				eventually.True(t, 20*time.Second, "all hosts are connected", allReach(hosts))
				time.Sleep(20 * time.Second)
				l := s.liar()
				time.Sleep(2 * time.Second)
				var done sync.WaitGroup
				done.Go(func() { c.attack(l, hosts[1], hosts) })
				lost, worst := map[string]time.Time{}, time.Duration(0)
				for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
					for _, h := range hosts {
						for _, o := range hosts {
							key := h.name + o.name
							switch since, down := lost[key]; {
							case h == o:
							case h.Reachable(o.Self()):
								delete(lost, key)
							case !down:
								lost[key] = time.Now()
							default:
								worst = max(worst, time.Since(since))
							}
						}
					}
				}
				done.Wait()
				if worst > 5*time.Second {
					t.Errorf("a live peer was unreachable for %v; want at most 5 s", worst)
				}
				named := false
				for _, h := range hosts {
					for _, r := range h.Rejections() {
						named = named || r.Addr == address(9).Addr().String()
						if r.Addr != address(9).Addr().String() {
							t.Errorf("an honest host is accused: %+v; want only the liar", r)
						}
					}
				}
				if !named && !c.unnamed {
					t.Error("no host names the liar; want it named")
				}
				if err := hosts[0].ping(hosts[1]); err != nil {
					t.Error(err)
				}
				_ = l.list.Shutdown()
				s.end(hosts...)
			})
		})
	}
}

// ping sends a request to another host.
func (h *host) ping(o *host) error {
	_, err := h.Request(context.Background(), o.Self(), "echo", []byte("x"))
	return err
}

// A recording of all packets is sent again, also to a host that has restarted. Nothing changes.
func TestInvariant7ReplayOfAllPacketsChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(62)}
		var mu sync.Mutex
		var packets []recorded
		s.net.Tap(func(to netip.AddrPort, p *memberlist.Packet) {
			mu.Lock()
			defer mu.Unlock()
			packets = append(packets, recorded{to, &memberlist.Packet{Buf: append([]byte(nil), p.Buf...), From: p.From}})
		})
		hosts := []*host{s.start(1, nil, nil), s.start(2, nil, []string{"192.0.2.1"}), s.start(3, nil, []string{"192.0.2.1"})}
		eventually.True(t, 20*time.Second, "all hosts are connected", allReach(hosts))
		for range 20 {
			for i := range hosts {
				if err := hosts[i].ping(hosts[(i+1)%3]); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(20 * time.Second)
		check := func(when string, echoed ...int32) {
			t.Helper()
			for i, h := range hosts {
				if h.echoed.Load() != echoed[i] || h.reachableCount() != 3 || len(h.Rejections()) > 0 {
					t.Errorf("%s: host %d served %d requests, reaches %d hosts, and reports %v; want %d, 3 and nothing", when, i+1, h.echoed.Load(), h.reachableCount(), h.Rejections(), echoed[i])
				}
			}
		}
		check("before", 20, 20, 20)
		s.net.Tap(nil)
		for _, r := range packets {
			s.net.Send(r.to, r.packet)
			s.net.Send(hosts[0].transport.Advertised(), r.packet)
			synctest.Wait()
		}
		time.Sleep(5 * time.Second)
		check("after the replay", 20, 20, 20)
		disk := hosts[1].disk
		s.end(hosts[1])
		hosts[1] = s.start(2, disk, []string{"192.0.2.1"})
		eventually.True(t, time.Minute, "the restarted host is connected", allReach(hosts))
		for _, r := range packets {
			s.net.Send(r.to, r.packet)
			s.net.Send(hosts[1].transport.Advertised(), r.packet)
			synctest.Wait()
		}
		time.Sleep(5 * time.Second)
		check("after the replay at a restarted host", 20, 0, 20)
		if err := hosts[0].ping(hosts[1]); err != nil {
			t.Error(err)
		}
		s.end(hosts...)
	})
}

// An admitted peer announces large messages on many streams, and sends what fits. That takes bounded memory,
// and other peers are served.
func TestLargeMessagesOfOnePeerTakeBoundedMemory(t *testing.T) {
	const user, pushPull = 8, 6
	for name, head := range map[string][]byte{
		"user messages": packed(user, fields{"UserMsgLen": 20 << 20}), "push/pulls": packed(pushPull, fields{"Nodes": 0, "UserStateLen": 20 << 20, "Join": false}),
		"user messages that are allowed": packed(user, fields{"UserMsgLen": maxStream - 1<<10}), "push/pulls that are allowed": packed(pushPull, fields{"Nodes": 0, "UserStateLen": maxStream - 1<<10, "Join": false}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &cluster{t, meshtest.New(63)}
				a, b := s.start(1, nil, nil), s.start(2, nil, []string{"192.0.2.1"})
				eventually.True(t, 20*time.Second, "both hosts are connected", allReach([]*host{a, b}))
				l := s.liar()
				before := occupied()
				var streams sync.WaitGroup
				for range 64 {
					streams.Go(func() {
						c, err := l.DialAddressTimeout(memberlist.Address{Addr: address(1).String(), Name: a.name}, time.Second)
						if err != nil {
							return
						}
						defer c.Close()
						go func() { _, _ = io.Copy(io.Discard, c) }()
						flood(c, head)
					})
				}
				if worst := mostOccupied(before); worst > 50<<20 {
					t.Errorf("the messages take %d bytes; want at most 50 MiB", worst)
				}
				if err := b.ping(a); err != nil {
					t.Errorf("meanwhile another peer is not served: %v", err)
				}
				if _, err := b.list.Join([]string{address(1).String()}); err != nil {
					t.Errorf("meanwhile another peer cannot exchange states: %v", err)
				}
				streams.Wait()
				holdsNothing(t, a)
				_ = l.list.Shutdown()
				s.end(a, b)
			})
		})
	}
}

// flood sends the head of a message, and then data until the stream ends.
func flood(c net.Conn, head []byte) {
	_, _ = c.Write(head)
	for chunk := make([]byte, 1<<14); ; {
		if _, err := c.Write(chunk); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// mostOccupied watches the heap for a while, and returns by how many bytes it grew at most.
func mostOccupied(before int) (worst int) {
	for range 20 {
		time.Sleep(30 * time.Millisecond)
		worst = max(worst, occupied()-before)
	}
	return worst
}

// holdsNothing asserts that no message counts in the budget once all streams have ended.
func holdsNothing(t *testing.T, h *host) {
	t.Helper()
	time.Sleep(2 * streamTimeout)
	h.budget.mu.Lock()
	defer h.budget.mu.Unlock()
	if h.budget.total != 0 || len(h.budget.of) != 0 {
		t.Errorf("after all streams have ended, %d bytes count as held; want none", h.budget.total)
	}
}

// occupied returns the bytes of the heap.
func occupied() int {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return int(s.HeapAlloc)
}
